"""All methods on the shipped forget group: the first part of docs/results.md.

    python benchmarks/methods.py [--methods auto,manu] [--write]

Every method gets the same search effort (`benchmarks/search.py`), then one run of
`expunge.compare` at the setting found. What is measured is kept under runs/bench and in
benchmarks/methods.json, and is not measured again; delete the folder after a change of a method.
With --methods a part is run, and the page is written from all that is known; the picture needs the
runs of all. --write writes the page alone.
"""

import argparse
import json
import math
import shutil
import time

from expunge.console import quiet

quiet()

import pages
from search import searched

from expunge.compare import compare
from expunge.folder import write_json
from expunge.methods import METHODS
from expunge.models import load
from expunge.tune import RULE

OUT = pages.ROOT / "benchmarks" / "methods.json"
PAGE = pages.DOCS / "results.md"
KEPT = ("retain", "neighbor", "real", "skills")
TELLING = 0.005  # a smaller difference in one term is not named


def measure(names, config, questions, folder, known):
    """Search and run each method, adding what is found to `known` as it comes."""
    loaded = load(config.model)
    for name in names:
        begun = time.perf_counter()
        found = searched(name, config, questions, loaded, folder)
        spec = f"{name}={found['chosen']:g}" if found else name
        value = compare(config, questions, [spec], folder / "compare")
        row = value["rows"][-1]
        known["rows"][name] = row | {"search": effort(row, found, folder)}
        known["rows"] |= {r["name"]: r for r in value["rows"][:-1]}
        write_json(OUT, known)
        print(f"{row['name']}: sum {row['distance']:.3f}, {time.perf_counter() - begun:.0f} s")


def effort(row, found, folder):
    """How many candidates were tried for a row, and the seconds that took beside its run."""
    if found:
        return {"tried": len(found["candidates"]), "seconds": found["seconds"]}
    path = folder / "compare" / row["run"] / "search.json"
    own = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    steps = [s for s in own.get("steps", []) if s["strength"] > 0]
    return {"tried": len(own.get("candidates", steps)) or 1, "seconds": 0.0}


def terms(row, vanilla, gold):
    """The five terms of `compare.distance` and half the width of their intervals, by name.

    Within a term the cells are of the same people, so their half widths are averaged.
    """
    forgotten = [
        (abs(cell["value"] - gold["accuracy"][n][c]["value"]), (cell["high"] - cell["low"]) / 2)
        for n in ("forget", "test")
        for c, cell in row["accuracy"][n].items()
    ]
    found = {"forget": forgotten}
    for n in KEPT:
        before = {c: cell["value"] for c, cell in vanilla["accuracy"][n].items()}
        found[n] = [
            (max(0.0, 1 - cell["value"] / before[c]), (cell["high"] - cell["low"]) / 2 / before[c])
            for c, cell in row["accuracy"][n].items()
        ]
    return {
        n: tuple(sum(v) / len(each) for v in zip(*each, strict=True)) for n, each in found.items()
    }


def half_width(parts):
    """Half the interval of the sum of terms about different people."""
    return math.sqrt(sum(half**2 for _, half in parts.values()))


def main_table(rows):
    head = ["method", *pages.SETS, "gap", "depth", "seconds", "MB", "sum"]
    lines = []
    for row in rows:
        cells = [
            pages.pair({c: v["value"] for c, v in row["accuracy"][n].items()}) for n in pages.SETS
        ]
        known = row["seconds"] is not None
        lines.append(
            [
                row["name"],
                *cells,
                pages.shown(row["summary"]["modality_gap"]),
                pages.pair(row["summary"]["depth"]),
                pages.shown(row["seconds"] + row["search"]["seconds"] if known else None, 0),
                pages.shown(row["bytes"] / 1e6 if known else None),
                pages.shown(row["distance"]),
            ]
        )
    return pages.table(head, lines)


def interval_table(rows):
    def ends(cells):
        return " / ".join(f"{v['low']:.2f}-{v['high']:.2f}" for v in cells.values())

    lines = [[r["name"], *(ends(r["accuracy"][n]) for n in pages.SETS)] for r in rows]
    return pages.table(["method", *pages.SETS], lines)


def against(rows, ours, vanilla, gold):
    """By how much the default method is ahead of each other one, and in what it is behind."""
    mine = terms(ours, vanilla, gold)
    lines = []
    for row in sorted(rows, key=lambda r: r["distance"]):
        other = terms(row, vanilla, gold)
        ahead = row["distance"] - ours["distance"]
        half = math.hypot(half_width(mine), half_width(other))
        told = "wins" if ahead > half else "loses" if ahead < -half else "no clear difference"
        behind = [
            f"{n} by {mine[n][0] - other[n][0]:.2f}"
            for n in mine
            if mine[n][0] - other[n][0] > TELLING
        ]
        interval = f"{ahead - half:+.2f} to {ahead + half:+.2f}"
        lines.append([row["name"], f"{ahead:+.2f}", interval, told, ", ".join(behind) or "nothing"])
    head = ["against", "ahead by", "95 % interval", "`auto`", "`auto` is behind in"]
    return pages.table(head, lines)


def part(known):
    """The part of the page, from what benchmarks/methods.json holds."""
    rows = dict(known["rows"])
    vanilla, gold = rows.pop("vanilla"), rows.pop("gold")
    ordered = sorted(rows.values(), key=lambda r: r["distance"])
    missing = [n for n in METHODS if n not in rows]
    text = [
        "## All methods on the shipped forget group",
        f"`make bench-methods` (`python benchmarks/methods.py`). {pages.measured_with()} Accuracy"
        " over all tasks, with picture / in text alone. *gap*: between the conditions on forget."
        " *depth*: 1 where the answers are as unlikely as for gold. *seconds*: collect and plan,"
        " search included. *MB*: the plan. *sum*: distance of forget and test to gold, and the"
        " shares of retain, neighbor, real and skills lost; the lower the better.",
        "**Search effort.** Nobody gets more than nine candidates, all judged on retain subjects"
        " held out: nine budgets or strengths, three learning rates looked at after three numbers"
        " of steps, or the search of `auto`. The gradients' rule chooses: "
        f"{known['rule']}. Prompting has nothing to search. Tried: "
        + ", ".join(f"{n} {r['search']['tried']}" for n, r in rows.items())
        + ".",
        main_table([vanilla, gold, *ordered]),
    ]
    if missing:
        text.append(f"Not measured on these checkpoints yet: {', '.join(missing)}.")
    if "auto" in rows:
        ours = rows.pop("auto")
        text += [
            "### By how much the default method wins, and where it does not",
            "The interval is made of those of the cells and leaves out that all methods answer the"
            " same questions, so it is wider than need be.",
            against(list(rows.values()), ours, vanilla, gold),
        ]
    text += ["### Intervals", "95 %, by bootstrap over subjects.", interval_table(ordered)]
    return "\n\n".join([*text, "![Forgetting against keeping](methods.svg)"])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--write", action="store_true", help="only write the page")
    chosen = parser.parse_args()
    config, questions, folder = pages.task()
    known = json.loads(OUT.read_text(encoding="utf-8")) if OUT.is_file() else {}
    if known.get("task") != folder.name:
        known = {"task": folder.name, "rule": RULE, "rows": {}}
    if not chosen.write:
        measure(chosen.methods.split(","), config, questions, folder, known)
        specs = [r["name"] for r in known["rows"].values() if r["method"]]
        compare(config, questions, [s.replace(" ", "=") for s in specs], folder / "compare")
        shutil.copyfile(folder / "compare" / "compare.svg", pages.DOCS / "methods.svg")
    pages.write_part(PAGE, "methods", part(known))


if __name__ == "__main__":
    main()
