-- A forgotten node's row stays for the history; names and addresses are unique among the others.
-- contact_host is NULL while another node has proven that the address is its own.
CREATE TABLE IF NOT EXISTS nodes (
    id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    hostname VARCHAR(253) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    client_host VARCHAR(253) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    client_port SMALLINT UNSIGNED NOT NULL,
    contact_host VARCHAR(253) CHARACTER SET ascii COLLATE ascii_bin NULL,
    contact_port SMALLINT UNSIGNED NULL,
    pending_client_host VARCHAR(253) CHARACTER SET ascii COLLATE ascii_bin NULL,
    pending_client_port SMALLINT UNSIGNED NULL,
    pending_contact_host VARCHAR(253) CHARACTER SET ascii COLLATE ascii_bin NULL,
    pending_contact_port SMALLINT UNSIGNED NULL,
    agent VARCHAR(32) CHARACTER SET utf8mb4 NULL,
    status VARCHAR(8) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    status_reason VARCHAR(255) CHARACTER SET utf8mb4 NULL,
    status_since DATETIME(6) NOT NULL,
    last_checked_at DATETIME(6) NULL,
    failed_checks INT UNSIGNED NOT NULL DEFAULT 0,
    failing_since DATETIME(6) NULL,
    failed_provisions INT UNSIGNED NOT NULL DEFAULT 0,
    availability VARCHAR(12) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    availability_reason VARCHAR(255) CHARACTER SET utf8mb4 NULL,
    availability_since DATETIME(6) NOT NULL,
    draining BOOLEAN NOT NULL DEFAULT FALSE,
    created_at DATETIME(6) NOT NULL,
    forgotten_at DATETIME(6) NULL,
    live_hostname VARCHAR(253) CHARACTER SET ascii COLLATE ascii_bin
        AS (IF(forgotten_at IS NULL, hostname, NULL)) VIRTUAL,
    live_address VARCHAR(260) CHARACTER SET ascii COLLATE ascii_bin
        AS (IF(forgotten_at IS NULL, CONCAT(contact_host, ' ', contact_port), NULL)) VIRTUAL,
    UNIQUE KEY nodes_live_hostname (live_hostname),
    UNIQUE KEY nodes_live_address (live_address),
    KEY nodes_candidates (availability, status, draining),
    CONSTRAINT nodes_status CHECK (status IN ('unknown', 'alive', 'suspect', 'dead')),
    CONSTRAINT nodes_availability CHECK (availability IN ('joining', 'ready', 'leased', 'cleaning', 'quarantined')),
    CONSTRAINT nodes_contact_is_whole CHECK ((contact_host IS NULL) = (contact_port IS NULL)),
    CONSTRAINT nodes_claim_is_whole CHECK ((pending_contact_host IS NULL) = (pending_contact_port IS NULL)
        AND (pending_client_host IS NULL) = (pending_client_port IS NULL)
        AND (pending_contact_host IS NULL) = (pending_client_host IS NULL)),
    CONSTRAINT nodes_quarantine_has_a_reason CHECK (availability <> 'quarantined' OR availability_reason IS NOT NULL)
) ENGINE = InnoDB;
