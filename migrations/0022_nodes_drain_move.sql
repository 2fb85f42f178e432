-- While the node drains, its rental is moved instead of running out.
ALTER TABLE nodes
    ADD COLUMN IF NOT EXISTS drain_move BOOLEAN NOT NULL DEFAULT FALSE,
    ADD KEY IF NOT EXISTS nodes_drain_move (drain_move);
