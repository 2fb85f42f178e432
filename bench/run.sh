#!/usr/bin/env bash
# Both benchmarks; fails when a limit is not kept.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
failed=0
./memory.sh || failed=1
./rent.sh || failed=1
exit "$failed"
