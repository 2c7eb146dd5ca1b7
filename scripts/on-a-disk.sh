#!/usr/bin/env bash
# Runs the end-to-end tests with a file system of their own for the servers that they make and remove: ext4 with a journal, in an image.
#
#   scripts/on-a-disk.sh COMMAND...     as root, or by sudo
#
# The command finds it by PGPOOL_RECOVERY_E2E_DIRECTORY. If that is set already, or the tests are to keep what they made
# (PGPOOL_RECOVERY_E2E_KEEP), or this machine cannot mount an image, the command runs without.
#
# The image has no name once it is mounted, and is mounted in a namespace of the command's: it goes with the last process in
# there, whatever ends that. What the command leaves running, as after Ctrl-C, is killed. If this script is killed, too, the
# next run removes the empty directory.
# Why: docs/decisions/2026-11-30-tests-on-a-disk-of-their-own.md
set -euo pipefail

readonly SIZE_MB=8192
# of memory, besides the image
readonly SPARE_MB=4096

[ "$(id -u)" = 0 ] || exec sudo -E "$0" "$@"

# Whoever runs a program as another user forks, and that copies the page tables of all its memory. What a test has compared is to go
# back to the kernel: without these, six threads keep 900 MB of it (mallopt(3)).
export MALLOC_ARENA_MAX=2 MALLOC_MMAP_THRESHOLD_=65536

without() {
    echo "on-a-disk: the tests use /tmp: $1"
    shift
    exec "$@"
}

# In the namespace: on-a-disk.sh --mounted IMAGE DIRECTORY COMMAND...
if [ "${1:-}" = --mounted ]; then
    image=$2 directory=$3
    shift 3
    # discard: the image is to be no larger than what is in it. The loop device goes with the mount.
    why=$(mount -o loop,noatime,discard "$image" "$directory" 2>&1) || without "$why" "$@"
    rm "$image"
    # what killed servers leave in shared memory goes, too
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm
    PGPOOL_RECOVERY_E2E_DIRECTORY=$directory exec "$@"
fi

[ -z "${PGPOOL_RECOVERY_E2E_DIRECTORY:-}" ] || exec "$@"
[ -z "${PGPOOL_RECOVERY_E2E_KEEP:-}" ] || without "PGPOOL_RECOVERY_E2E_KEEP is set" "$@"

# The processes in whose namespace this is mounted.
inside() { grep -lsF " $1 " /proc/[0-9]*/mountinfo | cut -d / -f 3 || true; }

# What killed runs left. The directory of one that lives is locked by its processes, which may be in a namespace that hides them; a
# minute is for one that is about to.
for left in /tmp/ppr.?????? /dev/shm/ppr.??????.img /var/tmp/ppr.??????.img; do
    directory=/tmp/$(basename "$left" .img)
    if [ -n "$(find "$left" -maxdepth 0 -mmin +1 2>/dev/null)" ] &&
        { [ ! -d "$directory" ] || flock --nonblock "$directory" true; }; then
        rm -df "$left"
    fi
done

free_mb() { df --output=avail -BM "$1" 2>/dev/null | tr -dc 0-9; }
available_mb=$(($(sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo) / 1024))
# In memory if there is plenty: the tests write much more than they leave.
if [ "$available_mb" -ge $((SIZE_MB + SPARE_MB)) ] && [ "$(free_mb /dev/shm)" -ge $SIZE_MB ]; then
    place=/dev/shm
elif [ "$(free_mb /var/tmp)" -ge $SIZE_MB ]; then
    place=/var/tmp
else
    without "no room for $SIZE_MB MB in /var/tmp" "$@"
fi
why=$(unshare --mount true 2>&1) || without "$why" "$@"

directory=$(mktemp -d /tmp/ppr.XXXXXX)
# whatever the command starts has it, too
exec 9<"$directory"
flock --shared 9
image=$place/${directory#/tmp/}.img
clean() {
    local left
    left=$(inside "$directory")
    # shellcheck disable=SC2086 # numbers
    [ -z "$left" ] || kill -KILL $left 2>/dev/null || true
    rm -f "$image"
    rmdir "$directory"
}
trap clean EXIT
truncate --size "${SIZE_MB}M" "$image"
if ! why=$(mkfs.ext4 -q -F -m 0 "$image" 2>&1); then
    clean
    without "$why" "$@"
fi
unshare --mount --propagation private "$0" --mounted "$image" "$directory" "$@"
