-- keep_home: the rental was moved off, so the client's home goes into an archive when the debt is paid. alarmed_at: when
-- administrators were told that the debt is not paid.
ALTER TABLE accounts
    ADD COLUMN IF NOT EXISTS keep_home BOOLEAN NOT NULL DEFAULT FALSE,
    ADD COLUMN IF NOT EXISTS alarmed_at DATETIME(6) NULL;
