-- One row, written by `orion-apid init`: what may never change afterwards.
CREATE TABLE IF NOT EXISTS installation (
    id TINYINT UNSIGNED NOT NULL PRIMARY KEY DEFAULT 1,
    uid_base INT UNSIGNED NOT NULL,
    created_at DATETIME(6) NOT NULL,
    CONSTRAINT installation_is_one_row CHECK (id = 1)
) ENGINE = InnoDB;
