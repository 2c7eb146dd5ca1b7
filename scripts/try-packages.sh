#!/usr/bin/env bash
# Installs the packages of scripts/package.sh on a Debian 12 of their own (a chroot), beside Debian's
# postgresql-15-pgpool2, changes an installation of the extension in C over, and purges them again.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

packages=$TARGET_DIR/packages
[ "$(id -u)" = 0 ] || { echo "run this as root: it makes a chroot" >&2; exit 1; }
ls "$packages"/postgresql-15-pgpool-recovery_*.deb >/dev/null 2>&1 || scripts/package.sh
scripts/setup.sh package

say() { printf '\n== %s ==\n' "$*"; }
fail() { printf 'try-packages: %s\n' "$*" >&2; exit 1; }

root=$(mktemp -d /tmp/pgpool-recovery-chroot.XXXXXX)
chmod 0755 "$root"
inside() { chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"; }
clean() {
    inside pg_ctlcluster 15 main stop --mode immediate >/dev/null 2>&1 || true
    umount --lazy "$root/proc" 2>/dev/null || true
    rm -rf --one-file-system "$root"
}
trap clean EXIT

# Debian's own mirror, as this machine's apt knows it
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' | head -n 1)
[ -n "$mirror" ] || fail "this machine's apt has no Debian 12"
say "a Debian 12"
debootstrap --variant=minbase --include=ca-certificates bookworm "$root" "$mirror" >/dev/null
cp -r /etc/apt/apt.conf.d/. "$root/etc/apt/apt.conf.d/"
mount -t proc proc "$root/proc"
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 0755 "$root/usr/sbin/policy-rc.d"
inside apt-get update -q >/dev/null
inside apt-get install -y -q --no-install-recommends postgresql-15 postgresql-15-pgpool2 >/dev/null 2>&1

control=/usr/share/postgresql/15/extension/pgpool_recovery.control
sql() { inside runuser -u postgres -- psql -X -A -t -v ON_ERROR_STOP=1 -d template1 -c "$1"; }

say "the extension in C"
inside pg_lsclusters --no-header | grep -q '^15 *main' || inside pg_createcluster 15 main >/dev/null
inside pg_ctlcluster 15 main start
sql "CREATE EXTENSION pgpool_recovery; CREATE ROLE operator; GRANT EXECUTE ON FUNCTION pgpool_remote_start TO operator"
[ "$(sql "SELECT extversion FROM pg_extension WHERE extname = 'pgpool_recovery'")" = 1.4 ] || fail "not 1.4"

say "install"
cp "$packages"/postgresql-15-pgpool-recovery_*.deb "$packages"/pgpool-recovery-{agent,hook}_*.deb "$root/tmp/"
inside sh -c 'apt-get install -y -q -o Dpkg::Use-Pty=0 --no-install-recommends /tmp/*.deb' | grep -E '^(Setting up|Adding)'
grep -q "2.0.0" "$root$control" || fail "the control file is not ours"
grep -q "1.4" "$root$control.pgpool2" || fail "the other control file is gone"
[ "$(inside stat -c '%U:%G %a' /etc/pgpool-recovery)" = "postgres:postgres 700" ] || fail "mode of /etc/pgpool-recovery"

say "change over"
sql "ALTER EXTENSION pgpool_recovery UPDATE"
[ "$(sql "SELECT extversion FROM pg_extension WHERE extname = 'pgpool_recovery'")" = 2.0.0 ] || fail "not 2.0.0"
[ "$(sql "SELECT has_function_privilege('operator', 'pgpool_remote_start(text, text)', 'execute')")" = t ] ||
    fail "the grant is gone"
sql "SELECT step, ok FROM pgpool_recovery_check('localhost', '/var/lib/postgresql/15/other', 5432)" | head -n 3

say "agent"
inside runuser -u postgres -- pgpool-recovery-agent secret --output /etc/pgpool-recovery/secret
inside runuser -u postgres -- pgpool-recovery-agent check
inside test -e /lib/systemd/system/pgpool-recovery-agent.service || fail "no unit"
inside test -e /usr/share/man/man8/pgpool-recovery-agent.8.gz || fail "no manual page"
inside test -e /usr/share/pgpool-recovery-agent/may-start.conf || fail "no drop-in"
inside test -e /usr/share/doc/pgpool-recovery-agent/examples/prometheus/pgpool_recovery_rules.yml || fail "no alert rules"
inside test -e /usr/share/doc/pgpool-recovery-agent/examples/dashboard.json || fail "no dashboard"
inside runuser -u postgres -- pgpool-recovery-agent may-start /var/lib/postgresql/15/main

say "hook"
inside test -e /usr/share/man/man8/pgpool-recovery-hook.8.gz || fail "no manual page of the hook"
inside runuser -u postgres -- pgpool-recovery-hook check && fail "a check without pgpool.conf is good"

say "what the packages say of themselves"
for package in postgresql-15-pgpool-recovery pgpool-recovery-agent; do
    for document in CHANGELOG.md operators-guide.md reference.md troubleshooting.md errors.md THIRD-PARTY; do
        ls "$root/usr/share/doc/$package/$document"* >/dev/null 2>&1 || fail "$package is without $document"
    done
    zgrep -q '^serde_json ' "$root/usr/share/doc/$package/THIRD-PARTY.gz" || fail "$package hides a crate"
done
[ -e "$root/usr/share/doc/postgresql-15-pgpool-recovery/migrating-from-scripts.md" ] ||
    [ -e "$root/usr/share/doc/postgresql-15-pgpool-recovery/migrating-from-scripts.md.gz" ] ||
    fail "no migrating-from-scripts.md"

say "install again, as an upgrade does"
inside chown root:postgres /etc/pgpool-recovery
inside chmod 0750 /etc/pgpool-recovery
inside sh -c 'apt-get install -y -q -o Dpkg::Use-Pty=0 --reinstall --no-install-recommends /tmp/*.deb' | grep -E '^Setting up'
[ "$(inside stat -c '%U:%G %a' /etc/pgpool-recovery)" = "root:postgres 750" ] ||
    fail "an administrator's mode of /etc/pgpool-recovery is undone"
inside chown postgres:postgres /etc/pgpool-recovery
inside chmod 0700 /etc/pgpool-recovery
[ "$(sql "SELECT count(*) FROM pgpool_recovery_check('localhost', '/x', 5432)")" -gt 3 ] || fail "it does not run"

extension=postgresql-15-pgpool-recovery
agent=pgpool-recovery-agent

# purge PACKAGE...
purge() { inside apt-get purge -y -q -o Dpkg::Use-Pty=0 "$@" | grep -E '^(Removing|Purging)'; }

# secrets yes|no : they are there, and unchanged; or they and their directory are gone
secrets() {
    if [ "$1" = no ]; then
        inside test ! -e /etc/pgpool-recovery || fail "/etc/pgpool-recovery is left"
    else
        [ "$(inside cat /etc/pgpool-recovery/secret /etc/pgpool-recovery/secret.new | sha256sum)" = "$secrets" ] ||
            fail "the secret is gone, and a package that reads it is not"
        [ "$(inside stat -c '%U:%G %a' /etc/pgpool-recovery)" = "postgres:postgres 700" ] || fail "its directory is changed"
    fi
}

# again : both packages and their secrets, as before a purge
again() {
    inside sh -c 'apt-get install -y -q -o Dpkg::Use-Pty=0 --no-install-recommends /tmp/*.deb' >/dev/null
    [ "$(inside stat -c '%U:%G %a' /etc/pgpool-recovery)" = "postgres:postgres 700" ] || fail "mode of /etc/pgpool-recovery"
    local name
    for name in secret secret.new; do
        inside test -e "/etc/pgpool-recovery/$name" ||
            inside runuser -u postgres -- pgpool-recovery-agent secret --output "/etc/pgpool-recovery/$name"
    done
    secrets=$(inside cat /etc/pgpool-recovery/secret /etc/pgpool-recovery/secret.new | sha256sum)
}

say "purge: the agent, then the extension"
again
purge $agent
secrets yes
[ "$(sql "SELECT count(*) FROM pgpool_recovery_check('localhost', '/x', 5432)")" -gt 3 ] || fail "it does not run"
purge $extension
secrets no

say "purge: the extension, then the agent"
again
purge $extension
secrets yes
purge $agent
secrets no

say "purge: of the agent, then it comes again; it was only removed when the extension is purged"
again
purge $agent
secrets yes
again
inside apt-get remove -y -q -o Dpkg::Use-Pty=0 $agent | grep -E '^(Removing|Purging)'
secrets yes
purge $extension
secrets yes
purge $agent
secrets no

say "purge: by dpkg, both in one call, each first"
again
inside dpkg --purge $agent $extension | grep -E '^(Removing|Purging)'
secrets no
again
inside dpkg --purge $extension $agent | grep -E '^(Removing|Purging)'
secrets no

say "purge: what an administrator put beside the secret stays"
again
inside touch /etc/pgpool-recovery/notes
purge $agent $extension
[ "$(inside ls -A /etc/pgpool-recovery)" = notes ] || fail "not the notes alone are left"
inside rm -r /etc/pgpool-recovery

say "purge: as docs/operators-guide.md has it, and the way back of docs/migrating-from-scripts.md"
again
sql "DROP EXTENSION pgpool_recovery"
purge $extension $agent
secrets no
sql "CREATE EXTENSION pgpool_recovery"
[ "$(sql "SELECT extversion FROM pg_extension WHERE extname = 'pgpool_recovery'")" = 1.4 ] || fail "not 1.4 again"
grep -q "1.4" "$root$control" || fail "the other control file is not back"
[ -z "$(inside dpkg-divert --list '*pgpool_recovery*')" ] || fail "a diversion is left"
inside find / -xdev -name '*pgpool?recovery*' -not -path '/proc/*' -not -path '/tmp/*' | while IFS= read -r path; do
    # what dpkg knows of is postgresql-15-pgpool2's
    inside dpkg -S "$path" >/dev/null 2>&1 || fail "left: $path"
done
say "all as it should be"
