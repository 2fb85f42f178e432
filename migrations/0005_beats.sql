-- Apart from nodes, so that a beat neither waits for a node's row nor makes a compare-and-set on it fail.
CREATE TABLE IF NOT EXISTS beats (
    node_id BIGINT UNSIGNED NOT NULL PRIMARY KEY,
    beat_at DATETIME(6) NOT NULL,
    boot_id VARCHAR(64) CHARACTER SET utf8mb4 NOT NULL,
    agent VARCHAR(32) CHARACTER SET utf8mb4 NOT NULL,
    CONSTRAINT beats_node FOREIGN KEY (node_id) REFERENCES nodes (id)
) ENGINE = InnoDB;
