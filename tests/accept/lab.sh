# shellcheck shell=bash
# What the acceptance scripts share: the lab's API through Caddy, SSH as a client would, and a look at the workers.
# Sourced. Needs a running lab (`make lab`), curl, jq and sshpass.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
[[ -f $root/.lab/env ]] || { echo "no lab is running: run 'make lab' first" >&2; exit 2; }
# shellcheck source=/dev/null
source "$root/.lab/env"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# What a case measured is shown also when it passed.
exec 3>&1
say() {
    echo "$*"
    echo "        $*" >&3
}

UID_BASE=1000000
passed=0
failed=0

# run NAME: one case, in a shell of its own that ends at the first failing command.
run() {
    local started=$SECONDS status
    # Not in a condition: bash would ignore errexit in there.
    set +e
    ( set -euo pipefail; "$1" ) >"$scratch/$1.log" 2>&1
    status=$?
    set -e
    if [[ $status -eq 0 ]]; then
        passed=$((passed + 1))
        echo "ok      $1 ($((SECONDS - started)) s)"
    else
        failed=$((failed + 1))
        echo "FAILED  $1 ($((SECONDS - started)) s)"
        sed 's/^ */        /' "$scratch/$1.log"
    fi
}

# The plain summary, and the script's exit status.
summary() {
    echo "$passed passed, $failed failed"
    [[ $failed -eq 0 ]]
}

fail() {
    echo "$*" >&2
    return 1
}

# api METHOD PATH [BODY] [CURL OPTION...]: sets STATUS and BODY. The caller's TOKEN is sent where it is set.
api() {
    local method=$1 path=$2 out
    local -a args=(--silent --show-error --max-time 90 --cacert "$ORION_CA" --request "$method")
    [[ -z ${TOKEN:-} ]] || args+=(--header "Authorization: Bearer $TOKEN")
    [[ $# -lt 3 || -z $3 ]] || args+=(--header 'Content-Type: application/json' --data-binary "$3")
    shift 2
    [[ $# -eq 0 ]] || shift
    out=$(mktemp "$scratch/body.XXXXXX")
    STATUS=$(curl "${args[@]}" "$@" --output "$out" --write-out '%{http_code}' "$ORION_URL$path") || STATUS="curl $?"
    BODY=$(tr -d '\0' <"$out")
}

expect() {
    [[ $STATUS == "$1" ]] || fail "expected status $1, got $STATUS: $BODY"
}

field() {
    jq -er "$1" <<<"$BODY"
}

# login NAME PASSWORD: sets TOKEN.
login() {
    TOKEN=
    api POST /auth/login "$(jq -nc --arg u "$1" --arg p "$2" '{username: $u, password: $p}')"
    expect 200
    TOKEN=$(field .token)
}

# new_user: a user nobody had before, logged in. Sets USER_NAME and TOKEN.
new_user() {
    USER_NAME=${1:-u$(od -An -N5 -tx1 /dev/urandom | tr -d ' \n')}
    TOKEN=
    api POST /auth/signup "$(jq -nc --arg u "$USER_NAME" '{username: $u, password: "pass-word"}')"
    expect 201
    login "$USER_NAME" pass-word
}

admin() {
    login "$ORION_ADMIN" "$ORION_ADMIN_PASSWORD"
}

# as_admin COMMAND...: without touching the caller's token.
as_admin() {
    local mine=${TOKEN:-}
    admin
    "$@"
    TOKEN=$mine
}

# until_true SECONDS COMMAND...: waits for a condition.
until_true() {
    local limit=$((SECONDS + $1))
    shift
    until ( set +e; "$@" ) >/dev/null 2>&1; do
        ((SECONDS < limit)) || fail "not within the time: $*" || return 1
        sleep 0.3
    done
}

# client_ssh RENTAL_ID HOST PORT USER PASSWORD COMMAND...: the host keys are those the API names.
client_ssh() {
    local rental=$1 host=$2 port=$3 user=$4 password=$5
    shift 5
    api GET "/api/rentals/$rental"
    if [[ $STATUS == 200 && $(jq '.host_keys | length' <<<"$BODY") -gt 0 ]]; then
        jq -r --arg at "rental-$rental" '.host_keys[] | "\($at) \(.)"' <<<"$BODY" >"$scratch/known_hosts.$rental"
    fi
    SSHPASS=$password sshpass -e ssh -F none -p "$port" -o HostKeyAlias="rental-$rental" \
        -o StrictHostKeyChecking=yes -o UserKnownHostsFile="$scratch/known_hosts.$rental" \
        -o PreferredAuthentications=password -o PubkeyAuthentication=no -o NumberOfPasswordPrompts=1 \
        -o ConnectTimeout=5 -o LogLevel=ERROR "$user@$host" "$@" </dev/null
}

workers() {
    docker ps --filter label=orion.lab=1 --format '{{.Names}}' | grep worker | sort
}

# worker_at IP: the container that has the address.
worker_at() {
    local name
    for name in $(workers); do
        if docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}' "$name" | grep -qwF "$1"; then
            echo "$name"
            return 0
        fi
    done
    fail "no worker has the address $1"
}

in_control() {
    docker exec orion-lab-control "$@"
}

# accounts_on_workers: a line "worker uid" for every managed account that exists anywhere.
accounts_on_workers() {
    local name
    for name in $(workers); do
        docker exec "$name" getent passwd |
            awk -F: -v base=$UID_BASE -v name="$name" '$3 >= base && $3 < base + 1000000000 {print name, $3}'
    done | sort
}

# live_rentals: the same lines, as the API has them. For an administrator.
live_rentals() {
    local rental ip
    api GET /api/rentals
    expect 200
    jq -r '.[] | select(.state == "active" or .state == "degraded") | "\(.rental_id) \(.host_ip)"' <<<"$BODY" |
        while read -r rental ip; do
            echo "$(worker_at "$ip") $((UID_BASE + rental))"
        done | sort
}

accounts_equal_rentals() {
    diff <(accounts_on_workers) <(as_admin live_rentals)
}

# nothing_under_way: every rental is decided, every debt paid, every node ready or leased.
nothing_under_way() {
    admin
    api GET /api/rentals
    [[ $(jq '[.[] | select(.state == "provisioning" or .state == "ending")] | length' <<<"$BODY") -eq 0 ]] || return 1
    api GET /api/nodes
    [[ $(jq '[.[] | select(.status != "alive" or (.availability != "ready" and .availability != "leased"))] | length' \
        <<<"$BODY") -eq 0 ]]
}

all_free() {
    admin
    api GET /api/nodes
    [[ $(jq '[.[] | select(.status != "alive" or .availability != "ready")] | length' <<<"$BODY") -eq 0 ]]
}

# empty_pool: a reset, and every node ready again.
empty_pool() {
    as_admin api POST /api/reset
    expect 200
    until_true 60 all_free
}
