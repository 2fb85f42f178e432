#!/usr/bin/env bash
# Makes the Docker image debian:SUITE where it is neither present nor pullable.
#
#   base.sh SUITE          SUITE is bookworm or trixie
#
# The lab's images start FROM debian:SUITE. Where an image registry answers, that is the official
# image; elsewhere debootstrap makes one like it from the Debian mirror, in about a minute.
set -euo pipefail

readonly MIRROR="${DEBIAN_MIRROR:-http://deb.debian.org/debian}"
readonly SECURITY_MIRROR="${DEBIAN_SECURITY_MIRROR:-http://deb.debian.org/debian-security}"
readonly PULL_TIMEOUT_S="${PULL_TIMEOUT_S:-60}"

die() {
    printf 'base.sh: %s\n' "$*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

# The settings that the official image has too: no services started by packages, no kept archives.
settle_root() {
    local root=$1 suite=$2
    as_root tee "$root/usr/sbin/policy-rc.d" >/dev/null <<'POLICY'
#!/bin/sh
# Packages installed while an image is built start nothing.
exit 101
POLICY
    as_root chmod 0755 "$root/usr/sbin/policy-rc.d"
    as_root tee "$root/etc/dpkg/dpkg.cfg.d/docker-apt-speedup" >/dev/null <<<'force-unsafe-io'
    as_root tee "$root/etc/apt/apt.conf.d/docker-clean" >/dev/null <<'CLEAN'
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/*.deb /var/cache/apt/*.bin || true"; };
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
CLEAN
    as_root tee "$root/etc/apt/apt.conf.d/docker-no-languages" >/dev/null <<<'Acquire::Languages "none";'
    as_root rm -f "$root/etc/apt/sources.list"
    as_root tee "$root/etc/apt/sources.list.d/debian.sources" >/dev/null <<SOURCES
Types: deb
URIs: $MIRROR
Suites: $suite $suite-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: $SECURITY_MIRROR
Suites: $suite-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCES
    # What one machine must not share with another, and what only fills the image.
    as_root rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/archives/*.deb "$root"/var/log/bootstrap.log
    as_root rm -f "$root/etc/hostname" "$root/etc/resolv.conf" "$root/var/lib/dbus/machine-id"
    as_root truncate -s 0 "$root/etc/machine-id"
}

main() {
    [ $# -eq 1 ] || die "usage: base.sh SUITE (bookworm or trixie)"
    local suite=$1 image="debian:$1"
    case $suite in
        bookworm | trixie) ;;
        *) die "unknown suite '$suite': bookworm or trixie" ;;
    esac

    if docker image inspect "$image" >/dev/null 2>&1; then
        echo "$image is there"
        return
    fi
    if timeout "$PULL_TIMEOUT_S" docker pull --quiet "$image" 2>/dev/null; then
        return
    fi

    echo "$image can't be pulled here: making it with debootstrap"
    command -v debootstrap >/dev/null || die "debootstrap is missing: apt-get install debootstrap"
    work=$(mktemp -d)
    trap 'as_root rm -rf "$work"' EXIT
    as_root debootstrap --variant=minbase --include=ca-certificates "$suite" "$work/root" "$MIRROR" \
        >"$work/log" 2>&1 || {
        tail -n 20 "$work/log" >&2
        die "debootstrap $suite failed"
    }
    settle_root "$work/root" "$suite"
    as_root tar -C "$work/root" --numeric-owner --exclude='./dev/*' -c . |
        docker import --change 'CMD ["bash"]' - "$image" >/dev/null
    echo "$image made"
}

main "$@"
