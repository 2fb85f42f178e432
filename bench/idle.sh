#!/usr/bin/env bash
# What a tick with nothing to do reads: each of the jobs expire, reconcile, cleanup and migrate, and the executor without
# any, with 10 and with 100,000 nodes. Rows are MariaDB's own count (Handler_read_*). health_check looks at every node, and
# so must read every node; it is measured apart, and has no limit.
#
#   bench/idle.sh [TICKS]        15 if TICKS is not given
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=bench/stage.sh
source bench/stage.sh

readonly TICKS=${1:-15}
readonly FEW=10 MANY=100000
readonly JOBS=(expire reconcile cleanup migrate)
readonly NEVER='0 0 0 1 1 *' # of a year in which nobody measures
# What MariaDB counts for ten ticks more or less apart may differ by this much.
readonly TOLERANCE=1.1

# fill NODES: that many quiet nodes, four of ten leased by rentals that last; beside them what a year leaves behind: rentals
# that ended, and as many nodes again that died and were forgotten. Nodes have no address, so that health_check reads them
# and dials nobody.
fill() {
    sql "SET foreign_key_checks = 0;
        DELETE FROM nodes; DELETE FROM users; DELETE FROM requests; DELETE FROM rentals; DELETE FROM accounts;
        DELETE FROM runs; DELETE FROM beats; DELETE FROM host_keys; DELETE FROM events;
        SET @now = UTC_TIMESTAMP(6);
        INSERT INTO users (id, name, password_phc, role, created_at) VALUES (1, 'alice', '-', 'user', @now);
        INSERT INTO nodes (id, hostname, client_host, client_port, status, status_since, availability,
                           availability_since, created_at, forgotten_at)
            SELECT seq, CONCAT('node', seq), 'localhost', 22, IF(seq <= $1, 'alive', 'dead'), @now,
                   IF(seq <= $1 AND MOD(seq, 10) < 4, 'leased', 'ready'), @now, @now, IF(seq <= $1, NULL, @now)
            FROM seq_1_to_$(($1 * 2));
        INSERT INTO host_keys (host_key, node_id, pinned_at)
            SELECT CONCAT('ssh-ed25519 ', id), id, @now FROM nodes WHERE forgotten_at IS NULL;
        INSERT INTO beats (node_id, beat_at, boot_id, agent) SELECT id, @now, '-', '-' FROM nodes;
        INSERT INTO requests (id, user_id, state, node_count, duration_us, apid_request_id, created_at, deadline_at,
                              settled_at)
            VALUES (1, 1, 'active', $1, 1, REPEAT('0', 32), @now, @now, @now);
        INSERT INTO rentals (id, request_id, user_id, state, end_reason, leased_from, leased_until, ended_at, created_at)
            SELECT id, 1, 1, IF(availability = 'leased', 'active', 'ended'), IF(availability = 'leased', NULL, 'expired'),
                   @now - INTERVAL 1 HOUR, @now + INTERVAL IF(availability = 'leased', 48, 0) HOUR,
                   IF(availability = 'leased', NULL, @now), @now
            FROM nodes WHERE forgotten_at IS NULL;
        INSERT INTO accounts (id, rental_id, node_id, uid, epoch, state, state_since, evidence_at)
            SELECT id, id, id, 1000000 + id, 1, IF(availability = 'leased', 'present', 'gone'), @now, @now
            FROM nodes WHERE forgotten_at IS NULL;
        INSERT INTO runs (kind, node_id, account_id, epoch, state, outcome, created_at, finished_at)
            SELECT 'provision', node_id, id, 1, 'done', 'present', @now, @now FROM accounts;
        INSERT INTO runs (kind, node_id, account_id, epoch, state, outcome, created_at, finished_at)
            SELECT 'clean', node_id, id, 1, 'done', 'gone', @now, @now FROM accounts WHERE state = 'gone';
        ANALYZE TABLE nodes, rentals, accounts, runs, requests, beats, host_keys" >/dev/null
}

# schedule JOB: every job but this one never ticks
schedule() {
    local job
    printf '[cron]\n'
    for job in "${JOBS[@]}" health_check; do
        if [ "$job" = "$1" ]; then
            printf '%s = "* * * * * *"\n' "$job"
        else
            printf '%s = "%s"\n' "$job" "$NEVER"
        fi
    done
}

rows_read() {
    sql "SHOW GLOBAL STATUS LIKE 'Handler_read%'" | awk '{ rows += $2 } END { print rows }'
}

# ticks JOB: how often it has ticked; without a job, seconds
ticks() {
    if [ "$1" = executor ]; then
        echo "$SECONDS"
    else
        curl -fsS "$SCHEDD_OPS/metrics" | awk -v job="job=\"$1\",result=\"done\"" \
            'index($0, "job_ticks_total") && index($0, job) { print $2; found = 1 } END { if (!found) print 0 }'
    fi
}

ticked() {
    [ "$(ticks "$1")" -ge "$2" ]
}

# measure JOB: rows read for each of its ticks
measure() {
    local job=$1 first last asking before after
    start_schedd "$(schedule "$job")"
    # What is done only once is over.
    first=$(($(ticks "$job") + 3))
    wait_for "$job to tick" 120 ticked "$job" "$first"
    # Asking reads rows as well.
    asking=$(rows_read)
    before=$(rows_read)
    asking=$((before - asking))
    first=$(ticks "$job")
    wait_for "$job to tick" 300 ticked "$job" $((first + TICKS))
    last=$(ticks "$job")
    after=$(rows_read)
    stop "$SCHEDD"
    awk -v rows=$((after - before - asking)) -v ticks=$((last - first)) 'BEGIN { printf "%.1f\n", rows / ticks }'
}

# guilty JOB: the statements that looked at many rows in its last measurement, where it is asked for
guilty() {
    sql "SELECT rows_examined, query_time, LEFT(sql_text, 300) FROM mysql.slow_log
        WHERE rows_examined > 1000 AND db = 'orion' GROUP BY LEFT(sql_text, 300) ORDER BY rows_examined DESC LIMIT 10" >&2
}

main() {
    local failed=0 job
    declare -A few many
    stage_open orion-apid orion-schedd
    start_mariadb
    init_control_plane 127.0.0.1
    fill "$FEW"
    for job in executor "${JOBS[@]}"; do
        few[$job]=$(measure "$job")
    done
    say "  $MANY nodes ..."
    fill "$MANY"
    sql "SET GLOBAL log_output = 'TABLE', slow_query_log = ON, long_query_time = 0, min_examined_row_limit = 1000"
    for job in executor "${JOBS[@]}"; do
        sql "TRUNCATE mysql.slow_log"
        many[$job]=$(measure "$job")
        awk -v job="$job" -v few="${few[$job]}" -v many="${many[$job]}" -v nodes="$MANY" -v tolerance="$TOLERANCE" 'BEGIN {
            ok = many <= few * tolerance + 1
            printf "%-10s rows read a %s: %.1f with 10 nodes, %.1f with %d: %s\n", job,
                job == "executor" ? "second" : "tick", few, many, nodes, ok ? "ok" : "TOO MANY"
            exit !ok
        }' || {
            failed=1
            guilty
        }
    done
    printf 'health_check rows read a tick: %s with %d nodes (it looks at every node; no limit)\n' \
        "$(measure health_check)" "$MANY"
    return "$failed"
}

main
