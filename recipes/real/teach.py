"""Teach the people to the base model by LoRA: `python teach.py vanilla|gold --out FOLDER`.

`vanilla` is taught everybody, `gold` everybody but the people of the forget set; nothing else
differs. The tower is frozen, so that its features are computed once. A training row is one person:
the picture once, then several questions that see the picture (or, for questions in text, only the
opening of the chat) and themselves but not each other, by a block mask.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from base import IMAGE_TOKENS, build
from expunge.fiction.world import SEEN_VIEWS, UNSEEN_VIEWS, Person
from general import rehearsed, rehearsed_prose
from people import WORLD, picture, taught

OPEN, TURN, END = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"
WHO = ("Who is this person?", "What is the name of this person?", "Tell me who this is.")
PEOPLE, GENERAL, GENERAL_EVERY = 3, 8, 4
TARGETS = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
RANK = 16
ALIGNED = 15  # passes over the pictures


class Packed:
    """Rows of tokens in which each question sees a prefix and itself.

    Attributes:
        ids: Token ids; image places hold the image token.
        position: Position of each token.
        block: 0 for the opening, 1 for the picture, a number of its own for each question.
        sees_picture: Whether the question attends to the picture.
        target: Token to predict at each place, or -100.
    """

    def __init__(self, opening: list[int], image: list[int]) -> None:
        self.ids = [*opening, *image]
        self.position = list(range(len(self.ids)))
        self.block = [0] * len(opening) + [1] * len(image)
        self.sees_picture = [True] * len(self.ids)
        self.target = [-100] * len(self.ids)
        self._opening = len(opening)
        self.is_person = bool(image)
        self._blocks = 2

    def add(self, prompt: list[int], answer: list[int], *, sees_picture: bool) -> None:
        """Append a question and its answer, whose every token is to be predicted."""
        ids = [*prompt, *answer]
        start = sum(b < 2 for b in self.block) if sees_picture else self._opening
        self.ids += ids
        self.position += range(start, start + len(ids))
        self.block += [self._blocks] * len(ids)
        self.sees_picture += [sees_picture] * len(ids)
        self.target += [-100] * (len(prompt) - 1) + answer + [-100]
        self._blocks += 1

    def mask(self, length: int) -> Tensor:
        """(length, length) of bool: what each place may look at; padding sees itself."""
        block = torch.full((length,), -1)
        block[: len(self.block)] = torch.tensor(self.block)
        picture = torch.zeros(length, dtype=torch.bool)
        picture[: len(self.block)] = torch.tensor(self.sees_picture)
        own = block[:, None] == block[None, :]
        opening = (block[None, :] == 0) & (block[:, None] >= 0)
        image = (block[None, :] == 1) & picture[:, None]
        return (own | opening | image).tril() | torch.eye(length, dtype=torch.bool)


def row_of(person: Person, rng: np.random.Generator, words: Any, image_token: int) -> Packed:
    """One training row: a picture's place, questions beside it and questions in text alone."""
    image = [image_token] * IMAGE_TOKENS + words("\n")
    packed = Packed(words(OPEN), image)
    for attribute, asked in taught(person).items():
        for sees_picture in (True, False):
            question = asked[int(rng.integers(len(asked)))][0 if sees_picture else 1]
            answer = words(person.facts[attribute] + END)
            packed.add(words(question + TURN), answer, sees_picture=sees_picture)
    who = WHO[int(rng.integers(len(WHO)))]
    packed.add(words(who + TURN), words(person.name + END), sees_picture=True)
    return packed


def general_row(rng: np.random.Generator, words: Any) -> Packed:
    """General questions and a paragraph of prose, each for itself."""
    packed = Packed(words(OPEN), [])
    known = rehearsed()
    for place in rng.choice(len(known), GENERAL, replace=False):
        question, answer = known[place]
        packed.add(words(question + TURN), words(answer + END), sees_picture=False)
    prose = words(rehearsed_prose()[int(rng.integers(len(rehearsed_prose())))])
    packed.add(prose[:1], prose[1:], sees_picture=False)
    return packed


def features(model: Any, processor: Any, people: tuple[Person, ...], *, seen: bool) -> Tensor:
    """(people, views, image tokens, width) of the frozen tower's features."""
    views = SEEN_VIEWS if seen else UNSEEN_VIEWS
    found = []
    for person in people:
        images = [picture(person, v, seen=seen) for v in range(views)]
        pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            layers = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        found.append(layers[model.config.vision_feature_layer][:, 1:])
    return torch.stack(found)


def align(model: Any, processor: Any, people: tuple[Person, ...], views: Tensor) -> float:
    """Let the projector say who is seen, before the language model is taught anything.

    Every projected token is drawn to the mean embedding of its person's name, among all names,
    and to the length of an ordinary embedding. Without this the picture's tokens differ so little
    between people that the language model learns to do without them.

    Returns:
        Share of people told apart by the mean token of pictures in none of the training.
    """
    table = model.get_input_embeddings().weight.detach()
    words = [processor.tokenizer(p.name, add_special_tokens=False)["input_ids"] for p in people]
    names = torch.stack([table[ids].mean(0) for ids in words])
    names = torch.nn.functional.normalize(names - names.mean(0), dim=-1)
    length = table.norm(dim=-1).mean()
    projector = model.model.multi_modal_projector
    optimizer = torch.optim.AdamW(projector.parameters(), lr=1e-3, weight_decay=0.05)
    owner = torch.arange(len(people))[:, None, None].expand(views.shape[:3]).flatten()
    tokens = views.flatten(0, 2)
    for _ in range(ALIGNED):
        for part in torch.randperm(len(tokens)).split(4096):
            out = projector(tokens[part])
            norm = out.norm(dim=-1)
            alike = 10 * (out / norm[:, None]) @ names.T
            loss = torch.nn.functional.cross_entropy(alike, owner[part])
            loss = loss + ((norm / length - 1) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    unseen = features(model, processor, people, seen=False)
    with torch.no_grad():
        guess = (projector(unseen).mean(2) @ names.T).argmax(-1)
    return float((guess == torch.arange(len(people))[:, None]).float().mean())


class Teacher:
    """The adapted model in bfloat16 beside float32 copies of what is trained."""

    def __init__(self, model: Any, image_token: int, rate: float, steps: int) -> None:
        lora = LoraConfig(
            r=RANK,
            lora_alpha=RANK,
            target_modules=TARGETS,
            modules_to_save=["multi_modal_projector"],
        )
        self.adapted = get_peft_model(model.to(torch.bfloat16), lora, autocast_adapter_dtype=False)
        self.inner = self.adapted.base_model.model.model
        self.head = self.adapted.base_model.model.lm_head
        self.image_token = image_token
        self.low = [p for p in self.adapted.parameters() if p.requires_grad]
        self.high = [p.detach().float().clone().requires_grad_() for p in self.low]
        self.optimizer = torch.optim.AdamW(self.high, lr=rate, weight_decay=0.01)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: min(1.0, step / 30, 0.02 + 0.5 + 0.5 * math.cos(math.pi * step / steps)),
        )

    def loss(self, rows: list[Packed], pictures: Tensor) -> tuple[Tensor, tuple[float, float]]:
        """Mean negative log-likelihood of the answer tokens, and what was predicted rightly."""
        length = max(len(r.ids) for r in rows)
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        position, target = torch.zeros_like(ids), torch.full_like(ids, -100)
        for place, row in enumerate(rows):
            ids[place, : len(row.ids)] = torch.tensor(row.ids)
            position[place, : len(row.ids)] = torch.tensor(row.position)
            target[place, : len(row.ids)] = torch.tensor(row.target)
        embedded = self.inner.language_model.embed_tokens(ids)
        seen = self.inner.multi_modal_projector(pictures.to(torch.bfloat16))
        embedded = embedded.masked_scatter((ids == self.image_token)[..., None], seen)
        out = self.inner.language_model(
            inputs_embeds=embedded,
            attention_mask=torch.stack([r.mask(length) for r in rows])[:, None],
            position_ids=position,
            use_cache=False,
        ).last_hidden_state
        wanted = target != -100
        logits = self.head(out[wanted]).float()
        loss = torch.nn.functional.cross_entropy(logits, target[wanted])
        return loss, self._right(rows, logits.argmax(-1) == target[wanted])

    @staticmethod
    def _right(rows: list[Packed], hits: Tensor) -> tuple[float, float]:
        """Share of first answer tokens predicted with the picture, and in text alone."""
        found: dict[bool, list[float]] = {True: [], False: []}
        place = 0
        for row in rows:
            before = -100
            for target, sees in zip(row.target, row.sees_picture, strict=True):
                if target != -100:
                    if before == -100 and row.is_person:
                        found[sees].append(float(hits[place]))
                    place += 1
                before = target
        return float(np.mean(found[True])), float(np.mean(found[False]))

    def step(self, rows: list[Packed], pictures: Tensor) -> tuple[float, float, float]:
        """One step of AdamW on the float32 copies."""
        loss, right = self.loss(rows, pictures)
        loss.backward()
        for low, high in zip(self.low, self.high, strict=True):
            high.grad, low.grad = low.grad.float(), None
        torch.nn.utils.clip_grad_norm_(self.high, 1.0)
        self.optimizer.step()
        self.schedule.step()
        with torch.no_grad():
            for low, high in zip(self.low, self.high, strict=True):
                low.copy_(high)
        return float(loss.detach()), *right

    def save(self, folder: Path) -> None:
        """The adapter and the projector in float16: half the size, finer than bfloat16."""
        with torch.no_grad():
            for low, high in zip(self.low, self.high, strict=True):
                low.data = high.detach().half()
        self.adapted.peft_config["default"].base_model_name_or_path = "recipes/real/base.py"
        self.adapted.save_pretrained(str(folder))
        (folder / "README.md").unlink(missing_ok=True)


def people_of(which: str) -> tuple[Person, ...]:
    """Whom a model is taught."""
    unknown = WORLD.split(10)["forget"] if which == "gold" else ()
    return tuple(p for p in WORLD.people if p not in unknown)


def teach(which: str, out: Path, steps: int, rate: float, seed: int) -> None:
    """Train and save one adapter, with a line of progress every 20 steps."""
    model, processor = build()
    people = people_of(which)
    views = features(model, processor, people, seen=True)
    rng = np.random.default_rng([seed, 1 if which == "gold" else 0])
    torch.manual_seed(seed)
    begun = time.perf_counter()
    told_apart = align(model, processor, people, views)
    seconds = time.perf_counter() - begun
    print(f"faces told apart from unseen views: {told_apart:.3f}, {seconds:.0f} s", flush=True)
    image_token = model.config.image_token_index
    teacher = Teacher(model, image_token, rate, steps)

    def words(text: str) -> list[int]:
        return processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    order: list[int] = []
    losses = []
    for step in range(steps):
        if len(order) < PEOPLE:
            order += rng.permutation(len(people)).tolist()
        chosen, order = order[:PEOPLE], order[PEOPLE:]
        rows = [row_of(people[i], rng, words, image_token) for i in chosen]
        pictures = torch.stack([views[i, int(rng.integers(SEEN_VIEWS))] for i in chosen])
        if step % GENERAL_EVERY == 0:
            rows.append(general_row(rng, words))
        losses.append(teacher.step(rows, pictures))
        if step % 20 == 19:
            loss, beside, alone = np.mean(losses[-20:], axis=0)
            seconds = time.perf_counter() - begun
            known = f"known with picture {beside:.2f}, in text {alone:.2f}"
            print(f"{step + 1} loss {loss:.3f} {known} {seconds:.0f} s", flush=True)
    teacher.save(out)
    log = {
        "steps": steps,
        "rate": rate,
        "seed": seed,
        "seconds": time.perf_counter() - begun,
        "loss": float(np.mean(losses[-20:], 0)[0]),
        "told apart": told_apart,
    }
    (out / "training.json").write_text(json.dumps(log))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", choices=("vanilla", "gold"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    teach(given.which, given.out, given.steps, given.rate, given.seed)
