-- Every Unix account that may exist anywhere. held_node makes it impossible to hold a node twice.
CREATE TABLE IF NOT EXISTS accounts (
    id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    rental_id BIGINT UNSIGNED NOT NULL,
    node_id BIGINT UNSIGNED NOT NULL,
    uid INT UNSIGNED NOT NULL,
    epoch BIGINT UNSIGNED NOT NULL,
    state VARCHAR(8) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    state_since DATETIME(6) NOT NULL,
    evidence LONGTEXT CHARACTER SET utf8mb4 NULL,
    evidence_at DATETIME(6) NULL,
    held_node BIGINT UNSIGNED AS (IF(state <> 'gone', node_id, NULL)) VIRTUAL,
    UNIQUE KEY accounts_held_node (held_node),
    KEY accounts_rental (rental_id),
    KEY accounts_state (state),
    KEY accounts_node (node_id),
    CONSTRAINT accounts_rental FOREIGN KEY (rental_id) REFERENCES rentals (id),
    CONSTRAINT accounts_node FOREIGN KEY (node_id) REFERENCES nodes (id),
    CONSTRAINT accounts_state CHECK (state IN ('making', 'present', 'leaving', 'gone')),
    CONSTRAINT accounts_epoch CHECK (epoch > 0),
    CONSTRAINT accounts_gone_was_seen CHECK (state <> 'gone' OR evidence_at IS NOT NULL)
) ENGINE = InnoDB;
