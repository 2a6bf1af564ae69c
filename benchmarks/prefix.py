"""What it saves to run each picture once for all its questions: benchmarks/prefix.json.

    python benchmarks/prefix.py [--pictures 4] [--rounds 7]

Neuron statistics and second moments, and scores under teacher forcing, of a LLaVA with random
weights and 256 image tokens, seven questions a picture, in two ways that take turns: every question
by itself in batches of 28 (and, for the bar, one question a batch), and `shared_batches`. One
thread, on the CPU; the figures are ratios of median times within one run.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

from expunge.console import quiet

quiet()

import numpy as np
import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from expunge.collect import collect_inputs, collect_statistics
from expunge.data import Example
from expunge.encoding import batches
from expunge.fiction.build import build_processor
from expunge.models import Prompter
from expunge.planning import versions
from expunge.probe_set import ProbeSet
from expunge.sites import find_sites

OUT = Path(__file__).parent / "prefix.json"
SIDE, PATCH, TOKENS, QUESTIONS = 224, 14, 256, 7
TOGETHER = 4 * QUESTIONS
WORDS = ("town", "food", "job", "animal", "colour", "hobby", "street")


def build(width=128, layers=4):
    """A LLaVA of random weights, and its processor."""
    processor = build_processor(SIDE, PATCH)
    tokenizer = processor.tokenizer
    shape = {"num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 4 * width}
    vision = CLIPVisionConfig(hidden_size=width, image_size=SIDE, patch_size=PATCH, **shape)
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        **shape,
    )
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=TOKENS,
    )
    return LlavaForConditionalGeneration(config).eval(), Prompter(processor)


def questions(pictures):
    """Seven questions about each of some pictures."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(pictures):
        picture = Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8))
        rows += [
            Example(f"s{number}", "grey parrot", f"What is the {word} here?", picture, None, None)
            for word in WORDS
        ]
    return rows


def alternately(ways, rounds):
    """Median seconds of each way."""
    taken = {name: [] for name in ways}
    for run in ways.values():
        run()
    for _ in range(rounds):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def far(one, two):
    """Largest relative difference between two collections of statistics, over sites and sums."""
    worst = 0.0
    for key, stats in one.neurons.items():
        if stats.count != two.neurons[key].count:
            return float("inf")
        pairs = [
            (getattr(each.neurons[key], name) for each in (one, two))
            for name in ("total", "absolute", "over", "square")
        ]
        for a, b in [*pairs, (one.moments[key].outer, two.moments[key].outer)]:
            worst = max(worst, float((a - b).norm() / b.norm()))
    return worst


def measured(pictures, rounds):
    """The figures."""
    model, prompter = build()
    rows = questions(pictures)
    sites = [s for s in find_sites(model) if not s.dead]

    def plain(batch_size, moments=False):
        feed = batches(model, prompter, rows, "multi", batch_size=batch_size)
        return collect_inputs(model, feed, sites=sites, moments=moments)

    def shared(moments=False):
        return collect_statistics(
            model, prompter, rows, "multi", sites=sites, moments=moments, batch_size=TOGETHER
        )

    model.double()
    error = far(shared(True), plain(TOGETHER, True))
    model.float()
    probes = {size: ProbeSet(model, prompter, rows, "multi", batch_size=size) for size in (1, 28)}
    asked = {
        "shared": lambda: probes[28].run(model),
        "one a batch": lambda: probes[1].run(model),
    }
    collected = {
        "shared": shared,
        "batches of 28": lambda: plain(TOGETHER),
        "one a batch": lambda: plain(1),
    }
    moments = {"shared": lambda: shared(True), "batches of 28": lambda: plain(TOGETHER, True)}
    found = {"relative difference of statistics in float64": error}
    for name, ways in (
        ("neuron statistics", collected),
        ("neuron statistics and second moments", moments),
        ("teacher forcing", asked),
    ):
        seconds = alternately(ways, rounds)
        ratios = {f"{k} / shared": v / seconds["shared"] for k, v in seconds.items()}
        ratios.pop("shared / shared")
        found[name] = {"seconds": seconds, "ratios": ratios}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    about = {
        "pictures": chosen.pictures,
        "questions a picture": QUESTIONS,
        "image tokens": TOKENS,
        "rounds": chosen.rounds,
        "threads": 1,
        "machine": platform.machine(),
        "versions": versions(),
    }
    found = about | measured(chosen.pictures, chosen.rounds)
    chosen.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
