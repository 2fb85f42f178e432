-- One call of rent. apid_request_id tells after a lost COMMIT answer whether the row is there.
CREATE TABLE IF NOT EXISTS requests (
    id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    user_id BIGINT UNSIGNED NOT NULL,
    state VARCHAR(8) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    undo_reason VARCHAR(12) CHARACTER SET ascii COLLATE ascii_bin NULL,
    node_count INT UNSIGNED NOT NULL,
    duration_us BIGINT UNSIGNED NOT NULL,
    apid_request_id CHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    idempotency_key VARBINARY(255) NULL,
    body_digest BINARY(32) NULL,
    digest_key_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NULL,
    created_at DATETIME(6) NOT NULL,
    deadline_at DATETIME(6) NOT NULL,
    settled_at DATETIME(6) NULL,
    UNIQUE KEY requests_apid_request_id (apid_request_id),
    UNIQUE KEY requests_idempotency_key (user_id, idempotency_key),
    KEY requests_open (state, deadline_at),
    CONSTRAINT requests_user FOREIGN KEY (user_id) REFERENCES users (id),
    CONSTRAINT requests_state CHECK (state IN ('open', 'active', 'undone')),
    CONSTRAINT requests_undone_has_a_reason CHECK ((state = 'undone') = (undo_reason IS NOT NULL)),
    CONSTRAINT requests_settled_has_a_time CHECK ((state = 'open') = (settled_at IS NULL)),
    CONSTRAINT requests_node_count CHECK (node_count > 0),
    CONSTRAINT requests_undo_reason
        CHECK (undo_reason IN ('deadline', 'no_node', 'name_taken', 'released', 'reset')),
    CONSTRAINT requests_key_has_a_digest
        CHECK (idempotency_key IS NULL OR (body_digest IS NOT NULL AND digest_key_id IS NOT NULL))
) ENGINE = InnoDB;
