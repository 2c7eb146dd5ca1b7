#!/usr/bin/env python3
"""Draws docs/pictures/*.svg: the bars from the tables of docs/benchmarks.md, the timeline from the report in
docs/pictures/report.json (the operator's guide's first call; put there what your own call returned), the others from
what is written here.

    scripts/pictures.py            draw
    scripts/pictures.py --check    fail if a picture is not what would be drawn
"""
import json
import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
PICTURES = DOCS / "pictures"

# One file serves light and dark pages: the colours follow the reader's setting.
STYLE = """<style>
text { font: 14px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
.quiet { fill: #57606a; font-size: 12px } .title { font-weight: 600 } .number { font-variant-numeric: tabular-nums }
.ours { fill: #1f6fd0 } .other { fill: #8c96a3 } .good { fill: #2f8f5b } .bad { fill: #d0731f } .on { fill: #ffffff }
.box { fill: #f3f6fa; stroke: #8c96a3 } .strong { stroke: #1f6fd0 }
.line { stroke: #57606a; stroke-width: 1.5; fill: none } .tip { fill: #57606a } .rule { stroke: #d0d7de }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .quiet { fill: #9da7b3 } .ours { fill: #58a6ff } .other { fill: #6e7781 } .good { fill: #2f8f5b } .bad { fill: #c4691b } .on { fill: #ffffff }
.box { fill: #1c2230; stroke: #6e7781 } .strong { stroke: #58a6ff } .line { stroke: #9da7b3 } .tip { fill: #9da7b3 }
.rule { stroke: #373e47 }
}
</style>"""


class Picture:
    def __init__(self, width, height, title):
        self.size, self.title, self.parts = (width, height), title, []

    def text(self, x, y, words, kind="", anchor="start"):
        words = words.replace("&", "&amp;").replace("<", "&lt;")
        self.parts.append(f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{words}</text>')

    def bar(self, x, y, width, height, kind):
        self.parts.append(f'<rect x="{x}" y="{y}" width="{width:.1f}" height="{height}" rx="2" class="{kind}"/>')

    def box(self, x, y, width, height, title, lines, kind="box"):
        self.parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" class="{kind}"/>')
        self.text(x + width / 2, y + 24, title, "title", "middle")
        for number, line in enumerate(lines):
            self.text(x + width / 2, y + 46 + 18 * number, line, "quiet", "middle")

    def arrow(self, x1, y1, x2, y2, words="", above=7):
        self.parts.append(f'<path d="M{x1} {y1} L{x2} {y2}" class="line" marker-end="url(#tip)"/>')
        if words:
            self.text((x1 + x2) / 2, (y1 + y2) / 2 - above, words, "quiet", "middle")

    def svg(self):
        width, height = self.size
        tip = (
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
            'orient="auto-start-reverse"><path d="M0 0 L8 4 L0 8 z" class="tip"/></marker></defs>'
        )
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" aria-label="{self.title}">'
        )
        return "\n".join([head, f"<title>{self.title}</title>", STYLE, tip, *self.parts, "</svg>", ""])


def data_flow():
    picture = Picture(720, 284, "How the data flows: Pgpool-II calls the primary, which sends to the standby's agent")
    picture.box(20, 20, 170, 62, "Pgpool-II", ["or psql, a procedure"])
    picture.box(20, 140, 240, 124, "primary: one backend", [
        "backup start and stop", "reads, digests, compares", "sends what differs, and WAL", "reserves the slot"],
        "box strong")
    picture.box(480, 140, 220, 124, "standby's host: agent", [
        "digests what is there", "writes, removes, syncs", "pg_control last", "starts the server"], "box strong")
    picture.box(560, 20, 140, 62, "standby", ["PostgreSQL 15"])
    picture.arrow(105, 82, 105, 138)
    picture.text(117, 104, "SELECT pgpool_recovery(...)", "quiet")
    picture.arrow(478, 166, 262, 166, "digests, 16 bytes a page")
    picture.arrow(262, 206, 478, 206, "pages that differ, packed")
    picture.arrow(262, 246, 478, 246, "WAL, files, “start”")
    picture.text(370, 278, "TLS 1.3, one secret, port 9897", "quiet", "middle")
    picture.arrow(630, 138, 630, 84)
    picture.text(642, 115, "starts", "quiet")
    picture.parts.append('<path d="M256 138 C 320 70, 420 51, 558 51" class="line" stroke-dasharray="5 4" '
                         'marker-end="url(#tip)"/>')
    picture.text(440, 42, "afterwards: replication", "quiet", "middle")
    return picture


# What runs in this part of a run, under which the target is in one state: the width, the state, what a run that ends
# there leaves
STATES = [
    (["pre-flight checks", "backup start", "list of all files"], 230, "good", "startable: as it was",
     ["interrupted here:", "the target is unchanged"]),
    (["data: compare, send, remove", "pg_control read, backup stop", "WAL, standby files, sync"], 300, "bad",
     "incomplete: does not start", ["interrupted here: run it again,", "it sends only what still differs"]),
    (["report, slot kept", "pgpool_remote_start", "the standby streams"], 230, "good", "startable: a standby",
     ["complete and durable,", "also after a power cut"]),
]


def states():
    picture = Picture(800, 268, "Which state the target is in during a run: startable, incomplete, startable")
    x = 20
    for number, (steps, width, kind, state, left) in enumerate(STATES):
        for row, step in enumerate(steps):
            picture.text(x + width / 2, 28 + 20 * row, step, "", "middle")
        picture.bar(x, 90, width - 4, 40, kind)
        picture.text(x + width / 2, 115, state, "title on", "middle")
        for row, line in enumerate(left):
            picture.text(x + width / 2, 152 + 18 * row, line, "quiet", "middle")
        if number:
            picture.parts.append(f'<path d="M{x - 2} 12 L{x - 2} 186" class="line" stroke-dasharray="5 4"/>')
        x += width
    first, second = 20 + STATES[0][1] - 2, 20 + STATES[0][1] + STATES[1][1] - 2
    for x, lines in [
        (first, ["pgpool_recovery.incomplete written and", "synced; global/pg_control set aside"]),
        (second, ["all of it synced; pg_control placed by", "rename; the marker removed, synced"]),
    ]:
        picture.arrow(x, 208, x, 190)
        for row, line in enumerate(lines):
            picture.text(x, 226 + 18 * row, line, "quiet", "middle")
    return picture


def architecture():
    picture = Picture(800, 400, "The parts: the extension and the agent around one core, and what passes between them")
    picture.box(20, 20, 330, 330, "primary: a backend of PostgreSQL", [], "box")
    picture.box(40, 60, 290, 84, "src/", ["SQL functions, settings, checks,", "a run step by step; src/pg calls PostgreSQL"], "box strong")
    picture.box(40, 186, 290, 66, "crates/core: scan, plan, sender", ["lists, reads, compares, sends"], "box strong")
    picture.box(40, 268, 290, 66, "data directory and WAL", ["read while the server writes them"])
    picture.arrow(185, 144, 185, 184)
    picture.text(197, 168, "drives", "quiet")
    picture.arrow(185, 268, 185, 254)
    picture.box(450, 20, 330, 330, "standby's host: pgpool-recovery-agent", [], "box")
    picture.box(470, 60, 290, 84, "crates/agent", ["connections, agent.toml, status, metrics", "(a local target needs no agent)"], "box strong")
    picture.box(470, 186, 290, 66, "crates/core: receiver", ["inspects, digests, orders the steps, starts"], "box strong")
    picture.box(470, 268, 290, 66, "crates/core: data_directory", ["the only code that writes a data directory"], "box strong")
    picture.arrow(615, 144, 615, 184)
    picture.text(627, 168, "serves", "quiet")
    picture.arrow(615, 252, 615, 266)
    picture.arrow(332, 219, 468, 219, "requests, pages")
    picture.arrow(468, 240, 332, 240)
    picture.text(400, 258, "replies, digests", "quiet", "middle")
    picture.text(400, 300, "wire:", "quiet", "middle")
    picture.text(400, 318, "TLS, or queues", "quiet", "middle")
    picture.text(400, 336, "in one process", "quiet", "middle")
    picture.text(400, 380, "Neither crates/core nor crates/agent knows a PostgreSQL server; only src/ names pgrx", "quiet",
                 "middle")
    return picture


PHASES = [
    ("preflight", "checks, a trial login", False),
    ("backup_start", "fast checkpoint", False),
    ("scan", "list of all files", False),
    ("data", "digests one way, pages the other", True),
    ("backup_stop", "the end of the WAL", True),
    ("finish", "WAL, files, sync, pg_control", True),
]


def timeline():
    report = json.loads((PICTURES / "report.json").read_text())
    durations, total = report["durations_ms"], report["durations_ms"]["total"]
    left, width, row = 120, 380, 30
    picture = Picture(840, 76 + row * len(PHASES), "The timeline of a recovery")
    megabytes = report["bytes"]["total"] / 1e6
    picture.text(20, 26, f"A recovery of {report['files']['total']} files, {megabytes:.0f} MB, through an agent: "
                 f"{total} ms", "title")
    start, top = 0, 44
    for name, words, writes in PHASES:
        length = durations[name]
        x = left + width * start / total
        picture.text(20, top + 16, name)
        picture.bar(x, top + 4, max(width * length / total, 2), 16, "ours" if writes else "other")
        picture.text(left + width + 12, top + 16, f"{length} ms", "number quiet")
        picture.text(left + width + 74, top + 16, words, "quiet")
        start += length
        top += row
    picture.text(left, top + 18, "blue: the target is out of use from the first change until the last step", "quiet")
    return picture


# Section of docs/benchmarks.md, which occurrence of it, what it is called, rows
BARS = [
    ("refresh-10", 0, "a tenth of 3.2 GB differs", ["ours-local", "ours-agent", "pgbackrest", "rsync", "rsync-delta"]),
    ("full", 0, "3.2 GB into an empty directory", ["ours-local", "ours-agent", "pgbackrest", "pg_basebackup", "rsync"]),
    ("failover", 0, "an old primary of 3.2 GB", ["ours-local", "ours-agent", "pg_rewind"]),
    ("link-full", 0, "1.1 GB over 1 Gbit/s",
     ["ours-agent-auto", "pg_basebackup-lz4", "ours-agent", "pg_basebackup"]),
]


def medians(text, section, occurrence):
    """The column "median s" of a section's table, by contender."""
    parts = re.split(rf"^### {re.escape(section)}\n", text, flags=re.M)[1:]
    found = {}
    for line in parts[occurrence].split("\n#")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) > 2 and re.fullmatch(r"[0-9.]+", cells[1]):
            found[cells[0]] = float(cells[1])
    return found


def benchmarks():
    text = (DOCS / "benchmarks.md").read_text()
    row, left, width = 24, 170, 520
    height = 30 + sum(42 + row * len(rows) for *_, rows in BARS)
    picture = Picture(820, height, "Seconds to rebuild a standby, medians")
    picture.text(20, 24, "Seconds until the standby is durable (medians; less is better)", "title")
    top = 40
    for section, occurrence, words, rows in BARS:
        found = medians(text, section, occurrence)
        longest = max(found[name] for name in rows)
        picture.parts.append(f'<path d="M20 {top} L800 {top}" class="rule"/>')
        picture.text(20, top + 22, f"{section}: {words}")
        top += 32
        for name in rows:
            ours = name.startswith("ours")
            length = width * found[name] / longest
            picture.text(left - 10, top + 14, name, "title quiet" if ours else "quiet", "end")
            picture.bar(left, top + 2, length, 16, "ours" if ours else "other")
            picture.text(left + length + 8, top + 15, f"{found[name]:.2f}", "number quiet")
            top += row
        top += 10
    return picture


def main():
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        sys.exit(__doc__)
    old = []
    for name, draw in [
        ("architecture", architecture), ("benchmarks", benchmarks), ("data-flow", data_flow), ("states", states),
        ("timeline", timeline),
    ]:
        path, drawn = PICTURES / f"{name}.svg", draw().svg()
        if not check:
            path.write_text(drawn)
        elif not path.exists() or path.read_text() != drawn:
            old.append(path.name)
    if old:
        sys.exit(f"pictures: draw {', '.join(old)} again: scripts/pictures.py")


main()
