#!/usr/bin/env bash
# Acceptance of "only trusted workers join": one case for each line of what it must show, in the running lab.
#
# Shown elsewhere:
#   hostile registrations, replays, tokens at once      cargo nextest run -p orion-apid trust
#   the plain contract in mode open                     cargo nextest run -p orion-apid in_mode_open
#   forbidden addresses see no connection               cargo nextest run -p orion-tests forbidden
#   a man in the middle                                 cargo nextest run -p orion-tests in_the_middle
#   whatever strings arrive, the inventory is ours      cargo nextest run -p orion-schedd ansible::inventory
#   defects 8 and 10 of the first Orion                 cargo nextest run -p orion-tests first_orion
#   fuzzing                                             RUSTC_BOOTSTRAP=1 cargo fuzz run register_body (beat_body, event_line)
set -euo pipefail
# shellcheck source=tests/accept/lab.sh
source "$(dirname "$0")/lab.sh"

readonly GUEST=orion-lab-guest

# guest: a machine that is no worker yet, with systemd and sshd and nothing of Orion; then the agent's package.
guest() {
    local deb suite
    suite=$(sed -n 's/^SUITE=//p' "$root/.lab/settings")
    remove_guest
    docker run --detach --name "$GUEST" --hostname guest --label orion.lab=1 --network orion-lab \
        --cap-add SYS_ADMIN --cap-add NET_ADMIN --security-opt seccomp=unconfined --security-opt apparmor=unconfined \
        --cgroupns=private --tmpfs /run --tmpfs /run/lock --tmpfs /tmp:exec,mode=1777 "orion-lab/worker:$suite"
    until_true 60 docker exec "$GUEST" systemctl is-active ssh
    deb=$(find "$root/.lab/share/debs" -name 'orion-agentd_*.deb')
    docker cp "$deb" "$GUEST:/root/orion-agentd.deb"
    docker exec "$GUEST" apt-get -qq -y --no-install-recommends install /root/orion-agentd.deb
}

remove_guest() {
    local node
    admin
    api GET /api/nodes
    for node in $(jq '.[] | select(.hostname == "guest") | .node_id' <<<"$BODY"); do
        api DELETE "/api/nodes/$node"
    done
    docker rm --force --volumes "$GUEST" >/dev/null 2>&1 || true
}

# join_line [BODY]: of a new token.
join_line() {
    admin
    api POST /api/join-tokens "${1:-{\}}"
    expect 201
    field .join_line
}

guest_is() {
    admin
    api GET /api/nodes
    [[ $(jq -r '.[] | select(.hostname == "guest") | .status + " " + .availability' <<<"$BODY") == "$1" ]]
}

guest_says() {
    # Not grep -q: it ends at the first line that fits, and the journal's writer by SIGPIPE.
    docker exec "$GUEST" journalctl --no-pager -u orion-agentd | grep "$1" >/dev/null
}

a_worker_with_nothing_but_the_join_line_and_the_package_becomes_ready() {
    local line
    guest
    line=$(join_line '{"hostnames": ["guest"]}')
    docker exec -i "$GUEST" orion-agentd join <<<"$line"
    docker exec "$GUEST" systemctl restart orion-agentd
    until_true 60 guest_is "alive ready"
    # And nothing of it is readable for others, or in the process list.
    [[ $(docker exec "$GUEST" stat -c '%a %U' /etc/orion/agentd/join) == "600 root" ]]
    remove_guest
}

without_the_join_line_a_worker_is_401_and_is_not_dialled() {
    local control
    guest
    docker exec "$GUEST" sh -c 'echo API_ENDPOINT=http://control >/etc/default/orion-agentd; systemctl restart orion-agentd'
    until_true 30 guest_says join_token_refused
    # The same with a token that is over.
    docker exec -i "$GUEST" orion-agentd join < <(revoked_line)
    docker exec "$GUEST" systemctl restart orion-agentd
    until_true 30 guest_says revoked
    admin
    api GET /api/nodes
    [[ $(jq '[.[] | select(.hostname == "guest")] | length' <<<"$BODY") -eq 0 ]]
    control=$(docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' orion-lab-control)
    if docker exec "$GUEST" journalctl --no-pager -u ssh | grep -F "$control"; then
        fail "the control plane dialled a machine that did not join"
    fi
    remove_guest
}

revoked_line() {
    admin
    api POST /api/join-tokens '{}'
    field .join_line
    api DELETE "/api/join-tokens/$(field .join_token_id)"
}

authorized_keys() {
    docker exec "$1" sh -c 'cat ~orion-node/.ssh/authorized_keys'
}

only_from_the_control_plane() {
    local control=$1 worker
    for worker in orion-lab-worker1 orion-lab-worker2 orion-lab-worker3; do
        authorized_keys "$worker" | grep -F "from=\"$control\"" >/dev/null || return 1
        ! authorized_keys "$worker" | grep -vF "from=\"$control\"" >/dev/null || return 1
    done
}

the_pools_login_is_bound_to_the_control_planes_address() {
    local control
    control=$(docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' orion-lab-control)
    until_true 60 only_from_the_control_plane "$control"
    # Where this sshd knows penalties, the control plane is exempt from them.
    if docker exec orion-lab-worker1 sshd -T | grep '^persourcepenalty' >/dev/null; then
        docker exec orion-lab-worker1 sshd -T | grep -F "persourcepenaltyexemptlist $control"
    fi
}

rent_and_release() {
    local rental host port password
    new_user "r$(od -An -N4 -tx1 /dev/urandom | tr -d ' \n')"
    api POST /api/rent '{"duration_hours": 1}'
    expect 200
    read -r rental host port password < <(jq -r '.[0] | "\(.rental_id) \(.host_ip) \(.ssh_port) \(.client_pass)"' <<<"$BODY")
    client_ssh "$rental" "$host" "$port" "$USER_NAME" "$password" true
    api POST "/api/release/$rental"
    expect 200
}

# retires COMMAND: it refuses until every node has followed, and says so.
retires() {
    in_control "$@"
}

the_signing_key_is_rotated_without_an_outage() {
    empty_pool
    in_control orion-apid rotate-signing-key
    in_control systemctl restart orion-apid
    rent_and_release
    until_true 60 retires orion-apid retire-signing-key
    in_control systemctl restart orion-apid
    rent_and_release
    # Agents believe the new key, and it alone signs.
    until_true 60 all_free
    [[ $(in_control grep -c : /etc/orion/apid/signing.keys) -eq 1 ]]
}

the_pools_key_is_rotated_without_an_outage() {
    local before
    empty_pool
    before=$(authorized_keys orion-lab-worker1 | awk '{print $NF}')
    in_control orion-schedd rotate-pool-key
    in_control systemctl restart orion-schedd
    rent_and_release
    until_true 90 retires orion-schedd retire-pool-key
    in_control systemctl restart orion-schedd
    rent_and_release
    until_true 60 all_free
    until_true 30 replaced_on orion-lab-worker1 "$before"
}

replaced_on() {
    [[ $(authorized_keys "$1" | wc -l) -eq 1 ]] && ! authorized_keys "$1" | grep -F "$2" >/dev/null
}

an_agents_key_is_rotated_and_the_node_stays_the_same() {
    local node rotated before
    empty_pool
    admin
    api GET /api/nodes
    node=$(jq '.[] | select(.hostname == "worker1") | .node_id' <<<"$BODY")
    rotated="SELECT COUNT(*) FROM orion.events WHERE kind = 'node_key_rotated' AND node_id = $node"
    before=$(in_control mariadb -N -e "$rotated")
    docker exec orion-lab-worker1 orion-agentd rotate-key
    until_true 30 counted "$rotated" $((before + 1))
    until_true 30 all_free
    api GET "/api/nodes/$node"
    [[ $(field .hostname) == worker1 && $(field .status) == alive ]]
}

counted() {
    [[ $(in_control mariadb -N -e "$1") == "$2" ]]
}

# encodings TEXT: of a secret of 32 bytes in base64url, every way it could stand in a dump.
encodings() {
    local std
    std=$(tr '_-' '/+' <<<"$1")=
    printf '%s\n%s\n%s\n' "$1" "$std" "$(base64 -d <<<"$std" | od -An -v -tx1 | tr -d ' \n')"
}

# the_secrets: a line each; what a client, a worker and the control plane keep for themselves.
the_secrets() {
    local line worker
    new_user "dump$(od -An -N4 -tx1 /dev/urandom | tr -d ' \n')"
    echo "$TOKEN"
    api POST /api/rent '{"duration_hours": 1}'
    field '.[0].client_pass'
    api POST "/api/release/$(field '.[0].rental_id')"
    api POST /api/rent '{"duration_hours": 1, "ssh_password": "a password of her own"}' --header 'Idempotency-Key: dump'
    field '.[0].client_pass'
    line=$(join_line)
    line=${line#*#}
    encodings "${line%.*}"
    echo "$ORION_ADMIN_PASSWORD"
    echo pass-word
    in_control sh -c 'cut -d: -f2 /etc/orion/apid/*.keys'
    in_control grep -v -- ----- /etc/orion/schedd/pool_key
    for worker in orion-lab-worker1 orion-lab-worker2 orion-lab-worker3; do
        encodings "$(docker exec "$worker" cat /var/lib/orion-node/agent/key)"
    done
}

a_database_dump_logs_in_nowhere_and_forges_nothing() {
    local secrets=$scratch/secrets dump=$scratch/dump public
    empty_pool
    the_secrets | grep . >"$secrets"
    [[ $(wc -l <"$secrets") -ge 20 ]]
    in_control mariadb-dump --all-databases --hex-blob >"$dump"
    # It is the dump, and this search does find what is in it: the public half of the signing key.
    public=$(join_line)
    grep -qF "INSERT INTO \`join_tokens\`" "$dump"
    grep -qF "${public##*.}" "$dump"
    if grep -nFf "$secrets" "$dump" | cut -c1-200 | grep .; then
        fail "secrets are in the dump"
    fi
}

apid_without_its_keys_does_not_invent_some() {
    local status=0 key
    for key in AUTH__JWT_KEYS_FILE RENT__SERVER_KEYS_FILE REGISTRATION__SIGNING_KEYS_FILE; do
        status=0
        in_control env "ORION_APID__$key=/nonexistent" ORION_APID__LISTEN__CLIENTS=127.0.0.1:0 \
            ORION_APID__LISTEN__AGENTS=127.0.0.1:0 ORION_APID__OPS__LISTEN=127.0.0.1:0 orion-apid || status=$?
        [[ $status -eq 78 ]]
    done
}

the_agent_has_of_roots_rights_what_it_needs() {
    local worker pid has
    worker=$(workers | head -n 1)
    pid=$(docker exec "$worker" systemctl show --value --property MainPID orion-agentd)
    has=0x$(docker exec "$worker" sed -n 's/^CapPrm:[[:space:]]*//p' "/proc/$pid/status")
    # chown, dac_override, fowner, kill, sys_resource, audit_write; a container may have fewer. It can end processes.
    ((!(has & ~0x2100002b) && has & 0x20)) || fail "it has $has"
}

cases=(
    a_worker_with_nothing_but_the_join_line_and_the_package_becomes_ready
    without_the_join_line_a_worker_is_401_and_is_not_dialled
    the_pools_login_is_bound_to_the_control_planes_address
    the_signing_key_is_rotated_without_an_outage
    the_pools_key_is_rotated_without_an_outage
    an_agents_key_is_rotated_and_the_node_stays_the_same
    a_database_dump_logs_in_nowhere_and_forges_nothing
    apid_without_its_keys_does_not_invent_some
    the_agent_has_of_roots_rights_what_it_needs
)
[[ $# -eq 0 ]] || cases=("$@")
for case in "${cases[@]}"; do
    run "$case"
done
summary
