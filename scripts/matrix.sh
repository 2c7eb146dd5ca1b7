#!/usr/bin/env bash
# Every PostgreSQL and Pgpool-II of Debian 11 to 14: built, tested in the database and end to end, each in a
# chroot of its own release. PostgreSQL 14 and 16, which no Debian release has, are type-checked against the
# bindings that pgrx ships.
#
#   scripts/matrix.sh [13|14|15|16|17|18]...     default: all
#
# What passed is not run again until a source, a package's version or this machine's compiler changes. The
# chroots stay below target/matrix (remove it to begin anew), with the log of each step.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

readonly CELLS="$TARGET_DIR/matrix"
readonly STEPS=(build indb through breaks)
declare -A SUITES=([13]=bullseye [15]=bookworm [17]=trixie [18]=forky)
say() { printf 'matrix: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }

sources() {
    git ls-files -z -co --exclude-standard -- . ':!*.md' ':!docs' ':!.github' ':!.ci' ':!demo' ':!packaging' \
        ':!scripts/matrix.sh' ':!LICENSE' | while IFS= read -r -d '' file; do
        [ ! -e "$file" ] || printf '%s\0' "$file"
    done
}

make_root() {
    local suite=$1 root=$2 mirror script
    [ ! -e "$root/.made" ] || return 0
    # Debian's own mirror, as this machine's apt knows it
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN)' 'Created-By: Packages' | sed -n 's/ Debian$//p' | head -n 1)
    [ -n "$mirror" ] || fail "this machine's apt knows no mirror of Debian"
    script=/usr/share/debootstrap/scripts/$suite
    [ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid
    say "a Debian $suite"
    rm -rf --one-file-system "$root"
    mkdir -p "$root"
    debootstrap --variant=minbase --include=ca-certificates "$suite" "$root" "$mirror" "$script" \
        >"$root.log" 2>&1 || fail "debootstrap of $suite failed, see $root.log"
    touch "$root/.made"
}

# The checkout as it is, uncommitted changes included; times of files are kept, so cargo builds what changed.
copy_sources() {
    local root=$1
    rm -rf "$root/src"
    mkdir -p "$root/src"
    git ls-files -z -co --exclude-standard | while IFS= read -r -d '' file; do
        [ ! -e "$file" ] || printf '%s\0' "$file"
    done | tar --null --files-from=- --create | tar --extract --directory "$root/src"
}

enter() { PG_CONFIG=/usr/lib/postgresql/$PG/bin/pg_config scripts/matrix/enter.sh "$@"; }

prepare() {
    local root=$1
    copy_sources "$root"
    # Built once is enough where the C library is not older than this machine's; else setup.sh builds another.
    if [ ! -e "$root/root/.cargo/bin/cargo-pgrx" ] && [ -e "$HOME/.cargo/bin/cargo-pgrx" ]; then
        install -D "$HOME/.cargo/bin/cargo-pgrx" "$root/root/.cargo/bin/cargo-pgrx"
    fi
    enter --network "$root" bash -c 'cd /src
        dpkg --configure -a
        # OpenSSL: what cargo-pgrx links to
        dpkg -s libssl-dev >/dev/null 2>&1 || { apt-get update && apt-get install -y --no-install-recommends libssl-dev; }
        scripts/setup.sh
        cargo fetch --locked' >"$root.setup.log" 2>&1 || return 1
}

run_step() {
    case $2 in
        build) enter "$1" bash -c 'cd /src && scripts/install.sh' ;;
        *) enter "$1" bash -c "cd /src && scripts/test.sh $2" ;;
    esac
}

# recorded FILE KEY : whether the step passed with this key
recorded() { [ -e "$1" ] && [ "$(cut -d ' ' -f 1,2 "$1")" = "$2 ok" ]; }

# step DIRECTORY KEY NAME COMMAND... : runs it unless it passed before, and records KEY, outcome, tests, seconds
step() {
    local dir=$1 key=$2 name=$3 start=$SECONDS outcome=ok tests
    shift 3
    if recorded "$dir/$name.result" "$key"; then
        say "PostgreSQL $PG, $name: passed before"
        return 0
    fi
    say "PostgreSQL $PG, $name"
    "$@" >"$dir/$name.log" 2>&1 || outcome=failed
    tests=$(sed -nE 's/^test result: .* ([0-9]+) passed.*/\1/p' "$dir/$name.log" | awk '{ n += $1 } END { print n + 0 }')
    echo "$key $outcome $tests $((SECONDS - start))" >"$dir/$name.result"
    [ $outcome = ok ] || { say "PostgreSQL $PG, $name: FAILED, see $dir/$name.log"; FAILURES=$((FAILURES + 1)); }
}

cell() {
    local suite=$1 dir=$CELLS/$1 root=$CELLS/$1/root key name
    mkdir -p "$dir"
    make_root "$suite" "$root"
    prepare "$root" || { say "PostgreSQL $PG: setting up failed, see $root.setup.log"; FAILURES=$((FAILURES + 1)); return 0; }
    chroot "$root" dpkg-query -W -f '${Version}\n' "postgresql-$PG" | sed 's/-.*//' >"$dir/postgresql"
    chroot "$root" dpkg-query -W -f '${Version}\n' pgpool2 | sed 's/-.*//' >"$dir/pgpool"
    key=$({ sources | xargs -0 sha256sum; cat "$dir/postgresql" "$dir/pgpool"; rustc --version; } | sha256sum | cut -c 1-16)
    for name in "${STEPS[@]}"; do
        step "$dir" "$key" "$name" run_step "$root" "$name"
    done
}

# pgrx ships the bindings of every version for docs.rs: the compiler sees all types, nothing is linked or run.
types() {
    local dir=$CELLS/types-$PG key
    mkdir -p "$dir"
    key=$({ sources | xargs -0 sha256sum; rustc --version; } | sha256sum | cut -c 1-16)
    step "$dir" "$key" types env DOCS_RS=1 RUSTC_BOOTSTRAP=1 RUSTFLAGS='--cfg docsrs' cargo check --locked --lib \
        --no-default-features --features "pg$PG" --target "$(rustc -vV | sed -n 's/^host: //p')" \
        --target-dir "$CELLS/types"
}

shown() { # FILE: a cell of the table
    [ -e "$1" ] || { printf 'not run'; return; }
    local outcome tests seconds
    read -r _ outcome tests seconds <"$1"
    if [ "$tests" -gt 0 ]; then printf '%s: %s tests, %s s' "$outcome" "$tests" "$seconds"; else printf '%s, %s s' "$outcome" "$seconds"; fi
}

table() {
    local suite dir
    printf '\n%-10s  %-9s  %-8s  %-12s  %-22s  %-22s  %s\n' PostgreSQL Pgpool-II Debian build \
        'in the database' 'recoveries' 'faults'
    for PG in 13 14 15 16 17 18; do
        suite=${SUITES[$PG]:-}
        if [ -z "$suite" ]; then
            printf '%-10s  %-9s  %-8s  %s\n' "$PG" - - "types only: $(shown "$CELLS/types-$PG/types.result")"
            continue
        fi
        dir=$CELLS/$suite
        printf '%-10s  %-9s  %-8s  %-12s  %-22s  %-22s  %s\n' "$(cat "$dir/postgresql" 2>/dev/null || echo "$PG")" \
            "$(cat "$dir/pgpool" 2>/dev/null || echo -)" "$suite" "$(shown "$dir/build.result")" \
            "$(shown "$dir/indb.result")" "$(shown "$dir/through.result")" "$(shown "$dir/breaks.result")"
    done
}

[ "$(id -u)" = 0 ] || fail "run this as root: it makes chroots and namespaces"
scripts/setup.sh package
FAILURES=0
mkdir -p "$CELLS"
[ $# -gt 0 ] || set -- 18 17 15 13 14 16
for PG in "$@"; do
    case $PG in
        13 | 15 | 17 | 18) cell "${SUITES[$PG]}" ;;
        14 | 16) types ;;
        *) fail "no cell for PostgreSQL $PG: 13 to 18" ;;
    esac
done
table
[ $FAILURES = 0 ] || fail "$FAILURES failed"
