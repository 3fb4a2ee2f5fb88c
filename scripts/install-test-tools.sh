#!/usr/bin/env bash
# Installs what `make test` and `make soak` need, and only what is missing: with everything there it does nothing, needs
# no network and no root. Packages of the system need root (or sudo without a password); without, it names them and
# does the rest. A test whose tool is missing says so by name.
#
# Needs a Rust toolchain (rustup's or another) and, for the packages, apt: Debian 12 or newer, Ubuntu 24.04 or newer.
set -euo pipefail

PATH=$PATH:/usr/sbin:/sbin
rust=1.95
# Known to work; a version that is already there is kept.
nextest=0.9.143
deny=0.20.2

say() { printf 'install-test-tools: %s\n' "$*" >&2; }

# One line a tool: its command, its package.
tools() {
    cat <<'END'
cc gcc
ip iproute2
losetup mount
mkfs.ext4 e2fsprogs
nbdcopy libnbd-bin
nbdinfo libnbd-bin
nbdkit nbdkit
pkg-config pkg-config
qemu-img qemu-utils
qemu-io qemu-utils
qemu-nbd qemu-utils
qemu-storage-daemon qemu-utils
setpriv util-linux
systemd-analyze systemd
unshare util-linux
END
}

# tests/coverage.sh needs an LLVM that reads what rustc writes.
has_llvm() {
    local bin
    for bin in "${LLVM_TOOLS:-}" "$(rustc --print target-libdir)/../bin" /usr/lib/llvm-{22,21,20,19}/bin; do
        if [[ -n $bin && -x $bin/llvm-profdata && -x $bin/llvm-cov ]]; then
            return
        fi
    done
    return 1
}

install_packages() {
    local -a missing=() root=()
    local command package
    while read -r command package; do
        command -v "$command" >/dev/null || missing+=("$package")
    done < <(tools)
    has_llvm || missing+=(llvm-19)
    if ((${#missing[@]} == 0)); then
        return
    fi
    mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
    if ! command -v apt-get >/dev/null; then
        say "this system has no apt-get; install what provides: ${missing[*]}"
        return
    fi
    if ((EUID != 0)); then
        if ! sudo -n true 2>/dev/null; then
            say "needs root: apt-get install ${missing[*]}"
            return
        fi
        root=(sudo -n)
    fi
    say "installing ${missing[*]}"
    "${root[@]}" apt-get update -qq
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

check_rust() {
    local component installed
    if ! command -v cargo >/dev/null; then
        say "no cargo in PATH: install Rust $rust or newer first"
        exit 1
    fi
    installed=$(rustc --version | cut -d' ' -f2)
    if [[ $(printf '%s\n' "$rust" "$installed" | sort -V | head -n 1) != "$rust" ]]; then
        say "Rust $installed is too old: install $rust or newer (rustup update stable)"
        exit 1
    fi
    for component in clippy rustfmt; do
        if cargo "${component/rustfmt/fmt}" --version >/dev/null 2>&1; then
            continue
        fi
        if ! command -v rustup >/dev/null; then
            say "no $component: install it beside rustc"
            exit 1
        fi
        rustup component add "$component"
    done
}

install_cargo_tool() {
    local name=$1 version=$2
    if ! cargo "$name" --version >/dev/null 2>&1; then
        say "building cargo-$name $version"
        cargo install --locked "cargo-$name@$version"
    fi
}

check_rust
install_packages
command -v cc >/dev/null || {
    say "no C compiler: Rust cannot link without one"
    exit 1
}
install_cargo_tool nextest "$nextest"
install_cargo_tool deny "$deny"
