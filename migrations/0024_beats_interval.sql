-- What the agent was told at that beat: how many seconds later the next one is due.
ALTER TABLE beats
    ADD COLUMN IF NOT EXISTS interval_s INT UNSIGNED NOT NULL DEFAULT 5;
