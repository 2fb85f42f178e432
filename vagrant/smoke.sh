#!/usr/bin/env bash
# Is the lab good? Waits until its nodes are ready, then does what a client does, through Caddy: signs up, logs in,
# rents a machine, logs in there over SSH with the password it was given, and releases it. Prints what to try next.
#
#   smoke.sh          needs .lab/env, curl, jq, ssh and sshpass
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly root
readonly READY_S=300
# shellcheck source=/dev/null
source "$root/.lab/env"

say() {
    printf '== %s\n' "$*"
}

die() {
    printf 'smoke: %s\n' "$*" >&2
    exit 1
}

# call METHOD PATH TOKEN [BODY]: prints the reply's body; fails, and says why, unless the status is 2xx
call() {
    local method=$1 path=$2 token=$3 reply status
    local args=(-sS --max-time 100 --cacert "$ORION_CA" -X "$method" -w '\n%{http_code}')
    [ -z "$token" ] || args+=(-H "Authorization: Bearer $token")
    [ $# -lt 4 ] || args+=(-H 'Content-Type: application/json' --data-binary "$4")
    reply=$(curl "${args[@]}" "$ORION_URL$path") || return 1
    status=${reply##*$'\n'}
    reply=${reply%$'\n'*}
    if [[ $status != 2* ]]; then
        printf '%s %s: %s %s\n' "$method" "$path" "$status" "$reply" >&2
        return 1
    fi
    printf '%s\n' "$reply"
}

token_of() {
    call POST /auth/login "" "$(jq -nc --arg u "$1" --arg p "$2" '{username: $u, password: $p}')" | jq -r .token
}

# How many nodes are there that a client may get or has got?
good_nodes() {
    call GET /api/nodes "$1" |
        jq '[.[] | select(.status == "alive" and (.availability == "ready" or .availability == "leased"))] | length'
}

wait_for_nodes() {
    local wanted=$1 token=$2 good deadline=$((SECONDS + READY_S))
    while :; do
        good=$(good_nodes "$token") || good=0
        [ "$good" -lt "$wanted" ] || break
        if [ "$SECONDS" -ge "$deadline" ]; then
            call GET /api/nodes "$token" | jq -c '.[] | {hostname, status, availability}' >&2
            die "after $READY_S s only $good of $wanted nodes are ready"
        fi
        sleep 0.5
    done
    say "$good nodes ready"
}

main() {
    local workers admin_token user password=pass token rent id host port started
    workers=$(sed -n 's/^WORKERS=//p' "$root/.lab/settings")

    started=$SECONDS
    until call GET /api/health "" >/dev/null 2>&1; do
        [ $((SECONDS - started)) -lt 60 ] || die "$ORION_URL/api/health does not answer well"
        sleep 0.5
    done
    admin_token=$(token_of "$ORION_ADMIN" "$ORION_ADMIN_PASSWORD")
    wait_for_nodes "$workers" "$admin_token"

    user=smoke$(od -An -N4 -tx4 /dev/urandom | tr -d ' ')
    call POST /auth/signup "" "$(jq -nc --arg u "$user" --arg p "$password" '{username: $u, password: $p}')" >/dev/null
    token=$(token_of "$user" "$password")
    say "signed up and logged in as $user"

    rent=$(call POST /api/rent "$token" '{"duration_hours":1,"count":1}')
    id=$(jq -r '.[0].rental_id' <<<"$rent")
    host=$(jq -r '.[0].host_ip' <<<"$rent")
    port=$(jq -r '.[0].ssh_port' <<<"$rent")
    say "rented $host port $port until $(jq -r '.[0].leased_until' <<<"$rent") UTC"

    # shellcheck disable=SC2016 # expanded on the rented machine
    SSHPASS=$(jq -r '.[0].client_pass' <<<"$rent") sshpass -e ssh -F none -p "$port" -o ConnectTimeout=5 \
        -o PreferredAuthentications=password -o NumberOfPasswordPrompts=1 -o LogLevel=ERROR \
        -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
        "$user@$host" 'echo "   on $(hostname) as $(id -un), uid $(id -u)"' </dev/null
    call POST "/api/release/$id" "$token" >/dev/null
    say "logged in over SSH, and released"

    cat <<NEXT

The lab runs. What to try next:

  source .lab/env
  curl --cacert "\$ORION_CA" "\$ORION_URL/api/health"
  curl --cacert "\$ORION_CA" -H 'Content-Type: application/json' \\
       -d '{"username":"alice","password":"pass"}' "\$ORION_URL/auth/signup"
  TOKEN=\$(curl -s --cacert "\$ORION_CA" -H 'Content-Type: application/json' \\
       -d '{"username":"alice","password":"pass"}' "\$ORION_URL/auth/login" | jq -r .token)
  curl --cacert "\$ORION_CA" -H "Authorization: Bearer \$TOKEN" -H 'Content-Type: application/json' \\
       -d '{"duration_hours":2}' "\$ORION_URL/api/rent"
  ssh -p SSH_PORT alice@HOST_IP             # with host_ip, ssh_port and client_pass of the answer

  (cd vagrant && vagrant ssh control)       # the control plane machine; worker1 and so on likewise
  vagrant/launch_workers.sh 2               # two plain Docker workers more
  make lab WORKERS=10                       # more workers
  make lab-down                             # all of it gone

NEXT
}

main
