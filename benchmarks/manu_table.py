"""What MANU and random pruning forget and keep on the embedded world: docs/manu.md.

    python benchmarks/manu_table.py

Prunes 1, 2, 3, 5, 10 and 20 % of the neurons, by MANU's score and at random, and evaluates every
set under both conditions. Takes a few minutes on two cores.
"""

import platform
from pathlib import Path

from expunge.console import quiet

quiet()

from expunge.edit import applied
from expunge.evaluate import evaluate
from expunge.fiction.shipped import checkpoint, suite
from expunge.models import load
from expunge.planning import make_plan, versions
from expunge.summary import depth_of, figure

SHARES = (0.01, 0.02, 0.03, 0.05, 0.10, 0.20)
SETS = ("forget", "test", "retain", "neighbor", "real", "skills")
OUT = Path(__file__).parent.parent / "docs" / "manu.md"


def row(name, figures, vanilla, gold):
    cells = []
    for data in SETS:
        pair = [figure(figures, data, c) for c in ("multi", "text")]
        cells.append(" / ".join("-" if v is None else f"{v:.2f}" for v in pair))
    depth = depth_of(vanilla, figures, gold)
    cells.append(" / ".join(f"{depth[c]:.2f}" for c in ("multi", "text")))
    return f"| {name} | " + " | ".join(cells) + " |"


def main():
    questions = suite()
    model, processor = load(checkpoint("vanilla"))
    forget, retain = questions.sets["forget"], questions.sets["retain"]
    vanilla = evaluate(model, processor, questions)
    gold = evaluate(*load(checkpoint("gold")), questions)
    lines = [row("vanilla", vanilla, vanilla, gold), row("gold", gold, vanilla, gold)]
    for method in ("manu", "random"):
        for share in SHARES:
            plan = make_plan(model, processor, forget, retain, method=method, budget=share)
            with applied(model, plan):
                figures = evaluate(model, processor, questions)
            lines.append(row(f"{method}, {share:.0%}", figures, vanilla, gold))
            print(lines[-1], flush=True)
    used = versions()
    OUT.write_text(
        "# What MANU forgets and keeps on the embedded world\n\n"
        "Written by `make bench` (`python benchmarks/manu_table.py`). Accuracy over all three tasks"
        " with picture / without; depth of forgetting is 1 where the answers are as unlikely as for"
        f" gold. Seed 0, torch {used['torch']}, transformers {used['transformers']},"
        f" {platform.machine()} CPU.\n\n"
        "| model | " + " | ".join(SETS) + " | depth |\n"
        "|---|" + "---|" * (len(SETS) + 1) + "\n" + "\n".join(lines) + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
