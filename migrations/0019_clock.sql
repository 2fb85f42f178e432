-- One row: the clock that ends and deaths are decided by, as the leading orion-schedd knew it at seen_at. booted_at is when the
-- machine with that boot_id began to count by that clock: now is booted_at and its CLOCK_BOOTTIME. step_us is how far ahead the
-- database's own clock was found; not zero until it is back or accepted.
CREATE TABLE IF NOT EXISTS clock (
    id TINYINT UNSIGNED NOT NULL PRIMARY KEY DEFAULT 1,
    boot_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    booted_at DATETIME(6) NOT NULL,
    seen_at DATETIME(6) NOT NULL,
    step_us BIGINT NOT NULL,
    CONSTRAINT clock_is_one_row CHECK (id = 1)
) ENGINE = InnoDB;
