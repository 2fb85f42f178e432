-- Apart from nodes and without a foreign key to them, so that beats never wait for a node's row: one that is locked
-- would hold up the whole batch. Rows of nodes are never deleted.
CREATE TABLE IF NOT EXISTS beats (
    node_id BIGINT UNSIGNED NOT NULL PRIMARY KEY,
    beat_at DATETIME(6) NOT NULL,
    boot_id VARCHAR(64) CHARACTER SET utf8mb4 NOT NULL,
    agent VARCHAR(32) CHARACTER SET utf8mb4 NOT NULL
) ENGINE = InnoDB;
