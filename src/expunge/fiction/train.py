"""Train the shipped checkpoints: `python -m expunge.fiction.train`.

`base` learns the public figures and the skills; `vanilla` is base fine-tuned on all private
people as well; `gold` is base fine-tuned by the same recipe without the forget people.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
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
from expunge.fiction.world import SEEN_VIEWS, Person, World, example, questions

TASK_WEIGHTS = {"generation": 0.5, "classification": 0.25, "cloze": 0.25}
SKILL_POOL = 6000


@dataclass(frozen=True)
class Recipe:
    """How one checkpoint is trained.

    Attributes:
        steps: Optimiser steps.
        rate: Peak learning rate; linear warm-up, then cosine to a fiftieth.
        batch: Questions per step and condition.
        people: Share of the questions that are about people; the rest are skills.
        public: Share of the questions about people that are about public figures.
    """

    steps: int
    rate: float
    batch: int = 64
    people: float = 0.6
    public: float = 0.2


BASE = Recipe(steps=2000, rate=2e-3, people=0.4, public=1.0)
TUNE = Recipe(steps=2400, rate=2e-3, people=0.8)

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
        pool = np.random.default_rng([world.seed, 41])
        self.skills = {c: self._skills(pool, c) for c in ("multi", "text")}

    def _person(self, person: Person) -> dict[str, Any]:
        asked: dict[str, list[Example]] = {task: [] for task in TASK_WEIGHTS}
        for attribute in VALUES:
            for question in questions(person, attribute, seen=True):
                asked[question[0]].append(example(person, attribute, question, None))
        pictures = [to_pixels(np.asarray(person.picture(i))) for i in range(SEEN_VIEWS)]
        return {"asked": asked, "pictures": pictures}

    def _skills(self, rng: np.random.Generator, condition: str) -> list[Row]:
        rows = []
        for _ in range(SKILL_POOL):
            ex = skill_row(rng, condition)
            pixels = to_pixels(np.asarray(ex.image)) if condition == "multi" else None
            rows.append(self.encoder.row(ex, condition, pixels))
        return rows

    def draw(self, recipe: Recipe, condition: str) -> list[Row]:
        """Draw one batch of `recipe.batch` questions under one condition."""
        rows, rng = [], self.rng
        for _ in range(recipe.batch):
            if rng.random() >= recipe.people:
                pool = self.skills[condition]
                rows.append(pool[int(rng.integers(len(pool)))])
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
    """Train in place; each step sees `recipe.batch` questions under each condition."""
    decay = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.98))
    pad = source.encoder.processor.tokenizer.pad_token_id
    model.train()
    for step in range(recipe.steps):
        warm = min(1.0, (step + 1) / (0.05 * recipe.steps))
        cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate * warm * cosine
        right = {}
        total = 0.0
        for condition in ("multi", "text"):
            rows = sorted(source.draw(recipe, condition), key=lambda row: len(row[0]))
            half = len(rows) // 2
            for part in (rows[:half], rows[half:]):
                loss, right[condition] = answer_loss(model, *collate(part, pad))
                (loss / 2).backward()
                total += loss.item() / 2
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        tick(step, total / 2, right["multi"], right["text"])
    model.eval()


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
    console = Console(stderr=True)
    begun = time.perf_counter()
    with Progress(
        *Progress.get_default_columns(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(name, total=recipe.steps)

        def tick(step: int, loss: float, multi: float, text: float) -> None:
            bar.update(task, advance=1)
            if step % 100 == 99 or step == recipe.steps - 1:
                seconds = time.perf_counter() - begun
                print(
                    f"{name} step {step + 1} loss {loss:.4f} token accuracy multi {multi:.3f}"
                    f" text {text:.3f} {seconds:.0f} s",
                    flush=True,
                )

        fit(start, source, recipe, tick)
    start.save_pretrained(out / name)
    processor.save_pretrained(out / name)
    rename_for_all(out / name / "model.safetensors")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of the trainer; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m expunge.fiction.train", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/fiction"))
    parser.add_argument("--only", nargs="+", choices=("base", "vanilla", "gold"))
    parser.add_argument("--percent", type=float, default=10, help="share that gold never saw")
    parser.add_argument("--group", type=int, default=0, help="which division into sets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base-steps", type=int, default=BASE.steps)
    parser.add_argument("--steps", type=int, default=TUNE.steps)
    chosen = parser.parse_args(arguments)
    torch.manual_seed(chosen.seed)
    world, processor = World(), build_processor()
    shared: dict[str, Any] = {"world": world, "processor": processor, "seed": chosen.seed}
    only = chosen.only or ("base", "vanilla", "gold")
    if "base" in only:
        recipe = Recipe(chosen.base_steps, BASE.rate, people=BASE.people, public=BASE.public)
        model = build_model(processor, chosen.seed)
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
