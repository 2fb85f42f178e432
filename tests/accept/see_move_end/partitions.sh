# shellcheck shell=bash disable=SC2153,SC2154 # set by faults.sh
# Sourced by see_move_end.sh: machines and the control plane that lose sight of each other.

a_worker_that_is_cut_off_and_comes_back_was_moved_once() {
    local victim
    fresh_pool
    rent 1
    victim=$WORKER
    unplug "$victim"
    until_true 60 is_elsewhere "$RENTAL" "$victim"
    # Nobody could reach it: the client's account is still there.
    [[ $(seen_on "$victim") == $((UID_BASE + RENTAL)) ]]
    is_not_offered_before_it_is_clean "$victim"
    plug "$victim"
    is_free_at_last "$victim"
    [[ $(kinds "$RENTAL") == "rental_active rental_degraded rental_moving rental_moved" ]]
    invariants
}

# is_free_at_last CONTAINER: and it was not a moment too early.
is_free_at_last() {
    local limit=$((SECONDS + 150))
    until is_free_and_clean "$1"; do
        is_not_offered_before_it_is_clean "$1"
        ((SECONDS < limit)) || fail "$1 is not free"
    done
}

# The database is asked first: who is gone by then is not seen on the machine afterwards.
is_not_offered_before_it_is_clean() {
    local availability
    availability=$(sql "SELECT availability FROM nodes WHERE hostname = '${1#orion-lab-}' AND forgotten_at IS NULL")
    [[ $availability != ready || -z $(seen_on "$1") ]] || fail "$1 is ready, and has the account of $(seen_on "$1")"
}

without_a_spare_a_rental_waits_for_one_and_comes_back_or_moves() {
    local victim other
    fresh_pool
    keep_only 2
    rent 1 2
    victim=$WORKER
    other=${RENTALS[1]}
    unplug "$victim"
    until_true 60 state_is "$RENTAL" degraded
    # Back before there was another: it is as it was.
    plug "$victim"
    until_true 60 client "$RENTAL" true
    [[ $(machine "$RENTAL") == "$victim" && $(kinds "$RENTAL") == "rental_active rental_degraded rental_back" ]]
    invariants
    # A spare turns up.
    sql "UPDATE nodes SET held_until = NULL; UPDATE migration SET grace_until = NULL"
    unplug "$victim"
    until_true 60 state_is "$RENTAL" degraded
    as_client "$RENTAL"
    api POST "/api/release/$other"
    expect 200
    until_true 60 is_elsewhere "$RENTAL" "$victim"
    plug "$victim"
    until_true 240 nothing_owed
    invariants
}

nothing_owed() {
    [[ $(sql "SELECT COUNT(*) FROM accounts WHERE state = 'leaving'") == 0 ]]
}

a_rental_that_is_degraded_ends_on_time() {
    local victim ends late
    fresh_pool
    keep_only 2
    # 75 seconds.
    rent 0.0208334 2
    victim=$WORKER
    ends=$(sql "SELECT UNIX_TIMESTAMP(leased_until) FROM rentals WHERE id = $RENTAL")
    # Else the machine would go by the bound that create left, a rent's deadline later.
    until_true 15 told
    unplug "$victim"
    until_true 60 state_is "$RENTAL" degraded
    until_true 60 state_is "$RENTAL" ending
    late=$(sql "SELECT UNIX_TIMESTAMP(ending_since) - $ends FROM rentals WHERE id = $RENTAL")
    say "ended $late s after its end"
    awk -v late="$late" 'BEGIN {exit !(late >= 0 && late < 5)}'
    # Nobody can reach the machine, so its agent locks by itself.
    until_true 15 is_locked_on "$victim" "$RENTAL"
    plug "$victim"
    until_true 120 state_is "$RENTAL" ended
    [[ $(kinds "$RENTAL") == "rental_active rental_degraded rental_ending rental_ended" ]]
    invariants
}

# is_locked_on CONTAINER RENTAL: no password, no process.
is_locked_on() {
    docker exec "$1" sh -c "getent shadow \$(getent passwd $((UID_BASE + $2)) | cut -d: -f1) | grep -q ':!'" &&
        ! docker exec "$1" pgrep -u $((UID_BASE + $2))
}

suspended() {
    [[ $(sql "SELECT COUNT(*) FROM migration WHERE suspended_since IS NOT NULL") == 1 ]] &&
        in_control curl --silent http://127.0.0.1:9302/readyz | grep -q migration
}

# stays SECONDS COMMAND...: it is true all the time.
stays() {
    local limit=$((SECONDS + $1))
    shift
    while ((SECONDS < limit)); do
        "$@" || fail "not true any more: $*" || return 1
        sleep 1
    done
}

nothing_has_moved() {
    [[ $(sql "SELECT COUNT(*) FROM events WHERE kind IN ('rental_moving', 'rental_degraded') AND rental_id IN ($(ids))") == 0 ]]
}

a_control_plane_that_is_cut_off_moves_nothing() {
    local victim
    fresh_pool
    rent 1 2
    # shellcheck disable=SC2046 # one name a word
    cut_off $(workers) $(plain_workers)
    until_true 120 suspended
    stays 90 nothing_has_moved
    [[ $(sql "SELECT COUNT(*) FROM nodes WHERE forgotten_at IS NULL AND status = 'dead'") == 0 ]]
    heal
    until_true 120 everybody_answers
    nothing_has_moved
    invariants
    # A death among them is handled then.
    victim=$WORKER
    docker kill "$victim" >/dev/null
    until_true 150 is_elsewhere "$RENTAL" "$victim"
    docker start "$victim" >/dev/null
    until_true 240 is_free_and_clean "$victim"
    invariants
}

# Three of five, six of ten: rentals on both sides.
cut_off_from_three_fifths_nothing_moves_until_an_administrator_says_so() {
    local rental name lost=() nodes
    fresh_pool
    offer '%'
    nodes=$(sql "SELECT COUNT(*) FROM nodes WHERE forgotten_at IS NULL")
    rent 1 2
    for rental in "${RENTALS[@]}"; do
        lost+=("$(machine "$rental")")
    done
    for name in $(workers) $(plain_workers); do
        [[ ${#lost[@]} -lt $(((nodes * 3 + 4) / 5)) ]] || break
        [[ " ${lost[*]} " == *" $name "* ]] || lost+=("$name")
    done
    cut_off "${lost[@]}"
    until_true 180 suspended
    stays 60 nothing_has_moved
    admin
    api POST /api/migration/override
    expect 200
    until_true 120 all_elsewhere
    for rental in "${RENTALS[@]}"; do
        [[ " ${lost[*]} " != *" $(machine "$rental") "* ]]
    done
    invariants
    heal
    until_true 120 everybody_answers
    until_true 240 nothing_owed
    invariants
}
