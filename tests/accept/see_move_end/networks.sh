# shellcheck shell=bash disable=SC2153,SC2154 # set by faults.sh
# Sourced by see_move_end.sh: networks that are bad, and machines of which one half works.

# lose CONTAINER PERCENT in|out|both: packets on the way into or out of a worker.
lose() {
    local direction interface some
    docker exec "$1" nft 'add table inet loss; flush table inet loss;
        add chain inet loss in { type filter hook input priority 0; };
        add chain inet loss out { type filter hook output priority 0; }'
    for direction in in out; do
        [[ $3 == both || $3 == "$direction" ]] || continue
        [[ $direction == in ]] && interface=iifname || interface=oifname
        # nft takes no limit that is always met.
        [[ $2 == 100 ]] && some="" || some="numgen random mod 100 < $2"
        docker exec "$1" nft "add rule inet loss $direction $interface != \"lo\" $some drop"
    done
}

lose_nothing() {
    docker exec "$1" nft 'add table inet loss; delete table inet loss'
}

# slow_down CONTAINER: 400 ms each way between the control plane and its sshd. Connections that orion-schedd opens to it go
# through a proxy on the control plane's machine, which the kernel leads them to; the proxy's own are root's.
slow_down() {
    local address
    address=$(docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$1")
    # /run is a tmpfs there, which docker cp would write beneath.
    docker exec --interactive orion-lab-control sh -c 'cat >/run/delay_proxy.py' <"$root/tests/accept/see_move_end/delay_proxy.py"
    in_control nft "add table ip slow; flush table ip slow;
        add chain ip slow out { type nat hook output priority -100; };
        add rule ip slow out ip daddr $address tcp dport 22 meta skuid orion-schedd redirect to :2222"
    docker exec --detach orion-lab-control sh -c \
        "echo \$\$ >/run/delay_proxy.pid; exec python3 /run/delay_proxy.py 2222 $address 22 0.4"
    until_true 10 in_control bash -c ': </dev/tcp/127.0.0.1/2222'
    # The first word of its sshd takes three halves of a round trip, for orion-schedd and nobody else.
    greeted orion-schedd "$address" 1.1 9
    greeted root "$address" 0 1.1
}

# greeted USER ADDRESS FROM TO: an sshd's first line comes after so many seconds.
greeted() {
    local took
    took=$(in_control setpriv --reuid="$1" --clear-groups bash -c \
        "TIMEFORMAT=%R; time (exec 3<>/dev/tcp/$2/22; read -r line <&3; [[ \$line == SSH-* ]])" 2>&1)
    awk -v took="$took" -v from="$3" -v to="$4" 'BEGIN {exit !(took >= from && took < to)}' || fail "$1 is greeted after $took s"
}

slow_down_nothing() {
    # shellcheck disable=SC2016 # for the shell over there
    in_control sh -c 'nft "add table ip slow; delete table ip slow"
        [ ! -e /run/delay_proxy.pid ] || kill "$(cat /run/delay_proxy.pid)"; rm -f /run/delay_proxy.*'
}

good_networks() {
    local name
    heal
    slow_down_nothing
    for name in $(workers); do
        lose_nothing "$name"
    done
}

bad_networks_kill_nobody() {
    local all in out both slow flapping limit rental
    fresh_pool
    mapfile -t all < <(workers)
    [[ ${#all[@]} -ge 5 ]] || fail "this needs five workers: make lab WORKERS=10"
    in=${all[0]} out=${all[1]} both=${all[2]} slow=${all[3]} flapping=${all[4]}
    rent 1 "${#all[@]}"
    trap good_networks EXIT
    lose "$in" 30 in
    lose "$out" 30 out
    lose "$both" 30 both
    slow_down "$slow"
    # Off for 7 s of each 20: a beat and a probe are lost each time.
    limit=$((SECONDS + 600))
    while ((SECONDS < limit)); do
        cut_off "$flapping"
        stays 7 nobody_is_dead
        heal
        stays 13 nobody_is_dead
    done
    nothing_has_moved
    sql "SELECT hostname, status, status_reason, status_since FROM nodes WHERE forgotten_at IS NULL"
    # And it is no laxness: what is cut in one direction alone is dead.
    lose "$in" 100 in
    rental=$(sql "SELECT a.rental_id FROM accounts a JOIN nodes n ON n.id = a.node_id
        WHERE n.hostname = '${in#orion-lab-}' AND a.state = 'present'")
    until_true 60 node_is "$in" dead
    lose_nothing "$in"
    lose "$out" 100 out
    until_true 60 node_is "$out" dead
    good_networks
    until_true 120 everybody_answers
    # Nobody else was free.
    until_true 60 client "$rental" true
    invariants
}

nobody_is_dead() {
    [[ $(sql "SELECT COUNT(*) FROM nodes WHERE forgotten_at IS NULL AND status = 'dead'") == 0 ]]
}

node_is() {
    [[ $(sql "SELECT status FROM nodes WHERE hostname = '${1#orion-lab-}' AND forgotten_at IS NULL") == "$2" ]]
}

an_agent_that_stops_is_an_alarm_and_no_death() {
    fresh_pool
    rent 1
    docker exec "$WORKER" systemctl stop orion-agentd
    until_true 60 agent_is_down "$WORKER"
    stays 30 node_is "$WORKER" alive
    nothing_has_moved
    client "$RENTAL" true
    docker exec "$WORKER" systemctl start orion-agentd
    until_true 60 agent_is_back "$WORKER"
    invariants
}

agent_is_down() {
    admin
    api GET /api/nodes
    [[ $(jq --arg name "${1#orion-lab-}" '.[] | select(.hostname == $name) | .agent.down_since' <<<"$BODY") != null ]] &&
        [[ -n $(sql "SELECT e.id FROM events e JOIN nodes n ON n.id = e.node_id
            WHERE e.kind = 'agent_down' AND n.hostname = '${1#orion-lab-}'") ]]
}

agent_is_back() {
    admin
    api GET /api/nodes
    [[ $(jq --arg name "${1#orion-lab-}" '.[] | select(.hostname == $name) | .agent.down_since' <<<"$BODY") == null ]]
}

# It does so before it shows its host key, and is not silent all the same.
an_sshd_that_turns_connections_away_is_no_death() {
    fresh_pool
    rent 1
    trap 'turns_nobody_away "$WORKER"' EXIT
    # One login under way is too many, and one there is: nobody sends its name.
    docker exec "$WORKER" sh -c 'echo "MaxStartups 1:100:1" >/etc/ssh/sshd_config.d/00-full.conf; systemctl reload ssh'
    docker exec --detach "$WORKER" bash -c 'exec 3<>/dev/tcp/127.0.0.1/22; echo $$ >/run/full.pid; exec sleep 110'
    docker exec "$WORKER" systemctl stop orion-agentd
    until_true 60 is_turned_away_from "$WORKER"
    stays 45 node_is "$WORKER" suspect
    nothing_has_moved
    turns_nobody_away "$WORKER"
    until_true 60 node_is "$WORKER" alive
    client "$RENTAL" true
    until_true 60 agent_is_back "$WORKER"
    invariants
}

is_turned_away_from() {
    [[ $(sql "SELECT CONCAT(status, ': ', status_reason) FROM nodes WHERE hostname = '${1#orion-lab-}' AND forgotten_at IS NULL") == \
        "suspect: turned away: "* ]]
}

turns_nobody_away() {
    # shellcheck disable=SC2016 # for the shell over there
    docker exec "$1" sh -c 'rm -f /etc/ssh/sshd_config.d/00-full.conf; systemctl reload ssh
        [ ! -e /run/full.pid ] || kill "$(cat /run/full.pid)"; rm -f /run/full.pid; systemctl start orion-agentd'
}
