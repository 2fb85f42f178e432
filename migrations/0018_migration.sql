-- One row: the brakes of moving rentals. Moves are counted in a bucket that refills with time; while suspended_since is
-- set nothing moves, unless an administrator let it go on. Until grace_until no node is decided dead.
CREATE TABLE IF NOT EXISTS migration (
    id TINYINT UNSIGNED NOT NULL PRIMARY KEY DEFAULT 1,
    tokens DOUBLE NOT NULL,
    refilled_at DATETIME(6) NOT NULL,
    suspended_since DATETIME(6) NULL,
    suspended_because VARCHAR(255) CHARACTER SET utf8mb4 NULL,
    override_until DATETIME(6) NULL,
    grace_until DATETIME(6) NULL,
    CONSTRAINT migration_is_one_row CHECK (id = 1)
) ENGINE = InnoDB;
