#!/usr/bin/env bash
# Follows docs/operators-guide.md on Debian 12 hosts of its own, which it boots for that: every block of the
# guide in its order, as the user and on the host that it names, until one fails or shows something else
# than the guide does.
#
#   scripts/try-guide.sh [GUIDE]
#
# The packages are those in target/packages; they are built if there are none. Needs root and about 1 GB in
# target/guide, where an installed Debian stays for the next time. Everything else is removed at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
. scripts/environment.sh
# shellcheck source=scripts/guide/hosts.sh
. scripts/guide/hosts.sh

say() { printf '\n== %s ==\n' "$*"; }
fail() { printf 'try-guide: %s\n' "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "run this as root: it makes containers"
ls "$TARGET_DIR"/packages/postgresql-15-pgpool-recovery_*.deb >/dev/null 2>&1 || scripts/package.sh
scripts/setup.sh guide
cargo build --quiet --package pgpool-recovery-e2e --bin follow

say "a Debian 12"
mkdir -p "$TARGET_DIR/guide"
make_base
STATE=$(mktemp -d "$TARGET_DIR/guide/run.XXXXXX")
chmod 0755 "$STATE"
trap halt_all EXIT
trap 'exit 130' INT TERM

say "five hosts"
hosts=(pool node1 node2 node3 node4)
make_on
make_network "${hosts[@]}"
for host in "${hosts[@]}"; do
    boot "$host" "$TARGET_DIR"/packages/{postgresql-15-pgpool-recovery,pgpool-recovery-agent,pgpool-recovery-hook}_*.deb
done
for host in "${hosts[@]}"; do
    wait_until_up "$host"
done

say "the guide"
"$TARGET_DIR/debug/follow" "${1:-docs/operators-guide.md}" "$STATE/on"
