-- What happened, for people. Decisions never read it.
CREATE TABLE IF NOT EXISTS events (
    id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    at DATETIME(6) NOT NULL,
    kind VARCHAR(40) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    user_id BIGINT UNSIGNED NULL,
    node_id BIGINT UNSIGNED NULL,
    rental_id BIGINT UNSIGNED NULL,
    detail VARCHAR(2000) CHARACTER SET utf8mb4 NULL,
    KEY events_rental (rental_id, id),
    KEY events_node (node_id, id)
) ENGINE = InnoDB;
