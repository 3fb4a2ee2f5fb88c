#!/usr/bin/env bash
# Everything that `make test` checks, cheapest first; stops at the first step that fails. Prints the time of each step,
# what was skipped and why, and the counts of the tests.
#
# A test that this machine cannot run is skipped by name, unless NOVAFERRY_REQUIRE (a comma list) demands its
# capability. With CI=true all of them are demanded, but for those in tests/optional.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin

# What the tests may need of a machine: io_uring, loop devices, root, TUN and network namespaces, QEMU's tools, QEMU
# itself with the test guest (scripts/make-test-guest.sh), OVMF, nbdkit, systemd-analyze, groff, zsh and fish, Chromium with its driver.
capabilities=(browser groff guest-agent loop nbdkit netns ovmf postgresql qemu qemu-system root shells systemd uring)

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
logs=$target/test-logs
rm -rf "$logs"
mkdir -p "$logs"
steps=()
skipped=()
current=''

optional() { grep -Eq "^$1[[:space:]]" tests/optional.txt; }

# skip STEP WHY: a step that this machine cannot do.
skip() {
    if [[ ${CI:-} == true ]] && ! optional "$1"; then
        echo "test.sh: $1 must run here and cannot: $2" >&2
        return 1
    fi
    skipped+=("SKIP $1: $2")
}

# step NAME COMMAND...
step() {
    local begin=$SECONDS
    current=$1
    shift
    printf '\n== %s\n' "$current"
    "$@"
    steps+=("$(printf '%-12s %2d min %02d s' "$current" $(((SECONDS - begin) / 60)) $(((SECONDS - begin) % 60)))")
    current=''
}

# Runs with whatever ended the run: the table, the skips, the runner's own summary lines last.
report() {
    local status=$?
    printf '\n== Summary\n'
    ((${#steps[@]} == 0)) || printf '%s\n' "${steps[@]}"
    printf '%-12s %2d min %02d s\n' total $((SECONDS / 60)) $((SECONDS % 60))
    if [[ -f $logs/junit.xml ]]; then
        mapfile -t -O "${#skipped[@]}" skipped < <(grep -oE 'SKIP [^<]*' "$logs/junit.xml" | sort -u)
    fi
    ((${#skipped[@]} == 0)) || printf '%s\n' "${skipped[@]}"
    if [[ -f $logs/doctests.log ]]; then
        awk '/^test result:/ { passed += $4; failed += $6 }
            END { printf "doctests: %d passed, %d failed\n", passed, failed }' "$logs/doctests.log"
    fi
    [[ ! -f $logs/nextest.log ]] || grep -E '^ +Summary ' "$logs/nextest.log" || true
    if ((status != 0)); then
        echo "test.sh: FAILED${current:+ at $current}"
    fi
    exit "$status"
}
trap report EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if [[ ${CI:-} == true && -z ${NOVAFERRY_REQUIRE:-} ]]; then
    required=()
    for capability in "${capabilities[@]}"; do
        optional "$capability" || required+=("$capability")
    done
    NOVAFERRY_REQUIRE=$(IFS=,; echo "${required[*]}")
    export NOVAFERRY_REQUIRE
fi
echo "rustc $(rustc --version | cut -d' ' -f2), $(nproc) processors, uid $EUID," \
    "target $target, required: ${NOVAFERRY_REQUIRE:-nothing}"

# The lints come with the build of the tests instead of a second compilation of every crate: clippy's driver is a
# rustc that lints, for our crates only. Warnings are errors; the odd word is how `cargo clippy` separates arguments.
linted() {
    RUSTC_WORKSPACE_WRAPPER=clippy-driver CLIPPY_ARGS='-Dwarnings__CLIPPY_HACKERY__' "$@"
}

layering() {
    linted cargo nextest run --locked -p novaferry-layering --status-level fail
}

# The fuzz binaries are a workspace of their own.
format() {
    cargo fmt --all --check
    cargo fmt --manifest-path tests/fuzz/targets/Cargo.toml --check
}

# Every target, also examples and benches; the binaries are there for the end-to-end tests.
build() {
    linted cargo build --locked --workspace --all-targets
}

documentation() {
    RUSTDOCFLAGS=-Dwarnings cargo doc --locked --workspace --no-deps --quiet
}

tests() {
    local status=0
    linted cargo nextest run --locked --workspace 2>&1 | tee "$logs/nextest.log" || status=$?
    cp -f target/nextest/default/junit.xml "$logs/junit.xml" || status=1
    return "$status"
}

doctests() {
    linted cargo test --locked --workspace --doc 2>&1 | tee "$logs/doctests.log"
}

api() {
    if [[ -x ${XDG_DATA_HOME:-$HOME/.local/share}/novaferry/schemathesis/bin/schemathesis ]]; then
        tests/api/schemathesis.sh "$target/debug/novaferry"
    else
        skip schemathesis "it is not installed; pip's packages are needed for that"
    fi
}

dependencies() {
    cargo deny --locked check licenses bans sources
    if cargo deny --locked fetch db >"$logs/advisories.log" 2>&1; then
        cargo deny --locked check advisories
    else
        skip advisories "the database cannot be reached; the log is $logs/advisories.log"
    fi
}

# Prometheus' own check of the rules, and their unit tests.
monitoring() {
    promtool check rules monitoring/alerts.yaml
    promtool test rules monitoring/alerts.test.yaml
}

# From the debug binaries that the step `build` made.
packages() {
    local why
    if why=$(tests/packages/run.sh --can); then
        step packages tests/packages/run.sh
    else
        skip packages "$why"
    fi
}

step format format
step layering layering
step build build
step docs documentation
step tests tests
step doctests doctests
step api api
step coverage tests/coverage.sh
if command -v promtool >/dev/null; then
    step monitoring monitoring
else
    skip monitoring "promtool is not installed"
fi
packages
step deny dependencies
