# shellcheck shell=bash disable=SC2153,SC2154 # set by faults.sh
# Sourced by see_move_end.sh: rentals that end, whoever is there to end them.

control_plane() {
    in_control systemctl "$1" orion-apid orion-schedd mariadb
}

# told: the agent knows the end, not only the bound that create left.
told() {
    docker exec "$WORKER" jq -e ".accounts[] | select(.uid == $((UID_BASE + RENTAL))) | .told" /var/lib/orion-node/agent/countdowns
}

# Where the API is away, at the address of before.
remember_address() {
    as_client "$RENTAL"
    api GET "/api/rentals/$RENTAL"
    read -r HOST PORT < <(jq -r '"\(.host_ip) \(.ssh_port)"' <<<"$BODY")
    ENDS=$(sql "SELECT UNIX_TIMESTAMP(leased_until) FROM rentals WHERE id = $RENTAL")
    client "$RENTAL" 'setsid -f sleep 1000 >/dev/null 2>&1'
}

locked() {
    ! client_ssh "$RENTAL" "$HOST" "$PORT" "$USER_NAME" "$PASSWORD" true &&
        ! docker exec "$WORKER" pgrep -u "$((UID_BASE + RENTAL))"
}

# locked_by SECONDS: not more than that after its end.
locked_by() {
    local late
    until_true "$(awk -v ends="$ENDS" -v now="$(date +%s)" -v more="$1" 'BEGIN {printf "%d", ends - now + more + 5}')" locked
    late=$(awk -v ends="$ENDS" -v now="$(date +%s.%N)" 'BEGIN {print now - ends}')
    say "locked out $late s after its end"
    awk -v late="$late" -v more="$1" 'BEGIN {exit !(late > -1 && late < more)}'
}

expired_and_gone() {
    [[ $(sql "SELECT CONCAT(state, ' ', end_reason) FROM rentals WHERE id = $RENTAL") == "ended expired" &&
        -z $(seen_on "$WORKER") ]]
}

access_ends_on_time_with_the_whole_control_plane_down() {
    fresh_pool
    # 30 seconds.
    rent 0.00833334
    remember_address
    until_true 15 told
    trap 'control_plane start' EXIT
    control_plane stop
    # Five seconds in which it asks, and a login's time.
    locked_by 20
    control_plane start
    until_true 90 expired_and_gone
    invariants
}

a_rental_of_right_before_the_outage_ends_by_its_bound() {
    local bound
    fresh_pool
    trap 'control_plane start' EXIT
    rent 0.00833334
    # At once, before a beat told the end: what create left is the latest end that was possible then.
    control_plane kill
    bound=$(docker exec "$WORKER" jq ".ends_at_wall" "/var/lib/orion-node/accounts/$((UID_BASE + RENTAL)).json")

    until_true 120 is_locked_on "$WORKER" "$RENTAL"
    awk -v bound="$bound" -v now="$(date +%s.%N)" 'BEGIN {print "locked " now - bound " s after its bound"; exit !(now - bound < 10)}'
    control_plane start
    until_true 90 expired_and_gone
    invariants
}

an_extension_that_the_agent_learned_of_is_honoured() {
    fresh_pool
    trap 'control_plane start' EXIT
    rent 0.00833334
    until_true 15 told
    as_client "$RENTAL"
    # 30 seconds more.
    api POST "/api/extend/$RENTAL" '{"additional_hours": 0.00833334}'
    expect 200
    remember_address
    until_true 15 knows_the_end
    control_plane stop
    stays "$(awk -v ends="$ENDS" -v now="$(date +%s)" 'BEGIN {printf "%d", ends - now - 3}')" lets_in
    locked_by 20
    control_plane start
    until_true 90 expired_and_gone
    invariants
}

lets_in() {
    client_ssh "$RENTAL" "$HOST" "$PORT" "$USER_NAME" "$PASSWORD" true
}

# Its countdown is within 3 s of the real end.
knows_the_end() {
    docker exec "$WORKER" jq -e --argjson ends "$ENDS" --argjson uid "$((UID_BASE + RENTAL))" \
        '(.wall_s - .boot_s) as $offset | .accounts[] | select(.uid == $uid) | (.end_s + $offset - $ends) | fabs < 3' \
        /var/lib/orion-node/agent/countdowns
}

# A container keeps its host's boot id: another one is laid over it.
access_ends_on_time_after_a_workers_reboot() {
    fresh_pool
    # 45 seconds.
    rent 0.0125
    remember_address
    until_true 15 told
    trap 'control_plane start; docker exec "$WORKER" umount /proc/sys/kernel/random/boot_id' EXIT
    control_plane stop
    docker exec "$WORKER" sh -c 'systemctl kill --signal=KILL orion-agentd
        cat /proc/sys/kernel/random/uuid >/run/boot_id && mount --bind /run/boot_id /proc/sys/kernel/random/boot_id
        systemctl restart orion-agentd'
    [[ $(docker exec "$WORKER" cat /proc/sys/kernel/random/boot_id) != "$(cat /proc/sys/kernel/random/boot_id)" ]]
    locked_by 20
    control_plane start
    until_true 90 expired_and_gone
    invariants
}

a_client_that_does_not_want_to_go_is_gone() {
    fresh_pool
    rent 1
    # A fork loop, a daemon of its own session that ignores signals, cron, at, linger, files wherever it may write.
    client "$RENTAL" bash -s <<'CLIENT' || true
setsid -f bash -c 'trap "" TERM HUP INT; while true; do sleep 1000 & wait; done' >/dev/null 2>&1
setsid -f bash -c 'ulimit -u 50; while true; do (while true; do sleep 0.1; done) & done' >/dev/null 2>&1
echo '* * * * * touch /tmp/still-here' | crontab -
echo 'touch /tmp/still-here' | at now + 1 minute
loginctl enable-linger
touch /tmp/mine /var/tmp/mine /dev/shm/mine
CLIENT
    # The administrator mounted something there.
    docker exec "$WORKER" sh -c 'd=$(getent passwd "$1" | cut -d: -f6); mkdir -p "$d/mnt" && mount -t tmpfs -o uid="$1" tmpfs "$d/mnt"
        su -s /bin/sh "$(getent passwd "$1" | cut -d: -f1)" -c "echo x >$d/mnt/file"' - $((UID_BASE + RENTAL))
    as_client "$RENTAL"
    api POST "/api/release/$RENTAL"
    expect 200
    until_true 60 gone_or_quarantined
    sql "SELECT availability, availability_reason FROM nodes WHERE hostname = '${WORKER#orion-lab-}' AND forgotten_at IS NULL"
    invariants
}

gone_or_quarantined() {
    [[ $(sql "SELECT state FROM rentals WHERE id = $RENTAL") == ended && -z $(strays_on "$WORKER") ]] ||
        [[ $(sql "SELECT availability_reason FROM nodes WHERE availability = 'quarantined'
            AND hostname = '${WORKER#orion-lab-}' AND forgotten_at IS NULL") == not_gone:*left:* ]]
}
