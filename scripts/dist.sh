#!/usr/bin/env bash
# Makes the archives of a release from the last commit, in target/dist or DIST:
#
#   pgpool_recovery-VERSION.tar.xz   with the crates of others: builds where there is no network, see scripts/try-dist.sh
#   pgpool_recovery-VERSION.zip      without them, for PGXN
#   SHA256SUMS
#
# The same commit gives the same bytes wherever git, cargo, tar and xz are of the same version. Needs the network only
# for crates that cargo has not fetched yet.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

fail() { printf 'dist: %s\n' "$*" >&2; exit 1; }

[ -e .git ] || fail "this is no clone: a release is made from a commit"
scripts/setup.sh dist
dist=$(realpath -m "${DIST:-$TARGET_DIR/dist}")
# what must not depend on who calls
umask 022
export LC_ALL=C TZ=UTC
unset XZ_OPT XZ_DEFAULTS TAR_OPTIONS GZIP

version=$(scripts/meta.py --version)
name=pgpool_recovery-$version
commit=$(git rev-parse HEAD)
[ -z "$(git status --porcelain --untracked-files=no)" ] ||
    echo "dist: there are uncommitted changes: the archives are of $commit, without them" >&2
# A tag is a promise: what it names must be whole.
for tag in $(git tag --points-at HEAD --list 'v*'); do
    [ "$tag" = "v$version" ] || fail "this commit has the tag $tag, and its version is $version"
    scripts/meta.py --release
done

work=$(mktemp -d /tmp/pgpool-recovery-dist.XXXXXX)
trap 'rm -rf "$work"' EXIT
mkdir -p "$dist"
rm -f "$dist"/pgpool_recovery-*.tar.xz "$dist"/pgpool_recovery-*.zip "$dist/SHA256SUMS"

# PGXN wants a zip file, and everything in a directory of this name, or it makes one of what it gets
git archive --format=zip --prefix="$name/" --output="$work/$name.zip" "$commit"

git archive --prefix="$name/" "$commit" | tar --extract --directory "$work"
scripts/vendor.py "$work/$name"
# a file's modes are its owner's, those of vendor/ cargo's
tar --create --directory "$work" --format=gnu --sort=name --hard-dereference --owner=0 --group=0 --numeric-owner \
    --mode='u=rwX,go=rX' --mtime="@$(git log -1 --format=%ct "$commit")" "$name" |
    xz --threads=1 >"$work/$name.tar.xz"

mv "$work/$name.tar.xz" "$work/$name.zip" "$dist/"
(cd "$dist" && sha256sum "$name.tar.xz" "$name.zip" | tee SHA256SUMS)
echo "dist: $commit in $dist"
