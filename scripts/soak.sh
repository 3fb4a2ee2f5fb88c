#!/usr/bin/env bash
# The randomised tests with far more seeds and rounds than `make test` has: soak.sh [SEEDS [ROUNDS]].
# SEEDS are simulated transfers, ROUNDS are kill -9 rounds between real processes. Takes hours.
set -euo pipefail
cd "$(dirname "$0")/.."

export NOVAFERRY_SEEDS=${1:-100000} NOVAFERRY_ROUNDS=${2:-300}
for number in "$NOVAFERRY_SEEDS" "$NOVAFERRY_ROUNDS"; do
    if ! [[ $number =~ ^[1-9][0-9]*$ ]]; then
        echo "soak.sh: SEEDS and ROUNDS must be positive numbers, not '$number'" >&2
        exit 64
    fi
done
# `make test` has one seed for property tests; here each run has its own.
PROPTEST_RNG_SEED=${PROPTEST_RNG_SEED:-$(od -An -N7 -tu8 /dev/urandom | tr -d ' ')}
export PROPTEST_RNG_SEED PROPTEST_CASES=${PROPTEST_CASES:-4096}
echo "soak.sh: PROPTEST_RNG_SEED=$PROPTEST_RNG_SEED PROPTEST_CASES=$PROPTEST_CASES"
cargo build --locked --workspace --bins
cargo nextest run --locked --profile soak --workspace -E 'kind(lib) + kind(bin)'
cargo nextest run --locked --profile soak -p novaferry-session -p novaferry-simulation -p novaferry-agent \
    -E 'not package(novaferry-agent) or binary(e2e)'
# Coordinators that are killed while migrations run, on SQLite and on PostgreSQL.
NOVAFERRY_KILLS=${NOVAFERRY_KILLS:-50} NOVAFERRY_MOVES=${NOVAFERRY_MOVES:-100} \
    cargo nextest run --locked --profile soak -p novaferry-coordinator -E 'binary(kills)'
