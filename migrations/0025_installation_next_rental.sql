-- Rental ids below were given out by a database that was lost; orion-apid raise-counter raises it, and AUTO_INCREMENT with it.
ALTER TABLE installation
    ADD COLUMN IF NOT EXISTS next_rental BIGINT UNSIGNED NOT NULL DEFAULT 1;
