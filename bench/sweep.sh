#!/usr/bin/env bash
# One look at many workers: orion-schedd's health check over simulated workers (real SSH, in a process of their own) against
# `ansible -m ping` over as many machines, and against the bare cryptography of as many logins.
#
# The time for Ansible is extrapolated from 50 and 100 real sshd on this machine, in a straight line: that many can be had
# here. It has as many forks as orion-schedd has probes at once, and otherwise its defaults (but for a longer time-out); the connections that it
# leaves open are not counted. CPU is that of the process that looks (and, for Ansible, of its children), not of who is looked at.
#
#   bench/sweep.sh [ROUNDS]        5 if ROUNDS is not given
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=bench/stage.sh
source bench/stage.sh

readonly ROUNDS=${1:-5}
readonly WORKERS=1000 FEW=50 MANY=100
readonly FORKS=64 # [probe] at_once
# A sweep every so many seconds, each alone.
readonly EVERY_S=15
readonly NEVER='0 0 0 1 1 *'
# How much more Ansible needs, at least; and how much more than its cryptography a sweep may need.
readonly LIMIT_TIME=20 LIMIT_CPU=30 LIMIT_CRYPTOGRAPHY=4

workers_listen() {
    docker logs "$1" >"$STAGE/workers" && grep -qx ready "$STAGE/workers"
}

# Their nodes are ready, so that nothing is to be done but to look.
start_simulated_workers() {
    local pool_key port kind key address id=0
    local name=bench-${STAGE##*.}-workers
    # In a container: an address of this machine itself would not be dialled, and a name be looked up each time.
    docker run --detach --init --name "$name" --label "$LABEL" --volume "$PWD/target/release:/bench/release:ro" \
        --entrypoint /bench/release/bench-workers "orion-bench/worker:$SUITE" 0.0.0.0 "$WORKERS" >/dev/null
    wait_for "$WORKERS simulated workers" 60 workers_listen "$name"
    address=$(docker inspect --format '{{.NetworkSettings.IPAddress}}' "$name")
    read -r pool_key <"$STAGE/workers"
    docker exec "$name" cat "$pool_key" >"$STAGE/secrets/pool_key"
    while read -r port kind key; do
        [ -n "$key" ] || continue
        id=$((id + 1))
        printf "INSERT INTO nodes (id, hostname, client_host, client_port, contact_host, contact_port, status,
            status_since, availability, availability_since, created_at, last_inspected_at) VALUES ($id, 'worker$id', '$address', $port,
            '$address', $port, 'alive', UTC_TIMESTAMP(6), 'ready', UTC_TIMESTAMP(6), UTC_TIMESTAMP(6), UTC_TIMESTAMP(6));
            INSERT INTO host_keys (host_key, node_id, pinned_at) VALUES ('%s %s', $id, UTC_TIMESTAMP(6));\n" "$kind" "$key"
    done <"$STAGE/workers" >"$STAGE/workers.sql"
    [ "$id" -eq "$WORKERS" ] || die "$id simulated workers"
    mariadb --no-defaults --socket="$STAGE/mysqld.sock" --user=root orion <"$STAGE/workers.sql"
}

# last_sweep: when it ended, its milliseconds, how many logins
last_sweep() {
    curl -fsS "$SCHEDD_OPS/jobs" |
        jq -r '.jobs.health_check.ticks.last | [.ended_at, .took_ms, .counts.logged_in] | map(tostring) | join(" ")'
}

swept_since() {
    [ "$(last_sweep)" != "$1" ]
}

# sweep: milliseconds and CPU milliseconds of the next one. One that took longer than a tick waits for its logins is not
# counted: the rest of it goes on beside the next.
sweep() {
    local before cpu ended took logins tries
    for ((tries = 0; tries < 20; tries++)); do
        # From a second before it begins on, so that it is the sweep's CPU. One that ran when this began is over by then.
        sleep "$((EVERY_S - 1 - EPOCHSECONDS % EVERY_S))"
        before=$(last_sweep)
        cpu=$(cpu_ms "$SCHEDD")
        wait_for "a sweep" 60 swept_since "$before"
        read -r ended took logins <<<"$(last_sweep)"
        cpu=$(($(cpu_ms "$SCHEDD") - cpu))
        if [ "$logins" = "$WORKERS" ]; then
            echo "$took $cpu"
            return
        fi
        say "  the sweep that ended at $ended saw $logins of $WORKERS in time: not counted"
    done
    die "no sweep saw every worker in time"
}

# Real sshd on this machine, each with a port and a host key of its own, in one container.
start_sshds() {
    local name=bench-${STAGE##*.}-sshd ports
    ports=$(free_ports "$MANY")
    docker run --detach --init --name "$name" --label "$LABEL" --network host --entrypoint sleep \
        "orion-bench/worker:$SUITE" infinity >/dev/null
    docker cp "$STAGE/secrets/pool_key.pub" "$name:/home/reference-login/.ssh/authorized_keys" >/dev/null
    docker exec -i "$name" bash -s -- "$ports" >"$STAGE/known_hosts" 2>"$STAGE/sshd.log" <<'SCRIPT'
set -euo pipefail
chown -R reference-login /home/reference-login/.ssh
mkdir -p /run/sshd
for port in $1; do
    ssh-keygen -q -t ed25519 -N '' -f "/tmp/key.$port"
    /usr/sbin/sshd -f /dev/null -h "/tmp/key.$port" -p "$port" -o ListenAddress=127.0.0.1 -o PidFile=none \
        -o MaxStartups=100 -o UsePAM=yes
    printf '[127.0.0.1]:%s %s\n' "$port" "$(cut -d ' ' -f 1,2 "/tmp/key.$port.pub")"
done
SCRIPT
    inventory "$FEW" "$ports" >"$STAGE/inventory.$FEW"
    inventory "$MANY" "$ports" >"$STAGE/inventory.$MANY"
}

# free_ports N: the system chose them a moment ago
free_ports() {
    python3 -c '
import socket, sys
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(s.getsockname()[1] for s in sockets))' "$1"
}

# inventory N PORTS: the first N
inventory() {
    local port
    for port in $(tr ' ' '\n' <<<"$2" | head -n "$1"); do
        printf 'machine-%s ansible_host=127.0.0.1 ansible_port=%s\n' "$port" "$port"
    done
    printf '[all:vars]\nansible_user=reference-login\nansible_ssh_private_key_file=%s\n' "$STAGE/secrets/sshd_key"
    printf 'ansible_ssh_common_args=-o UserKnownHostsFile=%s\n' "$STAGE/known_hosts"
}

ansible_ping() {
    ANSIBLE_CONFIG=$STAGE/ansible.cfg ANSIBLE_HOME=$STAGE/ansible ANSIBLE_LOCAL_TEMP=$STAGE/ansible/tmp \
        ANSIBLE_SSH_CONTROL_PATH_DIR=$2 ANSIBLE_TIMEOUT=60 ansible all -m ping --forks "$FORKS" -i "$STAGE/inventory.$1"
}

# ping N: `ansible -m ping` over N machines; its milliseconds and CPU milliseconds
ping() {
    local control=$STAGE/cp socket
    mkdir "$control"
    : >"$STAGE/ansible.cfg"
    TIMEFORMAT='%R %U %S'
    # What it says goes to files; `time` itself says its piece to standard error.
    if ! { time ansible_ping "$1" "$control" >"$STAGE/ping.log" 2>&1; } 2>"$STAGE/ping.time"; then
        die "ansible -m ping: $(grep -A 3 -E 'UNREACHABLE|FAILED' "$STAGE/ping.log" | head -n 12)"
    fi
    # No connection is kept for the next one.
    for socket in "$control"/*; do
        ssh -o ControlPath="$socket" -O exit anybody 2>/dev/null || true
    done
    rm -rf "$control"
    awk '{ print int($1 * 1000), int(($2 + $3) * 1000) }' "$STAGE/ping.time"
}

# extrapolated FEW_MS MANY_MS: for WORKERS machines
extrapolated() {
    awk -v few="$1" -v many="$2" -v a="$FEW" -v b="$MANY" -v workers="$WORKERS" \
        'BEGIN { printf "%d\n", few + (many - few) / (b - a) * (workers - a) }'
}

# judge WHAT OURS_MS THEIRS_MS TIMES: theirs must be at least so many times ours
judge() {
    awk -v what="$1" -v ours="$2" -v theirs="$3" -v limit="$4" 'BEGIN {
        ok = theirs / ours >= limit
        printf "%-5s a sweep %.2f s, ansible -m ping %.1f s (extrapolated): 1/%.0f, limit 1/%d: %s\n", what, ours / 1000,
            theirs / 1000, theirs / ours, limit, ok ? "ok" : "TOO MUCH"
        exit !ok
    }'
}

main() {
    local failed=0 round line took=() cpu=() bare=() few=() many=() few_cpu=() many_cpu=()
    stage_open orion-apid orion-schedd orion-testkit orion-bench
    LABEL=orion.bench=${STAGE##*.}
    ADDRESSES=$(container_addresses)
    make_image
    # The simulated workers bring another.
    cp "$STAGE/secrets/pool_key" "$STAGE/secrets/sshd_key"
    start_sshds
    start_mariadb
    init_control_plane 127.0.0.1
    start_simulated_workers
    start_schedd "$(printf '[health_check]\ndeep_every_minutes = 1440\n[cron]\nhealth_check = "*/%s * * * * *"\n' "$EVERY_S"
        printf '%s = "'"$NEVER"'"\n' expire reconcile cleanup migrate)"
    # Both once without counting.
    sweep >/dev/null
    ping "$FEW" >/dev/null
    for ((round = 1; round <= ROUNDS; round++)); do
        line=$(sweep)
        took+=("${line% *}")
        cpu+=("${line#* }")
        bare+=("$(target/release/bench-handshakes "$WORKERS")")
        say "  round $round: $WORKERS workers in ${took[-1]} ms with ${cpu[-1]} ms of CPU, bare cryptography ${bare[-1]} ms"
    done
    stop "$SCHEDD"
    for ((round = 1; round <= ROUNDS; round++)); do
        line=$(ping "$FEW")
        few+=("${line% *}")
        few_cpu+=("${line#* }")
        line=$(ping "$MANY")
        many+=("${line% *}")
        many_cpu+=("${line#* }")
        say "  round $round: ansible -m ping, $FEW sshd ${few[-1]} ms (CPU ${few_cpu[-1]}), $MANY sshd ${many[-1]} ms (CPU ${many_cpu[-1]})"
    done
    judge time "$(median "${took[@]}")" "$(extrapolated "$(median "${few[@]}")" "$(median "${many[@]}")")" "$LIMIT_TIME" || failed=1
    judge CPU "$(median "${cpu[@]}")" "$(extrapolated "$(median "${few_cpu[@]}")" "$(median "${many_cpu[@]}")")" "$LIMIT_CPU" || failed=1
    awk -v cpu="$(median "${cpu[@]}")" -v bare="$(median "${bare[@]}")" -v workers="$WORKERS" -v limit="$LIMIT_CRYPTOGRAPHY" 'BEGIN {
        ok = cpu <= bare * limit
        printf "CPU   a sweep %.2f s, bare cryptography of %d logins %.2f s (each: x25519 key pair and shared secret, " \
            "ed25519 verification and signature): %.1f times, limit %d: %s\n", cpu / 1000, workers, bare / 1000, cpu / bare,
            limit, ok ? "ok" : "TOO MUCH"
        exit !ok
    }' || failed=1
    return "$failed"
}

main
