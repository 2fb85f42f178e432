-- First degraded, first served.
ALTER TABLE rentals
    ADD COLUMN IF NOT EXISTS degraded_since DATETIME(6) NULL,
    ADD KEY IF NOT EXISTS rentals_degraded (state, degraded_since);
