#!/usr/bin/env bash
# Orion's lab on one machine.
#
#   lab.sh images    make the Docker images (first time: some minutes)
#   lab.sh up        network, machines, packages; then wait until every worker is ready
#   lab.sh down      take all of it away again; only the images stay, to be quick the next time
#
# Environment: WORKERS (3), SUITE (this machine's Debian), ORION_DEBS (../target/debian).
# `make lab` calls it, after it built the packages.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
readonly LAB="$PWD/../.lab"
readonly NETWORK=orion-lab
readonly LABEL=orion.lab=1
readonly HANDED="$LAB/join_line"
export VAGRANT_CWD="$PWD" VAGRANT_DEFAULT_PROVIDER=docker VAGRANT_CHECKPOINT_DISABLE=1

say() {
    printf '== %s\n' "$*"
}

die() {
    printf 'lab: %s\n' "$*" >&2
    exit 1
}

# setting NAME: what an earlier `up` decided, or nothing
setting() {
    sed -n "s/^$1=//p" "$LAB/settings" 2>/dev/null || true
}

# shellcheck source=vagrant/join.sh
source ./join.sh

host_suite() {
    local codename
    codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    case $codename in
        bookworm | trixie) echo "$codename" ;;
        *) echo bookworm ;;
    esac
}

# free_port FIRST: the first port from FIRST on that nobody listens on
free_port() {
    local port=$1
    while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
        port=$((port + 1))
    done
    echo "$port"
}

make_keys() {
    mkdir -p "$LAB/ssh" "$LAB/share/debs" "$LAB/control"
    chmod 0700 "$LAB/ssh" "$LAB/control"
    [ -e "$LAB/ssh/id_ed25519" ] || ssh-keygen -q -t ed25519 -N '' -C orion-lab -f "$LAB/ssh/id_ed25519"
    if [ ! -e "$LAB/control/admin_password" ]; then
        (
            umask 077
            head -c 18 /dev/urandom | base64 >"$LAB/control/admin_password"
        )
    fi
}

make_images() {
    local suite=$1 target key
    make_keys
    images/base.sh "$suite"
    key=$(cat "$LAB/ssh/id_ed25519.pub")
    for target in control worker; do
        say "image orion-lab/$target:$suite"
        docker build --quiet --target "$target" --tag "orion-lab/$target:$suite" --label "$LABEL" \
            --build-arg "SUITE=$suite" --build-arg "VAGRANT_PUBLIC_KEY=$key" images >/dev/null 2>"$LAB/build.log" || {
            cat "$LAB/build.log" >&2
            die "docker build of $target failed"
        }
    done
}

make_network() {
    local mtu
    docker network inspect "$NETWORK" >/dev/null 2>&1 && return
    # As large as the engine's own bridge allows: some hosts sit behind a tunnel.
    mtu=$(cat /sys/class/net/docker0/mtu 2>/dev/null || echo 1500)
    docker network create --label "$LABEL" --opt "com.docker.network.driver.mtu=$mtu" "$NETWORK" >/dev/null
}

# Decides what this lab is; a lab that is there already keeps its ports and only grows.
write_settings() {
    local workers=${WORKERS:-} suite=$1 known https agent address
    [[ ${workers:-3} =~ ^[1-9][0-9]?$ ]] || die "WORKERS is '$workers': a number from 1 to 99"
    known=$(setting WORKERS)
    workers=${workers:-${known:-3}}
    if [ "${known:-0}" -gt "$workers" ]; then
        say "this lab has $known workers; they stay (make lab-down takes them away)"
        workers=$known
    fi
    https=$(setting HTTPS_PORT)
    agent=$(setting AGENT_PORT)
    https=${https:-$(free_port 9443)}
    agent=${agent:-$(free_port 9080)}
    address=$(docker network inspect -f '{{(index .IPAM.Config 0).Gateway}}' "$NETWORK")
    cat >"$LAB/settings" <<SETTINGS
WORKERS=$workers
SUITE=$suite
HTTPS_PORT=$https
AGENT_PORT=$agent
HOST_ADDRESS=$address
SETTINGS
}

share_packages() {
    local debs=${ORION_DEBS:-../target/debian} name deb
    for name in orion-apid orion-schedd orion-agentd; do
        deb=$(find "$debs" -maxdepth 1 -name "${name}_*.deb" -print -quit 2>/dev/null)
        [ -n "$deb" ] || die "no package $name in $debs: run make deb"
        rm -f "$LAB/share/debs/${name}"_*.deb
        cp "$deb" "$LAB/share/debs/"
    done
    cp ../Caddyfile provision/packages.sh "$LAB/share/"
    chmod -R a+rX "$LAB/share"
}

write_env() {
    cp "$LAB/control/ca.crt" "$LAB/ca.crt"
    (
        umask 077
        cat >"$LAB/env" <<ENV
# Made by make lab, for scripts: source it.
export ORION_URL=https://localhost:$(setting HTTPS_PORT)
export ORION_CA=$(realpath "$LAB")/ca.crt
export ORION_ADMIN=admin
export ORION_ADMIN_PASSWORD='$(cat "$LAB/control/admin_password")'
export ORION_AGENT_URL=http://localhost:$(setting AGENT_PORT)
ENV
    )
}

# Has this worker's agent been let in?
has_joined() {
    docker exec "orion-lab-$1" test -s /var/lib/orion-node/agent/trusted 2>/dev/null
}

# hand_join_line WORKER...: a file that vagrant copies to the workers; only where some of them have not joined
hand_join_line() {
    local name strangers=()
    for name in "$@"; do
        has_joined "$name" || strangers+=("$name")
    done
    [ ${#strangers[@]} -gt 0 ] || return 0
    (
        umask 077
        join_line "${strangers[@]}" >"$HANDED"
    )
}

up() {
    local suite known workers number machines=()
    known=$(setting SUITE)
    suite=${SUITE:-${known:-$(host_suite)}}
    if [ -n "$known" ] && [ "$known" != "$suite" ]; then
        die "this lab is of $known, not $suite: make lab-down first"
    fi
    make_images "$suite"
    make_network
    write_settings "$suite"
    share_packages
    # From here on the settings alone count.
    unset WORKERS SUITE

    say "control plane machine"
    vagrant up --provision control
    write_env

    workers=$(setting WORKERS)
    say "$workers workers"
    for ((number = 1; number <= workers; number++)); do
        machines+=("worker$number")
    done
    trap 'rm -f "$HANDED"' EXIT
    rm -f "$HANDED"
    hand_join_line "${machines[@]}"
    vagrant up --provision "${machines[@]}"
}

down() {
    local ids
    if [ -d .vagrant ] && command -v vagrant >/dev/null; then
        # Its machines also stand in vagrant's own list (vagrant global-status).
        vagrant destroy --force >/dev/null || say "vagrant destroy failed; going on without it"
    fi
    # By label: the plain workers, and what vagrant no longer knows of.
    ids=$(docker ps -aq --filter "label=$LABEL")
    if [ -n "$ids" ]; then
        # shellcheck disable=SC2086 # several ids
        docker rm -f -v $ids >/dev/null
    fi
    if docker network inspect "$NETWORK" >/dev/null 2>&1; then
        docker network rm "$NETWORK" >/dev/null
    fi
    rm -rf .vagrant "$LAB"
    say "the lab is gone; its images stay (docker image ls orion-lab/*)"
}

case ${1:-} in
    images) make_images "${SUITE:-$(host_suite)}" ;;
    up) up ;;
    down) down ;;
    *)
        echo "usage: lab.sh images|up|down" >&2
        exit 2
        ;;
esac
