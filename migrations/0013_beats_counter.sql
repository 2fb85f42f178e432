-- The highest counter of a node's signed requests, which only rises; signing_key is the first of the control plane's keys
-- that the agent believes.
ALTER TABLE beats
    ADD COLUMN IF NOT EXISTS counter BIGINT UNSIGNED NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS signing_key VARCHAR(43) CHARACTER SET ascii COLLATE ascii_bin NULL;
