"""The default method on a world and a model that it was not made with: docs/results.md.

    python benchmarks/other.py [--out runs/other] [--groups 1 2] [--steps 1000]

Other people, faces and facts, fewer of them; a tokenizer of 600 pieces instead of 1500; a language
model of another kind, width and depth (Qwen2, 160 wide, five layers, MLPs of 640 neurons). Only the
pretrained vision tower is the shipped one. The model is trained first by the recipe of the shipped
checkpoints, unless it is in the folder already; then the default method, with no option given, is
run and evaluated on each group of 10 %: on the Qwen2, which a Llama with biases can compute, and on
the same with a window wider than any question, which none can, so that it has no biases. And on the
shipped world with a Gemma that computes what the shipped model does, which has no biases at all but
can be given some of attention. There is no gold: the reference is guessing.
"""

import argparse
import itertools
import time
from pathlib import Path

from expunge.console import quiet

quiet()

import pages
import torch
from transformers import Qwen2Config

from expunge.data import Suite
from expunge.edit import applied
from expunge.evaluate import evaluate
from expunge.fiction.build import as_gemma, as_kind, build_model, build_processor, language
from expunge.fiction.shipped import checkpoint
from expunge.fiction.train import BASE, TUNE, Recipe, train
from expunge.fiction.world import BLOCK, World
from expunge.folder import write_json
from expunge.models import load
from expunge.planning import make_plan
from expunge.summary import figure, kept, summarise

PEOPLE, PIECES, SEED = 60, 600, 1
WINDOW = {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 0}
KEPT = ("retain", "neighbor", "real", "skills")
CHOICES, TASKS = 4, 3
GUESS = (2 / BLOCK + 1 / CHOICES) / TASKS  # open questions and cloze of 12 values, and four choices


def teach(out, world, steps):
    """Train the model that knows everybody, into out/vanilla."""
    processor = build_processor(pieces=PIECES)
    torch.manual_seed(SEED)
    sizes = {"width": 160, "neurons": 640, "layers": 5, "heads": 5}
    model = build_model(processor, SEED, language(processor, Qwen2Config, **sizes))
    shipped, _ = load(checkpoint("vanilla"))
    model.model.vision_tower.load_state_dict(shipped.model.vision_tower.state_dict())
    shared = {"world": world, "processor": processor, "out": out, "seed": SEED}
    base = Recipe(steps * BASE.steps // TUNE.steps, BASE.rate, people=BASE.people, public=1.0)
    train("base", model, (), base, **shared)
    tune = Recipe(steps, TUNE.rate, people=TUNE.people, public=TUNE.public)
    train("vanilla", model, world.private_people, tune, **shared)


def row(name, loaded, world, group):
    """Plan with defaults, apply and evaluate one group."""
    suite = Suite.of(**world.suite(10, group))
    vanilla = evaluate(*loaded, suite)
    begun = time.perf_counter()
    plan = make_plan(*loaded, suite.sets["forget"], suite.sets["retain"])
    seconds = time.perf_counter() - begun
    with applied(loaded[0], plan):
        unlearned = evaluate(*loaded, suite)
    both = {"vanilla": vanilla, "unlearned": unlearned}
    conditions = pages.CONDITIONS
    return {
        "model": name,
        "group": group,
        "used": plan.provenance.get("used", "auto"),
        "seconds": seconds,
        "bytes": plan.bytes,
        "known": {c: figure(vanilla, "forget", c) for c in conditions},
        "forget": {c: figure(unlearned, "forget", c) for c in conditions},
        "test": {c: figure(unlearned, "test", c) for c in conditions},
        "kept": {n: kept(vanilla, unlearned, n) for n in KEPT},
        "collapsed": summarise(both)["collapsed"],
    }


def write(rows, parameters):
    """A part of docs/results.md."""
    head = [
        "model",
        "used",
        "group",
        "known",
        "forget",
        "test",
        *(f"{n} kept" for n in KEPT),
        "seconds",
        "MB",
    ]
    lines = [
        [
            r["model"],
            r["used"],
            r["group"],
            *(pages.pair(r[n]) for n in ("known", "forget", "test")),
            *(pages.pair(r["kept"][n]) for n in KEPT),
            pages.shown(r["seconds"], 0),
            pages.shown(r["bytes"] / 1e6),
        ]
        for r in rows
    ]
    told = (
        f"`python benchmarks/other.py`. {pages.measured_with()} Another world (seed {SEED},"
        f" {PEOPLE} private people, other faces and facts), a tokenizer of {PIECES} pieces and a"
        " Qwen2 language model, 160 wide, with five layers, trained for this and used for nothing"
        f" else ({parameters / 1e6:.1f} million parameters in all). The edited Qwen2 is written as"
        " the Llama that computes the same, whose MLPs can have biases; with a window that no"
        " question fills it cannot be, and stands for models without. The Gemma computes what the"
        " shipped model does; the edited one has biases of attention. The default method, no option"
        f" given, 10 % forgotten. Guessing is right in {GUESS:.2f}. *known* is vanilla's accuracy"
        " on the forget people. With picture / in text alone."
    )
    part = ["## On another world and another model", told, pages.table(head, lines)]
    pages.write_part(pages.DOCS / "results.md", "other", "\n\n".join(part))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=pages.ROOT / "runs" / "other")
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--train-only", action="store_true")
    chosen = parser.parse_args()
    world = World(seed=SEED, private=PEOPLE)
    if not (chosen.out / "vanilla" / "model.safetensors").is_file():
        teach(chosen.out, world, chosen.steps)
    if chosen.train_only:
        return
    loaded = load(chosen.out / "vanilla")
    windowed = as_kind(*loaded, Qwen2Config, **WINDOW)
    shipped = load(checkpoint("vanilla"))
    models = {
        "Qwen2": (loaded, world),
        "Qwen2 with a window": ((windowed, loaded[1]), world),
        "Gemma, the shipped world": ((as_gemma(*shipped), shipped[1]), World()),
    }
    rows = []
    for (name, of), group in itertools.product(models.items(), chosen.groups):
        rows.append(row(name, *of, group))
        print(rows[-1], flush=True)
    write_json(pages.ROOT / "benchmarks" / "other.json", {"rows": rows})
    write(rows, sum(p.numel() for p in loaded[0].parameters()))


if __name__ == "__main__":
    main()
