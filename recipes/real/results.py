"""Compare methods on the real model, attack the default one, and write docs/results-real.md.

    python recipes/real/results.py [--out runs/real] [--methods auto,manu] [--write]

Runs go on where they stopped; what was measured is kept in recipes/real/results.json. With
--write the page alone is written.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
from pathlib import Path

from expunge.console import quiet

quiet()

from base import build
from expunge.attacks import ATTACKS, attack_run
from expunge.compare import compare
from expunge.config import RunConfig
from expunge.data import Suite
from expunge.edit import applied
from expunge.folder import write_json
from expunge.models import load
from expunge.pipeline import read_suite
from expunge.plan import Plan
from people import suite
from prose import perplexity, prose, rise

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import pages
from attacks import section

FOUND = HERE / "results.json"
PAGE = ROOT / "docs" / "results-real.md"
OLDER = "**On the plan of a version before.**"
SETS = ("forget", "test", "retain", "neighbor", "skills")
METHODS = (
    "auto",
    "filter-search",
    "manu=0.02",
    "manu=0.05",
    "manu=0.2",
    "selective",
    "saliency",
    "random",
    "filter",
    "directions",
    "ga",
    "graddiff",
    "kl",
    "npo-retain",
    "idk",
)


def task(out: Path) -> RunConfig:
    """The configuration of the task that `assemble.py` wrote: every setting is the default."""
    files = {name: str(out / f"{name}.jsonl") for name in (*SETS, "stranger")}
    return RunConfig.of({"model": str(out / "vanilla"), "gold": str(out / "gold"), **files})


def under(loaded, folder: Path, row: dict) -> dict[str, list]:
    """`prose` of the model edited by the plan of one row of a comparison."""
    with applied(loaded[0], Plan.load(folder / row["run"] / "plan.safetensors")) as edited:
        return prose(edited, loaded[1])


def note(known: dict, name: str, now: dict, vanilla: dict) -> None:
    """Write down perplexity on our own paragraphs and its rise on others'."""
    known.setdefault("perplexity", {})[name] = perplexity(now["own"])
    known.setdefault("rise", {})[name] = rise(vanilla["reference"], now["reference"])


def measure(out: Path, vanilla: dict, loaded, methods: list[str], known: dict) -> None:
    """Compare, then the perplexity under each plan."""
    config = task(out)
    suite = read_suite(config)
    if "gold" not in known.get("rise", {}):
        note(known, "base", prose(*build()), vanilla)
        note(known, "vanilla", vanilla, vanilla)
        note(known, "gold", prose(*load(config.gold)), vanilla)
        write_json(FOUND, known)
    for name in methods:
        rows = compare(config, suite, [name], out / "compare")["rows"]
        known.setdefault("rows", {}).update({r["name"]: r for r in rows})
        last = rows[-1]
        note(known, last["name"], under(loaded, out / "compare", last), vanilla)
        write_json(FOUND, known)
        print(f"{last['name']}: {pages.pair(values(last, 'forget'))}", flush=True)


def other_groups(out: Path, vanilla: dict, loaded, groups: list[int], known: dict) -> None:
    """The default method on other people of the same model; there is no gold for them."""
    base = dataclasses.replace(task(out), gold=None)
    for group in groups:
        rows = suite(group)
        config = dataclasses.replace(base, forget=f"group {group}", retain=f"group {group}")
        folder = out / f"compare-{group}"
        compared = compare(config, Suite.of(**rows), ["auto"], folder)["rows"][-1]
        known.setdefault("groups", {})[str(group)] = compared
        note(known, f"group {group}", under(loaded, folder, compared), vanilla)
        write_json(FOUND, known)
        print(f"group {group}: {pages.pair(values(compared, 'forget'))}", flush=True)


def attacked(out: Path, kinds: list[str], known: dict) -> None:
    """Every attack on the default method's run that was not made on this very plan."""
    folder = out / "compare" / known["rows"]["auto"]["run"]
    plan = known["plan"] = digest(folder / "plan.safetensors")
    held = known.setdefault("attacks", {})
    write_json(FOUND, known)  # those held may be of another plan now, though none is asked for
    for kind in kinds:
        if held.get(kind, {}).get("plan") != plan:
            held[kind] = attack_run(folder, [kind])[kind] | {"plan": plan}
            write_json(FOUND, known)
            print(f"attack {kind}", flush=True)


def mark(found: dict, known: dict) -> str:
    """What is to be said of the plan that was attacked; nothing of the one in the table."""
    return "" if found.get("plan") == known.get("plan") else OLDER


def digest(path: Path) -> str:
    """What tells one file from another."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def values(row: dict, name: str) -> dict[str, float]:
    """Accuracy on a set by condition."""
    return {c: cell["value"] for c, cell in row["accuracy"].get(name, {}).items()}


def rise_cell(found: list[float] | None) -> str:
    """A rise and its interval, in per cent."""
    return (
        "-" if found is None else "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * f for f in found))
    )


def table(known: dict) -> str:
    """One line per model, as in docs/results.md, with perplexity."""
    lines = []
    for name, row in known["rows"].items():
        summary = row["summary"] or {}
        lines.append(
            [
                name,
                *(pages.pair(values(row, s)) for s in SETS),
                pages.pair(summary.get("depth") or {}),
                pages.shown(known["perplexity"].get(name)),
                rise_cell(known["rise"].get(name)),
                pages.shown(row["seconds"], 0),
                pages.shown(None if row["bytes"] is None else row["bytes"] / 1e6, 1),
                pages.shown(row["distance"]),
            ]
        )
    told = (
        f"## Methods\n\n`python recipes/real/results.py`. {pages.measured_with()} Accuracy with"
        " picture / in text alone; depth, seconds (collect and plan, one busy core) and"
        " sum as in docs/results.md, which has no `real` set here."
        f" Perplexity is on six paragraphs of our own (the base model's, before teaching:"
        f" {known['perplexity']['base']:.1f}); its rise against vanilla, in per cent, with the 95 %"
        " interval, on those of the language reference that comes with Python"
        " (`general.reference_prose`), where it was measured."
    )
    head = ["model", *SETS, "depth", "perplexity", "rise", "seconds", "MB", "sum"]
    return "\n\n".join([told, pages.table(head, lines), intervals(known)])


def intervals(known: dict) -> str:
    """95 % intervals over people of every cell."""

    def ends(cells: dict) -> str:
        return " / ".join(f"{v['low']:.2f}-{v['high']:.2f}" for v in cells.values())

    lines = [[n, *(ends(r["accuracy"][s]) for s in SETS)] for n, r in known["rows"].items()]
    return "95 % intervals, bootstrap over people:\n\n" + pages.table(["model", *SETS], lines)


def group_table(known: dict) -> str:
    """The default method on every group, group 0 first."""
    first = "0 (the table above)"
    rows = {first: known["rows"]["auto"], **known["groups"]}
    lines = [
        [
            name,
            *(pages.pair(values(row, s)) for s in SETS),
            pages.shown(known["perplexity"].get(run), 2),
            rise_cell(known["rise"].get(run)),
            pages.shown(row["seconds"], 0),
        ]
        for name, row in rows.items()
        for run in ["auto" if name == first else f"group {name}"]
    ]
    head = "## The default method on other people of the same model"
    return f"{head}\n\n{pages.table(['group', *SETS, 'perplexity', 'rise', 'seconds'], lines)}"


def main() -> None:
    """Measure what is asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "real")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--attacks", default=",".join(ATTACKS))
    parser.add_argument("--groups", default="1,2", help="other people to forget, by auto alone")
    parser.add_argument("--write", action="store_true", help="only write the page")
    given = parser.parse_args()
    known = json.loads(FOUND.read_text(encoding="utf-8")) if FOUND.is_file() else {}
    if not given.write:
        methods = [m for m in given.methods.split(",") if m]
        groups = [int(g) for g in given.groups.split(",") if g]
        if methods or groups or "gold" not in known.get("rise", {}):
            loaded = load(task(given.out).model)
            vanilla = prose(*loaded)
            measure(given.out, vanilla, loaded, methods, known)
            other_groups(given.out, vanilla, loaded, groups, known)
        attacked(given.out, [a for a in given.attacks.split(",") if a], known)
    pages.write_part(PAGE, "results", table(known))
    if "groups" in known:
        pages.write_part(PAGE, "groups", group_table(known))
    for kind, found in known.get("attacks", {}).items():
        note = f"{mark(found, known)} {found.get('note') or ''}".strip()
        pages.write_part(PAGE, kind, section(found | {"note": note or None}))


if __name__ == "__main__":
    main()
