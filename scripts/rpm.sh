#!/usr/bin/env bash
# Builds the RPM packages of the extension, the agent and the hook, and their source package, into target/rpms: for PGDG's
# directories, and the PostgreSQL version of PG_CONFIG. On Debian its headers are Debian's.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
. scripts/environment.sh
scripts/setup.sh build rpm

spec=packaging/rpm/pgpool-recovery.spec
version=$(sed -nE 's/^version = "(.*)"$/\1/p' Cargo.toml | head -n 1)
grep -qE "^Version: +$version\$" "$spec" || { echo "rpm: $spec is not of version $version" >&2; exit 1; }

packages=$TARGET_DIR/rpms
top=$TARGET_DIR/package-tree/rpm
rm -rf "$top"
mkdir -p "$top/SOURCES" "$packages"
# of another version, or from before what now fails
rm -f "$packages"/*.rpm
tar -czf "$top/SOURCES/pgpool-recovery-$version.tar.gz" --transform "s|^\./|pgpool-recovery-$version/|" \
    --owner=root:0 --group=root:0 --exclude-vcs --exclude=./target --exclude=./fuzz/target ./*
# What it needs setup.sh has seen to: where Rust is rustup's, or the system Debian, rpm knows of none of it.
CARGO_TARGET_DIR=$TARGET_DIR rpmbuild -ba --nodeps --define "_topdir $top" --define "pg_config $PG_CONFIG" \
    --define "pgmajorversion $(pg_major)" "$spec"
mv "$top"/RPMS/*/*.rpm "$top"/SRPMS/*.rpm "$packages/"
rm -rf "$top"
# Debian 12's is what the exceptions are written for; other versions have other opinions, and other configurations.
if [ -e /etc/debian_version ]; then
    rpmlint --config packaging/rpm/rpmlint.toml "$spec" "$packages"/*.rpm
fi
ls "$packages"/*.rpm
