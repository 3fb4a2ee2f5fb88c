#!/usr/bin/env bash
# Installs what `make test` and `make soak` need, and only what is missing: with everything there it does nothing, needs
# no network and no root. Packages of the system need root (or sudo without a password); without, it names them and
# does the rest. A test whose tool is missing says so by name. At last it makes the test guest (make-test-guest.sh).
#
# Needs a Rust toolchain (rustup's or another) and, for the packages, apt: Debian 12 or newer, Ubuntu 24.04 or newer.
set -euo pipefail

PATH=$PATH:/usr/sbin:/sbin
rust=1.95
# Known to work; a version that is already there is kept.
nextest=0.9.143
deny=0.20.2
deb=3.6.3
schemathesis=4.32.5
# What the tests of live migration are made for. An older one is kept if it is there.
qemu=10

say() { printf 'install-test-tools: %s\n' "$*" >&2; }

# One line a tool: its command, its package.
tools() {
    cat <<'END'
cc gcc
cpio cpio
dpkg-shlibdeps dpkg-dev
fish fish
groff groff
ip iproute2
lintian lintian
losetup mount
lz4 lz4
mkfs.ext4 e2fsprogs
nbdcopy libnbd-bin
nbdinfo libnbd-bin
nbdkit nbdkit
pg_ctlcluster postgresql
pkg-config pkg-config
promtool prometheus
python3 python3
qemu-img qemu-utils
qemu-io qemu-utils
qemu-nbd qemu-utils
qemu-system-x86_64 qemu-system-x86
qemu-storage-daemon qemu-utils
setpriv util-linux
systemd-analyze systemd
unshare util-linux
zsh zsh
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

# backports_of CODENAME: the sources of its backports, made from those of the release itself: same mirror, same key.
backports_of() {
    local codename=$1 file stanza
    for file in /etc/apt/sources.list.d/*.sources; do
        [[ -f $file ]] || continue
        stanza=$(awk -v RS= -F '\n' -v suite="$codename" '
            $0 !~ "(^|\n)Suites:([^\n]* )?" suite "( |\n|$)" { next }
            {
                print "Types: deb"
                for (i = 1; i <= NF; i++) {
                    if ($i ~ /^(Types|Enabled):/ || $i ~ /^#/) continue
                    if ($i ~ /^Suites:/) $i = "Suites: " suite "-backports"
                    if ($i ~ /^Components:/) $i = "Components: main"
                    print $i
                }
                exit
            }' "$file")
        if [[ -n $stanza ]]; then
            echo "$stanza"
            return
        fi
    done
    [[ -f /etc/apt/sources.list ]] || return 0
    # A line of the old form, in the words of the new one.
    awk -v suite="$codename" '
        $1 != "deb" { next }
        {
            options = ""
            if (match($0, /\[[^]]*\]/)) {
                options = substr($0, RSTART + 1, RLENGTH - 2)
                $0 = substr($0, 1, RSTART - 1) substr($0, RSTART + RLENGTH)
            }
            if ($3 != suite) next
            printf "Types: deb\nURIs: %s\nSuites: %s-backports\nComponents: main\n", $2, suite
            if (match(options, /signed-by=[^ ]*/)) printf "Signed-By: %s\n", substr(options, RSTART + 10, RLENGTH - 10)
            exit
        }' /etc/apt/sources.list
}

# candidate PACKAGE [SUITE]: the major version that apt would install; 0 if it knows none.
candidate() {
    local version
    version=$(LC_ALL=C apt-cache ${2:+--default-release="$2"} policy "$1" | awk '$1 == "Candidate:" { print $2 }')
    version=${version#*:}
    version=${version%%[!0-9]*}
    echo "${version:-0}"
}

# qemu_suite ROOT...: where QEMU is to come from, if not from where apt would take it. Adds Debian's backports if the
# release has an older one. After apt-get update.
qemu_suite() {
    local codename sources
    codename=$(. /etc/os-release && [[ ${ID:-} == debian ]] && echo "${VERSION_CODENAME:-}") || return 0
    if [[ -z $codename ]] || (($(candidate qemu-system-x86) >= qemu)); then
        return 0
    fi
    if (($(candidate qemu-system-x86 "$codename-backports") < qemu)); then
        sources=$(backports_of "$codename")
        if [[ -z $sources ]]; then
            say "no sources of $codename found; QEMU $qemu would be in its backports"
            return 0
        fi
        say "adding $codename-backports for QEMU $qemu"
        "$@" tee "/etc/apt/sources.list.d/$codename-backports.sources" <<<"$sources" >/dev/null
        "$@" apt-get update -qq >&2
    fi
    if (($(candidate qemu-system-x86 "$codename-backports") >= qemu)); then
        echo "$codename-backports"
    fi
}

install_packages() {
    local -a missing=() root=() install=() from_suite=()
    local command package suite
    while read -r command package; do
        command -v "$command" >/dev/null || missing+=("$package")
    done < <(tools)
    # UEFI for guests: files, no command.
    [[ -e /usr/share/OVMF/OVMF_CODE_4M.fd ]] || missing+=(ovmf)
    has_llvm || missing+=(llvm-19)
    # For the page's test, where it is a package: on Ubuntu it is a snap, which runs in no container.
    if command -v apt-cache >/dev/null && ! command -v chromedriver >/dev/null && (($(candidate chromium-driver) > 0)); then
        missing+=(chromium chromium-driver)
    fi
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
    install=("${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends)
    say "installing ${missing[*]}"
    "${root[@]}" apt-get update -qq
    if [[ " ${missing[*]} " == *' qemu-system-x86 '* ]]; then
        # QEMU and its tools alone: nothing else is to come from there, but for what they need themselves.
        suite=$(qemu_suite "${root[@]}")
        mapfile -t from_suite < <(printf '%s\n' "${missing[@]}" | grep '^qemu-')
        "${install[@]}" ${suite:+--target-release="$suite"} "${from_suite[@]}"
    fi
    "${install[@]}" "${missing[@]}"
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

# In a folder of its own: a program of Python's, which tests/api/schemathesis.sh finds there.
install_schemathesis() {
    local folder=${XDG_DATA_HOME:-$HOME/.local/share}/novaferry/schemathesis
    if [[ -x $folder/bin/schemathesis ]]; then
        return
    fi
    say "installing schemathesis $schemathesis"
    if ! { python3 -m venv "$folder" && "$folder/bin/pip" install -q "schemathesis==$schemathesis"; } >&2; then
        rm -rf "$folder"
        say "no schemathesis: the test of the API by it will be skipped"
    fi
}

check_rust
install_packages
install_schemathesis
command -v cc >/dev/null || {
    say "no C compiler: Rust cannot link without one"
    exit 1
}
install_cargo_tool nextest "$nextest"
install_cargo_tool deny "$deny"
install_cargo_tool deb "$deb"
if command -v lz4 >/dev/null && command -v cpio >/dev/null; then
    "$(dirname "$0")/make-test-guest.sh" || say "no test guest: tests that need it will be skipped"
fi
