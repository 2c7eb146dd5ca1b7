#!/usr/bin/env bash
# Installs the packages of scripts/rpm.sh by rpm into a root of their own: a Debian 12 (a chroot) in which PostgreSQL 15 is
# where PGDG has it. Looks at what is where, whose and how; at what systemd, firewalld and polkit would read; at the conflict
# with the package that has the extension in C; changes over from that, and rebuilds a standby with what was installed.
# What a booted RHEL would do with it is not tried: systemd, SELinux, firewalld and polkit do not run here.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

packages=$TARGET_DIR/rpms
arch=$(uname -m)
[ "$(id -u)" = 0 ] || { echo "run this as root: it makes a chroot" >&2; exit 1; }
ls "$packages"/pgpool_recovery_15-*."$arch".rpm >/dev/null 2>&1 || scripts/rpm.sh
scripts/setup.sh rpm

say() { printf '\n== %s ==\n' "$*"; }
fail() { printf 'try-rpm: %s\n' "$*" >&2; exit 1; }

root=$(mktemp -d /tmp/pgpool-recovery-rpm.XXXXXX)
chmod 0755 "$root"
inside() {
    chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"
}
clean() {
    umount --lazy "$root/proc" 2>/dev/null || true
    rm -rf --one-file-system "$root"
}
trap clean EXIT
# Debian's rpm has no database of what Debian's packages provide
install_rpms() { rpm --root "$root" --install --force-debian --nodeps "$@"; }

say "a root with PostgreSQL 15 in /usr/pgsql-15"
# shellcheck disable=SC2016 # apt's own
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' | head -n 1)
[ -n "$mirror" ] || fail "this machine's apt has no Debian 12"
debootstrap --variant=minbase --include=ca-certificates bookworm "$root" "$mirror" >/dev/null
cp -r /etc/apt/apt.conf.d/. "$root/etc/apt/apt.conf.d/"
mount -t proc proc "$root/proc"
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 0755 "$root/usr/sbin/policy-rc.d"
inside mkdir -p /usr/lib/postgresql/15/bin /usr/lib/postgresql/15/lib /usr/share/postgresql/15/extension /usr/pgsql-15
inside ln -s /usr/lib/postgresql/15/bin /usr/lib/postgresql/15/lib /usr/share/postgresql/15 /usr/pgsql-15/
inside mv /usr/pgsql-15/15 /usr/pgsql-15/share

say "install: the agent first, which makes user postgres"
! inside getent passwd postgres >/dev/null || fail "there is a user postgres before"
# PGDG's user and group have the number 26, which on Debian is this group's
inside groupdel tape
install_rpms "$packages"/pgpool-recovery-agent-*."$arch".rpm
[ "$(inside getent passwd postgres)" = "postgres:x:26:26:PostgreSQL Server:/var/lib/pgsql:/bin/bash" ] ||
    fail "user postgres is $(inside getent passwd postgres)"
inside apt-get update -q >/dev/null
inside mkdir -p /etc/postgresql-common
echo 'create_main_cluster = false' >"$root/etc/postgresql-common/createcluster.conf"
inside apt-get install -y -q --no-install-recommends postgresql-15 postgresql-15-pgpool2 systemd procps >/dev/null 2>&1
inside install -d -o postgres -g postgres -m 0700 /var/lib/pgsql /var/lib/pgsql/15 /var/lib/pgsql/15/data
cp scripts/rpm/server.sh "$root/tmp/"
# Network and processes of their own: no port is anybody else's, and what is started ends with it.
server() {
    unshare --net --pid --fork --kill-child --mount-proc="$root/proc" sh -c 'ip link set lo up; exec chroot "$@"' sh \
        "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 runuser -u postgres -- /tmp/server.sh "$1"
}

say "the package that has the extension in C"
server before
# The same files in an RPM package of PGDG's name, for what rpm says of the two.
inside tar -C / -cf - usr/pgsql-15/share/extension/pgpool_recovery.control usr/pgsql-15/lib/pgpool-recovery.so |
    tar -C "$root/tmp" -xf -
theirs=pgpool-II-pg15-extensions
cat >"$root/tmp/theirs.spec" <<SPEC
Name: $theirs
Version: 4.3.5
Release: 1
Summary: Stands for PGDG's
License: BSD
%description
%{summary}
%install
cp -a $root/tmp/usr %{buildroot}/
%files
/usr/pgsql-15
SPEC
rpmbuild -bb --quiet --define "_topdir $root/tmp/theirs" "$root/tmp/theirs.spec" >/dev/null 2>&1
ours=("$packages"/pgpool_recovery_15-*."$arch".rpm)
# conflicts OPTION... : what rpm says to both of them in one root
conflicts() { rpm --root "$root" --install --test --force-debian "$@" "${ours[0]}" "$root"/tmp/theirs/RPMS/*/*.rpm 2>&1 || true; }
conflicts | grep "$theirs conflicts with\|conflicts with .*$theirs\|is in conflict" || { conflicts; fail "rpm sees no conflict"; }
conflicts --nodeps | grep "pgpool_recovery.control conflicts" || { conflicts --nodeps; fail "rpm would write over the control file"; }

say "install: the extension and the hook"
install_rpms "${ours[0]}" "$packages"/pgpool-recovery-hook-*."$arch".rpm
rpm --root "$root" --verify pgpool_recovery_15 pgpool-recovery-agent pgpool-recovery-hook --nodeps ||
    fail "files are not as they were packed"

say "what is where, whose and how"
while read -r owner mode path; do
    [ -n "$owner" ] || continue
    [ "$(inside stat -c '%U:%G %a' "$path")" = "$owner $mode" ] || fail "$path is $(inside stat -c '%U:%G %a' "$path")"
    echo "$owner $mode $path"
done <<'LAYOUT'
root:root 755 /usr/pgsql-15/lib/pgpool_recovery.so
root:root 644 /usr/pgsql-15/share/extension/pgpool_recovery.control
root:root 644 /usr/pgsql-15/share/extension/pgpool_recovery--2.0.0.sql
root:root 644 /usr/pgsql-15/share/extension/pgpool_recovery--1.4--2.0.0.sql
root:root 755 /usr/bin/pgpool-recovery-agent
root:root 755 /usr/bin/pgpool-recovery-hook
postgres:postgres 700 /etc/pgpool-recovery
root:root 644 /etc/pgpool-recovery/agent.toml
root:root 644 /usr/lib/systemd/system/pgpool-recovery-agent.service
root:root 644 /usr/lib/sysusers.d/pgpool-recovery-agent.conf
root:root 644 /usr/lib/firewalld/services/pgpool-recovery-agent.xml
root:root 644 /usr/share/polkit-1/rules.d/50-pgpool-recovery-agent.rules
root:root 644 /usr/share/pgpool-recovery-agent/may-start.conf
LAYOUT
for program in agent hook; do
    # compressed, or not, as rpm's own scripts do it where it was built
    ls "$root/usr/share/man/man8/pgpool-recovery-$program.8"* >/dev/null 2>&1 || fail "no manual page of the $program"
done
# nothing of Debian's layout, and nothing of where it was built
rpm --root "$root" -ql pgpool_recovery_15 pgpool-recovery-agent pgpool-recovery-hook |
    grep -E '/usr/lib/postgresql|/usr/share/postgresql|/usr/local|/var/lib/postgresql' && fail "a path of Debian's"
grep -rnE '/usr/lib/postgresql|/var/lib/postgresql/1|/usr/local/bin' "$root"/etc/pgpool-recovery \
    "$root"/usr/share/pgpool-recovery-agent && fail "a path of Debian's"
grep -qx "module_pathname = '\$libdir/pgpool_recovery'" "$root/usr/pgsql-15/share/extension/pgpool_recovery.control" ||
    fail "the control file names another library"
[ "$(rpm --root "$root" -q --configfiles pgpool-recovery-agent)" = /etc/pgpool-recovery/agent.toml ] || fail "configuration files"
for package in pgpool_recovery_15 pgpool-recovery-agent pgpool-recovery-hook; do
    for document in CHANGELOG.md operators-guide.md reference.md; do
        rpm --root "$root" -q --docfiles "$package" | grep "/$document$" >/dev/null || fail "$package is without $document"
    done
    notices=$(rpm --root "$root" -q --licensefiles "$package" | grep '/THIRD-PARTY$') || fail "$package is without THIRD-PARTY"
    grep -q '^serde_json ' "$root$notices" || fail "$package hides a crate"
done

say "programs"
[ "$(inside pgpool-recovery-agent --version)" = "pgpool-recovery-agent 2.0.0" ] || fail "the agent's version"
[ "$(inside pgpool-recovery-hook --version)" = "pgpool-recovery-hook 2.0.0" ] || fail "the hook's version"
inside pgpool-recovery-hook check && fail "a check without pgpool.conf is good"

say "units, as systemd reads them"
# PGDG's unit, in short: what the drop-in is for
cat >"$root/usr/lib/systemd/system/postgresql-15.service" <<'UNIT'
[Service]
Type=notify
User=postgres
Environment=PGDATA=/var/lib/pgsql/15/data/
ExecStart=/usr/pgsql-15/bin/postgres -D ${PGDATA}
UNIT
install -D -m 0644 "$root/usr/share/pgpool-recovery-agent/may-start.conf" \
    "$root/etc/systemd/system/postgresql-15.service.d/may-start.conf"
verify() { inside systemd-analyze verify --man=no pgpool-recovery-agent.service postgresql-15.service 2>&1; }
[ -z "$(verify)" ] || { verify; fail "systemd complains"; }
inside systemd-analyze cat-config systemd/system/postgresql-15.service | grep '^ExecStart'

say "what firewalld and polkit read"
python3 - "$root" <<'PYTHON'
import re, sys
import xml.etree.ElementTree as xml
root = sys.argv[1]
service = xml.parse(f"{root}/usr/lib/firewalld/services/pgpool-recovery-agent.xml").getroot()
ports = [port.attrib for port in service.iter("port")]
assert service.tag == "service" and ports == [{"protocol": "tcp", "port": "9897"}], ports
rule = open(f"{root}/usr/share/polkit-1/rules.d/50-pgpool-recovery-agent.rules").read()
units = re.compile(re.search(r"/(\^.*\$)/\.test", rule)[1])
for unit in ("postgresql-15.service", "postgresql-18.service", "postgresql@15-main.service"):
    assert units.search(unit), unit
for unit in ("sshd.service", "postgresql.service", "postgresql-15.service.d", "xpostgresql-15.service", "postgresql-15-main.service"):
    assert not units.search(unit), unit
print("port", ports[0]["port"], "and units", units.pattern)
PYTHON

say "change over, and rebuild a standby"
server after

say "remove: the secret and a changed configuration stay"
echo '# changed' >>"$root/etc/pgpool-recovery/agent.toml"
rpm --root "$root" --erase --force-debian pgpool_recovery_15 pgpool-recovery-agent pgpool-recovery-hook
[ "$(inside ls -A /etc/pgpool-recovery | sort | paste -sd ' ')" = "agent.toml.rpmsave secret" ] ||
    fail "/etc/pgpool-recovery has $(inside ls -A /etc/pgpool-recovery)"
inside find /usr -xdev -name '*pgpool?recovery*' -newer /tmp/server.sh -not -name '*.pgpool2' | grep . && fail "something is left"
say "all as it should be"
