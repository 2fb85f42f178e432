-- One durable piece of Ansible work on one node. At most one open run of a kind for an account, and one inspection of a node.
CREATE TABLE IF NOT EXISTS runs (
    id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    kind VARCHAR(9) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    node_id BIGINT UNSIGNED NOT NULL,
    account_id BIGINT UNSIGNED NULL,
    epoch BIGINT UNSIGNED NOT NULL,
    state VARCHAR(7) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    attempt INT UNSIGNED NOT NULL DEFAULT 0,
    claimed_by CHAR(32) CHARACTER SET ascii COLLATE ascii_bin NULL,
    claim_expires_at DATETIME(6) NULL,
    outcome VARCHAR(20) CHARACTER SET ascii COLLATE ascii_bin NULL,
    detail VARCHAR(2000) CHARACTER SET utf8mb4 NULL,
    evidence LONGTEXT CHARACTER SET utf8mb4 NULL,
    output MEDIUMTEXT CHARACTER SET utf8mb4 NULL,
    created_at DATETIME(6) NOT NULL,
    finished_at DATETIME(6) NULL,
    open_for VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin
        AS (IF(state IN ('queued', 'claimed'), CONCAT(kind, ' ', IFNULL(account_id, node_id)), NULL)) VIRTUAL,
    UNIQUE KEY runs_open_for (open_for),
    KEY runs_queue (state, kind, id),
    KEY runs_account (account_id, kind),
    KEY runs_node (node_id, kind),
    CONSTRAINT runs_node FOREIGN KEY (node_id) REFERENCES nodes (id),
    CONSTRAINT runs_account FOREIGN KEY (account_id) REFERENCES accounts (id),
    CONSTRAINT runs_kind CHECK (kind IN ('provision', 'clean', 'inspect')),
    CONSTRAINT runs_state CHECK (state IN ('queued', 'claimed', 'done', 'failed')),
    CONSTRAINT runs_inspect_has_no_account CHECK ((kind = 'inspect') = (account_id IS NULL)),
    CONSTRAINT runs_claimed_has_a_claimant
        CHECK ((state = 'claimed') = (claimed_by IS NOT NULL) AND (claimed_by IS NULL) = (claim_expires_at IS NULL)),
    CONSTRAINT runs_finished_has_a_time CHECK ((state IN ('done', 'failed')) = (finished_at IS NOT NULL)),
    CONSTRAINT runs_finished_has_an_outcome CHECK (state NOT IN ('done', 'failed') OR outcome IS NOT NULL)
) ENGINE = InnoDB;
