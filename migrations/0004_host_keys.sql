-- The SSH host keys a node is pinned to. A key belongs to one node: machines cloned with their keys can't be told apart.
CREATE TABLE IF NOT EXISTS host_keys (
    host_key VARCHAR(1024) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
    node_id BIGINT UNSIGNED NOT NULL,
    pinned_at DATETIME(6) NOT NULL,
    KEY host_keys_node (node_id),
    CONSTRAINT host_keys_node FOREIGN KEY (node_id) REFERENCES nodes (id)
) ENGINE = InnoDB;
