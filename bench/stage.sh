# shellcheck shell=bash
# What the benchmarks stand on: a private MariaDB, real daemons, and where wanted workers in containers and users with
# tokens. Everything is ended and removed by `stage_end`, which runs at exit.
#
#   source bench/stage.sh; stage_begin WORKERS; …                      with containers
#   source bench/stage.sh; stage_open PACKAGE...; start_mariadb; …     without

readonly SUITE=bookworm
readonly PASSWORD='correct horse' # of everybody in a database that lives for minutes
STAGE=''      # the directory of this run
LABEL=''      # marks its containers; empty where there are none
ADDRESSES=''  # where workers may be: a section of both daemons' configuration
API='' AGENTS='' APID_OPS='' SCHEDD_OPS=''
PIDS=()       # mariadbd and the daemons
TOKENS=()     # one per user

say() {
    printf '%s\n' "$*" >&2
}

die() {
    say "bench: $*"
    exit 1
}

# stage_open PACKAGE...: the directory, and these packages' programs in target/release
stage_open() {
    local packages=()
    STAGE=$(mktemp -d "${TMPDIR:-/tmp}/orion-bench.XXXXXX")
    trap stage_end EXIT
    trap 'exit 130' INT TERM
    for package in "$@"; do
        packages+=(-p "$package")
    done
    say "building ..."
    cargo build --quiet --release --locked "${packages[@]}"
    mkdir -m 0700 "$STAGE/run" "$STAGE/state" "$STAGE/secrets"
    ssh-keygen -q -t ed25519 -N '' -f "$STAGE/secrets/pool_key"
    # Nothing is dialled but workers that are simulated on this machine.
    ADDRESSES=$'[addresses]\nnetworks = []\nnames = ["localhost"]\n'
}

stage_begin() {
    local workers=$1
    stage_open orion-apid orion-schedd orion-agentd
    LABEL=orion.bench=${STAGE##*.}
    ADDRESSES=$(container_addresses)
    make_image
    start_mariadb
    init_control_plane "$(bridge_address)"
    start_apid
    start_schedd ''
    start_workers "$workers"
    wait_for "$workers nodes to be ready" 300 nodes_ready "$workers"
}

stage_end() {
    local pid status=$?
    trap - EXIT
    if [ "$status" -ne 0 ] && [ -n "${ORION_BENCH_LOGS:-}" ]; then
        tail -n 40 "$STAGE"/*.log >&2 || true
    fi
    [ -z "$LABEL" ] || docker ps -aq --filter "label=$LABEL" | xargs -r docker rm -f >/dev/null
    for pid in "${PIDS[@]}"; do
        kill "$pid" 2>/dev/null || true
    done
    for pid in "${PIDS[@]}"; do
        wait "$pid" 2>/dev/null || true
    done
    rm -rf "$STAGE"
    exit "$status"
}

# wait_for WHAT SECONDS COMMAND...
wait_for() {
    local what=$1 until=$((SECONDS + $2))
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$until" ] || die "waited in vain for $what; with ORION_BENCH_LOGS=1 the logs are shown"
        sleep 0.1
    done
}

build_image() {
    docker build --quiet --label orion.lab=1 --build-arg "SUITE=$SUITE" "$@" >/dev/null 2>"$STAGE/build.log" ||
        die "docker build: $(cat "$STAGE/build.log")"
}

make_image() {
    local context=$STAGE/image
    vagrant/images/base.sh "$SUITE" >/dev/null
    build_image --target plain --tag "orion-lab/plain:$SUITE" vagrant/images
    mkdir "$context"
    cp bench/worker/Dockerfile packaging/lib/sshd-dropin packaging/sudoers/orion-node \
        packaging/scripts/orion-agentd/postinst "$context"
    build_image --tag "orion-bench/worker:$SUITE" "$context"
}

# This machine's address on the containers' network.
bridge_address() {
    local bridge
    bridge=$(docker network inspect bridge --format '{{index .Options "com.docker.network.bridge.name"}}')
    ip -4 -o address show dev "${bridge:-docker0}" | awk '{ sub("/.*", "", $4); print $4; exit }'
}

# Where the containers are, and nobody else.
container_addresses() {
    local network
    network=$(docker network inspect bridge --format '{{(index .IPAM.Config 0).Subnet}}')
    printf '[addresses]\nnetworks = ["%s"]\n' "$network"
}

start_mariadb() {
    local socket=$STAGE/mysqld.sock as_user=()
    [ "$(id -u)" -ne 0 ] || as_user=(--user=root)
    mariadb-install-db --no-defaults "${as_user[@]}" --datadir="$STAGE/db" --skip-test-db --skip-name-resolve \
        --auth-root-authentication-method=normal >"$STAGE/install.log" 2>&1
    # Durable, as in production.
    mariadbd --no-defaults "${as_user[@]}" --datadir="$STAGE/db" --socket="$socket" --skip-networking \
        --skip-name-resolve >"$STAGE/mariadbd.log" 2>&1 &
    PIDS+=($!)
    wait_for "mariadbd" 60 mariadb --no-defaults --socket="$socket" --user=root --execute 'SELECT 1'
}

database_settings() {
    printf '[database]\nsocket = "%s/mysqld.sock"\nuser = "root"\n' "$STAGE"
}

# address LOG FIELD: the address that a daemon's log says it listens on
address() {
    sed -n "s/.*$2\":\"\([0-9.:]*\)\".*/\1/p" "$1" | tail -n 1
}

# sql STATEMENTS: runs them, and prints the rows
sql() {
    mariadb --no-defaults --batch --skip-column-names --socket="$STAGE/mysqld.sock" --user=root orion --execute "$1"
}

# init_control_plane AGENTS_HOST: the schema, the secrets and an administrator
init_control_plane() {
    local config=$STAGE/apid.toml
    cat >"$config" <<TOML
$(database_settings)
$ADDRESSES
[listen]
clients = "127.0.0.1:0"
agents = "$1:0"
[ops]
listen = "127.0.0.1:0"
[log]
format = "json"
[auth]
jwt_keys_file = "$STAGE/secrets/jwt.keys"
[rent]
server_keys_file = "$STAGE/secrets/server.keys"
max_active_per_user = 100
[registration]
signing_keys_file = "$STAGE/secrets/signing.keys"
[schedd]
socket = "$STAGE/run/notify.sock"
TOML
    target/release/orion-apid --config "$config" init >"$STAGE/init.log" 2>&1
    printf '%s\n' "$PASSWORD" | target/release/orion-apid --config "$config" create-admin boss >>"$STAGE/init.log" 2>&1
}

start_apid() {
    local log=$STAGE/apid.log
    target/release/orion-apid --config "$STAGE/apid.toml" 2>"$log" &
    PIDS+=($!)
    # shellcheck disable=SC2034 # for memory.sh
    APID=$!
    wait_for "orion-apid" 30 grep -q '"listener":"agents"' "$log"
    API=http://$(sed -n 's/.*"listener":"clients","address":"\([^"]*\)".*/\1/p' "$log")
    AGENTS=http://$(sed -n 's/.*"listener":"agents","address":"\([^"]*\)".*/\1/p' "$log")
    APID_OPS=http://$(address "$log" '"ops')
    wait_for "orion-apid to be ready" 30 curl -fsS "$APID_OPS/readyz"
}

# start_schedd SETTINGS: with further sections of its configuration, or none
start_schedd() {
    local config=$STAGE/schedd.toml log=$STAGE/schedd.log
    # The log of one that ran before tells another address.
    rm -f "$log"
    cat >"$config" <<TOML
$(database_settings)
$ADDRESSES
[ops]
listen = "127.0.0.1:0"
[log]
format = "json"
[executor]
runtime_dir = "$STAGE/run"
state_dir = "$STAGE/state"
[ansible]
playbooks_dir = "$PWD/playbooks"
[ssh]
pool_key_file = "$STAGE/secrets/pool_key"
[notify]
socket = "$STAGE/run/notify.sock"
$1
TOML
    target/release/orion-schedd --config "$config" 2>"$log" &
    PIDS+=($!)
    # shellcheck disable=SC2034 # for memory.sh
    SCHEDD=$!
    wait_for "orion-schedd" 30 grep -q '"ops"' "$log"
    SCHEDD_OPS=http://$(address "$log" '"ops')
    wait_for "orion-schedd to be ready" 30 curl -fsS "$SCHEDD_OPS/readyz"
}

# join_line N: a line with which N workers can join
join_line() {
    local token
    token=$(login boss)
    # No secret in curl's arguments: others see them.
    curl -fsS -H 'content-type: application/json' -d "{\"uses\":$1,\"endpoint\":\"$AGENTS\"}" \
        --config <(printf 'header = "authorization: Bearer %s"\n' "$token") "$API/api/join-tokens" |
        sed 's/.*"join_line":"\([^"]*\)".*/\1/'
}

start_workers() {
    local number name
    (
        umask 077
        join_line "$1" >"$STAGE/secrets/join_line"
    )
    for ((number = 1; number <= $1; number++)); do
        name=bench-${STAGE##*.}-$number
        docker create --init --name "$name" --hostname "bench$number" --label "$LABEL" \
            --env MY_HOST_PORT=22 "orion-bench/worker:$SUITE" >/dev/null
        docker cp target/release/orion-agentd "$name:/usr/bin/orion-agentd" >/dev/null
        # With the file's mode, as root's; plain-init takes it and deletes it.
        docker cp "$STAGE/secrets/join_line" "$name:/etc/orion/join_line" >/dev/null
        docker cp "$STAGE/secrets/pool_key.pub" "$name:/home/reference-login/.ssh/authorized_keys" >/dev/null
        docker start "$name" >/dev/null
    done
}

containers() {
    docker ps -q --filter "label=$LABEL"
}

nodes_ready() {
    [ "$(sql "SELECT COUNT(*) FROM nodes WHERE availability = 'ready' AND status = 'alive'")" -eq "$1" ]
}

# stop PID: ends one of PIDS, orderly, before the others
stop() {
    local pid left=()
    kill "$1"
    wait "$1" || true
    for pid in "${PIDS[@]}"; do
        [ "$pid" = "$1" ] || left+=("$pid")
    done
    PIDS=("${left[@]}")
}

# cpu_ms PID: what the process alone has used so far, user and system
cpu_ms() {
    # Behind the name, which may have spaces; in ticks of 10 ms.
    sed 's/.*) //' "/proc/$1/stat" | awk '{ print ($12 + $13) * 10 }'
}

# median NUMBERS...
median() {
    printf '%s\n' "$@" | sort -n | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

# credentials NAME
credentials() {
    printf '{"username":"%s","password":"%s"}' "$1" "$PASSWORD"
}

# login NAME: prints a token
login() {
    curl -fsS -H 'content-type: application/json' -d "$(credentials "$1")" "$API/auth/login" |
        sed 's/.*"token":"\([^"]*\)".*/\1/'
}

# users N: signs up N users and logs them in
users() {
    local number
    for ((number = 1; number <= $1; number++)); do
        curl -fsS -o /dev/null -H 'content-type: application/json' -d "$(credentials "user$number")" "$API/auth/signup"
        TOKENS+=("$(login "user$number")")
    done
}
