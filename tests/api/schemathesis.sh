#!/usr/bin/env bash
# Asks a coordinator what its OpenAPI allows and what it does not (schemathesis): no answer may be a 5xx, and each must be
# as described. Usage: schemathesis.sh [NOVAFERRY] [EXAMPLES]. Needs what scripts/install-test-tools.sh installs, or
# schemathesis as $SCHEMATHESIS.
set -euo pipefail

novaferry=${1:-${CARGO_TARGET_DIR:-target}/debug/novaferry}
examples=${2:-50}
tool=${SCHEMATHESIS:-${XDG_DATA_HOME:-$HOME/.local/share}/novaferry/schemathesis/bin/schemathesis}

if ! command -v "$tool" >/dev/null; then
    echo "schemathesis.sh: no $tool: run scripts/install-test-tools.sh" >&2
    exit 1
fi

state=$(mktemp -d)
trap 'kill "${server:-}" 2>/dev/null || true; wait "${server:-}" 2>/dev/null || true; rm -rf "$state"' EXIT
# No limit: it is to be asked much. No webhooks: made-up addresses are not to be dialled.
"$novaferry" serve --state "$state" --agents 127.0.0.1:0 --api 127.0.0.1:0 --rate-limit 0 --address-rate-limit 0 \
    --webhooks off \
    2>"$state/log" &
server=$!
# Its last word before it serves names the address.
until grep -q ' ready ' "$state/log"; do
    kill -0 "$server" 2>/dev/null || { cat "$state/log" >&2; exit 1; }
    sleep 0.1
done
ready=$(sed -n '/ ready /s/.*api="\([^"]*\)".*/\1/p' "$state/log")

status=0
# A stream of events has no end: it is tested in the service's own tests.
SSL_CERT_FILE="$state/ca.pem" REQUESTS_CA_BUNDLE="$state/ca.pem" "$tool" run "https://$ready/v1/openapi.json" \
    --tls-verify "$state/ca.pem" --header "Authorization: Bearer $(cat "$state/admin-token")" \
    --checks not_a_server_error,content_type_conformance,response_schema_conformance,status_code_conformance \
    --exclude-path /v1/events \
    --request-retries 3 --max-examples "$examples" --seed 1 --generation-database none --continue-on-failure || status=$?
if grep -E ' ERROR ' "$state/log"; then
    echo "the coordinator logged errors"
    status=1
fi
exit "$status"
