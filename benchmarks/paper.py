"""The experiments of the MANU paper (arXiv 2502.15910) at our scale: docs/paper.md.

    python benchmarks/paper.py [--percent 5 10 15] [--write]

GA, GradDiff, KL, NPO, Prompting and MANU at its searched alpha, on 5, 10 and 15 % of the private
people, every set, task and condition; at 10 % MANU with alpha from 1 to 20 %, each importance
alone and all together. Every method is searched as in benchmarks/methods.py, and runs of the 10 %
split are shared with it. What is measured is kept under runs/bench and in benchmarks/paper.json.
"""

import argparse
import dataclasses
import json

from expunge.console import quiet

quiet()

import pages
from search import searched

from expunge.compare import compare, distance
from expunge.edit import edited
from expunge.evaluate import evaluate
from expunge.evidence import gather
from expunge.folder import write_json
from expunge.importance import IMPORTANCE
from expunge.methods import get
from expunge.models import Prompter, load
from expunge.planning import chosen_sites, settled
from expunge.report.charts import Point, dot_plot

OUT = pages.ROOT / "benchmarks" / "paper.json"
PAGE = pages.DOCS / "paper.md"
GRADIENT = ("ga", "graddiff", "kl", "npo")
METHODS = (*GRADIENT, "prompting", "manu")
ALPHAS = (0.01, 0.02, 0.03, 0.05, 0.10, 0.20)
FORGETS = 0.1  # a method that forgets less has no balance to speak of
ALONE = ALPHAS[3:]  # below that MANU hardly changes anything
VARIANTS = [("all", a) for a in ALPHAS] + [(n, a) for n in IMPORTANCE for a in ALONE]
TASKS = (("classification", "accuracy"), ("generation", "rouge_l"), ("cloze", "accuracy"))
WORDS = {"multi": "with picture", "text": "in text alone"}


def split(percent):
    """The figures of every method, of vanilla and where there is one of gold, by row name."""
    config, questions, folder = pages.task(percent)
    loaded = load(config.model)
    found = {}
    for name in METHODS:
        setting = searched(name, config, questions, loaded, folder)
        spec = f"{name}={setting['chosen']:g}" if setting else name
        value = compare(config, questions, [spec], folder / "compare")
        row = value["rows"][-1]
        results = folder / "compare" / row["run"] / "results.json"
        models = json.loads(results.read_text(encoding="utf-8"))["models"]
        found |= {n: models[n] for n in ("vanilla", "gold") if n in models}
        found[row["name"]] = models["unlearned"]
        print(f"{percent:g} %, {row['name']}", flush=True)
    order = [n for n in ("vanilla", "gold") if n in found]
    return {n: found[n] for n in [*order, *(n for n in found if n not in order)]}


def ablation(known, save):
    """MANU at 10 %: every alpha with each importance alone and with all of them."""
    config, questions, _ = pages.task()
    config = settled(dataclasses.replace(config, method="manu"))
    model, processor = load(config.model)
    sites = chosen_sites(model, config)
    sets = {n: questions.sets[n] for n in ("forget", "retain")}
    evidence = gather(model, Prompter(processor), sets, sites, config, get("manu"))
    for name, alpha in VARIANTS:
        key = f"{name} {alpha:g}"
        if key in known:
            continue
        chosen = None if name == "all" else {name: 1.0}
        settings = dataclasses.replace(config, importances=chosen, budget=alpha)
        edits = get("manu").decide(evidence, settings).edits
        with edited(model, {s.key: s for s in sites}, edits):
            known[key] = evaluate(model, processor, questions, batch_size=2 * config.batch_size)
        save()
        print(f"MANU, {key}", flush=True)


def by_task(models, condition):
    """Classification accuracy, ROUGE-L of generation and cloze accuracy of every set."""

    def cell(figures, name):
        found = figures.get(name, {}).get(condition)
        if found is None:
            return "-"
        return " · ".join(pages.shown(found.get(t, {}).get(key)) for t, key in TASKS)

    lines = [[n, *(cell(f, s) for s in pages.SETS)] for n, f in models.items()]
    return pages.table(["model", *pages.SETS], lines)


def over_all(models):
    """Accuracy over all tasks of every set, and the sum of benchmarks/methods.py."""
    lines = []
    for name, figures in models.items():
        pairs = [pages.pair(accuracies(figures, s)) for s in pages.SETS]
        lines.append([name, *pairs, pages.shown(sum_of(models, figures))])
    return pages.table(["model", *pages.SETS, "sum"], lines)


def accuracies(figures, name):
    return {c: cell["all"]["accuracy"] for c, cell in figures.get(name, {}).items()}


def sum_of(models, figures):
    known = {n: models[n] for n in ("vanilla", "gold") if n in models}
    return distance({**known, "unlearned": figures})


def gap(figures):
    """Difference between the conditions on the forget people."""
    both = accuracies(figures, "forget")
    return abs(both["multi"] - both["text"])


def balance(models):
    """The picture of the conditions side by side, on forget and on retain."""
    drawn = []
    for name in ("forget", "retain"):
        series = {}
        for condition, words in WORDS.items():
            cells = {n: f[name][condition]["all"] for n, f in models.items()}
            series[words] = {n: Point(c["accuracy"], *c["ci95"]) for n, c in cells.items()}
        told = "; ".join(f"{n} {pages.pair(accuracies(f, name))}" for n, f in models.items())
        title = f"Accuracy on {name} under both conditions"
        drawing = dot_plot(f"balance-{name}", title, told, list(models), series)
        drawn.append(pages.write_picture(f"balance-{name}", drawing))
    return drawn


def claims(models, manu):
    """What the paper says, what is found here, and whether that agrees; from the figures alone."""
    ours = next(n for n in models if n.startswith("manu"))
    rivals = [n for n in models if n in GRADIENT]
    sums = {n: sum_of(models, models[n]) for n in [ours, *rivals]}
    gaps = {n: gap(models[n]) for n in [ours, *rivals] if forgotten(models[n]) >= FORGETS}
    kept = accuracies(models[ours], "retain")
    before = accuracies(models["vanilla"], "retain")
    share = min(kept[c] / before[c] for c in kept)
    reach = {a: forgotten(manu[f"all {a:g}"]) for a in ALPHAS}
    alone = {k: sum_of(models, manu[f"{k} 0.2"]) for k in ("all", *IMPORTANCE)}
    best, even = min(sums, key=sums.get), min(gaps, key=gaps.get, default=None)
    rising = all(reach[a] <= reach[b] + 0.01 for a, b in zip(ALPHAS, ALPHAS[1:], strict=False))

    def listed(values):
        return ", ".join(f"{n} {v:.2f}" for n, v in values.items())

    lines = [
        [
            "MANU trades forgetting for keeping better than training does",
            listed(sums),
            best == ours,
        ],
        [
            "MANU forgets most alike under both conditions",
            f"gap of those that forget {FORGETS:.0%}: {listed(gaps) or 'none does'}",
            even == ours,
        ],
        ["what is to be kept survives MANU", f"retain kept {share:.2f}", share >= 0.97],
        ["a higher alpha forgets more", listed({f"{a:.0%}": v for a, v in reach.items()}), rising],
        [
            "the importances together beat each alone (alpha 20 %)",
            listed(alone),
            min(alone, key=alone.get) == "all",
        ],
    ]
    named = [[told, found, "yes" if agrees else "no"] for told, found, agrees in lines]
    return pages.table(["the paper", "here", "agrees"], named)


def forgotten(figures):
    """Share of the forget questions not known any more, the mean over conditions."""
    both = accuracies(figures, "forget").values()
    return 1 - sum(both) / len(both)


def text_of(known):
    """The parts of the page by name."""
    splits, manu = known["splits"], known["manu"]
    head = (
        f"`make bench-paper` (`python benchmarks/paper.py`). {pages.measured_with()} The embedded"
        " world instead of MLLMU-Bench; nine candidates for every method (docs/results.md). Cells"
        " are classification accuracy · ROUGE-L of generation · cloze accuracy. Gold exists at"
        " 10 % alone; *sum* is the distance of forget and test to gold, without it to chance, and"
        " the shares of retain, neighbor, real and skills lost."
    )
    parts = {"tables": ["## Methods", head]}
    for percent, models in splits.items():
        parts["tables"].append(f"### {percent} % forgotten")
        for condition, words in WORDS.items():
            parts["tables"] += [words.capitalize() + ":", by_task(models, condition)]
        parts["tables"] += ["All tasks, with picture / in text alone:", over_all(models)]
    tenth = splits.get("10")
    if tenth and manu:
        frame = {n: tenth[n] for n in ("vanilla", "gold")}
        every = {f"{name} {a:.0%}": manu[f"{name} {a:g}"] for name, a in VARIANTS}
        parts["manu"] = [
            "## MANU's alpha and importances",
            "10 % forgotten, all tasks, with picture / in text alone.",
            over_all({**frame, **every}),
        ]
        parts["balance"] = [
            "## The balance between the conditions",
            "10 % forgotten; dots far apart are forgotten (first picture) or kept (second) under"
            " one condition more than under the other.",
            *balance(tenth),
        ]
        parts["claims"] = ["## What agrees with the paper and what does not", claims(tenth, manu)]
    return parts


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--percent", type=float, nargs="*", default=[5.0, 10.0, 15.0])
    parser.add_argument("--write", action="store_true", help="only write the page")
    chosen = parser.parse_args()
    task = pages.task()[2].name
    known = json.loads(OUT.read_text(encoding="utf-8")) if OUT.is_file() else {}
    if known.get("task") != task:
        known = {"task": task, "splits": {}, "manu": {}}
    if not chosen.write:
        for percent in chosen.percent:
            known["splits"][f"{percent:g}"] = split(percent)
            write_json(OUT, known)
        ablation(known["manu"], lambda: write_json(OUT, known))
    if not PAGE.is_file():
        PAGE.write_text("# The paper's experiments at our scale\n", encoding="utf-8")
    for name, text in text_of(known).items():
        pages.write_part(PAGE, name, "\n\n".join(text))


if __name__ == "__main__":
    main()
