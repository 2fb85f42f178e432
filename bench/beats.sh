#!/usr/bin/env bash
# What the beats of many agents cost: commits a second of MariaDB (Com_commit), CPU of orion-apid, and how long agents wait
# for their answers. The agents obey the interval that the answers dictate.
#
#   bench/beats.sh [AGENTS]        10000 if AGENTS is not given
#
# Environment: ORION_BENCH_BEATS_S (60), how long is measured.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=bench/stage.sh
source bench/stage.sh

readonly COUNT=${1:-10000} MEASURE_S=${ORION_BENCH_BEATS_S:-60}
# Until each agent was told an interval and has kept it.
readonly WARM_S=60
readonly LIMIT_COMMITS=2
# The share of beats that may fail: none but those that are under way while something else on the machine stalls.
readonly LIMIT_FAILED=0.001

# Nodes that are leased, so that answers carry what answers carry.
make_nodes() {
    {
        printf 'INSERT INTO nodes (id, agent_key, hostname, client_host, client_port, contact_host, contact_port,
            status, status_since, availability, availability_since, created_at)
            WITH agents (id, agent_key) AS (VALUES '
        target/release/bench-beats nodes "$COUNT" | paste -sd ,
        printf ") SELECT id, agent_key, CONCAT('node', id), 'localhost', 1 + MOD(id, 65535), 'localhost',
            1 + MOD(id, 65535), 'alive', UTC_TIMESTAMP(6), 'leased', UTC_TIMESTAMP(6), UTC_TIMESTAMP(6) FROM agents;"
    } >"$STAGE/nodes.sql"
    mariadb --no-defaults --socket="$STAGE/mysqld.sock" --user=root orion <"$STAGE/nodes.sql"
    sql "SET @now = UTC_TIMESTAMP(6);
        INSERT INTO requests (user_id, state, node_count, duration_us, apid_request_id, created_at, deadline_at, settled_at)
            SELECT id, 'active', $COUNT, 1, REPEAT('0', 32), @now, @now, @now FROM users;
        INSERT INTO rentals (id, request_id, user_id, state, leased_from, leased_until, created_at)
            SELECT n.id, q.id, q.user_id, 'active', @now, @now + INTERVAL 48 HOUR, @now FROM nodes n JOIN requests q;
        INSERT INTO accounts (rental_id, node_id, uid, epoch, state, state_since)
            SELECT id, id, 1000000 + id, 1, 'present', @now FROM nodes;
        UPDATE installation SET next_rental = $COUNT + 1"
}

commits() {
    sql "SHOW GLOBAL STATUS LIKE 'Com_commit'" | awk '{ print $2 }'
}

# judge COMMITS CPU_MS beats N failed N p50_ms N p99_ms N [WHAT THE FIRST FAILURE SAID]
judge() {
    local commits=$1 cpu=$2 beats=$4 failed=$6 p50=$8 p99=${10}
    [ "$failed" -eq 0 ] || say "  the first failure: ${*:11}"
    awk -v commits="$commits" -v cpu="$cpu" -v beats="$beats" -v failed="$failed" -v p50="$p50" -v p99="$p99" \
        -v agents="$COUNT" -v seconds="$MEASURE_S" -v limit="$LIMIT_COMMITS" -v most="$LIMIT_FAILED" 'BEGIN {
        rate = commits / seconds
        ok = rate <= limit && beats > 0 && failed <= beats * most
        printf "%d agents: %.1f beats a second, %d failed, answers p50 %.2f s, p99 %.2f s; orion-apid %.0f %% of a CPU; ",
            agents, beats / seconds, failed, p50 / 1000, p99 / 1000, cpu / seconds / 10
        printf "%.2f commits a second, limit %d: %s\n", rate, limit, ok ? "ok" : rate <= limit ? "BEATS FAIL" : "TOO MANY"
        exit !ok
    }'
}

main() {
    local commits cpu said
    stage_open orion-apid orion-bench
    start_mariadb
    init_control_plane 127.0.0.1
    make_nodes
    start_apid
    say "  $COUNT agents beat, for $WARM_S s that do not count and for $MEASURE_S s ..."
    exec 3< <(exec target/release/bench-beats run "${AGENTS#http://}" "$COUNT" "$WARM_S" "$MEASURE_S")
    PIDS+=($!)
    read -r said <&3 # begin
    commits=$(commits)
    cpu=$(cpu_ms "$APID")
    read -r said <&3
    commits=$(($(commits) - commits))
    cpu=$(($(cpu_ms "$APID") - cpu))
    # shellcheck disable=SC2086 # words
    judge "$commits" "$cpu" $said
}

main
