# shellcheck shell=bash
# Sourced by lab.sh and launch_workers.sh: join lines from the lab's API. Needs LAB, setting, curl and jq.

# api_post PATH: posts standard input, as the administrator whose token is ADMIN_TOKEN; prints the reply's body
api_post() {
    # No secret in curl's arguments: others see them.
    curl --silent --show-error --fail-with-body --max-time 60 --retry 10 --retry-delay 1 --retry-connrefused \
        --cacert "$LAB/ca.crt" --header 'Content-Type: application/json' --data-binary @- \
        --config <([ -z "${ADMIN_TOKEN:-}" ] || printf 'header = "Authorization: Bearer %s"\n' "$ADMIN_TOKEN") \
        "https://localhost:$(setting HTTPS_PORT)$1"
}

# join_line HOSTNAME...: prints a line with which each of these workers can join once, within half an hour
join_line() {
    local ADMIN_TOKEN="" reply
    reply=$(jq -nc --rawfile password "$LAB/control/admin_password" \
        '{username: "admin", password: ($password | rtrimstr("\n"))}' | api_post /auth/login) || {
        echo "the lab's administrator can't log in" >&2
        return 1
    }
    ADMIN_TOKEN=$(jq -er .token <<<"$reply")
    reply=$(jq -nc --argjson uses "$#" '{uses: $uses, lifetime_s: 1800, hostnames: $ARGS.positional}' --args "$@" |
        api_post /api/join-tokens) || {
        echo "no join token: $reply" >&2
        return 1
    }
    jq -er .join_line <<<"$reply"
}
