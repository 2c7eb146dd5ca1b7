#!/bin/sh
# Cargo's RUSTC_WRAPPER of the type check: pgrx's bundled bindings instead of those of the server's headers.
# The switch is documentation's (--cfg docsrs) and has to reach the one crate that holds the bindings: in
# RUSTFLAGS it reaches all of them, and others leave out code for it (serde does).
rustc=$1
shift
case " $* " in
    *' --crate-name pgrx_pg_sys '*) set -- "$@" --cfg docsrs ;;
esac
exec "$rustc" "$@"
