#!/usr/bin/env bash
# Acceptance of "rent a real machine, end to end": one case for each line of what it must show, in the running lab.
#
# Shown elsewhere:
#   races over two apid processes               cargo nextest run -p orion-tests
#   provisioning fails, a worker never answers   cargo nextest run -p orion-tests
#   the full table of bad input                  cargo nextest run -p orion-apid
#   speed against a hand-written playbook        make bench
set -euo pipefail
# shellcheck source=tests/accept/lab.sh
source "$(dirname "$0")/lab.sh"

# nothing_left WORKER UID NAME: of the account.
nothing_left() {
    local worker=$1 uid=$2 name=$3
    docker exec "$worker" sh -c "! getent passwd $name && ! getent passwd $uid && ! test -e /home/$name \
        && ! ps -eo uid= | grep -qw $uid && ! test -e /var/mail/$name && ! find /tmp /var/tmp /dev/shm -uid $uid | grep ."
}

node_is() {
    api GET /api/nodes
    [[ $(jq -r --arg ip "$1" '.[] | select(.host_ip == $ip) | .availability' <<<"$BODY") == "$2" ]]
}

rental_is() {
    api GET "/api/rentals/$1"
    [[ $(jq -r .state <<<"$BODY") == "$2" ]]
}

address_of() {
    docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$1"
}

node_moved_to() {
    admin
    api GET /api/nodes
    [[ $(jq -r --arg h "$1" '.[] | select(.hostname == $h) | .host_ip' <<<"$BODY") == "$2" ]]
}

refused() {
    ! client_ssh "$@" true
}

rent_of_two_from_sign_up_to_release() {
    local rentals n rental host port password worker started
    empty_pool
    new_user
    api POST /api/rent '{"duration_hours": 1, "count": 2}'
    expect 200
    rentals=$BODY
    [[ $(jq length <<<"$rentals") -eq 2 ]]
    [[ $(jq -r '.[0].client_user' <<<"$rentals") == "$USER_NAME" ]]
    jq -er '.[0].leased_until | test("^[0-9-]{10}T[0-9:]{8}\\.[0-9]{6}$")' <<<"$rentals"
    for n in 0 1; do
        read -r rental host port password < <(jq -r ".[$n] | \"\(.rental_id) \(.host_ip) \(.ssh_port) \(.client_pass)\"" <<<"$rentals")
        [[ $(client_ssh "$rental" "$host" "$port" "$USER_NAME" "$password" id -u) == $((UID_BASE + rental)) ]]
        # Something of each kind that a client leaves behind, and a process that outlives the session.
        client_ssh "$rental" "$host" "$port" "$USER_NAME" "$password" \
            'touch /tmp/mine /var/tmp/mine /dev/shm/mine ~/mine; setsid -f sleep 1000 >/dev/null 2>&1'
        api POST "/api/extend/$rental" '{"additional_hours": 1}'
        expect 200
        [[ $(field .lease_id) == "$rental" ]]
        field .new_end_at
    done
    api GET /api/nodes
    expect 200
    [[ $(jq '[.[] | select(.allocated and .lease.active)] | length' <<<"$BODY") -eq 2 ]]
    for n in 0 1; do
        read -r rental host port password < <(jq -r ".[$n] | \"\(.rental_id) \(.host_ip) \(.ssh_port) \(.client_pass)\"" <<<"$rentals")
        worker=$(worker_at "$host")
        started=$SECONDS
        api POST "/api/release/$rental"
        expect 200
        [[ $(field .message) == "Lease released" ]]
        api POST "/api/release/$rental"
        expect 200
        until_true 10 refused "$rental" "$host" "$port" "$USER_NAME" "$password"
        echo "refused $((SECONDS - started)) s after the release"
        until_true 20 nothing_left "$worker" $((UID_BASE + rental)) "$USER_NAME"
        until_true 20 node_is "$host" ready
    done
}

a_rental_of_20_seconds_ends_by_itself() {
    local rental host port password
    new_user
    api POST /api/rent '{"duration_hours": 0.005555555556}'
    expect 200
    read -r rental host port password < <(jq -r '.[0] | "\(.rental_id) \(.host_ip) \(.ssh_port) \(.client_pass)"' <<<"$BODY")
    client_ssh "$rental" "$host" "$port" "$USER_NAME" "$password" true
    until_true 40 refused "$rental" "$host" "$port" "$USER_NAME" "$password"
    until_true 30 rental_is "$rental" ended
    api GET "/api/rentals/$rental"
    [[ $(field .end_reason) == expired ]]
    until_true 20 nothing_left "$(worker_at "$host")" $((UID_BASE + rental)) "$USER_NAME"
}

reset_is_for_administrators_and_ends_everything() {
    local rental host port password
    new_user
    api POST /api/rent '{"duration_hours": 1}'
    expect 200
    read -r rental host port password < <(jq -r '.[0] | "\(.rental_id) \(.host_ip) \(.ssh_port) \(.client_pass)"' <<<"$BODY")
    api POST /api/reset
    expect 403
    as_admin api POST /api/reset
    expect 200
    [[ $(field .message) == "DB reset OK" ]]
    until_true 10 refused "$rental" "$host" "$port" "$USER_NAME" "$password"
    until_true 60 all_free
    api GET "/api/rentals/$rental"
    [[ $(field .end_reason) == reset ]]
    [[ -z $(accounts_on_workers) ]]
}

swapped_addresses_heal_by_themselves() {
    local first=orion-lab-worker1 second=orion-lab-worker2 before_first before_second known
    empty_pool
    # Workers came up side by side, so either may have the lower address: `second` is who has it.
    if [[ $(printf '%s\n' "$(address_of $first)" "$(address_of $second)" | sort --version-sort | head --lines=1) == \
        "$(address_of $first)" ]]; then
        first=orion-lab-worker2 second=orion-lab-worker1
    fi
    as_admin api GET /api/runs
    expect 200
    known=$(jq -c '[.[].run_id]' <<<"$BODY")
    before_first=$(address_of $first)
    before_second=$(address_of $second)
    docker stop -t 1 $first $second
    # The engine gives the lowest free address to whoever starts first.
    docker start $first
    docker start $second
    [[ $(address_of $first) == "$before_second" && $(address_of $second) == "$before_first" ]] ||
        fail "the engine did not swap the addresses: $before_first $before_second -> $(address_of $first) $(address_of $second)"
    until_true 120 node_moved_to "${first#orion-lab-}" "$before_second"
    until_true 60 node_moved_to "${second#orion-lab-}" "$before_first"
    until_true 60 all_free
    admin
    api GET /api/runs
    expect 200
    # Other cases have failed runs of their own.
    [[ $(jq --argjson known "$known" '[.[] | select(.run_id | IN($known[]) | not)
        | select(.kind != "inspect" and .state != "done" and .outcome != "superseded")] | length' <<<"$BODY") -eq 0 ]] ||
        fail "runs went wrong: $BODY"
    [[ -z $(accounts_on_workers) ]]
}

a_name_that_the_workers_know_is_409_and_no_node_suffers() {
    local name worker
    empty_pool
    name=local$(od -An -N4 -tx1 /dev/urandom | tr -d ' \n')
    for worker in $(workers); do
        docker exec "$worker" useradd --create-home --uid 4321 "$name"
    done
    new_user "$name"
    api POST /api/rent '{"duration_hours": 1}'
    expect 409
    [[ $(field .code) == name_taken ]]
    until_true 60 all_free
    for worker in $(workers); do
        [[ $(docker exec "$worker" id -u "$name") == 4321 ]]
        docker exec "$worker" test -d "/home/$name"
        docker exec "$worker" userdel --remove "$name"
    done
}

# in_the_middle COMMAND...: a rent whose client hangs up, and the command while it is under way.
in_the_middle() {
    new_user
    api POST /api/rent '{"duration_hours": 1, "count": 2}' --max-time 0.4
    "$@"
    until_true 120 at_rest
}

# at_rest: nothing is under way, and what is on the workers is what the database says.
at_rest() {
    nothing_under_way && accounts_equal_rentals
}

rentals_are() {
    api GET /api/rentals
    [[ $(jq -c '[.[].state]' <<<"$BODY") == "$1" ]]
}

a_client_that_hangs_up_loses_nothing() {
    empty_pool
    in_the_middle until_true 60 rentals_are '["active","active"]'
    rentals_are '["active","active"]'
}

apid_killed_in_the_middle_of_a_rent() {
    empty_pool
    in_the_middle in_control systemctl kill --signal=KILL orion-apid
}

apid_stopped_in_the_middle_of_a_rent() {
    empty_pool
    in_the_middle in_control systemctl restart orion-apid
}

schedd_killed_in_the_middle_of_a_rent() {
    empty_pool
    in_the_middle in_control systemctl kill --signal=KILL orion-schedd
    until_true 60 no_ansible
}

no_ansible() {
    ! in_control pgrep -f ansible-playbook
}

schedd_down_when_rent_is_called() {
    local answer=$scratch/rent.$$
    empty_pool
    new_user
    in_control systemctl stop orion-schedd
    ( api POST /api/rent '{"duration_hours": 1}'; echo "$STATUS" >"$answer" ) &
    until_true 30 rentals_are '["provisioning"]'
    in_control systemctl start orion-schedd
    wait
    [[ $(cat "$answer") == 200 ]]
    until_true 60 at_rest
}

passwords_are_taken_to_the_letter() {
    local password rental host port
    for password in "it's \"quoted\"" "\$HOME \`id\` \\n" '{{ 1 + 1 }} {% raw %}' 'пароль-Ω-密码'; do
        empty_pool
        new_user
        api POST /api/rent "$(jq -nc --arg p "$password" '{duration_hours: 1, ssh_password: $p}')"
        expect 200
        [[ $(jq -r '.[0].client_pass' <<<"$BODY") == "$password" ]]
        read -r rental host port < <(jq -r '.[0] | "\(.rental_id) \(.host_ip) \(.ssh_port)"' <<<"$BODY")
        client_ssh "$rental" "$host" "$port" "$USER_NAME" "$password" true
    done
}

# refuses STATUS FIELD PATH BODY: a 4xx that names the field; FIELD is empty where there is none.
refuses() {
    api POST "$3" "$4"
    expect "$1"
    [[ -z $2 || $(jq -r '.errors[0].field' <<<"$BODY") == "$2" ]] || fail "$4: names another field: $BODY"
}

bad_input_is_refused_through_caddy() {
    local count hours name password
    TOKEN=
    for name in root 'a;b' ../x -rf aaaaaaaaaabbbbbbbbbbccccccccccdddddddddd Alice élan '{{ 1 }}'; do
        refuses 422 username /auth/signup "$(jq -nc --arg u "$name" '{username: $u, password: "pass-word"}')"
    done
    for password in "line"$'\n'"break" abc "$(printf 'x%.0s' {1..2000})"; do
        refuses 422 password /auth/signup "$(jq -nc --arg p "$password" '{username: "good", password: $p}')"
    done
    refuses 422 password /auth/signup '{"username": "good", "password": "nul\u0000nul"}'
    refuses 400 '' /auth/signup '{"username": '
    refuses 400 username /auth/signup '{"username": 1, "password": "pass-word"}'
    refuses 401 '' /api/rent '{"duration_hours": 1}'
    new_user
    for count in 0 -1 1000000000 1e9; do
        refuses 422 count /api/rent "{\"duration_hours\": 1, \"count\": $count}"
    done
    for count in 1.5 '"x"'; do
        refuses 400 count /api/rent "{\"duration_hours\": 1, \"count\": $count}"
    done
    for hours in 0 -1 1e30; do
        refuses 422 duration_hours /api/rent "{\"duration_hours\": $hours}"
    done
    refuses 400 '' /api/rent '{"duration_hours": NaN}'
    refuses 422 surprise /api/rent '{"duration_hours": 1, "surprise": true}'
    api POST /api/release/abc && expect 422
    api POST /api/release/999999999 && expect 404
    head --bytes=10000000 /dev/zero | tr '\0' ' ' >"$scratch/big"
    api POST /api/rent '' --header 'Content-Type: application/json' --data-binary "@$scratch/big"
    expect 413
    TOKEN=eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.
    refuses 401 '' /api/rent '{"duration_hours": 1}'
}

# pss CONTAINER NAME: MiB of proportional set size.
pss() {
    docker exec "$1" sh -c "awk '/^Pss:/ {sum += \$2} END {printf \"%d\", (sum + 1023) / 1024}' /proc/\$(pidof $2)/smaps_rollup"
}

idle_daemons_are_small() {
    local worker
    empty_pool
    sleep "${ORION_IDLE_S:-60}"
    echo "apid $(pss orion-lab-control orion-apid) MiB, schedd $(pss orion-lab-control orion-schedd) MiB"
    [[ $(pss orion-lab-control orion-apid) -le 20 ]]
    [[ $(pss orion-lab-control orion-schedd) -le 20 ]]
    for worker in orion-lab-worker1 orion-lab-worker2 orion-lab-worker3; do
        echo "$worker agentd $(pss $worker orion-agentd) MiB"
        [[ $(pss $worker orion-agentd) -le 8 ]]
    done
}

cases=(
    rent_of_two_from_sign_up_to_release
    a_rental_of_20_seconds_ends_by_itself
    reset_is_for_administrators_and_ends_everything
    swapped_addresses_heal_by_themselves
    a_name_that_the_workers_know_is_409_and_no_node_suffers
    a_client_that_hangs_up_loses_nothing
    apid_killed_in_the_middle_of_a_rent
    apid_stopped_in_the_middle_of_a_rent
    schedd_killed_in_the_middle_of_a_rent
    schedd_down_when_rent_is_called
    passwords_are_taken_to_the_letter
    bad_input_is_refused_through_caddy
    idle_daemons_are_small
)
[[ $# -eq 0 ]] || cases=("$@")
for case in "${cases[@]}"; do
    run "$case"
done
summary
