#!/usr/bin/env python3
"""Tells which crates are linked into a package's program or library, and under which licences.

    scripts/third-party.py PACKAGE [CARGO-ARGUMENT]... > THIRD-PARTY

PACKAGE is one of this workspace; the arguments choose its features, as for cargo build. The list comes from
Cargo.lock, the texts from the sources of the crates, each text once.
"""

import json
import subprocess
import sys
from pathlib import Path

sys.dont_write_bytecode = True
import licences

RULE = "-" * 78


def cargo(*arguments):
    command = ["cargo", *arguments, "--locked"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def linked(package, arguments):
    """Names and versions of the crates from elsewhere that become part of it: no build scripts' and no macros'."""
    edges = ["--edges", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}"]
    lines = set(cargo("tree", "--package", package, *edges, *arguments).splitlines())
    # "name v1.2.3", and for a crate of this workspace " (/its/directory)"; "(*)": shown above
    crates = {tuple(line.removesuffix(" (*)").split(" v", 1)) for line in lines if line}
    return {crate for crate in crates if " (/" not in crate[1]}


def standard_library():
    """The version of it, and its licences as the compiler's distribution has them."""
    version = subprocess.run(["rustc", "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    root = subprocess.run(["rustc", "--print", "sysroot"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    found = []
    for name in ("MIT", "Apache-2.0"):
        path = Path(root, "share/doc/rust/licenses", f"{name}.txt")
        if path.exists():
            found.append((Path(path.name), path.read_text().strip()))
    return version, found


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    package, arguments = sys.argv[1], sys.argv[2:]
    known = json.loads(cargo("metadata", "--format-version", "1"))["packages"]
    by_crate = {(crate["name"], crate["version"]): crate for crate in known}
    crates = [by_crate[crate] for crate in sorted(linked(package, arguments))]
    if not crates:
        sys.exit(f"{package} has no crates: that cannot be")

    users = {}  # words of a text, however its lines are broken -> the text, and where it is found

    def note(text, where):
        users.setdefault(" ".join(text.split()), (text, []))[1].append(where)

    print("These are linked into what this package installs; their texts are below.\n")
    version, found = standard_library()
    print(f"the Rust standard library ({version})\n  MIT OR Apache-2.0")
    for path, text in found:
        note(text, f"the Rust standard library: {path}")
    for crate in crates:
        name = f"{crate['name']} {crate['version']}"
        print("\n  ".join([name, *licences.about(crate)]))
        directory = Path(crate["manifest_path"]).parent
        found = list(licences.files(directory))
        if not found:
            print("  (comes without the text of its licence)")
        for path in found:
            note(path.read_text(errors="replace").strip(), f"{name}: {path.relative_to(directory)}")
    for text, where in users.values():
        print(f"\n{RULE}")
        print("\n".join(where))
        print(f"{RULE}\n\n{text}")


main()
