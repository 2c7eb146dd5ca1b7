#!/usr/bin/env bash
# Builds the Debian packages of the extension (for PostgreSQL 15), the agent and the hook into target/packages.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
. scripts/environment.sh
scripts/setup.sh build package

packages=$TARGET_DIR/packages
tree=$TARGET_DIR/package-tree/pgpool-recovery
rm -rf "${tree%/*}"
mkdir -p "$tree" "$packages"
# of another version, or from before what now fails
rm -f "$packages"/*.deb
# dpkg-buildpackage wants debian/ beside the sources, and writes into it
for entry in "$PWD"/*; do
    case ${entry##*/} in
        target) ;;
        # what goes into a package as it is must not be a link
        docs | *.md | LICENSE) cp -r "$entry" "$tree/" ;;
        *) ln -s "$entry" "$tree/" ;;
    esac
done
cp -r packaging/debian "$tree/debian"
(
    cd "$tree"
    export CARGO_TARGET_DIR=$TARGET_DIR
    dpkg-buildpackage --build=binary --unsigned-source --unsigned-changes --no-check-builddeps
)
mv "${tree%/*}"/*.deb "$packages/"
rm -rf "${tree%/*}"
lintian --allow-root --fail-on error,warning "$packages"/*.deb
ls "$packages"/*.deb
