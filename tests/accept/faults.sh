# shellcheck shell=bash disable=SC2034 # what is set here is read by who sources this
# Sourced by see_move_end.sh: rentals whose clients are remembered, machines that die or are cut off, and what must hold
# whatever happened.

# shellcheck source=tests/accept/lab.sh
source "$(dirname "${BASH_SOURCE[0]}")/lab.sh"

# Every rental that a client was promised: "rental user password token", a line each.
book=$scratch/promised

sql() {
    in_control mariadb --batch --skip-column-names orion --execute "$1"
}

# node_name RENTAL: the host name of the node that its present account is on.
node_name() {
    sql "SELECT n.hostname FROM nodes n JOIN accounts a ON a.node_id = n.id WHERE a.rental_id = $1 AND a.state = 'present'"
}

# machine RENTAL: the container of that node.
machine() {
    echo "orion-lab-$(node_name "$1")"
}

# rent HOURS [COUNT]: for a new user, who is logged in then. Sets RENTALS, and RENTAL and WORKER of the first.
rent() {
    new_user "m$(od -An -N4 -tx1 /dev/urandom | tr -d ' \n')"
    api POST /api/rent "{\"duration_hours\": $1, \"count\": ${2:-1}}"
    expect 200
    jq -r --arg user "$USER_NAME" --arg token "$TOKEN" '.[] | "\(.rental_id) \($user) \(.client_pass) \($token)"' \
        <<<"$BODY" >>"$book"
    mapfile -t RENTALS < <(jq -r '.[].rental_id' <<<"$BODY")
    RENTAL=${RENTALS[0]}
    WORKER=$(machine "$RENTAL")
}

# as_client RENTAL: sets USER_NAME, PASSWORD and TOKEN to its client's.
as_client() {
    read -r USER_NAME PASSWORD TOKEN < <(awk -v rental="$1" '$1 == rental {print $2, $3, $4}' "$book")
}

# client RENTAL COMMAND...: as its client, with its password, at the address that the API gives.
client() {
    local rental=$1 host port USER_NAME PASSWORD TOKEN
    shift
    as_client "$rental"
    api GET "/api/rentals/$rental"
    [[ $STATUS == 200 && $(jq -r .state <<<"$BODY") == active ]] || return 1
    read -r host port < <(jq -r '"\(.host_ip) \(.ssh_port)"' <<<"$BODY")
    client_ssh "$rental" "$host" "$port" "$USER_NAME" "$PASSWORD" "$@"
}

# --- Faults ---------------------------------------------------------------------------------------------------------

# A machine whose network is gone. It goes on by itself, as one behind a switch that failed.
unplug() {
    docker network disconnect --force orion-lab "$1"
}

plug() {
    docker network connect orion-lab "$1"
}

# cut_off CONTAINER...: neither SSH nor beats pass between the control plane and these; clients still reach them.
cut_off() {
    local name address port
    in_control nft 'add table inet cut; flush table inet cut;
        add chain inet cut in { type filter hook input priority 0; };
        add chain inet cut out { type filter hook output priority 0; }'
    for name in "$@"; do
        address=$(docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$name")
        in_control nft "add rule inet cut in ip saddr $address drop; add rule inet cut out ip daddr $address drop"
        # A plain worker is reached at a port of this machine.
        port=$(docker port "$name" 22 2>/dev/null || true)
        [[ -z $port ]] || in_control nft "add rule inet cut out ip daddr ${port%:*} tcp dport ${port##*:} drop"
    done
}

heal() {
    in_control nft 'add table inet cut; delete table inet cut'
}

# --- What must hold -------------------------------------------------------------------------------------------------

# quiet: nothing passes from one state to another; a debt on a node that does not answer may stay.
quiet() {
    [[ $(sql "SELECT (SELECT COUNT(*) FROM requests WHERE state = 'open')
        + (SELECT COUNT(*) FROM accounts WHERE state = 'making')
        + (SELECT COUNT(*) FROM runs WHERE state IN ('queued', 'claimed') AND kind = 'provision')
        + (SELECT COUNT(*) FROM accounts a JOIN nodes n ON n.id = a.node_id
           WHERE a.state = 'leaving' AND n.status = 'alive' AND n.forgotten_at IS NULL)") == 0 ]]
}

# Managed UIDs on a running machine, in the database and really.
owed_on() {
    sql "SELECT a.uid FROM accounts a JOIN nodes n ON n.id = a.node_id
        WHERE n.hostname = '${1#orion-lab-}' AND n.forgotten_at IS NULL AND a.state <> 'gone' ORDER BY a.uid"
}

seen_on() {
    docker exec "$1" getent passwd |
        awk -F: -v base="$UID_BASE" '$3 >= base && $3 < base + 1000000000 {print $3}' | sort -n
}

# Processes and files of UIDs that the database does not know on the machine.
strays_on() {
    local owed
    owed=" $(owed_on "$1" | tr '\n' ' ')"
    {
        docker exec "$1" ps -eo uid= | awk '{print "process", $1}'
        docker exec "$1" find / -xdev -uid +$((UID_BASE - 1)) -uid -$((UID_BASE + 1000000000)) -printf 'file %U %p\n' 2>/dev/null
        docker exec "$1" find /tmp /run /dev/shm -uid +$((UID_BASE - 1)) -uid -$((UID_BASE + 1000000000)) -printf 'file %U %p\n' \
            2>/dev/null
    } | awk -v base="$UID_BASE" -v owed="$owed" '$2 >= base && $2 < base + 1000000000 && index(owed, " " $2 " ") == 0'
}

nothing_strays() {
    local name strays
    for name in $(workers) $(plain_workers); do
        [[ $(seen_on "$name") == "$(owed_on "$name")" ]] || fail "$name has $(seen_on "$name"), owed $(owed_on "$name")" || return 1
        [[ $(seen_on "$name" | wc -l) -le 1 ]] || fail "two clients' accounts on $name" || return 1
        strays=$(strays_on "$name")
        [[ -z $strays ]] || fail "on $name: $strays" || return 1
    done
}

no_run_is_left() {
    [[ $(sql "SELECT COUNT(*) FROM runs WHERE state = 'claimed'") == 0 ]] &&
        [[ -z $(in_control pgrep -u orion-schedd -a 'ansible|ssh') ]]
}

# invariants: what holds after every fault, in the database and on every machine that runs.
invariants() {
    local found rental user password
    until_true 60 quiet
    found=$(sql "SELECT a.node_id, GROUP_CONCAT(r.id) FROM accounts a JOIN rentals r ON r.id = a.rental_id
        WHERE a.state IN ('making', 'present') AND r.state IN ('provisioning', 'active', 'degraded')
        GROUP BY a.node_id HAVING COUNT(*) > 1")
    [[ -z $found ]] || fail "two live rentals on a node: $found"
    # Beyond its deadline: open requests, claims nobody renews, accounts in the making, ends that were not followed.
    found=$(sql "SELECT 'request', id FROM requests WHERE state = 'open' AND deadline_at < UTC_TIMESTAMP(6) - INTERVAL 5 SECOND
        UNION ALL SELECT 'run', id FROM runs WHERE state = 'claimed' AND claim_expires_at < UTC_TIMESTAMP(6) - INTERVAL 5 SECOND
        UNION ALL SELECT 'account', id FROM accounts WHERE state = 'making' AND state_since < UTC_TIMESTAMP(6) - INTERVAL 90 SECOND
        UNION ALL SELECT 'rental', id FROM rentals WHERE state IN ('active', 'degraded')
            AND leased_until < UTC_TIMESTAMP(6) - INTERVAL 5 SECOND
        UNION ALL SELECT 'ending', r.id FROM rentals r WHERE r.state = 'ending'
            AND NOT EXISTS (SELECT 1 FROM accounts a WHERE a.rental_id = r.id AND a.state = 'leaving')")
    [[ -z $found ]] || fail "in a passing state beyond its deadline: $found"
    while read -r rental user password _; do
        [[ -n $(sql "SELECT id FROM rentals WHERE id = $rental") ]] || fail "rental $rental of $user was promised and is lost"
        if [[ $(sql "SELECT state FROM rentals WHERE id = $rental") == active ]]; then
            until_true 20 client "$rental" true || fail "the client $user of rental $rental can't log in with '$password'"
        fi
    done <"$book"
    until_true 30 nothing_strays || nothing_strays
    until_true 30 no_run_is_left
}

# --- The pool -------------------------------------------------------------------------------------------------------

plain_workers() {
    docker ps --filter label=orion.lab=1 --format '{{.Names}}' | grep '^orion-lab-plain' | sort -V || true
}

# repair: every machine runs and is connected.
repair() {
    local name
    heal
    for name in $(docker ps -a --filter label=orion.lab=1 --format '{{.Names}}' | grep -E 'worker|plain'); do
        [[ $(docker inspect --format '{{.State.Running}}' "$name") == true ]] || docker start "$name"
        [[ $(docker inspect --format '{{len .NetworkSettings.Networks}}' "$name") == 1 ]] || plug "$name"
    done
}

# fresh_pool: every machine is ready and without a past; nobody is promised anything.
fresh_pool() {
    local id
    : >"$book"
    repair
    until_true 120 everybody_answers
    # What earlier cases did to a node is not this one's matter.
    sql "UPDATE nodes SET deaths = 0, died_at = NULL, held_until = NULL WHERE forgotten_at IS NULL;
        UPDATE migration SET tokens = 5, grace_until = NULL, override_until = NULL WHERE id = 1"
    admin
    for id in $(sql "SELECT id FROM nodes WHERE forgotten_at IS NULL AND availability = 'quarantined'"); do
        api POST "/api/nodes/$id/release-from-quarantine"
    done
    # Cases act on machines with systemd.
    offer 'worker%'
    api POST /api/reset
    expect 200
    until_true 120 all_free
}

# offer PATTERN: of all nodes those with such names are rented, the others are draining.
offer() {
    local id word
    admin
    while read -r id word; do
        api POST "/api/nodes/$id/$word"
        expect 200
    done < <(sql "SELECT id, IF(hostname LIKE '$1', 'undrain', 'drain') FROM nodes WHERE forgotten_at IS NULL")
}

everybody_answers() {
    [[ $(sql "SELECT COUNT(*) FROM nodes WHERE forgotten_at IS NULL AND status <> 'alive'") == 0 &&
        $(sql "SELECT COUNT(*) FROM migration WHERE suspended_since IS NOT NULL") == 0 ]]
}

# keep_only NUMBER: all nodes but so many are draining.
keep_only() {
    local id
    admin
    for id in $(sql "SELECT id FROM nodes WHERE forgotten_at IS NULL AND NOT draining ORDER BY id" | tail -n "+$(($1 + 1))"); do
        api POST "/api/nodes/$id/drain"
        expect 200
    done
}

# kinds RENTAL: the kinds of its events, in order.
kinds() {
    sql "SELECT GROUP_CONCAT(kind ORDER BY id SEPARATOR ' ') FROM events WHERE rental_id = $1 AND kind LIKE 'rental%'"
}

# state_is RENTAL STATE
state_is() {
    [[ $(sql "SELECT state FROM rentals WHERE id = $1") == "$2" ]]
}

# is_on_other_machine RENTAL CONTAINER: it is active, elsewhere, and its client logs in there.
is_elsewhere() {
    state_is "$1" active && [[ $(machine "$1") != "$2" ]] && client "$1" true
}
