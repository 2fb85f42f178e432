#!/usr/bin/env bash
# Makes the Docker image debian:SUITE where it is neither present nor pullable.
#
#   base.sh SUITE          SUITE is bookworm or trixie
#
# The lab's images start FROM debian:SUITE. Where an image registry answers, that is the official
# image; elsewhere debootstrap makes one like it from the Debian mirror, in about a minute.
set -euo pipefail

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

# mirror security|main: the mirror that this machine's own apt uses; nothing where it has none.
mirror() {
    # shellcheck disable=SC2016 # apt's own placeholder
    apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 2>/dev/null | sort -u |
        if [ "$1" = security ]; then grep -m 1 -- '-security/\?$'; else grep -m 1 -v -- '-security/\?$'; fi || true
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
    write_sources "$root" "$suite"
    # What one machine must not share with another, and what only fills the image.
    as_root rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/archives/*.deb "$root"/var/log/bootstrap.log
    as_root rm -f "$root/etc/hostname" "$root/etc/resolv.conf" "$root/var/lib/dbus/machine-id"
    as_root truncate -s 0 "$root/etc/machine-id"
}

# What debootstrap leaves knows neither updates nor security.
write_sources() {
    local root=$1 suite=$2 main security
    main=$(mirror main)
    security=$(mirror security)
    [ -n "$main" ] || return 0
    as_root rm -f "$root/etc/apt/sources.list"
    {
        printf 'Types: deb\nURIs: %s\nSuites: %s %s-updates\nComponents: main\n' "$main" "$suite" "$suite"
        printf 'Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n'
        if [ -n "$security" ]; then
            printf '\nTypes: deb\nURIs: %s\nSuites: %s-security\nComponents: main\n' "$security" "$suite"
            printf 'Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n'
        fi
    } | as_root tee "$root/etc/apt/sources.list.d/debian.sources" >/dev/null
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
    # shellcheck disable=SC2046 # one word, or none: debootstrap's own choice
    as_root debootstrap --variant=minbase --include=ca-certificates "$suite" "$work/root" $(mirror main) \
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
