"""The target on forget groups the default method was never tuned on: docs/results.md.

    python benchmarks/groups.py [--method auto] [--groups 1 2 3 4 5] [--percent 10]

Each group is another random tenth (or 5 or 15 %) of the private people, with its own retain and
neighbour people. Gold exists for group 0 only; elsewhere the reference is gold's likelihood and
accuracy on *its* forget people, which is the same quantity for other people of the same world.
"""

import argparse
import json
import time
from pathlib import Path

from expunge.cli import quiet
from expunge.edit import applied
from expunge.evaluate import evaluate
from expunge.fiction.shipped import checkpoint, suite
from expunge.models import load
from expunge.pipeline import make_plan
from expunge.summary import summarise

OUT = Path(__file__).parent / "groups.json"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", default="auto")
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--percent", type=float, nargs="+", default=[10])
    parser.add_argument("--share", type=float, default=1.0, help="share of retain people given")
    chosen = parser.parse_args()
    quiet()
    model, processor = load(checkpoint("vanilla"))
    gold = evaluate(*load(checkpoint("gold")), suite())
    rows = []
    for percent in chosen.percent:
        for group in chosen.groups:
            questions = suite(percent, group)
            retain = questions.sets["retain"]
            people = sorted({e.subject for e in retain})
            given = set(people[: max(2, round(chosen.share * len(people)))])
            vanilla = evaluate(model, processor, questions)
            begun = time.perf_counter()
            plan = make_plan(
                model,
                processor,
                questions.sets["forget"],
                [e for e in retain if e.subject in given],
                method=chosen.method,
            )
            seconds = time.perf_counter() - begun
            with applied(model, plan):
                unlearned = evaluate(model, processor, questions)
            models = {"vanilla": vanilla, "unlearned": unlearned, "gold": gold}
            row = {"method": chosen.method, "percent": percent, "group": group}
            row |= {"share": chosen.share, "seconds": seconds, "bytes": plan.bytes}
            rows.append(row | summarise(models))
            print(json.dumps(rows[-1]), flush=True)
    known = json.loads(OUT.read_text()) if OUT.is_file() else []
    keys = ("method", "percent", "group", "share")
    fresh = {tuple(r[k] for k in keys) for r in rows}
    kept = [r for r in known if tuple(r[k] for k in keys) not in fresh]
    OUT.write_text(json.dumps(kept + rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
