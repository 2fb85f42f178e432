#!/usr/bin/env bash
# Sets up the control plane machine of the lab: the steps of the manual pages, nothing else.
# Runs as root in the machine; doing it again changes nothing.
set -euo pipefail

# shellcheck source=vagrant/provision/packages.sh
source /lab/packages.sh

wait_until() {
    local what=$1 deadline=$((SECONDS + 60))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$deadline" ] || {
            echo "still not after 60 s: $what" >&2
            return 1
        }
        sleep 0.2
    done
}

put() {
    # put FILE: standard input becomes FILE; sets `changed` if it was different
    local file=$1 text
    text=$(cat)
    if [ "$(cat "$file" 2>/dev/null || true)" != "$text" ]; then
        mkdir -p "$(dirname "$file")"
        printf '%s\n' "$text" >"$file"
        changed=yes
    fi
}

install_changed orion-apid orion-schedd

put /etc/orion/orion-apid.d/50-lab.toml <<'TOML'
# Where agents find this machine.
[registration]
endpoint = "http://control"

# The lab only: short passwords, and POST /api/reset.
[auth]
min_password_length = 4

[dev]
allow_reset = true
TOML
restart=$changed

wait_until "MariaDB answers" mariadb -e 'SELECT 1'
orion-apid init
orion-schedd init
orion-apid schema apply
if [ ! -e /var/lib/orion-lab/admin ]; then
    orion-apid create-admin admin </lab-control/admin_password
    touch /var/lib/orion-lab/admin
fi

changed=no
put /etc/systemd/system/caddy.service.d/orion.conf <<CONF
[Service]
Environment="ORION_SITE=localhost, control"
CONF
put /etc/caddy/Caddyfile </lab/Caddyfile
if [ "$changed" = yes ]; then
    systemctl daemon-reload
    systemctl restart caddy
fi

if [ "$restart" = yes ]; then
    systemctl restart orion-schedd orion-apid
else
    systemctl start orion-schedd orion-apid
fi

readonly authority=/var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt
wait_until "Caddy made its authority" test -s "$authority"
install -m 0644 "$authority" /lab-control/ca.crt
