#!/usr/bin/env bash
# Line coverage of the decoders, from the unit tests of their crates and the replay of the fuzz corpus.
# Prints a table and fails when a decoder file is below 90 %, or was not built at all.
#
# Needs llvm-profdata and llvm-cov that read the profile format of the installed rustc. Looked for, in this order:
# the directory in LLVM_TOOLS, rustup's component llvm-tools, Debian's llvm-19 (or newer), the PATH.
# LLVM 19 from Debian reads the profiles of rustc 1.95 (LLVM 22): apt-get install llvm-19.
set -euo pipefail

least=90
# A new decoder adds its package and its file here.
decoders=(
    "novaferry-wire agent/crates/wire/src/codec.rs"
    "novaferry-wire agent/crates/wire/src/control/decode.rs"
    "novaferry-wire agent/crates/wire/src/extent.rs"
    "novaferry-wire agent/crates/wire/src/frame.rs"
    "novaferry-wire agent/crates/wire/src/prelude.rs"
    "novaferry-session agent/crates/session/src/old.rs"
    "novaferry-session agent/crates/session/src/receiver.rs"
    "novaferry-session agent/crates/session/src/receiver/cover.rs"
    "novaferry-session agent/crates/session/src/receiver/order.rs"
    "novaferry-session agent/crates/session/src/sender.rs"
    "novaferry-reduce agent/crates/reduce/src/codec/decompress.rs"
    "novaferry-reduce agent/crates/reduce/src/delta.rs"
    "novaferry-reduce agent/crates/reduce/src/leaf_table.rs"
    "novaferry-reduce agent/crates/reduce/src/ram/decoder.rs"
    "novaferry-reduce agent/crates/reduce/src/ram/delta.rs"
    "novaferry-reduce agent/crates/reduce/src/ram/layout.rs"
    "novaferry-engine agent/crates/engine/src/journal/record.rs"
    "novaferry-engine agent/crates/engine/src/migrate/disk/frame.rs"
    "novaferry-engine agent/crates/engine/src/migrate/ram/frame.rs"
    "novaferry-receipt agent/crates/receipt/src/lib.rs"
    "novaferry-engine agent/crates/engine/src/target/meta.rs"
    "novaferry-hypervisor agent/crates/hypervisor/src/multifd.rs"
    "novaferry-hypervisor agent/crates/hypervisor/src/multifd/packet.rs"
    "novaferry-hypervisor agent/crates/hypervisor/src/nbd/uri.rs"
    "novaferry-hypervisor agent/crates/hypervisor/src/nbd/wire.rs"
    "novaferry-hypervisor agent/crates/hypervisor/src/nbd/wire/handshake.rs"
    "novaferry-hypervisor agent/crates/hypervisor/src/nbd/wire/options.rs"
    "novaferry-hypervisor agent/crates/hypervisor/src/nbd/wire/requests.rs"
    "novaferry-hypervisor agent/crates/hypervisor/src/nbd/wire/transmission.rs"
    "novaferry-hypervisor agent/crates/hypervisor/src/stream.rs"
    "novaferry-hypervisor agent/crates/hypervisor/src/stream/cursor.rs"
    "novaferry-hypervisor agent/crates/hypervisor/src/stream/walker.rs"
    "novaferry-agent agent/src/config.rs"
    "novaferry-agent agent/src/config/file.rs"
    "novaferry-agent agent/src/config/pool.rs"
    "novaferry-agent agent/src/config/units.rs"
    "novaferry-pki agent/crates/pki/src/name.rs"
)
# Runs beside the packages of the decoders.
replay=novaferry-fuzz
# Only the unit tests of these: their others start agents and guests, which `make test` has just done, and instrumented
# ones are too slow for their clocks.
unit_only=" novaferry-agent novaferry-engine novaferry-hypervisor "

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
out=$(realpath -m "${CARGO_TARGET_DIR:-target}")/coverage
rm -rf "$out/profiles"
mkdir -p "$out/profiles"

# Only a pair that reads a profile made by this rustc will do.
probe() {
    local bin=$1
    [[ -x $bin/llvm-profdata && -x $bin/llvm-cov ]] || return 1
    "$bin/llvm-profdata" merge -sparse "$out/probe.profraw" -o "$out/probe.profdata" 2>/dev/null &&
        "$bin/llvm-cov" report "$out/probe" -instr-profile="$out/probe.profdata" >/dev/null 2>&1
}

find_tools() {
    local bin
    printf 'fn main() {}\n' >"$out/probe.rs"
    rustc -C instrument-coverage -o "$out/probe" "$out/probe.rs"
    LLVM_PROFILE_FILE=$out/probe.profraw "$out/probe"
    for bin in "${LLVM_TOOLS:-}" "$(rustc --print target-libdir)/../bin" \
        /usr/lib/llvm-{22,21,20,19}/bin "$(dirname "$(command -v llvm-profdata || echo /none/none)")"; do
        if [[ -n $bin ]] && probe "$bin"; then
            echo "$bin"
            return
        fi
    done
    echo "coverage.sh: no llvm-profdata and llvm-cov that read the profiles of $(rustc --version);" \
        "install Debian's llvm-19 or name their directory in LLVM_TOOLS" >&2
    return 1
}

tools=$(find_tools)
mapfile -t packages < <(printf '%s\n' "${decoders[@]}" | cut -d' ' -f1 | sort -u)
all=(-p "$replay")
units=()
for package in "${packages[@]}"; do
    if [[ $unit_only == *" $package "* ]]; then
        units+=(-p "$package")
    else
        all+=(-p "$package")
    fi
done

export RUSTFLAGS="-C instrument-coverage" CARGO_TARGET_DIR="$out/target"
# Build scripts and procedural macros are instrumented too; their profiles go where nobody looks for them.
export LLVM_PROFILE_FILE=$out/build-%p-%m.profraw
test_binaries() {
    cargo test "$@" --no-run --message-format=json |
        sed -n 's/.*"profile":{[^}]*"test":true}.*"executable":"\([^"]*\)".*/\1/p'
}
mapfile -t binaries < <(
    test_binaries "${all[@]}" --lib --tests
    test_binaries "${units[@]}" --lib
)
if ((${#binaries[@]} == 0)); then
    echo "coverage.sh: cargo built no test binary" >&2
    exit 1
fi
export LLVM_PROFILE_FILE=$out/profiles/%p-%m.profraw
{
    cargo test "${all[@]}" --lib --tests --quiet && cargo test "${units[@]}" --lib --quiet
} >"$out/tests.log" 2>&1 || {
    tail -n 40 "$out/tests.log" >&2
    echo "coverage.sh: the tests failed; the log is $out/tests.log" >&2
    exit 1
}
rm -f "$out"/build-*.profraw

"$tools/llvm-profdata" merge -sparse "$out"/profiles/*.profraw -o "$out/all.profdata"
objects=("${binaries[0]}")
for binary in "${binaries[@]:1}"; do
    objects+=(-object "$binary")
done
files=()
for decoder in "${decoders[@]}"; do
    files+=("$root/${decoder#* }")
done
"$tools/llvm-cov" export --format=lcov "${objects[@]}" -instr-profile="$out/all.profdata" \
    -sources "${files[@]}" >"$out/decoders.lcov"

failed=0
for decoder in "${decoders[@]}"; do
    file=${decoder#* }
    read -r hit all < <(awk -F: -v file="$root/$file" '
        $1 == "SF" { inside = ($2 == file) }
        inside && $1 == "LF" { all += $2 }
        inside && $1 == "LH" { hit += $2 }
        END { print hit + 0, all + 0 }' "$out/decoders.lcov")
    if ((all == 0)); then
        echo "$file: not in the build"
        failed=1
        continue
    fi
    printf '%-50s %5d of %5d lines  %3d.%d %%\n' "$file" "$hit" "$all" \
        $((hit * 100 / all)) $((hit * 1000 / all % 10))
    if ((hit * 100 < least * all)); then
        echo "$file: below $least %"
        failed=1
    fi
done
exit "$failed"
