#!/usr/bin/env bash
# Brings a Debian 12 machine to the point where the project can be built, tested and played.
#
#   scripts/setup.sh build      what `make install` needs: compiler, libclang, server headers
#   scripts/setup.sh look       the same, but only looks: what is missing is said and not installed
#   scripts/setup.sh runtime    what the demo and the tests need on top: PostgreSQL, Pgpool-II, tools
#   scripts/setup.sh pgrx       what the in-database tests and scripts/sql.sh need on top: cargo-pgrx
#   scripts/setup.sh bench      what `make bench` needs on top: the peers to measure against
#   scripts/setup.sh package    what `make package` needs on top: Debian's packaging tools
#   scripts/setup.sh rpm        what `make rpm` and `make try-rpm` need on top: RPM's tools
#   scripts/setup.sh dist       what `make dist` needs on top: what packs archives
#   scripts/setup.sh guide      what `make guide` needs on top: containers
#   scripts/setup.sh monitoring what the tests of alerts and dashboard need on top: promtool, into target/tools
#   scripts/setup.sh fuzz       what `scripts/fuzz.sh` needs on top: cargo-fuzz
#   scripts/setup.sh            build and runtime
#
# Idempotent, and quick when nothing is missing. Packages come from wherever this machine's own apt
# and cargo are set up to get them. No service is started and none is stopped.
# PG_CONFIG=/path/to/pg_config builds for another PostgreSQL than Debian 12's 15. Where it is that of
# another Debian release (/usr/lib/postgresql/17/bin/pg_config), its packages are installed; any other
# PostgreSQL is taken as it is.
set -euo pipefail

readonly CARGO_FUZZ_VERSION=0.13.1
PG_CONFIG=${PG_CONFIG:-/usr/lib/postgresql/15/bin/pg_config}
# Debian's PostgreSQL of this major version; empty: somebody else's
MAJOR=$(sed -nE 's|^/usr/lib/postgresql/([0-9]+)/bin/pg_config$|\1|p' <<<"$PG_CONFIG")
readonly MAJOR
ROOT=$(cd "$(dirname "$0")/.." && pwd)
# cargo-pgrx is to be of the same version as pgrx
PGRX_VERSION=$(sed -nE 's/^pgrx = "=(.*)"$/\1/p' "$ROOT/Cargo.toml")
readonly PGRX_VERSION
# what is of use to this tree only
readonly TOOLS=${CARGO_TARGET_DIR:-$ROOT/target}/tools

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "run this as root, or install sudo first (needed for: $*)"
    fi
}

# missing PACKAGE... : those of them that dpkg does not list as installed
missing() {
    local package
    for package in "$@"; do
        if [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)" != installed ]; then
            printf '%s\n' "$package"
        fi
    done
}

# Debian's maintainer scripts ask /usr/sbin/policy-rc.d whether they may start a service. While
# packages are installed the answer is no (101): a Pgpool-II or a PostgreSQL of Debian's own on the
# default port is nothing the tests or the demo want, and not ours to start on somebody's machine.
POLICY=/usr/sbin/policy-rc.d
POLICY_STATE=
forbid_service_starts() {
    if as_root test -e "$POLICY" || as_root test -L "$POLICY"; then
        POLICY_STATE=$POLICY.before-pgpool-recovery
        as_root mv "$POLICY" "$POLICY_STATE"
    else
        POLICY_STATE=none
    fi
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$POLICY" >/dev/null
    as_root chmod 0755 "$POLICY"
}
restore_service_starts() {
    case $POLICY_STATE in
        '') ;;
        none) as_root rm -f "$POLICY" ;;
        *) as_root mv "$POLICY_STATE" "$POLICY" ;;
    esac
    POLICY_STATE=
}

# Debian makes and starts a cluster when the server package is installed, unless told not to.
no_main_cluster() {
    local conf=/etc/postgresql-common/createcluster.conf
    [ -d "/var/lib/postgresql/$MAJOR/main" ] && return
    as_root mkdir -p "${conf%/*}"
    if as_root grep -qs '^[[:space:]]*create_main_cluster' "$conf"; then
        as_root sed -i 's/^[[:space:]]*create_main_cluster.*/create_main_cluster = false/' "$conf"
    elif [ -e "$conf" ]; then
        echo 'create_main_cluster = false' | as_root tee -a "$conf" >/dev/null
    else
        # postgresql-common's own configuration file: written before that package is there, dpkg
        # would ask whether to keep ours; --force-confold below answers.
        echo 'create_main_cluster = false' | as_root tee "$conf" >/dev/null
    fi
}

install_packages() {
    local wanted
    mapfile -t wanted < <(missing "$@")
    [ ${#wanted[@]} -gt 0 ] || return 0
    [ -e /etc/debian_version ] || die "this is not Debian: install the counterparts of these packages yourself: ${wanted[*]}"
    say "installing packages: ${wanted[*]}"
    no_main_cluster
    trap restore_service_starts EXIT
    forbid_service_starts
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -y -q -o Dpkg::Options::=--force-confold
        -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300)
    # An old package list names files that are gone: refresh it when the first try fails.
    local log
    log=$(mktemp)
    if ! as_root "${apt[@]}" install --no-install-recommends "${wanted[@]}" >"$log" 2>&1; then
        if ! { as_root "${apt[@]}" update &&
            as_root "${apt[@]}" install --no-install-recommends "${wanted[@]}"; } >"$log" 2>&1; then
            cat "$log" >&2
            rm -f "$log"
            die "could not install: ${wanted[*]}"
        fi
    fi
    rm -f "$log"
    restore_service_starts
}

cargo_there() {
    command -v cargo >/dev/null || PATH=$PATH:$HOME/.cargo/bin
    local needed there
    needed=$(sed -nE 's/^rust-version = "(.*)"$/\1/p' "$(dirname "$0")/../Cargo.toml")
    # Debian 12's own rustc is older than what is needed
    command -v cargo >/dev/null || die "cargo is missing: install Rust $needed or later first, with rustup"
    there=$(rustc --version | sed -nE 's/^rustc ([0-9.]+).*/\1/p') || true
    [ -n "$there" ] || die "rustc does not run: install Rust $needed or later first, with rustup"
    # the lower one is what is needed, or it is not
    [ "$(printf '%s\n' "$needed" "$there" | sort --version-sort | head -n 1)" = "$needed" ] && return
    if command -v rustup >/dev/null; then
        die "Rust $there is too old, $needed or later is needed: run \"rustup update stable\""
    fi
    die "Rust $there ($(command -v rustc)) is too old, $needed or later is needed: install it with rustup, and see that its cargo comes first in PATH"
}

# Elsewhere than on Debian nothing is installed, and what building needs is looked for by what it does.
build_elsewhere() {
    local tool
    for tool in cc make clang; do
        command -v "$tool" >/dev/null || die "$tool is missing: install gcc, make and clang first"
    done
    [ -x "$PG_CONFIG" ] || die "no pg_config at $PG_CONFIG: say PG_CONFIG=..., PGDG's is /usr/pgsql-15/bin/pg_config"
    [ -e "$("$PG_CONFIG" --includedir-server)/postgres.h" ] ||
        die "the server's headers are missing: install the counterpart of PGDG's postgresql15-devel first"
    cargo_there
}

build() {
    if [ ! -e /etc/debian_version ]; then
        build_elsewhere
        return
    fi
    local packages=(gcc libc6-dev make pkg-config clang libclang-dev)
    [ -z "$MAJOR" ] || packages+=("postgresql-$MAJOR" "postgresql-server-dev-$MAJOR")
    install_packages "${packages[@]}"
    cargo_there
    [ -x "$PG_CONFIG" ] || die "no pg_config at $PG_CONFIG"
}

# For sources that are no clone. Whether there is a libclang, and where, its user in the build says best.
look() {
    cargo_there
    command -v cc >/dev/null || die "cc is missing: install a C compiler and libclang first (on Debian: scripts/setup.sh build)"
    command -v "$PG_CONFIG" >/dev/null || die "no pg_config at $PG_CONFIG: say PG_CONFIG=/where/it/is"
    [ -e "$("$PG_CONFIG" --includedir-server)/postgres.h" ] ||
        die "the headers of the server of $PG_CONFIG are missing: install them first (on Debian: scripts/setup.sh build)"
}

pgrx() {
    install_packages gcc libc6-dev pkg-config
    cargo_there
    if [ "${MAJOR:-0}" -ge 19 ] && ! grep -q '^pg19 = ' "$ROOT/Cargo.toml"; then
        "$ROOT/scripts/postgresql-19.sh" scripts/setup.sh pgrx
        return
    fi
    if [ "$(cargo pgrx --version 2>/dev/null || true)" != "cargo-pgrx $PGRX_VERSION" ]; then
        say "building cargo-pgrx $PGRX_VERSION (two minutes, once)"
        # --force: one that does not run here (made for another system) is in the way. Without optimisation and TLS it is
        # built in half of the time: it calls cargo and downloads nothing.
        CARGO_PROFILE_DEV_DEBUG=false cargo install cargo-pgrx --version "=$PGRX_VERSION" --locked --quiet --force \
            --debug --no-default-features
    fi
}

runtime() {
    local packages=(pgpool2 sudo iproute2 net-tools procps util-linux openssl strace e2fsprogs xfsprogs libcap2-bin python3)
    [ -z "$MAJOR" ] || packages+=("postgresql-$MAJOR" "postgresql-client-$MAJOR")
    install_packages "${packages[@]}"
    # The demo's and the tests' servers run as this user; Debian's package makes it.
    id postgres >/dev/null || die "there is no user postgres"
}

bench() {
    install_packages rsync pgbackrest
}

package() {
    install_packages debhelper dpkg-dev fakeroot lintian debootstrap python3
}

rpm() {
    [ ! -e /etc/debian_version ] || install_packages rpm rpmlint python3 debootstrap iproute2 util-linux
    local tool
    for tool in rpmbuild python3; do
        command -v "$tool" >/dev/null || die "$tool is missing: install rpm-build and python3 first"
    done
}

dist() {
    cargo_there
    install_packages git tar xz-utils python3
}

guide() {
    install_packages debootstrap systemd-container iproute2 procps util-linux openssh-client
}

# Debian has promtool in the package of the daemon. The program alone is taken out of it: nothing is installed.
monitoring() {
    install_packages python3
    if command -v promtool >/dev/null || "$TOOLS/promtool" --version >/dev/null 2>&1; then
        return
    fi
    [ -e /etc/debian_version ] || die "this is not Debian: install promtool (of Prometheus) yourself"
    say "downloading promtool (once)"
    local dir
    dir=$(mktemp -d)
    # shellcheck disable=SC2064 # the directory of now
    trap "rm -rf '$dir'" EXIT
    download() { (cd "$dir" && apt-get download -q -o APT::Sandbox::User=root prometheus); }
    # An old package list names files that are gone, or there is none yet.
    if ! download >"$dir/log" 2>&1 && ! { as_root apt-get update && download; } >"$dir/log" 2>&1; then
        cat "$dir/log" >&2
        die "could not download: prometheus"
    fi
    mkdir -p "$TOOLS"
    dpkg-deb --fsys-tarfile "$dir"/prometheus_*.deb | tar -C "$dir" -x ./usr/bin/promtool
    mv "$dir/usr/bin/promtool" "$TOOLS/promtool"
    rm -rf "$dir"
    trap - EXIT
    "$TOOLS/promtool" --version >/dev/null || die "promtool does not run"
}

fuzz() {
    cargo_there
    if [ "$(cargo fuzz --version 2>/dev/null || true)" != "cargo-fuzz $CARGO_FUZZ_VERSION" ]; then
        say "building cargo-fuzz $CARGO_FUZZ_VERSION (once)"
        CARGO_PROFILE_DEV_DEBUG=false cargo install cargo-fuzz --version "=$CARGO_FUZZ_VERSION" --locked --quiet --debug
    fi
}

[ $# -gt 0 ] || set -- build runtime
for tier in "$@"; do
    case $tier in
        build | look | runtime | pgrx | bench | package | rpm | dist | guide | monitoring | fuzz) "$tier" ;;
        *) die "unknown tier \"$tier\": use build, look, runtime, pgrx, bench, package, rpm, dist, guide, monitoring or fuzz" ;;
    esac
done
