-- The pool's SSH public keys, which agents are told: two while they are rotated. The newest has the highest id.
CREATE TABLE IF NOT EXISTS pool_keys (
    id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    public_key VARCHAR(1024) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    created_at DATETIME(6) NOT NULL,
    UNIQUE KEY pool_keys_public_key (public_key)
) ENGINE = InnoDB;
