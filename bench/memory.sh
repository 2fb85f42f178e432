#!/usr/bin/env bash
# PSS of the daemons after 60 s without work, with 3 workers.
#
#   bench/memory.sh [SECONDS]        60 if SECONDS is not given
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=bench/stage.sh
source bench/stage.sh

readonly IDLE_S=${1:-60}
readonly LIMIT_DAEMON_KIB=$((20 * 1024)) LIMIT_AGENT_KIB=$((8 * 1024))

# pss PID: KiB
pss() {
    awk '/^Pss:/ { print $2 }' "/proc/$1/smaps_rollup"
}

# judge NAME KIB LIMIT
judge() {
    awk -v name="$1" -v pss="$2" -v limit="$3" 'BEGIN {
        ok = pss <= limit
        printf "%-12s PSS %.1f MiB, limit %d MiB: %s\n", name, pss / 1024, limit / 1024, ok ? "ok" : "TOO MUCH"
        exit !ok
    }'
}

# Of all containers the one whose agent has the most.
agent_pss() {
    local container pid most=0 now
    for container in $(containers); do
        # The pid as this machine sees it.
        pid=$(docker top "$container" -eo pid,comm | awk '$2 == "orion-agentd" { print $1 }')
        now=$(pss "$pid")
        [ "$now" -le "$most" ] || most=$now
    done
    echo "$most"
}

main() {
    local failed=0
    stage_begin 3
    # They have worked: a client has rented and released.
    users 1
    local id
    id=$(curl -fsS -H 'content-type: application/json' -H "authorization: Bearer ${TOKENS[0]}" \
        -d '{"duration_hours":1}' "$API/api/rent" | sed 's/.*"rental_id":\([0-9]*\).*/\1/')
    curl -fsS -o /dev/null -X POST -H "authorization: Bearer ${TOKENS[0]}" "$API/api/release/$id"
    wait_for "every node to be clean" 60 nodes_ready 3
    say "idle for $IDLE_S s ..."
    sleep "$IDLE_S"
    judge orion-apid "$(pss "$APID")" "$LIMIT_DAEMON_KIB" || failed=1
    judge orion-schedd "$(pss "$SCHEDD")" "$LIMIT_DAEMON_KIB" || failed=1
    judge orion-agentd "$(agent_pss)" "$LIMIT_AGENT_KIB" || failed=1
    return "$failed"
}

main
