# shellcheck shell=bash disable=SC2153,SC2154 # set by faults.sh
# Sourced by see_move_end.sh: machines that die.

# death: one machine of a rental dies, and is timed until its client has logged in elsewhere. Appends to $scratch/deaths a
# line "detect decide provision login whole" in seconds.
death() {
    local killed now victim
    rent 1
    victim=$WORKER
    client "$RENTAL" true
    docker kill "$victim" >/dev/null
    killed=$(date +%s.%N)
    until_true 60 is_elsewhere "$RENTAL" "$victim"
    now=$(date +%s.%N)
    [[ $(kinds "$RENTAL") == "rental_active rental_degraded rental_moving rental_moved" ]]
    sql "SELECT UNIX_TIMESTAMP(MAX(IF(kind = 'node_dead', at, NULL))) - $killed,
            UNIX_TIMESTAMP(MAX(IF(kind = 'rental_moving', at, NULL))) - UNIX_TIMESTAMP(MAX(IF(kind = 'node_dead', at, NULL))),
            UNIX_TIMESTAMP(MAX(IF(kind = 'rental_moved', at, NULL))) - UNIX_TIMESTAMP(MAX(IF(kind = 'rental_moving', at, NULL))),
            $now - UNIX_TIMESTAMP(MAX(IF(kind = 'rental_moved', at, NULL))), $now - $killed
        FROM events WHERE rental_id = $RENTAL OR (kind = 'node_dead' AND at > FROM_UNIXTIME($killed)
            AND node_id = (SELECT id FROM nodes WHERE hostname = '${victim#orion-lab-}' AND forgotten_at IS NULL))" |
        tee -a "$scratch/deaths"
    DIED=$victim
}

# print_deaths: medians and worst, by phase.
print_deaths() {
    local column=0 phase
    say "$(wc -l <"$scratch/deaths") deaths, in seconds: median and worst"
    for phase in detect decide provision login whole; do
        column=$((column + 1))
        say "$(cut -f "$column" "$scratch/deaths" | sort -n |
            awk -v phase="$phase" '{v[NR] = $1} END {printf "%-10s %6.1f %6.1f", phase, v[int((NR + 1) / 2)], v[NR]}')"
    done
}

deaths_within_the_limits() {
    cut -f 5 "$scratch/deaths" | sort -n |
        awk '{v[NR] = $1} END {exit !(v[int((NR + 1) / 2)] <= 25 && v[NR] <= 45)}'
}

# The dead machine for good: its node is forgotten, and another one joins.
replace() {
    docker rm -f "$1" >/dev/null
    admin
    api DELETE "/api/nodes/$(sql "SELECT id FROM nodes WHERE hostname = '${1#orion-lab-}' AND forgotten_at IS NULL")"
    expect 200
    "$root/vagrant/launch_workers.sh" 1 >/dev/null
}

a_worker_dies_and_the_client_logs_in_elsewhere() {
    fresh_pool
    : >"$scratch/deaths"
    death
    print_deaths
    deaths_within_the_limits
    # The machine is repaired; what it still has goes before anybody gets it.
    docker start "$DIED" >/dev/null
    until_true 150 is_free_and_clean "$DIED"
    invariants
}

# Its debt was seen paid before it was offered again.
is_free_and_clean() {
    [[ $(sql "SELECT n.availability, n.status, COUNT(a.id),
            NOT EXISTS (SELECT 1 FROM accounts g WHERE g.node_id = n.id AND g.state = 'gone' AND g.state_since > n.availability_since)
        FROM nodes n LEFT JOIN accounts a ON a.node_id = n.id AND a.state <> 'gone'
        WHERE n.hostname = '${1#orion-lab-}' AND n.forgotten_at IS NULL GROUP BY n.id") == ready$'\t'alive$'\t'0$'\t'1 ]] &&
        [[ -z $(seen_on "$1") ]]
}

twenty_workers_die_each_of_them_fresh() {
    local number
    fresh_pool
    [[ $(plain_workers | wc -l) -ge 6 ]] || "$root/vagrant/launch_workers.sh" 6 >/dev/null
    until_true 120 all_free
    # These are quick to replace.
    offer 'plain%'
    : >"$scratch/deaths"
    for ((number = 1; number <= 20; number++)); do
        death
        invariants
        api POST "/api/release/$RENTAL"
        expect 200
        replace "$DIED"
        until_true 120 all_free
    done
    print_deaths
    deaths_within_the_limits
}

# Eight of twenty, or what 40 % of the pool is.
two_fifths_of_the_nodes_really_die() {
    local nodes victims name rental
    fresh_pool
    offer '%'
    nodes=$(sql "SELECT COUNT(*) FROM nodes WHERE forgotten_at IS NULL")
    victims=$((nodes * 2 / 5))
    rent 1 "$victims"
    for rental in "${RENTALS[@]}"; do
        machine "$rental"
    done >"$scratch/victims"
    xargs docker kill <"$scratch/victims" >/dev/null
    until_true $((90 + victims * 5)) all_elsewhere
    invariants
    # Paced: five at once, then one in 5 s.
    sql "SELECT UNIX_TIMESTAMP(at) FROM events WHERE kind = 'rental_moving' AND rental_id IN ($(ids)) ORDER BY at" |
        tee /dev/stderr | awk '{if (NR == 1) first = $1; if (NR > 5 && $1 - first < (NR - 5) * 5 - 0.5) exit 1}'
    # Ordered: who was degraded first moves first.
    diff <(sql "SELECT rental_id FROM events WHERE kind = 'rental_moving' AND rental_id IN ($(ids)) ORDER BY at, id") \
        <(sql "SELECT rental_id FROM events WHERE kind = 'rental_degraded' AND rental_id IN ($(ids)) ORDER BY at, rental_id")
    while read -r name; do
        docker start "$name" >/dev/null
    done <"$scratch/victims"
    while read -r name; do
        until_true 240 is_free_and_clean "$name"
    done <"$scratch/victims"
    invariants
}

ids() {
    local IFS=,
    echo "${RENTALS[*]}"
}

all_elsewhere() {
    [[ $(sql "SELECT COUNT(*) FROM rentals WHERE state = 'active' AND id IN ($(ids))
        AND id IN (SELECT rental_id FROM events WHERE kind = 'rental_moved')") == "${#RENTALS[@]}" ]]
}
