#!/usr/bin/env bash
# Every PostgreSQL and Pgpool-II of Debian 11 to 14: built, tested in the database and end to end, each in a
# chroot of its own release. PostgreSQL 16, which no Debian release has, comes from a Python package and runs
# beside Debian 12's Pgpool-II. Of PostgreSQL 14 only the types are checked. PostgreSQL 19 is experimental's in a Debian
# 14, whose own compiler builds for it: pgrx 0.19 wants a later one than this machine's (scripts/postgresql-19.sh).
#
#   STEPS='build indb through breaks' scripts/matrix.sh [13|14|15|16|17|18|19]...     default: all steps; all of them
#
# build: extension and agent, installed. indb: tests in the database. through: from end to end with the release's
# Pgpool-II: recoveries, the hook, the second stage, blocks that WAL proves equal. breaks: a part of the fault suite.
# What passed is not run again until a source, a package's version or the compiler changes. The chroots stay
# below target/matrix (remove it to begin anew), with the log of each step.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

readonly CELLS="$TARGET_DIR/matrix"
readonly PGSERVER=0.1.4 # of the Python package: PostgreSQL 16.2 with its headers, without its extensions
declare -A SUITES=([13]=bullseye [15]=bookworm [16]=bookworm [17]=trixie [18]=forky [19]=experimental)
declare -A DEBIANS=([bullseye]=13 [bookworm]=15 [trixie]=17 [forky]=18 [experimental]=19)

say() { printf 'matrix: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }

pg_config() {
    if [ "$1" = 16 ]; then
        echo /opt/pgserver/pgserver/pginstall/bin/pg_config
    else
        echo "/usr/lib/postgresql/$1/bin/pg_config"
    fi
}

make_root() {
    local suite=$1 root=$2 mirror script
    # which is no release, only packages on top of one
    [ "$1" != experimental ] || suite=forky
    [ ! -e "$root/.made" ] || return 0
    # Debian's own mirror, as this machine's apt knows it
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN)' 'Created-By: Packages' | sed -n 's/ Debian$//p' | head -n 1)
    [ -n "$mirror" ] || fail "this machine's apt knows no mirror of Debian"
    # debootstrap may be older than the release
    script=/usr/share/debootstrap/scripts/$suite
    [ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid
    say "a Debian $1"
    rm -rf --one-file-system "$root"
    mkdir -p "$root"
    debootstrap --variant=minbase --include=ca-certificates "$suite" "$root" "$mirror" "$script" \
        >"$root.log" 2>&1 || fail "debootstrap of $suite failed, see $root.log"
    [ "$1" = "$suite" ] || add_experimental "$root" "$mirror" >>"$root.log" 2>&1 ||
        fail "no packages of $1, see $root.log"
    touch "$root/.made"
}

# PostgreSQL 19 and its libpq from there, the compiler from the release.
add_experimental() {
    local root=$1 mirror=$2
    # a mirror may stand still for longer than its lists of these suites are valid
    sed -i 's/^deb /deb [check-valid-until=no] /' "$root/etc/apt/sources.list"
    echo "deb [check-valid-until=no] $mirror experimental main" >"$root/etc/apt/sources.list.d/experimental.list"
    printf '%s\n' 'Package: postgresql-*19 libpq5 libpq-dev' 'Pin: release a=experimental' 'Pin-Priority: 500' \
        >"$root/etc/apt/preferences.d/experimental"
    PG=19 enter --network "$root" bash -ec 'apt-get update; apt-get install -y --no-install-recommends rustc cargo rustfmt'
}

existing() {
    while IFS= read -r -d '' file; do
        [ ! -e "$file" ] || printf '%s\0' "$file"
    done
}

# What a result depends on, of the files of this directory.
sources() {
    git ls-files -z -co --exclude-standard -- . ':!*.md' ':!docs' ':!.github' ':!.ci' ':!demo' ':!packaging' \
        ':!fuzz' ':!scripts/matrix.sh' ':!LICENSE' | existing
}

# The checkout as it is, uncommitted changes included; times of files are kept, so cargo builds what changed.
copy_sources() {
    local root=$1
    rm -rf "$root/src"
    mkdir -p "$root/src"
    git ls-files -z -co --exclude-standard | existing | tar --null --files-from=- --create |
        tar --extract --directory "$root/src"
}

# Third-party crates are alike in all cells. They are built in the oldest release and copied from there: what was
# built against an older C library runs with a later one, not the other way round. What depends on the server's
# version, and all of ours, is built and linked in each.
seed() {
    local suite=$1 older
    [ ! -e "$CELLS/$suite/root/build" ] || return 0
    # another compiler
    [ ! -e "$CELLS/$suite/root/usr/bin/rustc" ] || return 0
    for older in bullseye bookworm trixie; do
        [ "$older" != "$suite" ] || return 0
        [ ! -e "$CELLS/pg${DEBIANS[$older]}/through.result" ] || {
            cp -a --reflink=auto "$CELLS/$older/root/build" "$CELLS/$suite/root/build"
            return 0
        }
    done
}

enter() { PG_CONFIG=${PG_CONFIG_INSIDE:-$(pg_config "$PG")} scripts/matrix/enter.sh "$@"; }

prepare() {
    local suite=$1 root=$2 within=()
    [ "$PG" -lt 19 ] || within=(scripts/postgresql-19.sh)
    # called where a failure has to be handed on: set -e does not hold here
    copy_sources "$root" || return 1
    # For the tests in the database. This machine's runs where the C library is not older; else setup.sh builds one.
    if [ ! -e "$root/root/.cargo/bin/cargo-pgrx" ] && [ -e "$HOME/.cargo/bin/cargo-pgrx" ]; then
        install -D "$HOME/.cargo/bin/cargo-pgrx" "$root/root/.cargo/bin/cargo-pgrx"
    fi
    PG_CONFIG_INSIDE=$(pg_config "${DEBIANS[$suite]}") enter --network "$root" bash -ec '
        cd /src
        dpkg --configure -a
        scripts/setup.sh build runtime pgrx
        "$@" cargo fetch --locked' - "${within[@]}" || return 1
    [ "$PG" != 16 ] || enter --network "$root" bash -ec "
        [ -e /opt/pgserver ] || {
            apt-get install -y --no-install-recommends python3-pip
            pip install --no-deps --target /opt/pgserver.new pgserver==$PGSERVER
            mv /opt/pgserver.new /opt/pgserver
        }"
}

# step DIRECTORY KEY NAME COMMAND... : runs it unless it passed before; records KEY, outcome, tests, seconds
step() {
    local dir=$1 key=$2 name=$3 start=$SECONDS outcome=ok tests
    shift 3
    if [ -e "$dir/$name.result" ] && [ "$(cut -d ' ' -f 1,2 "$dir/$name.result")" = "$key ok" ]; then
        say "PostgreSQL $PG, $name: passed before"
        return 0
    fi
    say "PostgreSQL $PG, $name"
    "$@" >"$dir/$name.log" 2>&1 || outcome=failed
    tests=$(sed -nE 's/^test result: .* ([0-9]+) passed.*/\1/p' "$dir/$name.log" | awk '{ n += $1 } END { print n + 0 }')
    echo "$key $outcome $tests $((SECONDS - start))" >"$dir/$name.result"
    [ $outcome = ok ] || failed "$name" "$dir/$name.log"
}

failed() {
    say "PostgreSQL $PG, $1: FAILED, see $2"
    FAILURES=$((FAILURES + 1))
}

cell() {
    local suite=$1 dir=$CELLS/pg$PG root=$CELLS/$1/root key name steps
    mkdir -p "$dir"
    make_root "$suite" "$root"
    prepare "$suite" "$root" >"$dir/setup.log" 2>&1 || { failed setup "$dir/setup.log"; return 0; }
    chroot "$root" "$(pg_config "$PG")" --version | sed -E 's/^PostgreSQL ([^ ]*).*/\1/' >"$dir/postgresql"
    chroot "$root" dpkg-query -W -f '${Version}\n' pgpool2 | sed 's/-.*//' >"$dir/pgpool"
    seed "$suite"
    key=$({ sources | (cd "$root/src" && xargs -0 sha256sum); cat "$dir/postgresql" "$dir/pgpool"
        enter "$root" rustc --version; } |
        sha256sum | cut -c 1-16)
    read -r -a steps <<<"${STEPS:-build indb through breaks}"
    for name in "${steps[@]}"; do
        case $PG:$name in
            16:indb) ;; # needs dblink
            *:build) step "$dir" "$key" build enter "$root" bash -c 'cd /src && scripts/install.sh' ;;
            *) step "$dir" "$key" "$name" enter "$root" bash -c "cd /src && PROFILE=release scripts/test.sh $name" ;;
        esac
    done
}

# pgrx ships the bindings of every version for docs.rs: the compiler sees all types, nothing is linked or run.
types() {
    local dir=$CELLS/pg$PG key
    mkdir -p "$dir"
    key=$({ sources | xargs -0 sha256sum; rustc --version; } | sha256sum | cut -c 1-16)
    # DOCS_RS: for pgrx's build script, which then looks for no server
    step "$dir" "$key" types env DOCS_RS=1 RUSTC_WRAPPER="$PWD/scripts/matrix/rustc.sh" cargo check --locked --lib \
        --no-default-features --features "pg$PG" --target-dir "$CELLS/types"
}

shown() { # NAME: a field of the table
    local file=$CELLS/pg$PG/$1.result outcome tests seconds
    [ -e "$file" ] || { printf 'not run'; return; }
    read -r _ outcome tests seconds <"$file"
    [ "$tests" = 0 ] || outcome+=": $tests tests"
    printf '%s, %s s' "$outcome" "$seconds"
}

table() {
    local format='%-10s  %-9s  %-12s  %-12s  %-21s  %-21s  %s\n' suite
    # shellcheck disable=SC2059 # the format is above
    printf "\n$format" PostgreSQL Pgpool-II Debian build 'in the database' recoveries faults
    for PG in 13 14 15 16 17 18 19; do
        suite=${SUITES[$PG]:-}
        # shellcheck disable=SC2059
        if [ -z "$suite" ]; then
            printf "$format" "$PG" - - "types only: $(shown types)" '' '' ''
        else
            printf "$format" "$(cat "$CELLS/pg$PG/postgresql" 2>/dev/null || echo "$PG")" \
                "$(cat "$CELLS/pg$PG/pgpool" 2>/dev/null || echo -)" "$suite" "$(shown build)" "$(shown indb)" \
                "$(shown through)" "$(shown breaks)"
        fi
    done
}

main() {
    [ "$(id -u)" = 0 ] || fail "run this as root: it makes chroots and namespaces"
    scripts/setup.sh package
    FAILURES=0
    mkdir -p "$CELLS"
    [ $# -gt 0 ] || set -- 13 15 16 17 18 19 14
    for PG in "$@"; do
        case $PG in
            13 | 15 | 16 | 17 | 18 | 19) cell "${SUITES[$PG]}" ;;
            14) types ;;
            *) fail "no cell for PostgreSQL $PG: 13 to 19" ;;
        esac
    done
    table
    [ $FAILURES = 0 ] || fail "$FAILURES failed"
}

# read whole before it runs: somebody may edit this file meanwhile
main "$@"; exit
