#!/usr/bin/env bash
# What tests/packages/run.sh does inside: as root of a system of its own, with the packages in /mnt/debs.
set -euo pipefail
shopt -s nullglob
trap 'echo "packages: line $LINENO failed" >&2' ERR

die() { echo "packages: $*" >&2; exit 1; }
say() { echo "packages: $*"; }
# Not a sleep to be right: until it is so, or never.
until_so() {
    local what=$1 end=$((SECONDS + 60))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || { "$@" || true; tail -n 30 /mnt/*.log >&2; die "never came: $what"; }
        sleep 0.1
    done
}
is() { [[ $2 == "$3" ]] || die "$1 is $2, not $3"; }
owned() { is "owner and mode of $1" "$(stat -c '%U:%G %a' "$1")" "$2"; }
absent() {
    local path
    for path; do [[ ! -e $path && ! -L $path ]] || die "$path is there"; done
}
install() { dpkg --force-unsafe-io "$@" >/mnt/dpkg.log 2>&1 || { cat /mnt/dpkg.log; die "dpkg $* failed"; }; }

# value UNIT KEY: of the installed unit with its drop-ins; the last one wins.
value() {
    sed -n "s/^$2=//p" "/usr/lib/systemd/system/$1.service" "/etc/systemd/system/$1.service.d"/*.conf | tail -n 1
}

declare -A running
# As systemd would: folders, user, no privileges, ExecStart.
start() {
    local unit=$1 user folder
    user=$(value "$unit" User)
    folder=$(value "$unit" StateDirectory)
    command install -d -o "$user" -g "$user" -m "$(value "$unit" StateDirectoryMode)" "/var/lib/$folder"
    local -a as=(setpriv --reuid "$user" --regid "$user" --init-groups --no-new-privs
        --bounding-set=-all --inh-caps=-all env "STATE_DIRECTORY=/var/lib/$folder")
    folder=$(value "$unit" RuntimeDirectory)
    if [[ -n $folder ]]; then
        command install -d -o "$user" -g "$user" -m 0750 "/run/$folder"
        as+=("RUNTIME_DIRECTORY=/run/$folder")
    fi
    local -a exec
    read -ra exec <<<"$(value "$unit" ExecStart)"
    (umask "$(value "$unit" UMask)" && cd / && exec "${as[@]}" "${exec[@]}") >>"/mnt/$unit.log" 2>&1 &
    running[$unit]=$!
}
stop() {
    kill -TERM "${running[$1]}"
    wait "${running[$1]}" || die "$1 ended with $?: $(tail -n 5 "/mnt/$1.log")"
    unset "running[$1]"
}
connected() { novaferry host list --output json | grep -q '"connected":[[:space:]]*"'; }
metric() {
    exec 3<>/dev/tcp/127.0.0.1/9478
    printf 'GET /metrics HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n' >&3
    grep -qF "$1" <&3
}
units=(/usr/lib/systemd/system/novaferry-{coordinator,agent,vmd}.service)
verify() {
    local said
    said=$(systemd-analyze verify --man=no "${units[@]}" 2>&1) || die "systemd-analyze: $said"
    ! grep -i novaferry <<<"$said" || die "systemd-analyze complains"
}

say "install"
install -i /mnt/debs/novaferry_1.0-1_*.deb /mnt/debs/novaferry-agent_1.0-1_*.deb
is "dpkg --verify" "$(dpkg -V novaferry novaferry-agent)" ""
for program in novaferry novaferry-agent novaferry-vmd; do
    owned "/usr/bin/$program" "root:root 755"
    "$program" --version >/dev/null
done
# What shells and man find.
for file in bash-completion/completions/novaferry zsh/vendor-completions/_novaferry fish/vendor_completions.d/novaferry.fish; do
    owned "/usr/share/$file" "root:root 644"
    grep -q cordon "/usr/share/$file" || die "$file does not know \`host cordon\`"
done
bash -n /usr/share/bash-completion/completions/novaferry
# A system may be told to leave manual pages out; the package has them in any case.
pages=$(dpkg-deb -c /mnt/debs/novaferry_1.0-1_*.deb | grep -c 'usr/share/man/man1/novaferry.*\.1\.gz$') || die "no manual pages"
((pages > 40)) || die "$pages manual pages"
owned /etc/novaferry "root:root 755"
owned /etc/novaferry/agent.toml "root:root 644"
owned /etc/novaferry/identity "root:novaferry 750"
owned /srv/novaferry "novaferry:novaferry 750"
for user in novaferry novaferry-coordinator; do
    is "shell of $user" "$(getent passwd "$user" | cut -d: -f7)" /usr/sbin/nologin
    (($(id -u "$user") < 1000)) || die "$user is no system user"
done
getent group novaferry-vm >/dev/null
novaferry-agent serve --config /etc/novaferry/agent.toml --check-config >/dev/null 2>&1 &&
    die "the example is good as it is, so nobody would write one" || true
absent /var/lib/novaferry /var/lib/novaferry-coordinator /etc/systemd/system/multi-user.target.wants/novaferry-*.service
verify

say "start the coordinator"
start novaferry-coordinator
until_so "the coordinator answers" novaferry host list
owned /var/lib/novaferry-coordinator "novaferry-coordinator:novaferry-coordinator 700"
owned /var/lib/novaferry-coordinator/ca.key "novaferry-coordinator:novaferry-coordinator 600"
is "user of the coordinator" "$(stat -c %U "/proc/${running[novaferry-coordinator]}")" novaferry-coordinator
grep -q '^CapEff:[[:space:]]*0*$' "/proc/${running[novaferry-coordinator]}/status" || die "the coordinator has privileges"

say "join"
mkdir -p /etc/systemd/system/novaferry-agent.service.d
cp /usr/share/doc/novaferry-agent/drop-ins/coordinator.conf /etc/systemd/system/novaferry-agent.service.d
verify
cat >/etc/novaferry/agent.toml <<'END'
# written by the operator
[identity]
dir = "/var/lib/novaferry/identity"
[coordinator]
address = "127.0.0.1:7444"
END
command install -d -o novaferry -g novaferry -m 0700 /var/lib/novaferry
novaferry host token --site here --host host-a |
    setpriv --reuid novaferry --regid novaferry --init-groups novaferry-agent join 127.0.0.1 - --name host-a >/dev/null
start novaferry-agent
until_so "host-a has a line" connected
metric 'novaferry_coordinator_hosts{state="connected"} 1' || die "the coordinator's metrics know no host"

say "upgrade"
cp /etc/novaferry/agent.toml /mnt/edited
ca=$(sha256sum /var/lib/novaferry-coordinator/ca.key)
install -i /mnt/debs/novaferry_1.1-1_*.deb /mnt/debs/novaferry-agent_1.1-1_*.deb
is "version" "$(dpkg-query -W -f '${Version}' novaferry)" 1.1-1
cmp /mnt/edited /etc/novaferry/agent.toml
stop novaferry-agent
stop novaferry-coordinator
start novaferry-coordinator
start novaferry-agent
until_so "host-a has a line again" connected
is "the CA's key" "$(sha256sum /var/lib/novaferry-coordinator/ca.key)" "$ca"
is "the audit log" "$(novaferry audit check --output json | grep -c entries)" 1

say "upgrade with another configuration"
next=/mnt/debs/novaferry-agent_1.2-1.deb
# An edited file is asked about; nobody is there to answer.
! dpkg --force-unsafe-io -i "$next" >/mnt/dpkg.log 2>&1 </dev/null || die "nobody was asked about agent.toml"
grep -q 'conffile prompt' /mnt/dpkg.log || die "no question: $(cat /mnt/dpkg.log)"
cmp /mnt/edited /etc/novaferry/agent.toml
install --force-confold -i "$next"
cmp /mnt/edited /etc/novaferry/agent.toml
[[ -e /etc/novaferry/agent.toml.dpkg-dist ]] || die "the new agent.toml is not beside the edited one"
grep -q 'next release' /etc/novaferry/vmd.toml || die "vmd.toml, which nobody edited, is the old one"
is "state of the package" "$(dpkg-query -W -f '${db:Status-Abbrev}' novaferry-agent)" "ii "

say "remove"
stop novaferry-agent
stop novaferry-coordinator
install -r novaferry novaferry-agent
absent /usr/bin/novaferry /usr/bin/novaferry-agent /usr/bin/novaferry-vmd "${units[@]}"
cmp /mnt/edited /etc/novaferry/agent.toml
[[ -e /var/lib/novaferry-coordinator/ca.key && -e /var/lib/novaferry/identity/key.pem ]] || die "remove took state"

say "purge"
vms=(/srv/novaferry/gold/.vms/web/disk.raw /var/lib/novacron/vms/web/disk.qcow2 /var/lib/novaferry-vmd/vms/web.json)
for file in "${vms[@]}"; do
    mkdir -p "$(dirname "$file")"
    echo precious >"$file"
done
install -P novaferry novaferry-agent
absent /var/lib/novaferry-coordinator /var/lib/novaferry
absent /etc/novaferry/agent.toml /etc/novaferry/vmd.toml /etc/novaferry/identity
for file in "${vms[@]}"; do
    is "$file" "$(cat "$file")" precious
done
grep -q 'fences keep VMs' /mnt/dpkg.log || die "nothing said of the fences: $(cat /mnt/dpkg.log)"

say "purge with VMs in the state folder"
install -i "$next"
mkdir -p /var/lib/novaferry/{identity,pool/.vms/web}
echo precious >/var/lib/novaferry/pool/.vms/web/disk.raw
install -P novaferry-agent
is "the disk" "$(cat /var/lib/novaferry/pool/.vms/web/disk.raw)" precious
absent /var/lib/novaferry/identity
say "all is well"
