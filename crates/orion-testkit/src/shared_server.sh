# shellcheck shell=bash
# Runs one mariadbd for all tests of this user, and ends it when nobody has used it for a while.
# Usage: bash -c SCRIPT orion-testkit-mariadb DIRECTORY DATA MARIADBD OPTIONS...
# Every test process holds a shared lock on DIRECTORY/users.lock while it lives, so the kernel keeps the count of users
# right, however they end. Whoever starts or ends the server holds DIRECTORY/start.lock.
set -euo pipefail
dir=$1
data=$2
shift 2
idle_s=0
exec 8>"$dir/start.lock" 9>"$dir/users.lock"
# With this script gone mariadbd goes too; the next test starts anew.
setpriv --pdeathsig KILL -- "$@" 8>&- 9>&- &
server=$!
while sleep 2; do
    kill -0 "$server" 2>/dev/null || exit 0
    flock --nonblock 8 || continue
    if flock --nonblock 9; then
        idle_s=$((idle_s + 2))
        if [ "$idle_s" -ge 20 ]; then
            kill -KILL "$server"
            wait "$server" 2>/dev/null || true
            rm -rf "$data" "$dir/sock"
            exit 0
        fi
        flock --unlock 9
    else
        idle_s=0
    fi
    flock --unlock 8
done
