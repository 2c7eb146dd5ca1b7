#!/usr/bin/env bash
# The rules of the house that a compiler does not check: who may name what. See docs/ for the reasons.
set -euo pipefail
cd "$(dirname "$0")/.."

status=0
complain() {
    printf 'house: %s\n%s\n' "$1" "$2" >&2
    status=1
}

# code WORDS DIRECTORY... : lines of Rust that hold one of the words outside of comments
code() {
    local words=$1
    shift
    grep -rnwE --include='*.rs' -e "$words" "$@" | grep -vE '^[^:]+:[0-9]+: *//' || true
}

# forbid RULE WORDS ALLOWED-PATHS-REGEX DIRECTORY...
forbid() {
    local rule=$1 words=$2 allowed=$3 found
    shift 3
    found=$(code "$words" "$@" | grep -vE "^($allowed)" || true)
    [ -z "$found" ] || complain "$rule" "$found"
}

dirs=()
for dir in src crates tests pgrx-tests bench; do
    [ -d "$dir" ] && dirs+=("$dir")
done

forbid 'pgrx is named under src/ and pgrx-tests/ only' \
    'pgrx|pgrx_tests|pg_sys' 'src/|pgrx-tests/' "${dirs[@]}"
forbid 'unsafe code lives under src/pg/ only' \
    'unsafe' 'src/pg/' "${dirs[@]}"
forbid 'walkdir is used by the scan only' \
    'walkdir|WalkDir' 'crates/core/src/manifest/scan(\.rs|/)' "${dirs[@]}"
forbid 'blake3 is used by the digest and by the proof of the secret only' \
    'blake3' 'crates/core/src/(compare/digest|wire/secret|wire/link/)' "${dirs[@]}"
forbid 'the core knows none of our other crates' \
    '(use|extern crate) pgpool_recovery.*|pgpool_recovery(_agent|_e2e)?::.*' '$' crates/core/src
forbid 'pgdata knows none of our other crates' \
    'pgpool_recovery.*' '$' crates/pgdata/src
forbid 'the agent knows the core only' \
    'use pgpool_recovery(_e2e)?(::.*|;)|pgpool_recovery(_e2e)?::.*' '$' crates/agent
forbid 'the hook knows none of our other crates' \
    'pgpool_recovery(_core|_agent|_pgdata|_e2e)?::.*' '$' crates/hook

forbid 'a background worker begins by interrupts::worker_begins' \
    'BackgroundWorkerUnblockSignals|attach_signal_handlers' 'src/pg/interrupts\.rs' src
forbid 'who catches an ERROR lets go of what it has left: see src/pg/subtransaction.rs' \
    'PgTryBuilder|catch_unwind' 'src/pg/(cleanup|error_stack|raised|subtransaction|threads)\.rs' src

for manifest in crates/{pgdata,core,agent,hook}/Cargo.toml tests/Cargo.toml bench/Cargo.toml; do
    found=$(grep -nE '^pgrx|^pgpool[-_]recovery( |=)' "$manifest" || true)
    [ -z "$found" ] || complain "$manifest depends on what it must not know" "$found"
done
# no secret on Pgpool-II's host, so nothing that could use one
found=$(grep -nE '^(pgpool|pgdata)|rustls|postgres' crates/hook/Cargo.toml | grep -v '^[0-9]*:name = ' || true)
[ -z "$found" ] || complain 'the hook depends on none of our other crates, and speaks to servers by psql' "$found"
found=$(grep -nE '^pgpool' crates/core/Cargo.toml || true)
[ -z "$found" ] || complain 'the core depends on pgdata and on none of our other crates' "$found"

# code_of AWK-REGEX FILE-OR-DIRECTORY... : lines of Rust that match, outside of comments and tests
code_of() {
    local regex=$1
    shift
    find "$@" -name '*.rs' ! -name tests.rs -exec awk -v regex="$regex" '
        FNR == 1 { test = 0 }
        /^#\[cfg\(test\)\]/ { test = 1; next }
        # of a module in another file nothing follows here
        test == 1 && /^(pub(\([a-z]+\))? )?mod [a-z_]+;/ { test = 0 }
        test { test = 2 }
        !test && !/^ *\/\// && $0 ~ regex { print FILENAME ":" FNR ": " $0 }' {} +
}

# The rooms of the core, from the ground up: each may use those before it, and tests all of them.
rooms=(error sys progress manifest compare replication wire data_directory host preflight sender receiver local)
for i in "${!rooms[@]}"; do
    room=${rooms[i]} above=("${rooms[@]:i+1}")
    # the two halves of a run do not know each other
    [ "$room" != receiver ] || above+=(sender)
    [ ${#above[@]} -gt 0 ] || continue
    place=crates/core/src/$room
    [ -d "$place" ] || place=$place.rs
    found=$(code_of "crate::($(IFS='|'; echo "${above[*]}"))(::|;| )" "$place")
    [ -z "$found" ] || complain "the core's room \"$room\" uses one above it" "$found"
done

# What changes files. Outside the data directory: a configuration in /etc that is extended (finish), the log of a start
# (launch), the secret, a temporary file for a program's output (process); and a file that is opened only to see whether it
# could be extended (inspect).
found=$(code_of 'fs::(write|rename|remove_|create_dir|set_permissions|copy|hard_link|soft_link)|File::create|DirBuilder|\\.(write|append|create|create_new|truncate)\\(true|symlinkat|unlinkat|renameat|mkdirat|[^d]linkat' crates/core/src |
    grep -vE '^crates/core/src/(data_directory/|receiver/finish\.rs|host/launch\.rs|host/inspect\.rs|wire/secret\.rs|sys/process\.rs)' || true)
[ -z "$found" ] || complain 'a target is written by data_directory only' "$found"

found=$(code_of '(at|on|on_path)\\("stat( the |")|could not look at' src crates)
[ -z "$found" ] || complain 'a stat that fails has the words of PostgreSQL: could not stat file "..."' "$found"

found=$(code_of 'feature = "pg1[0-9]"' src | grep -v '^src/pg/compat\.rs' || true)
[ -z "$found" ] || complain 'code for one version of PostgreSQL is in src/pg/compat.rs only' "$found"

for decision in docs/decisions/2*.md; do
    grep -qF "(${decision##*/})" docs/decisions/README.md || complain 'docs/decisions/README.md does not list' "$decision"
done

# A longer file wants to be two. Give a file that has a good reason a line here.
long=$(find "${dirs[@]}" -name '*.rs' -exec wc -l {} + | awk '$2 != "total" && $1 > 550 { print $2 ": " $1 " lines" }')
[ -z "$long" ] || complain 'files of more than 550 lines' "$long"

# A safety rule that a comment or a document names by its number is one of docs/safety.md.
rules=$(grep -oE '^\*\*S[0-9]+[a-z]?\.' docs/safety.md | tr -d '*.' | paste -sd '|')
texts=("${dirs[@]}")
for place in fuzz demo scripts sql packaging docs ./*.md; do
    [ -e "$place" ] && texts+=("$place")
done
unresolved=$({
    grep -rnE --include='*.rs' --exclude-dir=target '//.*\bS[0-9]+[a-z]?\b' "${texts[@]}"
    grep -rnE --include='*.sql' --exclude-dir=target -e '--.*\bS[0-9]+[a-z]?\b' "${texts[@]}"
    grep -rnE --include='*.sh' --include='*.py' --include='*.toml' --include='*.service' --exclude-dir=target \
        '#.*\bS[0-9]+[a-z]?\b' "${texts[@]}"
    grep -rnE --include='*.md' --exclude-dir=target '\bS[0-9]+[a-z]?\b' "${texts[@]}"
} | sed -E "s/\\bS(${rules//S/})\\b//g" | grep -E ':[0-9]+:.*\bS[0-9]+[a-z]?\b' || true)
[ -z "$unresolved" ] || complain 'safety rules that docs/safety.md does not have' "$unresolved"

# What PGXN and packagers read: META.json, and the version in every file that names it.
found=$(scripts/meta.py 2>&1) || complain 'META.json and the versions' "$found"

# Machines differ in where they get packages from; the project names no such place. A source release has one, for vendor/.
if [ ! -e vendor ] && { [ -e .cargo/config.toml ] || [ -e .cargo/config ]; }; then
    complain 'no .cargo/config: cargo-pgrx needs its own linker flags, and registries are the machine'"'"'s' '.cargo'
fi

exit $status
