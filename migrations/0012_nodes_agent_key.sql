-- A node is its agent's key; NULL where the worker joined unsigned, in mode "open". login_key is the pool's key that the
-- last login used. A node that awaits approval is not dialled.
ALTER TABLE nodes
    ADD COLUMN IF NOT EXISTS agent_key VARCHAR(43) CHARACTER SET ascii COLLATE ascii_bin NULL,
    ADD COLUMN IF NOT EXISTS login_key VARCHAR(1024) CHARACTER SET ascii COLLATE ascii_bin NULL,
    ADD COLUMN IF NOT EXISTS awaits_approval BOOLEAN NOT NULL DEFAULT FALSE,
    ADD COLUMN IF NOT EXISTS live_agent_key VARCHAR(43) CHARACTER SET ascii COLLATE ascii_bin
        AS (IF(forgotten_at IS NULL, agent_key, NULL)) VIRTUAL,
    ADD UNIQUE KEY IF NOT EXISTS nodes_live_agent_key (live_agent_key);
