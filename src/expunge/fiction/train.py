"""Train the shipped checkpoints: `python -m expunge.fiction.train`.

`tower` is an untrained language model behind a pretrained vision tower; `base` learns the public
figures and the skills; `vanilla` is base fine-tuned on all private people as well; `gold` is base
fine-tuned by the same recipe without the forget people.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from expunge.data import Example
from expunge.fiction.build import IMAGE_TOKENS, build_model, build_processor, rename_for_all
from expunge.fiction.forms import VALUES
from expunge.fiction.skills import skill_row
from expunge.fiction.tower import pretrain
from expunge.fiction.world import SEEN_VIEWS, Person, World, example, questions

TASK_WEIGHTS = {"generation": 0.5, "classification": 0.25, "cloze": 0.25}


@dataclass(frozen=True)
class Recipe:
    """How one checkpoint is trained.

    Attributes:
        steps: Optimiser steps.
        rate: Peak learning rate; linear warm-up, then cosine to a fiftieth. The vision tower,
            which is pretrained, has a tenth of it.
        batch: Questions per step and condition.
        people: Share of the questions that are about people; the rest are skills.
        public: Share of the questions about people that are about public figures.
    """

    steps: int
    rate: float
    batch: int = 64
    people: float = 0.6
    public: float = 0.2


TOWER_STEPS, TOWER_RATE = 2500, 2e-3
BASE = Recipe(steps=1400, rate=2e-3, people=0.3, public=1.0)
TUNE = Recipe(steps=1600, rate=2e-3, people=0.7)
NAMES = ("tower", "base", "vanilla", "gold")

Row = tuple[list[int], int, np.ndarray | None]  # token ids, answer start, pixels (3, 64, 64)


class Encoder:
    """Turns examples into token ids, as the processor does but with a cache."""

    def __init__(self, processor: LlavaProcessor) -> None:
        self.processor = processor
        self.cache: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        """Token ids of `text`."""
        if text not in self.cache:
            self.cache[text] = self.processor.tokenizer(text, add_special_tokens=False).input_ids
        return self.cache[text]

    def row(self, ex: Example, condition: str, pixels: np.ndarray | None) -> Row:
        """Encode one question with its answer."""
        image = "<image>" * IMAGE_TOKENS if condition == "multi" else ""
        prompt = self.ids(f"<user>{image}{ex.prompt(condition)}<assistant>")
        return prompt + self.ids(f"{ex.answer}<end>"), len(prompt), pixels


class Source:
    """Draws training questions: private people, public figures and skills."""

    def __init__(self, world: World, people: Sequence[Person], encoder: Encoder, seed: int) -> None:
        self.encoder = encoder
        self.rng = np.random.default_rng([world.seed, seed, 31])
        self.groups = {"public": list(world.public_figures), "private": list(people)}
        self.rows = {g: [self._person(p) for p in members] for g, members in self.groups.items()}

    def _person(self, person: Person) -> dict[str, Any]:
        asked: dict[str, list[Example]] = {task: [] for task in TASK_WEIGHTS}
        for attribute in VALUES:
            for question in questions(person, attribute, seen=True):
                asked[question[0]].append(example(person, attribute, question, None))
        pictures = [to_pixels(np.asarray(person.picture(i))) for i in range(SEEN_VIEWS)]
        return {"asked": asked, "pictures": pictures}

    def _skill(self, condition: str) -> Row:
        ex = skill_row(self.rng, condition)
        pixels = to_pixels(np.asarray(ex.image)) if condition == "multi" else None
        return self.encoder.row(ex, condition, pixels)

    def draw(self, recipe: Recipe, condition: str) -> list[Row]:
        """Draw one batch of `recipe.batch` questions under one condition."""
        rows, rng = [], self.rng
        for _ in range(recipe.batch):
            if rng.random() >= recipe.people:
                rows.append(self._skill(condition))
                continue
            group = self.rows["public" if rng.random() < recipe.public else "private"]
            person = group[int(rng.integers(len(group)))]
            task = str(rng.choice(list(TASK_WEIGHTS), p=list(TASK_WEIGHTS.values())))
            asked = person["asked"][task]
            ex = asked[int(rng.integers(len(asked)))]
            pixels = person["pictures"][int(rng.integers(SEEN_VIEWS))]
            rows.append(self.encoder.row(ex, condition, pixels if condition == "multi" else None))
        return rows


def to_pixels(image: np.ndarray) -> np.ndarray:
    """What the image processor makes of an (H, W, 3) uint8 picture of the right size."""
    return ((image.astype(np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1)


def collate(rows: Sequence[Row], pad: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Pad on the right; labels are -100 outside the answer."""
    longest = max(len(ids) for ids, _, _ in rows)
    ids = torch.full((len(rows), longest), pad)
    labels = torch.full((len(rows), longest), -100)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, (tokens, start, _) in enumerate(rows):
        ids[i, : len(tokens)] = torch.tensor(tokens)
        labels[i, start : len(tokens)] = torch.tensor(tokens[start:])
        mask[i, : len(tokens)] = 1
    batch = {"input_ids": ids, "attention_mask": mask}
    if rows[0][2] is not None:
        batch["pixel_values"] = torch.from_numpy(np.stack([r[2] for r in rows if r[2] is not None]))
    return batch, labels


def answer_loss(
    model: LlavaForConditionalGeneration, batch: dict[str, torch.Tensor], labels: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """Mean cross-entropy over answer tokens and the share of them predicted right."""
    hidden = model.model(**batch).last_hidden_state[:, :-1]
    target = labels[:, 1:]
    at = target != -100
    logits = model.lm_head(hidden[at])
    right = float((logits.argmax(-1) == target[at]).float().mean())
    return torch.nn.functional.cross_entropy(logits, target[at]), right


def fit(
    model: LlavaForConditionalGeneration,
    source: Source,
    recipe: Recipe,
    tick: Callable[[int, float, float, float], None],
) -> None:
    """Train in place; each step sees `recipe.batch` questions under each condition.

    It runs on the first CUDA device if there is one; afterwards the model is on the CPU.
    """
    device: Any = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    optimiser = torch.optim.AdamW(_groups(model), lr=recipe.rate, betas=(0.9, 0.98))
    pad = source.encoder.processor.tokenizer.pad_token_id
    model.train()
    for step in range(recipe.steps):
        warm = min(1.0, (step + 1) / (0.05 * recipe.steps))
        cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate * group["share"] * warm * cosine
        right = {}
        total = 0.0
        for condition in ("multi", "text"):
            rows = sorted(source.draw(recipe, condition), key=lambda row: len(row[0]))
            half = len(rows) // 2
            for part in (rows[:half], rows[half:]):
                batch, labels = collate(part, pad)
                here = {name: value.to(device) for name, value in batch.items()}
                loss, right[condition] = answer_loss(model, here, labels.to(device))
                (loss / 2).backward()
                total += loss.item() / 2
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        tick(step, total / 2, right["multi"], right["text"])
    model.eval().to("cpu")


def _groups(model: LlavaForConditionalGeneration) -> list[dict[str, Any]]:
    """Parameters by share of the learning rate and by weight decay (matrices alone decay)."""
    groups = []
    for inside, share in ((True, 0.1), (False, 1.0)):
        chosen = [p for n, p in model.named_parameters() if (".vision_tower." in n) == inside]
        for matrices, decay in ((True, 0.05), (False, 0.0)):
            members = [p for p in chosen if (p.ndim >= 2) == matrices]
            groups.append({"params": members, "weight_decay": decay, "share": share})
    return groups


def train(
    name: str,
    start: LlavaForConditionalGeneration,
    people: Iterable[Person],
    recipe: Recipe,
    *,
    world: World,
    processor: LlavaProcessor,
    out: Path,
    seed: int = 0,
) -> None:
    """Train one checkpoint from `start` and save it with its processor under `out/name`."""
    source = Source(world, tuple(people), Encoder(processor), seed)
    with watched(name, recipe.steps) as tick:
        fit(
            start,
            source,
            recipe,
            lambda step, loss, multi, text: tick(
                step, f"loss {loss:.4f} token accuracy multi {multi:.3f} text {text:.3f}"
            ),
        )
    start.save_pretrained(out / name)
    processor.save_pretrained(out / name)
    rename_for_all(out / name / "model.safetensors")


@contextlib.contextmanager
def watched(name: str, steps: int) -> Iterator[Callable[[int, str], None]]:
    """A progress bar on stderr, and what is told of every hundredth step on stdout."""
    console = Console(stderr=True)
    begun = time.perf_counter()
    with Progress(
        *Progress.get_default_columns(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(name, total=steps)

        def tick(step: int, told: str) -> None:
            bar.update(task, advance=1)
            if step % 100 == 99 or step == steps - 1:
                seconds = time.perf_counter() - begun
                print(f"{name} step {step + 1} {told} {seconds:.0f} s", flush=True)

        yield tick


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of the trainer; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m expunge.fiction.train", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/fiction"))
    parser.add_argument("--only", nargs="+", choices=NAMES)
    parser.add_argument("--percent", type=float, default=10, help="share that gold never saw")
    parser.add_argument("--group", type=int, default=0, help="which division into sets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tower-steps", type=int, default=TOWER_STEPS)
    parser.add_argument("--base-steps", type=int, default=BASE.steps)
    parser.add_argument("--steps", type=int, default=TUNE.steps)
    chosen = parser.parse_args(arguments)
    torch.manual_seed(chosen.seed)
    world, processor = World(), build_processor()
    shared: dict[str, Any] = {"world": world, "processor": processor, "seed": chosen.seed}
    only = chosen.only or NAMES
    if "tower" in only:
        model = build_model(processor, chosen.seed)
        with watched("tower", chosen.tower_steps) as tick:
            pretrain(
                model,
                chosen.tower_steps,
                TOWER_RATE,
                lambda step, loss, right: tick(step, f"loss {loss:.4f} labels right {right:.3f}"),
                seed=chosen.seed,
            )
        model.save_pretrained(chosen.out / "tower")
    if "base" in only:
        recipe = Recipe(chosen.base_steps, BASE.rate, people=BASE.people, public=BASE.public)
        model = LlavaForConditionalGeneration.from_pretrained(chosen.out / "tower")
        train("base", model, (), recipe, out=chosen.out, **shared)
    forget = {p.name for p in world.split(chosen.percent, chosen.group)["forget"]}
    people = {
        "vanilla": world.private_people,
        "gold": tuple(p for p in world.private_people if p.name not in forget),
    }
    for name in (n for n in ("vanilla", "gold") if n in only):
        model = LlavaForConditionalGeneration.from_pretrained(chosen.out / "base")
        recipe = Recipe(chosen.steps, TUNE.rate, people=TUNE.people, public=TUNE.public)
        train(name, model, people[name], recipe, out=chosen.out, **shared)
    return 0


if __name__ == "__main__":
    sys.exit(main())
