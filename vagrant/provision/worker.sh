#!/usr/bin/env bash
# Sets up a worker of the lab: the agent's package and a join line, nothing else.
# Runs as root in the machine; doing it again changes nothing.
set -euo pipefail

# shellcheck source=vagrant/provision/packages.sh
source /lab/packages.sh

# Vagrant puts it there while some workers of the lab have not joined yet.
readonly HANDED=/home/vagrant/join_line
trap 'rm -f "$HANDED"' EXIT

install_changed orion-agentd

# The agent keeps whom it trusts from the first good answer on.
if [ -e "$HANDED" ] && [ ! -s /var/lib/orion-node/agent/trusted ]; then
    orion-agentd join <"$HANDED"
    changed=yes
fi

if [ "$changed" = yes ]; then
    systemctl restart orion-agentd
else
    systemctl start orion-agentd
fi
