-- last_inspected_at: when an inspection last ended, however. agent_down_since: the agent is silent while the machine lets us in.
-- highest_uid: a managed UID that was seen there although the database had not given it out.
ALTER TABLE nodes
    ADD COLUMN IF NOT EXISTS last_inspected_at DATETIME(6) NULL,
    ADD COLUMN IF NOT EXISTS agent_down_since DATETIME(6) NULL,
    ADD COLUMN IF NOT EXISTS highest_uid INT UNSIGNED NULL,
    ADD KEY IF NOT EXISTS nodes_highest_uid (highest_uid);
