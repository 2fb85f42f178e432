#!/usr/bin/env bash
# Sets up a worker of the lab: the pool's login, then the agent.
# Runs as root in the machine; doing it again changes nothing.
set -euo pipefail

# shellcheck source=vagrant/provision/packages.sh
source /lab/packages.sh

# The control plane logs in as orion-node with the pool's key.
if ! id orion-node >/dev/null 2>&1; then
    useradd --system --create-home --shell /bin/bash orion-node
fi
echo 'orion-node ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/orion-node
chmod 0440 /etc/sudoers.d/orion-node
home=$(getent passwd orion-node | cut -d: -f6)
install -d -m 0700 -o orion-node -g orion-node "$home/.ssh"
install -m 0600 -o orion-node -g orion-node /lab/pool_key.pub "$home/.ssh/authorized_keys"

# Workers of the lab are reached at their own address, which the agent finds by itself.
cat >/etc/default/orion-agentd <<'ENV'
API_ENDPOINT=http://control
MY_HOST_PORT=22
ENV

install_changed orion-agentd
if [ "$changed" = yes ]; then
    systemctl restart orion-agentd
else
    systemctl start orion-agentd
fi

# OpenSSH 10 slows down whoever fails often; the control plane may not be shut out for what clients do.
penalties=/etc/ssh/sshd_config.d/61-orion-lab.conf
if [ ! -e "$penalties" ]; then
    echo "PerSourcePenaltyExemptList $(getent ahostsv4 control | cut -d' ' -f1 | head -n 1)" >"$penalties"
    if sshd -t 2>/dev/null; then
        systemctl reload ssh
    else
        rm "$penalties"
    fi
fi
