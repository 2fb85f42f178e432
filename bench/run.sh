#!/usr/bin/env bash
# Every benchmark; fails when a limit is not kept.
#
#   bench/run.sh [NAME...]     only these: memory rent idle beats sweep
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
failed=0
[ $# -gt 0 ] || set -- memory rent idle beats sweep
for name; do
    printf '== %s\n' "$name"
    "./$name.sh" || failed=1
done
exit "$failed"
