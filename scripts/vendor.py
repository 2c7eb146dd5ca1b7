#!/usr/bin/env python3
"""Puts the crates of others beside an exported tree of the project, so that cargo builds it without a network.

    scripts/vendor.py TREE

TREE gets vendor/, .cargo/config.toml, which leads cargo there, and THIRD-PARTY, which lists the crates and their
licences. The crates are those of TREE's Cargo.lock, byte by byte as they were published. Of those that no Linux needs,
cargo wants the manifests all the same: they stay, with their licences and without code.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

sys.dont_write_bytecode = True
import licences

CONFIG = """\
# The crates are in vendor/, and nothing else is asked for them.
[source.crates-io]
replace-with = "vendored"

[source.vendored]
directory = "vendor"

[net]
offline = true
"""


def output(*command, cwd=None):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=cwd).stdout


def metadata(tree, *arguments):
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--all-features", *arguments]
    return json.loads(output(*command, cwd=tree))


def ours(crate):
    return crate["source"] is None


def needed(tree):
    """Crates that some Linux needs: for the extension of any PostgreSQL, for programs, build scripts or tests."""
    targets = [name for name in output("rustc", "--print", "target-list").split() if re.search("-linux-(gnu|musl)", name)]
    filters = [word for name in targets if not name.startswith("wasm") for word in ("--filter-platform", name)]
    known = metadata(tree, *filters)
    nodes = {node["id"] for node in known["resolve"]["nodes"]}
    return {(crate["name"], crate["version"]) for crate in known["packages"] if crate["id"] in nodes}


def empty(directory):
    """Leaves of a crate what cargo reads before it builds anything, and the licences."""
    for path in sorted(directory.iterdir()):
        if path.name in ("Cargo.toml", ".cargo-checksum.json"):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        elif not licences.TEXTS.match(path.name):
            path.unlink()
    # where a manifest names no file for its library
    (directory / "src").mkdir()
    (directory / "src/lib.rs").touch()
    checksums = directory / ".cargo-checksum.json"
    known = json.loads(checksums.read_text())
    known["files"] = {name: digest for name, digest in known["files"].items() if (directory / name).is_file()}
    known["files"].pop("src/lib.rs", None)
    checksums.write_text(json.dumps(known, sort_keys=True, separators=(",", ":")))


def notice(tree, crates, emptied):
    lines = [
        "The directories below vendor/ are crates of others, each under its own licence; the sources of pgpool_recovery are",
        "under that in LICENSE. Texts are the files of a crate's directory that are named here.",
        "",
    ]
    for crate in crates:
        directory = tree / "vendor" / f"{crate['name']}-{crate['version']}"
        texts = [str(path.relative_to(directory)) for path in licences.files(directory)]
        about = [f"{crate['name']} {crate['version']}", *licences.about(crate)]
        about.append(f"texts: {', '.join(texts) or '(comes without the text of its licence)'}")
        if (crate["name"], crate["version"]) in emptied:
            about.append("its code is left out: Linux needs none of it")
        lines.append("\n  ".join(about))
    (tree / "THIRD-PARTY").write_text("\n".join(lines) + "\n")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    tree = Path(sys.argv[1]).resolve()
    # a machine that gets its crates from elsewhere has that in its own configuration
    vendor = ["cargo", "vendor", "--quiet", "--locked", "--versioned-dirs", "--respect-source-config", "vendor"]
    subprocess.run(vendor, check=True, cwd=tree, stdout=subprocess.DEVNULL)
    (tree / ".cargo").mkdir()
    (tree / ".cargo/config.toml").write_text(CONFIG)

    # from here on cargo finds everything in vendor/
    wanted = needed(tree)
    crates = sorted((crate for crate in metadata(tree)["packages"] if not ours(crate)), key=lambda c: (c["name"], c["version"]))
    there = {path.name for path in (tree / "vendor").iterdir()}
    listed = {f"{crate['name']}-{crate['version']}" for crate in crates}
    if listed != there:
        sys.exit(f"vendor: either in vendor/ or in cargo's list, not in both: {', '.join(sorted(listed ^ there))}")
    emptied = {(crate["name"], crate["version"]) for crate in crates} - wanted
    for name, version in emptied:
        empty(tree / "vendor" / f"{name}-{version}")
    notice(tree, crates, emptied)
    # is cargo content with what is left?
    metadata(tree)
    print(f"vendor: {len(crates)} crates, {len(emptied)} of them without code: no Linux needs it")


main()
