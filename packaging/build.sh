#!/usr/bin/env bash
# Builds the Debian packages novaferry and novaferry-agent with cargo-deb: `packaging/build.sh OUT`.
#
# PROFILE: release (default: builds it), or dev: takes the debug binaries that a build of the tests has left in the target
# folder, which must be there. DEB_VERSION: another version than the workspace's, as tests of upgrades need.
set -euo pipefail

out=$(realpath -m "${1:?usage: packaging/build.sh OUT}")
cd "$(dirname "$0")/.."
profile=${PROFILE:-release}
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
export CARGO_TARGET_DIR=$target
case $profile in
    release) built=$target/release && cargo build --locked --release -p novaferry-coordinator -p novaferry-agent --bins ;;
    dev) built=$target/debug ;;
    *) echo "packaging/build.sh: PROFILE is release or dev, not $profile" >&2 && exit 64 ;;
esac
for binary in novaferry novaferry-agent novaferry-vmd; do
    [[ -x $built/$binary ]] || { echo "packaging/build.sh: no $built/$binary; build the workspace first" >&2; exit 1; }
done
mkdir -p "$out"
version=${DEB_VERSION:-$(cargo pkgid -p novaferry-coordinator | sed 's/.*[#@]//')-1}

# What cargo-deb does not make: the changelog, manual pages, completions.
made=$built/packages
rm -rf "$made"
for package in novaferry novaferry-agent; do
    mkdir -p "$made/$package/doc/$package"
    # The date of the source, so that the same source gives the same package.
    date=$(date -R -u -d "@${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}")
    printf '%s (%s) unstable; urgency=medium\n\n  * See https://github.com/novacron/novaferry/releases\n\n -- %s  %s\n' \
        "$package" "$version" 'novaferry maintainers <novaferry@novacron.example>' "$date" |
        gzip -9n >"$made/$package/doc/$package/changelog.Debian.gz"
done

# Does this program have a command? Its help lists it.
has() { "$built/$1" --help | grep -Eq "^  $2( |\$)"; }

for program in novaferry novaferry-agent; do
    share=$made/$program
    if has "$program" man; then
        mkdir -p "$share/man/man1"
        "$built/$program" man "$share/man/man1"
        gzip -9n "$share/man/man1"/*
    else
        echo "packaging/build.sh: $program makes no manual pages" >&2
    fi
    if has "$program" completions; then
        mkdir -p "$share"/{bash-completion/completions,zsh/vendor-completions,fish/vendor_completions.d}
        "$built/$program" completions bash >"$share/bash-completion/completions/$program"
        "$built/$program" completions zsh >"$share/zsh/vendor-completions/_$program"
        "$built/$program" completions fish >"$share/fish/vendor_completions.d/$program.fish"
    else
        echo "packaging/build.sh: $program makes no completions" >&2
    fi
done

fast=()
[[ $profile == release ]] || fast=(--fast)
for package in novaferry-coordinator novaferry-agent; do
    cargo deb --quiet --locked --no-build --strip --no-dbgsym "${fast[@]}" --profile "$profile" -p "$package" \
        --deb-version "$version" --output "$out/"
done
ls -1 "$out"/*.deb
