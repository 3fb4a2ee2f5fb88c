#!/usr/bin/env bash
# Makes the test guest: Debian's cloud kernel, unpacked and never installed, and an initramfs with the drivers that the
# guest needs and the one program that it runs (tests/guest/init). They go to NOVAFERRY_GUEST, by default
# /var/tmp/novaferry-guest-UID, as current/vmlinux and current/initramfs. Needs no root.
#
# With everything there it does nothing. A change of the program makes a new initramfs; the kernel stays until the
# folder is removed, so that only the first run needs the network. Whoever uses the old files meanwhile keeps them: a
# new version has a folder of its own, and `current` changes in one step.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD

guest=${NOVAFERRY_GUEST:-/var/tmp/novaferry-guest-$UID}
# What QEMU's pc and q35 machines need to have a disk and a power button.
drivers=(virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk button evdev)

say() { printf 'make-test-guest: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

# number FILE OFFSET LENGTH: an unsigned number, little-endian.
number() { od --address-radix=n --endian=little --skip-bytes="$2" --read-bytes="$3" --format="u$3" "$1" | tr -d ' '; }

# piece FILE OFFSET LENGTH
piece() { dd if="$1" skip="$2" count="$3" bs=1M iflag=skip_bytes,count_bytes,fullblock status=none; }

# unpack_kernel VMLINUZ VMLINUX: QEMU loads an uncompressed kernel twice as fast as the guest unpacks it. Where the
# compressed one is inside, the header says (Documentation/arch/x86/boot.rst: setup_sects, payload_offset and _length).
unpack_kernel() {
    local image=$1 sectors offset length unpacked
    [[ $(number "$image" $((0x202)) 4) == $((0x53726448)) ]] || die "$image is no Linux kernel for x86"
    sectors=$(number "$image" $((0x1f1)) 1)
    ((sectors > 0)) || sectors=4
    offset=$(((sectors + 1) * 512 + $(number "$image" $((0x248)) 4)))
    length=$(number "$image" $((0x24c)) 4)
    # All but gzip are followed by their unpacked size.
    case $(piece "$image" "$offset" 4 | od --address-radix=n --format=x1 | tr -d ' \n') in
        02214c18) piece "$image" "$offset" $((length - 4)) | lz4 -dcq >"$2" ;;
        28b52ffd) piece "$image" "$offset" $((length - 4)) | zstd -dcq >"$2" ;;
        fd377a58) piece "$image" "$offset" $((length - 4)) | xz -dcq >"$2" ;;
        1f8b08*) piece "$image" "$offset" "$length" | gzip -dcq >"$2" ;;
        *) die "$image is compressed in a way that this script does not know" ;;
    esac
    unpacked=$(stat --format=%s "$2")
    [[ $(number "$image" $((offset + length - 4)) 4) == "$unpacked" ]] || die "$image unpacks to a wrong size: $unpacked"
}

# fetch_kernel FOLDER: vmlinux, modules/ and a file `kernel` that says what it is.
fetch_kernel() {
    local name download=$1/download found driver
    command -v apt-get >/dev/null || die "no apt-get here; make $guest/current on a Debian system and copy it"
    name=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '/Depends: linux-image-/ { print $2; exit }')
    [[ -n $name ]] || die "apt knows no linux-image-cloud-amd64 (Debian, after apt-get update)"
    say "downloading $name"
    mkdir "$download"
    # apt's own user may not write here; that it then downloads as this one is no news.
    (cd "$download" && apt-get download -qq "$name" 2> >(grep -v '^W: Download is performed unsandboxed' >&2))
    dpkg-deb --extract "$download"/*.deb "$download/files"
    unpack_kernel "$(echo "$download"/files/boot/vmlinuz-*)" "$1/vmlinux"
    mkdir "$1/modules"
    for driver in "${drivers[@]}"; do
        found=$(find "$download/files" -name "$driver.ko*" -print -quit)
        case $found in
            *.ko) cp "$found" "$1/modules/" ;;
            *.ko.xz) xz -dc "$found" >"$1/modules/$driver.ko" ;;
            *.ko.zst) zstd -dcq "$found" >"$1/modules/$driver.ko" ;;
            '') say "no driver $driver in $name: taken for built in" ;;
            *) die "cannot unpack $found" ;;
        esac
    done
    dpkg-deb --field "$download"/*.deb Package Version >"$1/kernel"
    echo "Drivers: ${drivers[*]}" >>"$1/kernel"
    rm -rf "$download"
}

# make_initramfs FOLDER: not compressed, the guest would need longer to unpack it; the same bytes from the same sources.
make_initramfs() {
    local tree=$1/tree flags target
    target=${CARGO_TARGET_DIR:-$root/target}
    flags="-C target-feature=+crt-static --remap-path-prefix=$root=/novaferry"
    flags+=" --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
    # A target of its own keeps the flags from build scripts, and the rest of the target folder from them.
    RUSTFLAGS=$flags cargo build --locked --quiet --profile guest --target x86_64-unknown-linux-gnu \
        --package novaferry-guest-init
    mkdir -p "$tree"/{dev,proc,modules}
    cp "$target/x86_64-unknown-linux-gnu/guest/novaferry-guest-init" "$tree/init"
    cp "$1"/modules/*.ko "$tree/modules/"
    chmod -R u=rwX,go=rX "$tree"
    find "$tree" -exec touch --no-dereference --date=@0 {} +
    (cd "$tree" && find . -mindepth 1 | LC_ALL=C sort |
        cpio --create --format=newc --reproducible --owner=+0:+0 --quiet) >"$1/initramfs"
    rm -rf "$tree"
}

[[ $(uname -m) == x86_64 ]] || die "the test guest is for x86_64"
mkdir -p -m 700 "$guest"
[[ -O $guest ]] || die "$guest belongs to somebody else; set NOVAFERRY_GUEST"
guest=$(realpath "$guest")
exec 9>"$guest/lock"
flock 9

stamp=$({
    rustc --version
    find scripts/make-test-guest.sh tests/guest/init -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
    sed -n '/^\[profile.guest\]/,/^$/p' Cargo.toml
} | sha256sum | cut -c 1-16)
previous=$(readlink "$guest/current" || true)
if [[ $previous == "versions/$stamp" && -s $guest/current/vmlinux && -s $guest/current/initramfs ]]; then
    exit
fi

work=$(mktemp -d "$guest/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
if [[ -s $guest/current/vmlinux ]] && grep -qx "Drivers: ${drivers[*]}" "$guest/current/kernel"; then
    cp -al "$guest/current/"{vmlinux,kernel,modules} "$work/"
else
    fetch_kernel "$work"
fi
make_initramfs "$work"
chmod 755 "$work"
mkdir -p "$guest/versions"
rm -rf "${guest:?}/versions/$stamp"
mv -T "$work" "$guest/versions/$stamp"
ln -sfn "versions/$stamp" "$guest/current.new"
mv -T "$guest/current.new" "$guest/current"
for old in "$guest"/versions/*; do
    case versions/${old##*/} in
        "versions/$stamp" | "$previous") ;;
        *) rm -rf "$old" ;;
    esac
done
say "made $guest/current: $(sed -n 's/^Package: //p' "$guest/current/kernel")"
