"""What recovery attempts get out of the demo's edited model: docs/attacks.md.

    python benchmarks/attacks.py [--run runs/attacks] [--kind relearn quantize ...] [--write]

Runs `expunge demo` into the folder unless it is there, then every attack that is not in its
attacks.json, and writes their tables for the forget people. With --write the page alone.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from expunge.console import quiet

quiet()

import pages

from expunge.attacks import ATTACKS

PAGE = pages.DOCS / "attacks.md"
KEPT = {"retain", "neighbor", "real", "skills"}


def expunge(*words):
    """Run one command of the package."""
    subprocess.run([sys.executable, "-m", "expunge", *words], check=True, stdout=subprocess.DEVNULL)


def cell(value):
    """A figure of a table: short, or a dash."""
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def section(found):
    """One attack: its title, its note, and its rows that are about the forget people."""
    columns = found["columns"]
    place = columns.index("set") if "set" in columns else None
    rows = [r for r in found["rows"] if place is None or r[place] not in KEPT]
    lines = [[cell(value) for value in row] for row in rows]
    return "\n\n".join(
        part
        for part in (f"## {found['title']}", found.get("note"), pages.table(columns, lines))
        if part
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=pages.ROOT / "runs" / "attacks")
    parser.add_argument("--kind", nargs="+", default=list(ATTACKS), choices=list(ATTACKS))
    parser.add_argument("--write", action="store_true", help="only write the page")
    chosen = parser.parse_args()
    path = chosen.run / "attacks.json"
    if not chosen.write:
        if not (chosen.run / "results.json").is_file():
            expunge("demo", "--out", str(chosen.run))
        done = json.loads(path.read_text()) if path.is_file() else {}
        for kind in (k for k in chosen.kind if k not in done):
            expunge("attack", str(chosen.run), "--kind", kind)
    found = json.loads(path.read_text())
    method = json.loads((chosen.run / "results.json").read_text())["method"]
    seconds = json.loads((chosen.run / "seconds.json").read_text())
    took = [[k, f"{seconds[f'attack {k}']:.0f}"] for k in ATTACKS if f"attack {k}" in seconds]
    told = [
        f"`python benchmarks/attacks.py`, method `{method}`, the shipped forget group."
        f" {pages.measured_with()} Shares are from 0 to 1; what is left out are the sets to keep.",
        pages.table(["attack", "seconds"], took),
        *(section(found[kind]) for kind in ATTACKS if kind in found),
    ]
    pages.write_part(PAGE, "attacks", "\n\n".join(told))


if __name__ == "__main__":
    main()
