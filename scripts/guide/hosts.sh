# shellcheck shell=bash
# Sourced by scripts/try-guide.sh: Debian 12 hosts for the operator's guide. Each is a booted systemd-nspawn
# container with a network namespace of its own; all see the same installed system through overlayfs.
# They share a bridge and reach nothing else.

BASE=$TARGET_DIR/guide/base
# A stamp beside the base says what was put into it: another recipe makes a new one.
RECIPE='2026-11-30: systemd, dbus, sshd; packages of PostgreSQL 15, Pgpool-II, polkit, Prometheus in the cache of apt'

# make_base : once; afterwards it is only read
make_base() {
    [ "$(cat "$BASE.stamp" 2>/dev/null)" = "$RECIPE" ] && return
    rm -rf --one-file-system "$BASE" "$BASE.stamp"
    local mirror
    # Debian's own mirror, as this machine's apt knows it
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' | head -n 1)
    [ -n "$mirror" ] || fail "this machine's apt has no Debian 12"
    mkdir -p "$BASE"
    debootstrap --variant=minbase --include=ca-certificates,systemd,systemd-sysv,dbus,iproute2,openssh-server,procps \
        bookworm "$BASE" "$mirror" >/dev/null
    # How this machine's apt gets at its mirror; a host of the guide has no need of it.
    mkdir "$BASE/machine-apt"
    find /etc/apt/apt.conf.d -type f -not -name 'docker-*' -exec cp {} "$BASE/machine-apt/" \;
    local apt=(chroot "$BASE" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive
        apt-get -q -o Dir::Etc::parts=/machine-apt)
    "${apt[@]}" update >/dev/null
    # The hosts have no way out: what the guide installs is found in the cache.
    "${apt[@]}" install -y --download-only postgresql-15 pgpool2 polkitd >/dev/null
    "${apt[@]}" install -y --download-only --no-install-recommends prometheus >/dev/null
    rm -r "$BASE/machine-apt"
    # nothing here has to survive a power cut
    echo force-unsafe-io >"$BASE/etc/dpkg/dpkg.cfg.d/guide"
    # this machine's, copied by debootstrap
    rm -f "$BASE/etc/resolv.conf"
    echo LANG=C.UTF-8 >"$BASE/etc/default/locale"
    # The administrator's way from host to host, for copying files.
    ssh-keygen -q -t ed25519 -N '' -C guide -f "$BASE/etc/ssh/guide"
    echo 'AuthorizedKeysFile /etc/ssh/guide.pub' >"$BASE/etc/ssh/sshd_config.d/guide.conf"
    printf 'IdentityFile /etc/ssh/guide\nStrictHostKeyChecking accept-new\nLogLevel ERROR\n' \
        >"$BASE/etc/ssh/ssh_config.d/guide.conf"
    echo "$RECIPE" >"$BASE.stamp"
}

# Everything of this run has this name in it.
RUN=guide-$$
STATE=
HOSTS=()

# make_network HOST... : a bridge in a namespace of its own, and a namespace for each host
make_network() {
    ip netns add "$RUN"
    ip -n "$RUN" link add bridge type bridge
    ip -n "$RUN" link set bridge up
    local host number=10
    printf '127.0.0.1 localhost\n' >"$STATE/hosts"
    for host in "$@"; do
        number=$((number + 1))
        ip netns add "$RUN-$host"
        ip -n "$RUN" link add "$host" type veth peer name eth0 netns "$RUN-$host"
        ip -n "$RUN" link set "$host" master bridge up
        ip -n "$RUN-$host" address add "10.85.0.$number/24" dev eth0
        ip -n "$RUN-$host" link set lo up
        ip -n "$RUN-$host" link set eth0 up
        printf '10.85.0.%s %s\n' "$number" "$host" >>"$STATE/hosts"
    done
}

# boot HOST PACKAGE... : starts it with the packages in /var/tmp
boot() {
    local host=$1 own=$STATE/$1 hierarchy
    shift
    mkdir -p "$own/upper" "$own/work" "$own/root"
    HOSTS+=("$host")
    mount -t overlay overlay -o "lowerdir=$BASE,upperdir=$own/upper,workdir=$own/work" "$own/root"
    cp "$STATE/hosts" "$own/root/etc/hosts"
    echo "$host" >"$own/root/etc/hostname"
    cp "$@" "$own/root/var/tmp/"
    # A control group of its own: nspawn takes the one it is started in.
    (
        for hierarchy in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
            [ -e "$hierarchy/cgroup.procs" ] || continue
            mkdir -p "$hierarchy/$RUN/$host"
            echo "$BASHPID" >"$hierarchy/$RUN/$host/cgroup.procs"
        done
        exec systemd-nspawn --quiet --boot --register=no --keep-unit --directory="$own/root" --machine="$RUN-$host" \
            --hostname="$host" --network-namespace-path="/run/netns/$RUN-$host" --resolv-conf=off --timezone=off \
            --console=pipe </dev/null >"$own/console" 2>&1
    ) &
    echo $! >"$own/nspawn"
}

# child_of FILE : the one child of the process whose number the file holds; nothing if there is none. The
# children of 0, which an empty or missing file must not become, are the first processes of this machine.
child_of() {
    local parent
    parent=$(cat "$1" 2>/dev/null || true)
    [[ $parent =~ ^[1-9][0-9]*$ ]] || return 0
    pgrep -P "$parent" || true
}

# wait_until_up HOST
wait_until_up() {
    local own=$STATE/$1 leader=
    for _ in $(seq 600); do
        leader=$(child_of "$own/nspawn")
        if [ -n "$leader" ]; then
            echo "$leader" >"$own/leader"
            # degraded: some unit has nothing to do in a container
            case $(on "$1" root <<<'systemctl is-system-running' 2>/dev/null) in
                running | degraded) return ;;
            esac
        fi
        sleep 0.1
    done
    cat "$own/console" >&2
    fail "$1 does not boot"
}

# on HOST USER : runs the script on standard input there, as that user logs in
on() { "$STATE/on" "$@"; }

# The same as a program, for the one that follows the guide.
make_on() {
    cat >"$STATE/on" <<SH
#!/usr/bin/env bash
set -euo pipefail
leader=\$(cat "$STATE/\$1/leader")
login=(/bin/bash -eu -o pipefail)
[ "\$2" = root ] || login=(/sbin/runuser --login "\$2" --command '/bin/bash -eu -o pipefail')
for hierarchy in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
    [ -e "\$hierarchy/cgroup.procs" ] || continue
    # beside what systemd takes care of there
    mkdir -p "\$hierarchy/$RUN/\$1/visitor"
    echo "\$\$" >"\$hierarchy/$RUN/\$1/visitor/cgroup.procs"
done
exec nsenter --target "\$leader" --mount --uts --ipc --net --pid --root --wdns=/root \
    env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb \
    DEBIAN_FRONTEND=noninteractive "\${login[@]}"
SH
    chmod 0755 "$STATE/on"
}

# halt_all : whatever was made is gone afterwards, however far it came
halt_all() {
    local host own pid
    for host in "${HOSTS[@]}"; do
        own=$STATE/$host
        pid=$(child_of "$own/nspawn")
        # the end of a container's first process is the end of all of them
        [ -z "$pid" ] || kill -KILL "$pid" 2>/dev/null || true
    done
    for host in "${HOSTS[@]}"; do
        own=$STATE/$host
        [ ! -s "$own/nspawn" ] || wait "$(cat "$own/nspawn")" 2>/dev/null || true
        umount "$own/root" 2>/dev/null || umount --lazy "$own/root" 2>/dev/null || true
        ip netns delete "$RUN-$host" 2>/dev/null || true
        rm -rf "/run/systemd/nspawn/propagate/$RUN-$host" "/run/systemd/nspawn/unix-export/$RUN-$host"
    done
    ip netns delete "$RUN" 2>/dev/null || true
    for hierarchy in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
        [ -d "$hierarchy/$RUN" ] || continue
        find "$hierarchy/$RUN" -depth -type d -exec rmdir {} \; 2>/dev/null || true
    done
    [ -z "$STATE" ] || rm -rf --one-file-system "$STATE"
}
