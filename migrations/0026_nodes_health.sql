-- What a tick with nothing to do looks for, and does not find: nodes that fail, whatever the number of those that do not.
ALTER TABLE nodes
    ADD KEY IF NOT EXISTS nodes_health (forgotten_at, status, awaits_approval, failing_since);
