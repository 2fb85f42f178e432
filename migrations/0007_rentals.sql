-- A rental has no node: its address is its present account. password_key_id is NULL for a password the client chose.
-- password_hash is NULL until apid has hashed; without it nothing is provisioned.
CREATE TABLE IF NOT EXISTS rentals (
    id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    request_id BIGINT UNSIGNED NOT NULL,
    user_id BIGINT UNSIGNED NOT NULL,
    state VARCHAR(12) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    end_reason VARCHAR(8) CHARACTER SET ascii COLLATE ascii_bin NULL,
    password_version INT UNSIGNED NOT NULL DEFAULT 1,
    password_key_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NULL,
    password_hash VARCHAR(255) CHARACTER SET ascii COLLATE ascii_bin NULL,
    leased_from DATETIME(6) NULL,
    leased_until DATETIME(6) NULL,
    ending_since DATETIME(6) NULL,
    ended_at DATETIME(6) NULL,
    created_at DATETIME(6) NOT NULL,
    KEY rentals_user (user_id, state),
    KEY rentals_expiry (state, leased_until),
    CONSTRAINT rentals_request FOREIGN KEY (request_id) REFERENCES requests (id),
    CONSTRAINT rentals_user FOREIGN KEY (user_id) REFERENCES users (id),
    CONSTRAINT rentals_state CHECK (state IN ('provisioning', 'active', 'degraded', 'ending', 'ended')),
    CONSTRAINT rentals_end_reason CHECK (end_reason IN ('released', 'expired', 'failed', 'reset')),
    CONSTRAINT rentals_ending_has_a_reason CHECK ((state IN ('ending', 'ended')) = (end_reason IS NOT NULL)),
    CONSTRAINT rentals_active_has_an_end
        CHECK (state NOT IN ('active', 'degraded') OR (leased_from IS NOT NULL AND leased_until IS NOT NULL)),
    CONSTRAINT rentals_end_is_after_start CHECK (leased_until > leased_from),
    CONSTRAINT rentals_ended_has_a_time CHECK ((state = 'ended') = (ended_at IS NOT NULL))
) ENGINE = InnoDB;
