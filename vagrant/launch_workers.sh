#!/usr/bin/env bash
# Adds N plain Docker workers to the running lab, without Vagrant and without systemd: sshd and orion-agentd
# in a container, its SSH port published on this machine.
#
#   vagrant/launch_workers.sh [N]        one if N is not given
#
# Each is let in by a join line of its own, which the lab's API makes. Clients reach such a worker at this
# machine's address on the lab's network and the published port; the control plane dials
# host.docker.internal and the same port. `make lab-down` takes them away.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
readonly LAB="$PWD/../.lab"
readonly NETWORK=orion-lab
readonly LABEL=orion.lab=1

die() {
    printf 'launch_workers: %s\n' "$*" >&2
    exit 1
}

setting() {
    sed -n "s/^$1=//p" "$LAB/settings"
}

# shellcheck source=vagrant/join.sh
source ./join.sh

# The number after the highest that is in use.
next_number() {
    local last
    last=$(docker ps -a --filter "label=$LABEL" --format '{{.Names}}' |
        sed -n 's/^orion-lab-plain\([0-9]*\)$/\1/p' | sort -n | tail -n 1)
    echo $((${last:-0} + 1))
}

# free_port ADDRESS FIRST: the first port from FIRST on where nobody listens on ADDRESS
free_port() {
    local address=$1 port=$2
    while (exec 3<>"/dev/tcp/$address/$port") 2>/dev/null; do
        port=$((port + 1))
    done
    echo "$port"
}

# The image of plain workers, with the agent's package installed as a user would.
make_image() {
    local suite=$1 context
    ./images/base.sh "$suite" >/dev/null
    docker build --quiet --target plain --tag "orion-lab/plain:$suite" --label "$LABEL" \
        --build-arg "SUITE=$suite" images >/dev/null 2>"$LAB/build.log" || {
        cat "$LAB/build.log" >&2
        die "docker build of plain failed"
    }
    context=$(mktemp -d)
    cp "$LAB"/share/debs/orion-agentd_*.deb "$context/orion-agentd.deb"
    cat >"$context/Dockerfile" <<DOCKERFILE
FROM orion-lab/plain:$suite
COPY orion-agentd.deb /tmp/
RUN apt-get -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 install /tmp/orion-agentd.deb && rm /tmp/orion-agentd.deb
DOCKERFILE
    docker build --quiet --tag "orion-lab/plain-worker:$suite" --label "$LABEL" "$context" \
        >/dev/null 2>"$LAB/build.log" || {
        rm -r "$context"
        cat "$LAB/build.log" >&2
        die "docker build of plain-worker failed"
    }
    rm -r "$context"
}

launch() {
    local suite=$1 address=$2 number port name tries
    number=$(next_number)
    port=$((22220 + number))
    name=orion-lab-plain$number
    (
        umask 077
        join_line "plain$number" >"$work/join_line"
    )
    # Somebody else may take a free port before we do: then the next one.
    for tries in 1 2 3 4 5; do
        port=$(free_port "$address" "$port")
        docker create --init --name "$name" --hostname "plain$number" \
            --label "$LABEL" --network "$NETWORK" --publish "$address:$port:22" \
            --env "MY_HOST_PORT=$port" --env "ORION_AGENTD__ADVERTISE__HOST=$address" \
            --env ORION_AGENTD__CONTACT__HOST=host.docker.internal \
            "orion-lab/plain-worker:$suite" >/dev/null
        # With the file's mode, as root's; plain-init takes it and deletes it.
        docker cp "$work/join_line" "$name:/etc/orion/join_line" >/dev/null
        if docker start "$name" >/dev/null; then
            rm "$work/join_line"
            echo "plain$number: ssh port $port at $address"
            return
        fi
        docker rm -f "$name" >/dev/null 2>&1 || true
        port=$((port + tries))
    done
    die "$name does not start"
}

main() {
    local count=${1:-1} suite address
    if [ $# -gt 1 ] || ! [[ $count =~ ^[1-9][0-9]?$ ]]; then
        die "usage: launch_workers.sh [N], N from 1 to 99"
    fi
    [ -e "$LAB/env" ] || die "there is no lab: make lab first"
    suite=$(setting SUITE)
    address=$(setting HOST_ADDRESS)
    make_image "$suite"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    while [ "$count" -gt 0 ]; do
        launch "$suite" "$address"
        count=$((count - 1))
    done
}

main "$@"
