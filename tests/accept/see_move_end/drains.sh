# shellcheck shell=bash disable=SC2153,SC2154 # set by faults.sh
# Sourced by see_move_end.sh: nodes that are to be emptied.

a_draining_node_takes_no_new_rental() {
    fresh_pool
    keep_only 0
    new_user
    api POST /api/rent '{"duration_hours": 1}'
    expect 503
    [[ $(field .code) == no_free_node ]]
}

a_node_is_emptied_by_draining_it_with_move() {
    local node victim
    fresh_pool
    rent 1
    victim=$WORKER
    node=$(sql "SELECT id FROM nodes WHERE hostname = '${victim#orion-lab-}' AND forgotten_at IS NULL")
    admin
    api POST "/api/nodes/$node/drain?move=true&dry_run=true"
    expect 200
    [[ $(jq -r '.moves[0] | "\(.rental_id) \(.from.node_id)"' <<<"$BODY") == "$RENTAL $node" ]]
    [[ $(jq -r '.moves[0].to.node_id' <<<"$BODY") != null ]]
    [[ $(sql "SELECT draining FROM nodes WHERE id = $node") == 0 ]]
    api POST "/api/nodes/$node/drain?move=true"
    expect 200
    until_true 60 is_elsewhere "$RENTAL" "$victim"
    until_true 60 nothing_owed
    [[ -z $(seen_on "$victim") ]]
    invariants
}
