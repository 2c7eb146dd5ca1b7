#!/usr/bin/env python3
"""Checks META.json against version 1.0.0 of the PGXN Meta Spec, and that all files that name the project's version
name the same.

    scripts/meta.py              fail if they do not
    scripts/meta.py --release    fail also if CHANGELOG.md has no date for this version yet
    scripts/meta.py --version    print it

Cargo.toml has the version that the others are compared with. Nothing is read but this directory.
"""

import json
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Semantic Versioning 2.0.0
NUMBER, IDENTIFIER = r"(?:0|[1-9]\d*)", r"(?:0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*)"
SEMVER = rf"{NUMBER}\.{NUMBER}\.{NUMBER}(?:-{IDENTIFIER}(?:\.{IDENTIFIER})*)?(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?"
RANGE = rf"(?:(?:==|!=|<=?|>=?)\s*)?{SEMVER}"
LICENSES = """agpl_3 apache_1_1 apache_2_0 artistic_1 artistic_2 bsd freebsd gfdl_1_2 gfdl_1_3 gpl_1 gpl_2 gpl_3 lgpl_2_1
lgpl_3_0 mit mozilla_1_0 mozilla_1_1 openssl perl_5 postgresql qpl_1_0 ssleay sun zlib open_source restricted unrestricted
unknown""".split()

complaints = []


def complain(what):
    complaints.append(what)


# The types of the spec. A check gets the place of a value and the value, and complains.


def matching(regex, name):
    def check(place, value):
        if not isinstance(value, str) or not re.fullmatch(regex, value, re.DOTALL):
            complain(f"{place}: {json.dumps(value)} is no {name}")

    return check


def one_of(words):
    def check(place, value):
        if value not in words:
            complain(f"{place}: {json.dumps(value)} is none of {', '.join(words)}")

    return check


def list_of(check_entry):
    """Consumers take a single value for a list of one."""

    def check(place, value):
        if isinstance(value, list) and not value:
            complain(f"{place}: is empty")
        for entry in value if isinstance(value, list) else [value]:
            check_entry(place, entry)

    return check


def map_of(check_key, check_value):
    def check(place, value):
        if not isinstance(value, dict) or not value:
            complain(f"{place}: is no map, or an empty one")
            return
        for key, entry in value.items():
            check_key(f"{place}: key", key)
            check_value(f"{place}.{key}", entry)

    return check


def structure(required, optional):
    """A map with these keys, and whatever begins with x_."""

    def check(place, value):
        if not isinstance(value, dict):
            complain(f"{place}: is no map")
            return
        for key in required.keys() - value.keys():
            complain(f"{place}: has no \"{key}\"")
        for key, entry in value.items():
            known = required.get(key) or optional.get(key)
            if known:
                known(f"{place}.{key}", entry)
            elif not re.match(r"x_.", key, re.IGNORECASE):
                complain(f"{place}: the spec knows no \"{key}\"")

    return check


def license_list_or_map(place, value):
    (map_of(string, uri) if isinstance(value, dict) else list_of(one_of(LICENSES)))(place, value)


def version_range(place, value):
    """0, as a number or a string, is any version."""
    if value != 0 or isinstance(value, bool):
        matching(rf"0|{RANGE}(?:,\s*{RANGE})*", "range of semantic versions")(place, value)


string = matching(r".+", "string")
term = matching(r"[^\s/\\\x00-\x1f\x7f]{2,}", "term (at least two characters, no space, slash or backslash)")
tag = matching(r"[^/\\\x00-\x1f\x7f]{1,255}", "tag (at most 255 characters, no slash or backslash)")
uri = matching(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s/?#]+\S*", "URI")
email = matching(r"[^\s@]+@[^\s@]+", "address for mail")
lower = matching(r"[^A-Z]+", "word in lower case")
path = matching(r"(?!/)(?!(?:.*/)?\.\.(?:/|$))[^\\]+", "relative path with slashes")
version = matching(SEMVER, "semantic version")

relations = ("requires", "recommends", "suggests", "conflicts")
phases = ("configure", "build", "test", "runtime", "develop")
prerequisites = structure({}, dict.fromkeys(relations, map_of(term, version_range)))
extension = structure({"file": path, "version": version}, {"abstract": string, "docfile": path})
SPEC = structure(
    {
        "name": term,
        "version": version,
        "abstract": string,
        "maintainer": list_of(string),
        "license": license_list_or_map,
        "provides": map_of(term, extension),
        "meta-spec": structure({"version": one_of(["1.0.0"])}, {"url": uri}),
    },
    {
        "description": string,
        "generated_by": string,
        "tags": list_of(tag),
        "no_index": structure({}, {"file": list_of(path), "directory": list_of(path)}),
        "prereqs": structure({}, dict.fromkeys(phases, prerequisites)),
        "release_status": one_of(["stable", "testing", "unstable"]),
        "resources": structure(
            {},
            {
                "homepage": uri,
                "license": list_of(uri),
                "bugtracker": structure({}, {"web": uri, "mailto": email}),
                "repository": structure({}, {"url": uri, "web": uri, "type": lower}),
            },
        ),
    },
)


def each_key_once(pairs):
    for key in {key for key, _ in pairs if [other for other, _ in pairs].count(key) > 1}:
        complain(f"META.json: \"{key}\" stands there twice")
    return dict(pairs)


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def found(name, regex):
    """What a file has in the place of this regex's group, with a complaint if it has no such place."""
    match = re.search(regex, read(name), re.MULTILINE)
    if not match:
        complain(f"{name}: has nothing like {regex}")
    return match and match[1]


def meta(cargo):
    try:
        data = json.loads(read("META.json"), object_pairs_hook=each_key_once)
    except ValueError as error:
        complain(f"META.json: {error}")
        return
    SPEC("META.json", data)
    if complaints:
        return
    ours = cargo["package"]["version"]
    same("META.json", data["version"], ours)
    if set(data["provides"]) != {"pgpool_recovery"}:
        complain("META.json: provides something else than pgpool_recovery")
    for name, extension in data["provides"].items():
        same(f"META.json, {name}", extension["version"], ours)
        if extension["file"] != f"sql/{name}--{ours}.sql":
            complain(f"META.json, {name}: {extension['file']} is not its install script")
        for key in ("file", "docfile"):
            if key in extension and not (ROOT / extension[key]).is_file():
                complain(f"META.json: there is no {extension[key]}")
    oldest = min(int(name[2:]) for name in cargo["features"] if re.fullmatch(r"pg\d+", name))
    wanted = data.get("prereqs", {}).get("runtime", {}).get("requires", {}).get("PostgreSQL")
    if wanted != f"{oldest}.0.0":
        complain(f"META.json: needs PostgreSQL {wanted}, Cargo.toml has features from {oldest} on")


def same(place, version, ours):
    if version != ours:
        complain(f"{place}: has version {version}, Cargo.toml {ours}")


def main():
    cargo = tomllib.loads(read("Cargo.toml"))
    ours = cargo["package"]["version"]
    if sys.argv[1:] == ["--version"]:
        print(ours)
        return
    if sys.argv[1:] not in ([], ["--release"]):
        sys.exit(__doc__)
    meta(cargo)
    for member in cargo["workspace"]["members"]:
        name = f"{member}/Cargo.toml"
        same(name, tomllib.loads(read(name))["package"]["version"], ours)
    for name, regex in (
        ("pgpool_recovery.control", r"^default_version = '(.*)'$"),
        ("CHANGELOG.md", r"^## \[(.*?)\]"),
        ("src/lib.rs", r"pg_module_magic!\(.*version = c\"(.*?)\""),
        ("packaging/debian/changelog", r"\A\S+ \((.*?)\)"),
        *((str(spec.relative_to(ROOT)), r"^Version: *(\S+)$") for spec in ROOT.glob("packaging/rpm/*.spec")),
    ):
        same(name, found(name, regex), ours)
    if sys.argv[1:] == ["--release"]:
        found("CHANGELOG.md", rf"^## \[{re.escape(ours)}\] - (\d{{4}}-\d\d-\d\d)$")
    if complaints:
        sys.exit("\n".join(complaints))


main()
