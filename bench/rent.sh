#!/usr/bin/env bash
# Rents through the real daemons against the frozen reference playbook over the same machines: 20 at once, and one.
# In pairs, in the order ABBA, so that a machine that gets slower or faster meanwhile favours nobody.
#
#   bench/rent.sh [PAIRS]        6 if PAIRS is not given
#
# Environment: ORION_BENCH_WORKERS (20).
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=bench/stage.sh
source bench/stage.sh

readonly PAIRS=${1:-6}
readonly WORKERS=${ORION_BENCH_WORKERS:-20}
# How much longer a rent may take than the reference: many at once, and one.
readonly LIMIT_MANY=1.5 LIMIT_ONE=1.3
# openssl passwd -6 of some password; the reference is given a hash, as Orion's module is.
# shellcheck disable=SC2016 # a hash
readonly HASH='$6$benchbenchbench$hvvsHywCruB0Y92h8Hfa6dHSfeWviGE07p3Z/98Jv.IZksoC21EEc7jsVfrAqlysARJQx1THIRVKuT32ik9pX.'

milliseconds() {
    local now=$EPOCHREALTIME
    echo $((${now/[.,]/} / 1000))
}

# rent N: N clients rent one machine each, at once; prints the milliseconds until the last has its answer
rent() {
    local count=$1 number start end config=$STAGE/curl.config
    rm -f "$STAGE"/answer.*
    for ((number = 0; number < count; number++)); do
        [ "$number" -eq 0 ] || echo next
        cat <<CURL
url = "$API/api/rent"
header = "content-type: application/json"
header = "authorization: Bearer ${TOKENS[number]}"
data = "{\"duration_hours\":1}"
output = "$STAGE/answer.$number"
silent
show-error
fail-with-body
CURL
    done >"$config"
    start=$(milliseconds)
    curl --no-progress-meter --parallel --parallel-immediate --parallel-max "$count" --config "$config" || die "a rent failed: $(cat "$STAGE"/answer.*)"
    end=$(milliseconds)
    echo $((end - start))
}

release() {
    local count=$1 number id
    for ((number = 0; number < count; number++)); do
        id=$(sed 's/.*"rental_id":\([0-9]*\).*/\1/' "$STAGE/answer.$number")
        curl -fsS -o /dev/null -X POST -H "authorization: Bearer ${TOKENS[number]}" "$API/api/release/$id"
    done
    wait_for "every node to be clean" 60 nodes_ready "$WORKERS"
}

make_inventory() {
    local count=$1 container address
    : >"$STAGE/known_hosts"
    echo "all:"
    echo "  hosts:"
    for container in $(containers | head -n "$count"); do
        address=$(docker inspect --format '{{.NetworkSettings.IPAddress}}' "$container")
        echo "    '$address':"
        docker exec "$container" cat /etc/ssh/ssh_host_ed25519_key.pub | sed "s/^/$address /" >>"$STAGE/known_hosts"
    done
    cat <<YAML
  vars:
    ansible_user: reference-login
    ansible_ssh_private_key_file: "$STAGE/secrets/pool_key"
    ansible_ssh_common_args: "-o UserKnownHostsFile=$STAGE/known_hosts"
    account_name: reference
    account_password_hash: '$HASH'
YAML
}

# reference N: the frozen playbook over N machines; prints its milliseconds. Ansible's defaults, but for as many forks as
# there are machines.
reference() {
    local count=$1 start end control=$STAGE/cp
    mkdir "$control"
    # Empty, so that no configuration of this machine counts. ansible-core 2.14 refuses /dev/null.
    : >"$STAGE/ansible.cfg"
    start=$(milliseconds)
    ANSIBLE_CONFIG=$STAGE/ansible.cfg ANSIBLE_HOME=$STAGE/ansible ANSIBLE_LOCAL_TEMP=$STAGE/ansible/tmp \
        ANSIBLE_SSH_CONTROL_PATH_DIR=$control \
        ansible-playbook --forks "$count" -i "$STAGE/inventory.$count.yml" bench/reference/create_account.yml \
        >"$STAGE/reference.log" 2>&1 || die "the reference failed: $(cat "$STAGE/reference.log")"
    end=$(milliseconds)
    echo $((end - start))
    forget_reference "$control"
}

# Back to before: no connection kept, no account left.
forget_reference() {
    local socket container
    for socket in "$1"/*; do
        ssh -o ControlPath="$socket" -O exit anybody 2>/dev/null || true
    done
    rm -rf "$1"
    containers | xargs -P 4 -I '{}' docker exec '{}' sh -c 'userdel -r reference 2>/dev/null || true'
}

# compare NAME N LIMIT: prints medians and ratio; fails when the ratio is above the limit
compare() {
    local name=$1 count=$2 limit=$3 pair ours=() theirs=() ratios=() a b
    make_inventory "$count" >"$STAGE/inventory.$count.yml"
    # Both once without counting: caches, and what is done only the first time.
    rent "$count" >/dev/null
    release "$count"
    reference "$count" >/dev/null
    for ((pair = 0; pair < PAIRS; pair++)); do
        if ((pair % 2 == 0)); then
            a=$(rent "$count")
            release "$count"
            b=$(reference "$count")
        else
            b=$(reference "$count")
            a=$(rent "$count")
            release "$count"
        fi
        ours+=("$a")
        theirs+=("$b")
        ratios+=("$(awk "BEGIN { printf \"%.3f\", $a / $b }")")
        say "  $name, pair $((pair + 1)): rent $a ms, reference $b ms, ratio ${ratios[-1]}"
    done
    a=$(median "${ours[@]}")
    b=$(median "${theirs[@]}")
    awk -v name="$name" -v a="$a" -v b="$b" -v limit="$limit" -v each="$(median "${ratios[@]}")" 'BEGIN {
        ok = a / b <= limit
        printf "%-12s rent %.2f s, reference %.2f s, ratio %.2f (median of the pairs %.2f), limit %.1f: %s\n",
            name, a / 1000, b / 1000, a / b, each, limit, ok ? "ok" : "TOO SLOW"
        exit !ok
    }'
}

main() {
    local failed=0
    stage_begin "$WORKERS"
    users "$WORKERS"
    compare "$WORKERS at once" "$WORKERS" "$LIMIT_MANY" || failed=1
    compare "one" 1 "$LIMIT_ONE" || failed=1
    return "$failed"
}

main
