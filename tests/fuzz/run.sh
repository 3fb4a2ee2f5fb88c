#!/usr/bin/env bash
# Runs the fuzz targets: run.sh [SECONDS] [TARGET...]; 60 seconds and all targets by default.
# Needs a C++ compiler (libFuzzer is built from source) and network access to the crate registry on the first run.
# The toolchain may be stable: RUSTC_BOOTSTRAP=1 lets it pass the sanitizer flags.
# New inputs go to a scratch corpus under the target folder; copy what is worth keeping to corpus/TARGET by hand.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
seconds=${1:-60}
shift || true
if ! [[ $seconds =~ ^[0-9]+$ ]] || ((seconds == 0)); then
    echo "run.sh: SECONDS must be a positive number, not '$seconds'" >&2
    exit 64
fi
if (($# > 0)); then
    targets=("$@")
else
    mapfile -t targets < <(find "$here/targets/fuzz_targets" -name '*.rs' -printf '%f\n' | sed 's/\.rs$//' | sort)
fi

for target in "${targets[@]}"; do
    if [[ ! -f $here/targets/fuzz_targets/$target.rs ]]; then
        echo "run.sh: no target '$target'; there are: $(cd "$here/targets/fuzz_targets" && echo *.rs | sed 's/\.rs//g')" >&2
        exit 64
    fi
done
if ! command -v c++ >/dev/null; then
    echo "run.sh: no C++ compiler found; install g++" >&2
    exit 1
fi
if ! cargo fuzz --version >/dev/null 2>&1; then
    cargo install --locked cargo-fuzz@0.13.2
fi

export RUSTC_BOOTSTRAP=1
target_dir=${CARGO_TARGET_DIR:-$here/../../target}/fuzz
mkdir -p "$target_dir"
unset CARGO_TARGET_DIR
# A leak, one allocation above 64 MiB, or 1 GiB in all (256 MiB of it the sanitizer's quarantine) is a finding.
limits=(-max_total_time="$seconds" -timeout=1 -rss_limit_mb=1024 -malloc_limit_mb=64 -max_len=70000 -len_control=20)

cd "$here"
for target in "${targets[@]}"; do
    log=$target_dir/$target.log
    scratch=$target_dir/corpus/$target
    mkdir -p "$scratch"
    if ! cargo fuzz run --fuzz-dir targets --target-dir "$target_dir" "$target" "$scratch" "corpus/$target" \
        -- "${limits[@]}" -print_final_stats=1 >"$log" 2>&1; then
        tail -n 40 "$log" >&2
        echo "$target: FAILED; the log is $log, the input of a finding under $here/targets/artifacts/$target" >&2
        exit 1
    fi
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    peak=$(sed -n 's/^stat::peak_rss_mb: *//p' "$log")
    if [[ -z $executions ]]; then
        echo "$target: the fuzzer reported no executions; see $log" >&2
        exit 1
    fi
    echo "$target: $executions executions in $seconds s, peak ${peak} MiB, no finding"
done
