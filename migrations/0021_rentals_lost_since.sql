-- From when a degraded rental's time is lost: given back where migration.compensate is set, and NULL from then on.
ALTER TABLE rentals
    ADD COLUMN IF NOT EXISTS lost_since DATETIME(6) NULL;
