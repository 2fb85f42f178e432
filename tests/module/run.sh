#!/usr/bin/env bash
# Tests of the Ansible module orion_account, and of the agent's sshd-dropin, on real systems, in containers that it makes
# itself.
#
#   tests/module/run.sh [-k PATTERN]     PATTERN as in `python3 -m unittest -k`
#
# Three workers: Debian 12 and 13 under systemd, and a plain container without systemd and with
# Docker's usual rights only, all at once. Each has its own ansible-core (2.14, 2.19). The images
# orion-test-module:SUITE stay, so that the next run starts at once.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here
root=$(cd "$here/../.." && pwd)
readonly root

SYSTEMD_RIGHTS=(
    --cap-add SYS_ADMIN --cap-add NET_ADMIN --cap-add LINUX_IMMUTABLE
    --security-opt seccomp=unconfined --security-opt apparmor=unconfined
    --cgroupns=private --tmpfs /run --tmpfs /run/lock --tmpfs /tmp:exec
    # Docker's own file system may not know immutable files.
    --volume /home
)
[ ! -c /dev/fuse ] || SYSTEMD_RIGHTS+=(--device /dev/fuse)

out=$(mktemp -d)

# shellcheck disable=SC2317  # called by the trap
clean_up() {
    local containers
    mapfile -t containers < <(cat "$out"/*.container 2>/dev/null)
    [ ${#containers[@]} -eq 0 ] || docker rm --force --volumes "${containers[@]}" >/dev/null 2>&1 || true
    rm -rf "$out"
}
trap clean_up EXIT

# image SUITE
image() {
    "$root/vagrant/images/base.sh" "$1"
    docker build --quiet --build-arg "SUITE=$1" --tag "orion-test-module:$1" "$here" >"$out/build" 2>&1 || {
        tail -n 30 "$out/build" >&2
        return 1
    }
}

# suite SUITE systemd|plain FIRST ARGS...: runs the tests in a container of their own. FIRST is added to the uids, since
# the kernel counts the processes of a uid over all containers.
suite() {
    local suite=$1 kind=$2 first=$3 run=(--detach) container
    shift 3
    if [ "$kind" = systemd ]; then
        run+=("${SYSTEMD_RIGHTS[@]}" "orion-test-module:$suite" /sbin/init)
    else
        run+=(--init "orion-test-module:$suite" sleep infinity)
    fi
    container=$(docker run "${run[@]}")
    echo "$container" >"$out/$suite-$kind.container"
    tar -C "$root" --exclude=__pycache__ -c packaging/lib playbooks tests/module |
        docker exec --interactive "$container" sh -c 'mkdir -p /src && tar -C /src -x'
    docker exec "$container" /src/tests/module/prepare.sh "$kind"
    docker exec --env "ORION_TEST_KIND=$kind" --env "ORION_TEST_FIRST=$first" \
        --workdir /src/tests/module/suite "$container" \
        python3 -W ignore::DeprecationWarning -m unittest -v "$@"
}

# The numbers of passed and failed tests in a log of unittest; a log without its end is one failure more.
summed() {
    awk '
        /^Ran [0-9]+ test/ { ran = $2; ended = 1 }
        /^FAILED/ { count = split($0, part, /[(), ]+/)
            for (i = 1; i <= count; i++) if (part[i] ~ /^(failures|errors)=/) { sub(/.*=/, "", part[i]); bad += part[i] } }
        /^OK|^FAILED/ { if (match($0, /skipped=[0-9]+/)) skipped = substr($0, RSTART + 8, RLENGTH - 8) }
        END { if (!ended) bad += 1; good = ran - bad - skipped; print (good > 0 ? good : 0), bad + 0 }
    ' "$1"
}

main() {
    local passed=0 failed=0 first=500000 name numbers names=(bookworm-systemd trixie-systemd bookworm-plain)
    for name in bookworm trixie; do
        image "$name"
    done
    # All at once: they mostly wait for disks and for each other's locks, not for a processor.
    for name in "${names[@]}"; do
        suite "${name%-*}" "${name#*-}" "$first" "$@" 2>&1 | tee "$out/$name.log" | sed -u "s/^/$name: /" &
        first=$((first + 10000))
    done
    wait
    for name in "${names[@]}"; do
        numbers=$(summed "$out/$name.log")
        passed=$((passed + ${numbers%% *}))
        failed=$((failed + ${numbers##* }))
    done
    echo "$passed passed, $failed failed"
    [ "$failed" -eq 0 ]
}

main "$@"
