# shellcheck shell=bash disable=SC2034 # `changed` is for the script that sources this
# Sourced by control.sh and worker.sh, from /lab: installs the project's packages as a user would.

# install_changed NAME...: installs /lab/debs/NAME_*.deb with apt where that very file is not installed yet.
# Sets `changed` to yes if anything was installed.
install_changed() {
    local name deb sum files=()
    local seen=/var/lib/orion-lab
    mkdir -p "$seen"
    changed=no
    for name in "$@"; do
        deb=$(find /lab/debs -name "${name}_*.deb" -print -quit)
        [ -n "$deb" ] || {
            echo "no package $name in /lab/debs" >&2
            return 1
        }
        sum=$(sha256sum <"$deb")
        if [ "$(cat "$seen/$name" 2>/dev/null || true)" != "$sum" ]; then
            files+=("$deb")
        fi
    done
    [ ${#files[@]} -gt 0 ] || return 0
    # The same version may have other contents here; an administrator's changes to conffiles stay.
    # _apt can't read every bind mount, and need not.
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --reinstall --no-install-recommends --allow-downgrades \
        -o APT::Sandbox::User=root -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-confold install "${files[@]}"
    for deb in "${files[@]}"; do
        name=$(basename "$deb")
        sha256sum <"$deb" >"$seen/${name%%_*}"
    done
    changed=yes
}
