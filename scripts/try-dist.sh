#!/usr/bin/env bash
# Tries the archives of scripts/dist.sh: the same commit gives the same bytes, and `make install` from the unpacked
# tarball needs no network and nothing that cargo has fetched before.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
. scripts/environment.sh
scripts/setup.sh build dist

say() { printf '\n== %s ==\n' "$*"; }
fail() { printf 'try-dist: %s\n' "$*" >&2; exit 1; }

name=pgpool_recovery-$(scripts/meta.py --version)
dist=$TARGET_DIR/dist
[ -e "$dist/$name.tar.xz" ] || scripts/dist.sh
scratch=$(mktemp -d /tmp/pgpool-recovery-try-dist.XXXXXX)
trap 'rm -rf "$scratch"' EXIT

say "the same bytes again"
(
    umask 077
    export DIST=$scratch/again LC_ALL=C.UTF-8 TZ=Pacific/Kiritimati XZ_OPT=-0
    scripts/dist.sh
)
for archive in "$name.tar.xz" "$name.zip"; do
    cmp "$dist/$archive" "$scratch/again/$archive"
    # PGXN reads the first that it finds
    found=$(python3 - "$dist/$archive" <<'END'
import sys, tarfile, zipfile
path = sys.argv[1]
names = zipfile.ZipFile(path).namelist() if path.endswith(".zip") else tarfile.open(path).getnames()
print(*[name for name in names if name.endswith("META.json")])
END
    )
    [ "$found" = "$name/META.json" ] || fail "$archive has other files of this name than its own: $found"
done
rm -rf "$scratch/again"

say "make install without a network"
tar --extract --file "$dist/$name.tar.xz" --directory "$scratch"
cd "$scratch/$name"
stage=$scratch/stage
PREFIX=${PREFIX:-/usr/local}
mkdir "$scratch/cargo" "$scratch/home"
# a user other than root is one in the namespace, and nowhere else
isolated=(unshare --net)
[ "$(id -u)" = 0 ] || isolated+=(--map-root-user)
# rustup's compilers are below the real home
# shellcheck disable=SC2016 # for the shell in there
"${isolated[@]}" env -i PATH="$PATH" HOME="$scratch/home" RUSTUP_HOME="${RUSTUP_HOME:-$HOME/.rustup}" \
    CARGO_HOME="$scratch/cargo" CARGO_NET_OFFLINE=true ${CARGO_BUILD_JOBS:+CARGO_BUILD_JOBS="$CARGO_BUILD_JOBS"} \
    bash -euc '
        [ "$(awk "NR > 2 { print \$1 }" /proc/net/dev)" = lo: ] || { echo "there is a network" >&2; exit 1; }
        exec make install PG_CONFIG="$1" DESTDIR="$2" PREFIX="$3"' _ "$PG_CONFIG" "$stage" "$PREFIX"
[ ! -e "$scratch/cargo/registry" ] || fail "cargo has fetched something: $(ls -R "$scratch/cargo/registry")"

say "what is installed"
extension=$("$PG_CONFIG" --sharedir)/extension
wanted=$({
    echo "755 $("$PG_CONFIG" --pkglibdir)/pgpool_recovery.so"
    for file in sql/pgpool_recovery--*.sql pgpool_recovery.control; do
        cmp "$file" "$stage$extension/${file##*/}" >&2
        echo "644 $extension/${file##*/}"
    done
    for program in pgpool-recovery-agent pgpool-recovery-hook; do
        echo "755 $PREFIX/bin/$program"
    done
} | sort)
found=$(find "$stage" ! -type d -printf '%m /%P\n' | sort)
echo "$found"
diff <(echo "$wanted") <(echo "$found") || fail "wanted (<) is not what is there (>)"
for program in pgpool-recovery-agent pgpool-recovery-hook; do
    [ "$("$stage$PREFIX/bin/$program" --version)" = "$program ${name#*-}" ] || fail "$program does not tell its version"
done
echo "try-dist: ok"
