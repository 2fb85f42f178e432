#!/usr/bin/env bash
# Acceptance of "see, move, end", as far as it is built: one case for each line that is shown, in the running lab.
#
# Shown elsewhere:
#   brakes, order, grace, flapping on a real MariaDB     cargo nextest run -p orion-store migrate
#   moved once, debts, everything cut off                cargo nextest run -p orion-tests moves
set -euo pipefail
# shellcheck source=tests/accept/lab.sh
source "$(dirname "$0")/lab.sh"

# rent_one HOURS: one machine for a new user. Sets RENTAL HOST PORT PASSWORD and WORKER.
rent_one() {
    new_user "m$(od -An -N4 -tx1 /dev/urandom | tr -d ' \n')"
    api POST /api/rent "{\"duration_hours\": $1}"
    expect 200
    read -r RENTAL HOST PORT PASSWORD < <(jq -r '.[0] | "\(.rental_id) \(.host_ip) \(.ssh_port) \(.client_pass)"' <<<"$BODY")
    WORKER=$(worker_at "$HOST")
}

# logs_in: where the API says that the rental is now.
logs_in() {
    local host port
    api GET "/api/rentals/$RENTAL"
    [[ $STATUS == 200 && $(jq -r .state <<<"$BODY") == active ]] || return 1
    read -r host port < <(jq -r '"\(.host_ip) \(.ssh_port)"' <<<"$BODY")
    [[ $host != "$HOST" ]] || return 1
    client_ssh "$RENTAL" "$host" "$port" "$USER_NAME" "$PASSWORD" true
}

a_worker_dies_and_the_client_logs_in_elsewhere_within_45_seconds() {
    local started until
    empty_pool
    rent_one 1
    api GET "/api/rentals/$RENTAL"
    until=$(field .leased_until)
    # Cut off, as a machine that lost its power is.
    docker network disconnect --force orion-lab "$WORKER"
    started=$SECONDS
    until_true 45 logs_in
    echo "logged in elsewhere $((SECONDS - started)) s after the death of $WORKER"
    api GET "/api/rentals/$RENTAL"
    [[ $(field .leased_until) == "$until" ]]
    [[ $(jq -r '[.history[].kind] | join(" ")' <<<"$BODY") == "rental_active rental_degraded rental_moving rental_moved" ]]
    # The old worker still has the account; when it is back, that goes before anybody gets the worker.
    docker exec "$WORKER" id "$USER_NAME"
    docker network connect orion-lab "$WORKER"
    until_true 120 at_rest_with_one
    ! docker exec "$WORKER" id "$USER_NAME" 2>/dev/null
}

at_rest_with_one() {
    nothing_under_way && accounts_equal_rentals && [[ $(accounts_on_workers | wc -l) -eq 1 ]]
}

control_plane() {
    in_control systemctl "$1" orion-apid orion-schedd mariadb
}

access_ends_on_time_with_the_whole_control_plane_down() {
    local started
    empty_pool
    # 30 seconds.
    rent_one 0.00833333
    client_ssh "$RENTAL" "$HOST" "$PORT" "$USER_NAME" "$PASSWORD" 'setsid -f sleep 1000 >/dev/null 2>&1'
    started=$SECONDS
    # The agent has learnt the end; until then it goes by the bound that create left, which is the rent's deadline later.
    until_true 15 told
    trap 'control_plane start' EXIT
    control_plane stop
    until_true 60 locked
    echo "locked out $((SECONDS - started)) s after a rent of 30 s"
    [[ $((SECONDS - started)) -le 45 ]]
    control_plane start
    until_true 90 ended_and_gone
}

told() {
    docker exec "$WORKER" jq -e ".accounts[] | select(.uid == $((UID_BASE + RENTAL))) | .told" /var/lib/orion-node/agent/countdowns
}

locked() {
    ! client_ssh "$RENTAL" "$HOST" "$PORT" "$USER_NAME" "$PASSWORD" true &&
        ! docker exec "$WORKER" pgrep -u "$((UID_BASE + RENTAL))"
}

ended_and_gone() {
    admin
    api GET "/api/rentals/$RENTAL"
    [[ $(field .state) == ended && $(field .end_reason) == expired ]] && all_free
}

a_draining_node_takes_no_new_rental() {
    local node nodes
    empty_pool
    admin
    api GET /api/nodes
    nodes=$(jq '.[].node_id' <<<"$BODY")
    for node in $nodes; do
        api POST "/api/nodes/$node/drain"
        expect 200
    done
    new_user "d$(od -An -N4 -tx1 /dev/urandom | tr -d ' \n')"
    api POST /api/rent '{"duration_hours": 1}'
    expect 503
    [[ $(field .code) == no_free_node ]]
    admin
    for node in $nodes; do
        api POST "/api/nodes/$node/undrain"
        expect 200
    done
}

cases=(
    a_worker_dies_and_the_client_logs_in_elsewhere_within_45_seconds
    access_ends_on_time_with_the_whole_control_plane_down
    a_draining_node_takes_no_new_rental
)
[[ $# -eq 0 ]] || cases=("$@")
for case in "${cases[@]}"; do
    run "$case"
done
summary
