#!/usr/bin/env bash
# Acceptance of "see, move, end" in the running lab.
#
#   see_move_end.sh            what `make test` runs: some minutes
#   see_move_end.sh faults     all of it, as `make test-faults` does in a lab of ten workers
#   see_move_end.sh CASE...    these
#
# Shown elsewhere:
#   clocks that step                            cargo nextest run -p orion-tests clock
#   defects 2 to 7 of the first Orion           cargo nextest run -p orion-tests first_orion
#   brakes, order, grace, flapping, in SQL      cargo nextest run -p orion-store -E 'binary(migrate)'
#   a file made immutable, on a real ext4       tests/module/run.sh
set -euo pipefail
here=$(dirname "$0")
# shellcheck source=tests/accept/faults.sh
source "$here/faults.sh"
# shellcheck source=tests/accept/see_move_end/deaths.sh
source "$here/see_move_end/deaths.sh"
# shellcheck source=tests/accept/see_move_end/partitions.sh
source "$here/see_move_end/partitions.sh"
# shellcheck source=tests/accept/see_move_end/networks.sh
source "$here/see_move_end/networks.sh"
# shellcheck source=tests/accept/see_move_end/ends.sh
source "$here/see_move_end/ends.sh"
# shellcheck source=tests/accept/see_move_end/drains.sh
source "$here/see_move_end/drains.sh"

cases=(
    a_worker_dies_and_the_client_logs_in_elsewhere
    access_ends_on_time_with_the_whole_control_plane_down
    a_node_is_emptied_by_draining_it_with_move
    a_client_that_does_not_want_to_go_is_gone
)
faults=(
    a_worker_that_is_cut_off_and_comes_back_was_moved_once
    without_a_spare_a_rental_waits_for_one_and_comes_back_or_moves
    a_rental_that_is_degraded_ends_on_time
    a_control_plane_that_is_cut_off_moves_nothing
    cut_off_from_three_fifths_nothing_moves_until_an_administrator_says_so
    a_rental_of_right_before_the_outage_ends_by_its_bound
    an_extension_that_the_agent_learned_of_is_honoured
    access_ends_on_time_after_a_workers_reboot
    an_agent_that_stops_is_an_alarm_and_no_death
    an_sshd_that_turns_connections_away_is_no_death
    a_draining_node_takes_no_new_rental
    two_fifths_of_the_nodes_really_die
    twenty_workers_die_each_of_them_fresh
    bad_networks_kill_nobody
)
case ${1:-} in
    '') ;;
    faults) cases+=("${faults[@]}") ;;
    *) cases=("$@") ;;
esac
for case in "${cases[@]}"; do
    run "$case"
done
# Whoever comes next finds a whole lab, also after a case that failed half-way.
repair
summary
