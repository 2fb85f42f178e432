-- Permissions to join. A token is a seed; here is its public half, which signs nothing. networks and hostnames are JSON
-- lists, empty for no bound. signing_key is the control plane's key that the join line named.
CREATE TABLE IF NOT EXISTS join_tokens (
    id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    public_key VARCHAR(43) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    uses INT UNSIGNED NOT NULL,
    uses_left INT UNSIGNED NOT NULL,
    networks TEXT CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    hostnames TEXT CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    signing_key VARCHAR(43) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    created_by BIGINT UNSIGNED NOT NULL,
    created_at DATETIME(6) NOT NULL,
    expires_at DATETIME(6) NOT NULL,
    revoked_at DATETIME(6) NULL,
    UNIQUE KEY join_tokens_public_key (public_key),
    CONSTRAINT join_tokens_user FOREIGN KEY (created_by) REFERENCES users (id),
    CONSTRAINT join_tokens_uses CHECK (uses > 0 AND uses_left <= uses)
) ENGINE = InnoDB;
