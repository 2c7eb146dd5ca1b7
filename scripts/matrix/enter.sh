#!/usr/bin/env bash
# Runs a command in a chroot, in namespaces of its own: whatever it mounts, starts, listens on or leaves
# in shared memory is gone when it ends, and collides with nothing on this machine.
#
#   scripts/matrix/enter.sh [--network] ROOT COMMAND...     --network: with this machine's network
set -euo pipefail

if [ "${1:-}" != --inside ]; then
    flags=(--net)
    [ "$1" != --network ] || { flags=(); shift; }
    exec unshare --mount --pid --ipc --uts "${flags[@]}" --fork --kill-child \
        "$0" --inside "${flags[0]:-}" "$@"
fi

network=$2 root=$3
shift 3
# Names of settings that commands inside are to see.
pass=()
for name in PGPOOL_RECOVERY_E2E_KEEP PGPOOL_RECOVERY_SOAK_ROUNDS PGPOOL_RECOVERY_SOAK_SEED PG_CONFIG; do
    [ -z "${!name:-}" ] || pass+=("$name=${!name}")
done
rust=$(rustc --print sysroot)
cargo=${CARGO_HOME:-$HOME/.cargo}

mount --make-rprivate /
# network namespaces want / to be a mount
mount --bind "$root" "$root"
mkdir -p "$root/opt/rust" "$root/root/.cargo/registry"
touch "$root/root/.cargo/.package-cache"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t tmpfs -o mode=0755 tmpfs "$root/run"
install -d -m 1777 "$root/run/lock"
# The compiler, unless the root has one, and the crates of this machine; what is built stays inside.
if [ ! -e "$root/usr/bin/rustc" ]; then
    mount --bind "$rust" "$root/opt/rust"
    mount -o remount,bind,ro "$root/opt/rust"
fi
mount --bind "$cargo/registry" "$root/root/.cargo/registry"
mount --bind "$cargo/.package-cache" "$root/root/.cargo/.package-cache"
environment=(PATH=/opt/rust/bin:/root/.cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    HOME=/root USER=root LANG=C.UTF-8 TERM=dumb DEBIAN_FRONTEND=noninteractive CARGO_TARGET_DIR=/build)
if [ -n "$network" ]; then
    ip link set lo up
    environment+=(CARGO_NET_OFFLINE=true)
else
    cp --dereference /etc/resolv.conf "$root/etc/resolv.conf"
    # whom this machine trusts is trusted inside
    authorities=/etc/ssl/certs/ca-certificates.crt
    [ ! -e "$root$authorities" ] || mount --bind "$authorities" "$root$authorities"
fi
[ -s "$root/etc/hosts" ] || echo '127.0.0.1 localhost' >"$root/etc/hosts"
exec chroot "$root" env -i "${environment[@]}" "${pass[@]}" "$@"
