#!/usr/bin/env bash
# cargo-pgrx as the tests in the database call it (CARGO_PGRX), that is while cargo runs them. What cargo tells a test of
# its package is not for builds: ring's build script watches these variables, so ring and all that is built on it would
# be built once more, and again afterwards.
set -euo pipefail
while IFS= read -r name; do
    unset "$name"
done < <(compgen -e | grep -E '^(CARGO_(PKG|MANIFEST)_|OUT_DIR$)' || true)
exec cargo "$@"
