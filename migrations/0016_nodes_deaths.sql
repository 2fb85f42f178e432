-- When the node died, the last time, and how often it died since a day before that: a flapping node waits longer each time
-- before it is offered again. nodes.held_until says until when.
ALTER TABLE nodes
    ADD COLUMN IF NOT EXISTS deaths INT UNSIGNED NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS died_at DATETIME(6) NULL,
    ADD COLUMN IF NOT EXISTS held_until DATETIME(6) NULL;
