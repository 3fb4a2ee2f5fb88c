#!/usr/bin/env bash
# The Debian packages: built from the debug binaries in the target folder, then installed, started, joined, upgraded, removed
# and purged by the real dpkg, in an overlay over this machine's own root. What is done there is in memory, in namespaces
# of its own (mounts, network, processes), and gone with the last process, however that ends.
#
# `run.sh --can` says whether this machine can: exit code 0, or why not.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$PATH:/usr/sbin:/sbin

can() {
    ((EUID == 0)) || { echo "needs root"; return 1; }
    local command
    for command in unshare dpkg dpkg-deb dpkg-shlibdeps setpriv systemd-analyze systemd-sysusers systemd-tmpfiles; do
        command -v "$command" >/dev/null || { echo "no $command"; return 1; }
    done
    cargo deb --version >/dev/null 2>&1 || { echo "no cargo-deb"; return 1; }
    if dpkg-query -W novaferry novaferry-agent >/dev/null 2>&1; then
        echo "the packages are installed on this machine"
        return 1
    fi
    # shellcheck disable=SC2016
    unshare --mount --net --pid --fork sh -c 'mount -t tmpfs tmpfs /mnt && mkdir /mnt/u /mnt/w /mnt/r &&
        mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt/r' >/dev/null 2>&1 ||
        { echo "no namespace with an overlay over / can be made here"; return 1; }
}

# Makes the overlay and goes in. In namespaces already.
enter() {
    local work=$1 root=$1/root
    mount -t tmpfs -o mode=0755 tmpfs "$work"
    mkdir "$work"/{upper,work,root}
    mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" "$root"
    mount -t proc proc "$root/proc"
    mount --rbind /sys "$root/sys"
    mount --rbind /dev "$root/dev"
    # No systemd, even if the machine has one.
    mount -t tmpfs tmpfs "$root/run"
    mkdir "$root/run/lock"
    mount -t tmpfs tmpfs "$root/mnt"
    mkdir "$root/mnt/debs"
    cp "$2"/*.deb "$root/mnt/debs"
    cp tests/packages/inside.sh "$root/mnt"
    # What other tests of this machine may have left must not look like ours. These are the overlay's copies.
    rm -rf "$root"/{etc,srv,var/lib}/novaferry "$root"/var/lib/novaferry-{vmd,coordinator} "$root/var/lib/novacron"
    ip link set lo up
    hostname host-a
    cd "$root"
    exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
        chroot "$root" bash /mnt/inside.sh
}

case ${1:-} in
    --can)
        can
        exit
        ;;
    --enter)
        enter "$2" "$3"
        ;;
esac

why=$(can) || { echo "tests/packages: $why" >&2; exit 1; }
folder=$(mktemp -d "${TMPDIR:-/var/tmp}/novaferry-packages.XXXXXX")
trap 'rm -rf "$folder"' EXIT
mkdir "$folder"/{debs,work}

PROFILE=dev DEB_VERSION=1.0-1 packaging/build.sh "$folder/debs"
PROFILE=dev DEB_VERSION=1.1-1 packaging/build.sh "$folder/debs" >/dev/null
# The release after that has other configuration files.
dpkg-deb -R "$folder/debs/novaferry-agent_1.1-1_"*.deb "$folder/next"
sed -i 's/^Version: .*/Version: 1.2-1/' "$folder/next/DEBIAN/control"
for file in agent.toml vmd.toml; do
    echo '# the next release says more' >>"$folder/next/etc/novaferry/$file"
done
dpkg-deb --root-owner-group -Znone -b "$folder/next" "$folder/debs/novaferry-agent_1.2-1.deb" >/dev/null
rm -rf "$folder/next"

if command -v lintian >/dev/null; then
    lintian --allow-root --fail-on error "$folder/debs"/*_1.0-1_*.deb
else
    echo "SKIP lintian: it is not installed"
fi

unshare --mount --net --uts --ipc --pid --fork --kill-child --mount-proc \
    bash "$(realpath "$0")" --enter "$folder/work" "$folder/debs"
