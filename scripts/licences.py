"""What scripts/third-party.py and scripts/vendor.py know of a crate's licence."""

import re
import sys

TEXTS = re.compile(r"^(un)?licen[cs]e|^copying|^copyright|^notice", re.IGNORECASE)


def files(directory):
    """Licence files of a crate: its own, and those of C sources in it."""
    for path in sorted(directory.rglob("*")):
        # what is no text is a directory of that name, or code
        if TEXTS.match(path.name) and path.suffix in ("", ".txt", ".md") and path.is_file():
            yield path


def name(crate):
    """The licence of a crate that cargo metadata describes."""
    if not crate["license"] and not crate["license_file"]:
        sys.exit(f"{crate['name']} {crate['version']} has no licence")
    # the same words, in today's writing
    return (crate["license"] or "see its text").replace(" / ", "/").replace("/", " OR ")


def about(crate):
    """Its licence, its authors and where it comes from, line by line."""
    yield name(crate)
    if crate["authors"]:
        yield f"by {', '.join(crate['authors'])}"
    if crate["repository"]:
        yield crate["repository"]
