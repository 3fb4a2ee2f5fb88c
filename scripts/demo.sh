#!/usr/bin/env bash
# The main job, on real files, in a few minutes: `make demo`.
#
# Starts a coordinator and two agents as separate processes, which join it by one-time tokens. Makes an ext4 image from
# this machine's own /usr, copies it from one host to the other, kills the receiver with SIGKILL half-way and lets the
# copy resume, changes files in the image and re-syncs, copies it back, and verifies every receipt. Then a running guest
# moves live from one host to the other by one word to the coordinator, which is killed meanwhile, and back as its host is
# drained; it proves by its heartbeats and checksums that it never lost a byte. Needs no root, except to install what is
# missing; without QEMU the last part is left out, and said so. Traffic stays on loopback.
#
# DEMO_MIB: size of the image (default 1024). DEMO_DIR: where to work (default: a temporary folder, removed at the end).
set -euo pipefail
cd "$(dirname "$0")/.."

mib=${DEMO_MIB:-1024}
say() { printf '\n== %s\n' "$*"; }
die() { printf 'demo: %s\n' "$*" >&2; exit 1; }

say "What is needed"
command -v cargo >/dev/null || die "no cargo; install a Rust toolchain (rustup.rs), then run this again"
missing=()
command -v cc >/dev/null || missing+=(gcc)
command -v mkfs.ext4 >/dev/null || [ -x /sbin/mkfs.ext4 ] || missing+=(e2fsprogs)
command -v qemu-nbd >/dev/null || missing+=(qemu-utils)
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ]; then
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}"
    else
        die "needs ${missing[*]}; as root: apt-get install ${missing[*]}"
    fi
fi
PATH=$PATH:/sbin:/usr/sbin
echo "cargo, a C compiler, mkfs.ext4 and debugfs are here; nothing else needs root"

say "Build"
cargo build --locked --release -p novaferry-agent -p novaferry-coordinator --bins
target=${CARGO_TARGET_DIR:-target}
agent=$(realpath "$target/release/novaferry-agent")
novaferry=$(realpath "$target/release/novaferry")

work=${DEMO_DIR:-}
if [ -z "$work" ]; then
    work=$(mktemp -d "${TMPDIR:-/var/tmp}/novaferry-demo.XXXXXX")
    remove=$work
else
    mkdir -p "$work"
    remove=
fi
pids=()
cleanup() {
    for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
    # QEMUs that vmd started are nobody's children.
    for file in "$work"/host-?/vms/*/qemu.pid; do
        if [ -f "$file" ] && grep -qa "$work" "/proc/$(cat "$file")/cmdline" 2>/dev/null; then
            kill -9 "$(cat "$file")" 2>/dev/null || true
        fi
    done
    if [ -n "$remove" ]; then rm -rf "$remove"; fi
}
trap cleanup EXIT

say "An ext4 image of $mib MiB with files of this machine's /usr"
fill=$((mib * 6 / 10 * 1024 * 1024))
mkdir -p "$work/files"
# Readable files up to 64 MiB each, until the image is 60 % full. The order of the tree, so that it is the same each time.
(cd /usr && find . -xdev -type f -readable -size -64M -printf '%s %p\n' 2>/dev/null | LC_ALL=C sort -k2 |
    awk -v fill="$fill" '{ at += $1 + 4096 } at <= fill { print substr($0, index($0, " ") + 1) }') >"$work/list"
tar -C /usr -cf - --no-recursion -T "$work/list" | tar -C "$work/files" --no-same-owner -xf -
truncate -s "${mib}M" "$work/disk.img"
mkfs.ext4 -q -F -E root_owner -d "$work/files" "$work/disk.img"
echo "$(wc -l <"$work/list") files, $(du -sh "$work/files" | cut -f1), from /usr"
rm -rf "$work/files"

# Where the test guest is, once scripts/make-test-guest.sh made it.
guest=${NOVAFERRY_GUEST:-/var/tmp/novaferry-guest-$UID}/current
# Its copy, where the users of VMs can read it.
boot=$work/boot
mkdir -p "$boot"

# lead: starts the coordinator; a restart keeps its addresses. Its process is left in $coordinator.
agents=127.0.0.1:0
api=127.0.0.1:0
lead() {
    : >"$work/coordinator.log"
    "$novaferry" serve --state "$work/coordinator" --agents "$agents" --api "$api" 2>>"$work/coordinator.log" &
    coordinator=$!
    disown "$coordinator"
    pids+=("$coordinator")
    for _ in $(seq 300); do
        if grep -q ' ready ' "$work/coordinator.log"; then break; fi
        kill -0 "$coordinator" 2>/dev/null || { cat "$work/coordinator.log" >&2; die "the coordinator did not start"; }
        sleep 0.1
    done
    agents=$(sed -n 's/.* ready agents="\?\([^" ]*\).*/\1/p' "$work/coordinator.log")
    api=$(sed -n 's/.* ready .*api="\?\([^" ]*\).*/\1/p' "$work/coordinator.log")
    [ -n "$agents" ] && [ -n "$api" ] || { cat "$work/coordinator.log" >&2; die "the coordinator did not get ready"; }
    export NOVAFERRY_URL=https://$api NOVAFERRY_CA=$work/coordinator/ca.pem
    export NOVAFERRY_TOKEN_FILE=$work/coordinator/admin-token
}

say "A coordinator, and two hosts that join it by one-time tokens"
mkdir -p "$work/coordinator" "$work/hosts"
lead
echo "the coordinator: agents dial $agents, people and programs ask https://$api; its page is https://$api/ (token: $work/coordinator/admin-token)"
for host in host-a host-b; do
    token=$("$novaferry" host token --site demo --host "$host" --expires 10m)
    "$agent" join "$agents" "$token" --name "$host" --identity "$work/hosts/$host" >/dev/null ||
        die "$host could not join"
    mkdir -p "$work/$host/pool"
    cat >"$work/$host/agent.toml" <<TOML
state_dir = "$work/$host/state"
[listen]
address = "127.0.0.1:${port:-0}"
[identity]
dir = "$work/hosts/$host"
[[pool]]
name = "fast"
path = "$work/$host/pool"
push = ["host-a", "host-b"]
pull = ["host-a", "host-b"]
[metrics]
listen = "off"
[control]
socket = "$work/$host/agent.sock"
[coordinator]
address = "$agents"
[vms]
folder = "$work/$host/vms"
vmd = "$work/$host/vmd.sock"
runtime = "$work/$host"
[migrate_in]
pool = "fast"
boot = "$boot"
TOML
    mkdir -p "$work/$host/vms"
done

# start HOST: leaves its process in $pid and its address in $address; a restart keeps the address.
start() {
    : >"$work/$1/log"
    "$agent" serve --config "$work/$1/agent.toml" 2>>"$work/$1/log" &
    pid=$!
    disown "$pid" # so that the shell does not report how it ends
    pids+=("$pid")
    for _ in $(seq 300); do
        address=$(sed -n 's/.* ready address=\([^ ]*\).*/\1/p' "$work/$1/log")
        [ -n "$address" ] && break
        kill -0 "$pid" 2>/dev/null || { cat "$work/$1/log" >&2; die "the agent of $1 did not start"; }
        sleep 0.1
    done
    [ -n "$address" ] || die "the agent of $1 did not get ready"
    # The first: the coordinator has one, too.
    sed -i "0,/^address = /s/^address = .*/address = \"$address\"/" "$work/$1/agent.toml"
    echo "$1 listens on $address (process $pid)"
}
start host-a; address_a=$address
start host-b; address_b=$address; pid_b=$pid

field() { sed -n "s/.*\"$2\":\([^,}]*\).*/\1/p" "$1" | tail -n 1 | tr -d '"'; }
mb() { awk -v bytes="${1:-0}" 'BEGIN { printf "%.1f MB", bytes / 1e6 }'; }
rows=()
# row WHAT SUMMARY: a line of the table from the last line of a JSON output.
row() {
    rows+=("$(printf '%-34s %12s %12s %12s %12s %8.1f s' "$1" "$(mb "$(field "$2" logical_bytes)")" \
        "$(mb "$(field "$2" wire_bytes)")" "$(mb "$(field "$2" zero_bytes)")" \
        "$(mb "$(field "$2" resent_bytes)")" "$(field "$2" seconds)")")
}
verify() { # verify RECEIPT VOLUME
    "$agent" verify "$1" "$2" --trust "$work/hosts/host-a" --state "$work/sender" >"$work/verified" 2>&1 ||
        { cat "$work/verified" >&2; die "the receipt of $2 does not verify"; }
    echo "receipt good: $(basename "$2"), root $(sed -n 's/.*"root": *"\([0-9a-f]\{16\}\).*/\1/p' "$1")..."
}
copy() { # copy SUMMARY SRC DST OPTIONS...
    local summary=$1
    shift
    "$agent" copy "$@" --state "$work/sender" --output json >"$summary" 2>>"$work/copy.log"
}

say "Copy to host-b; its agent is killed with SIGKILL half-way and started again"
# Slow enough to be caught in the middle on any machine.
copy "$work/first.json" "$work/disk.img" "novaferry://$address_b/fast/web-1" --identity "$work/hosts/host-a" \
    --limit 20MB/s --receipt "$work/receipt-1.json" &
copying=$!
pids+=("$copying")
half=$((mib * 1024 * 1024 / 2))
while :; do
    settled=$(field "$work/first.json" settled_bytes 2>/dev/null || true)
    [ "${settled:-0}" -ge $half ] && break
    kill -0 $copying 2>/dev/null || die "the copy ended before it could be interrupted: $(cat "$work/copy.log")"
    sleep 0.05
done
kill -9 "$pid_b"
echo "killed at $(mb "$settled") of $(mb $((mib * 1024 * 1024))); visible meanwhile in host-b's pool: $(find "$work/host-b/pool" -maxdepth 1 -type f | wc -l) volumes"
start host-b; pid_b=$pid
wait $copying || { cat "$work/copy.log" >&2; die "the copy did not resume"; }
cmp "$work/disk.img" "$work/host-b/pool/web-1" || die "the copy differs"
echo "resumed by itself, and equal byte for byte"
verify "$work/receipt-1.json" "$work/host-b/pool/web-1"
row "copy, receiver killed half-way" "$work/first.json"

say "Change files in the image, then re-sync"
echo "changed by the demo, $(date -u +%FT%TZ)" >"$work/note"
{
    for n in 1 2 3; do echo "write $work/note note-$n"; done
    head -n 400 "$work/list" | tail -n 5 | sed 's|^\./|rm /|'
} >"$work/changes"
debugfs -w -f "$work/changes" "$work/disk.img" >/dev/null 2>&1
copy "$work/second.json" "$work/disk.img" "novaferry://$address_b/fast/web-1" --identity "$work/hosts/host-a" \
    --resync trusted --receipt "$work/receipt-2.json" || { cat "$work/copy.log" >&2; die "the re-sync failed"; }
cmp "$work/disk.img" "$work/host-b/pool/web-1" || die "the re-synced copy differs"
echo "3 files added and 5 removed; equal byte for byte again"
verify "$work/receipt-2.json" "$work/host-b/pool/web-1"
row "re-sync after a few changes" "$work/second.json"

say "And back: host-b pushes its copy into host-a's pool"
"$agent" copy "$work/host-b/pool/web-1" "novaferry://$address_a/fast/web-1" --identity "$work/hosts/host-b" \
    --state "$work/sender" --receipt "$work/receipt-3.json" --output json >"$work/third.json" 2>>"$work/copy.log" ||
    { cat "$work/copy.log" >&2; die "the way back failed"; }
cmp "$work/disk.img" "$work/host-a/pool/web-1" || die "the copy that came back differs"
verify "$work/receipt-3.json" "$work/host-a/pool/web-1"
row "copy back" "$work/third.json"

# live_parts: what the live part lacks.
live_parts() {
    command -v qemu-system-x86_64 >/dev/null || echo "QEMU (qemu-system-x86)"
    command -v lz4 >/dev/null || [ -e "$guest/vmlinux" ] || echo "lz4"
    command -v cpio >/dev/null || [ -e "$guest/initramfs" ] || echo "cpio"
}
live=
say "A guest for the live move"
mapfile -t lacking < <(live_parts)
if [ ${#lacking[@]} -gt 0 ] && [ "$(id -u)" = 0 ]; then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        qemu-system-x86 lz4 cpio || true
    mapfile -t lacking < <(live_parts)
fi
if [ ${#lacking[@]} -gt 0 ]; then
    echo "left out: it needs ${lacking[*]}; as root: apt-get install qemu-system-x86 lz4 cpio"
elif ! scripts/make-test-guest.sh 2>"$work/guest.log"; then
    cat "$work/guest.log" >&2
    echo "left out: the guest's kernel could not be made"
else
    live=yes
    cp -L "$guest/vmlinux" "$guest/initramfs" "$boot"
    echo "$(qemu-system-x86_64 --version | head -n 1); a Linux kernel with one program that checks its memory and its disk"
fi

# ask COMMAND...: asks the coordinator for a plan, which is left in $plan.
ask() {
    plan=$("$novaferry" "$@" --detach --output json | sed -n 's/^{"id":"\([0-9a-f]*\)".*/\1/p')
    [ -n "$plan" ] || die "the coordinator made no plan"
}
# arrive: follows the plan to its end.
arrive() {
    "$novaferry" plan watch "$plan" >"$work/move.log" 2>&1 || { cat "$work/move.log" >&2; die "the guest did not move"; }
    tail -n 1 "$work/move.log"
}
beats() { # a file that is not there yet has none
    local count
    count=$(grep -c '^HB ' "$1" 2>/dev/null) || true
    echo "${count:-0}"
}
await_beats() { # await_beats FILE COUNT
    for _ in $(seq 600); do
        [ "$(beats "$1")" -ge "$2" ] && return
        sleep 0.1
    done
    die "the guest's heart does not beat in $1"
}
if [ -n "$live" ]; then
    say "A running guest moves from host-a to host-b, and back"
    vmd=$(realpath "$target/release/novaferry-vmd")
    for host in host-a host-b; do
        "$vmd" serve --socket "$work/$host/vmd.sock" --state "$work/$host/vmd" --vms "$work/$host/vms" \
            --disk-folder "$work/$host/pool" --boot "$boot" 2>"$work/$host/vmd.log" &
        pids+=("$!")
        disown "$!"
    done
    # QEMUs of vmd are users of their own when vmd is root: let them through to their files.
    chmod 711 "$work"
    folder=$work/host-a/vms/guest
    mkdir -p "$folder"
    truncate -s 64M "$folder/disk.raw"
    echo '{"id":"guest","name":"guest","memory_mb":512}' >"$folder/config.json"
    qemu-system-x86_64 -name guest -M pc -accel tcg,thread=multi -m 512M -nodefaults -display none \
        -serial "file:$folder/serial.log" -qmp "unix:$folder/qmp.sock,server=on,wait=off" -pidfile "$folder/qemu.pid" \
        -kernel "$boot/vmlinux" -initrd "$boot/initramfs" \
        -append "console=ttyS0 quiet panic=-1 tg.static=64 tg.dup=32 tg.hot=16 tg.rate=16 tg.disk=32 tg.hb=100" \
        -blockdev "{\"driver\":\"raw\",\"node-name\":\"drive0\",\"file\":{\"driver\":\"file\",\"filename\":\"$folder/disk.raw\",\"node-name\":\"file0\"}}" \
        -device virtio-blk-pci,drive=drive0,id=vd0 2>"$work/qemu.log" &
    pids+=("$!")
    disown "$!"
    await_beats "$folder/serial.log" 10
    echo "the guest runs on host-a: $(grep '^HB ' "$folder/serial.log" | tail -n 1 | tr -d '\r')"
    # The hosts tell the coordinator what they have.
    for _ in $(seq 300); do
        "$novaferry" vm list --output json | grep -q '"access":"live"' && break
        sleep 0.1
    done
    "$novaferry" migrate guest --to host-b --dry-run
    asked=$(date +%s%3N)
    ask migrate guest --to host-b
    kill -9 "$coordinator"
    while kill -0 "$coordinator" 2>/dev/null; do sleep 0.05; done
    echo "the coordinator is killed with SIGKILL meanwhile; the hosts go on, and tell the next one"
    lead
    arrive
    began=$(awk '{ gsub(/\033\[[0-9;]*m/, "") } / migration / && /to="?mirroring/ { print $1; exit }' "$work/host-a/log")
    [ -n "$began" ] || die "the agent of host-a does not log when the disks began to travel"
    echo "its disks began to travel $(($(date -d "$began" +%s%3N) - asked)) ms after the command"
    there=$work/host-b/vms/guest/run/serial0.log
    await_beats "$there" 15
    echo "it runs on host-b:        $(grep '^HB ' "$there" | tail -n 1 | tr -d '\r')"
    # What belongs to a VM goes with it: its console on host-b is copied while it is there.
    tail -c +1 -f "$there" >"$work/serial-b.log" 2>/dev/null &
    pids+=("$!")
    disown "$!"
    for _ in $(seq 300); do
        "$novaferry" vm list --output json | grep '"host":"host-b"' | grep -q '"access":"live"' && break
        sleep 0.1
    done
    ask host drain host-b
    arrive
    back=$work/host-a/vms/guest/run/serial0.log
    await_beats "$back" 15
    echo "and on host-a again:      $(grep '^HB ' "$back" | tail -n 1 | tr -d '\r')"
    # One heart: its beats are numbered, and none may be missing, doubled or bad, over all three consoles.
    cat "$folder/serial.log" "$work/serial-b.log" "$back" | tr -d '\r' | awk '
        /CORRUPT/ || / BAD/ { print "the guest complains: " $0; exit 1 }
        $1 == "HB" && $2 ~ /^[0-9]+$/ && NF >= 6 { if (last && $2 != last + 1) { print "after beat " last " came " $2; exit 1 } last = $2 }
        END { if (last) print last " heartbeats over three consoles, none missing; memory and disk checked by the guest" }' ||
        die "the guest was harmed"
fi

say "What happened (loopback, both ends on this machine)"
printf '%-34s %12s %12s %12s %12s %10s\n' "" "volume" "on the wire" "zero" "sent again" "time"
printf '%s\n' "${rows[@]}"
echo
echo "All three copies are equal byte for byte, and all three receipts verify offline against the CA."
if [ -n "$live" ]; then
    say "What the coordinator knows of it"
    "$novaferry" migration list
    "$novaferry" report accuracy
    "$novaferry" audit check
fi
