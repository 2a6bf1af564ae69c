"""Pretrain the vision tower alone, as the tower of a real model is before it meets language.

Pictures of random faces and scenes are drawn without end, and linear heads on the patch features
that the language model will read name what they show. The heads are thrown away. No portrait of
anybody in the world is drawn, and no look that is held out of the skills.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from expunge.fiction.build import IMAGE_TOKENS
from expunge.fiction.draw import (
    BEARDS,
    COLOURS,
    GLASSES,
    HAIR_STYLES,
    HATS,
    SHAPES,
    SHIRT_PATTERNS,
    SKINS,
    portrait,
    random_face,
    random_view,
    scene,
)  # fmt: skip
from expunge.fiction.skills import random_look

IGNORE = -100
CELLS = 9
MOST = 5
LABELS: Mapping[str, int] = {
    "kind": len(SHAPES), "colour": len(COLOURS), "number": MOST + 1, "cell": CELLS,
    "skin": len(SKINS), "hair": len(COLOURS), "style": HAIR_STYLES, "shirt": len(COLOURS),
    "pattern": SHIRT_PATTERNS, "second": len(COLOURS), "glasses": GLASSES, "hat": HATS,
    "hat_colour": len(COLOURS), "beard": BEARDS,
}  # fmt: skip


def picture(rng: np.random.Generator) -> tuple[np.ndarray, list[int]]:
    """Draw a scene or a face at random.

    Returns:
        Pixels, uint8 [64, 64, 3], and the class of each label in `LABELS`, `IGNORE` where the
        picture does not show it.
    """
    names = list(COLOURS)
    shown: dict[str, int] = {}
    if rng.random() < 0.5:
        kind, colour = random_look(rng, held_out=False)
        number = 1 if rng.random() < 0.5 else int(rng.integers(1, MOST + 1))
        cells = tuple(int(c) for c in rng.choice(CELLS, number, replace=False))
        image = scene(kind, colour, cells, random_view(rng))
        shown = {"kind": SHAPES.index(kind), "colour": names.index(colour), "number": number}
        if number == 1:
            shown["cell"] = cells[0]
    else:
        face = random_face(rng)
        image = portrait(face, random_view(rng), framed=rng.random() < 0.2)
        for label in face.__dataclass_fields__:
            value = getattr(face, label)
            shown[label] = names.index(value) if isinstance(value, str) else value
        if face.hat == 0:
            del shown["hat_colour"]
        if face.pattern == 0:
            del shown["second"]
    return np.asarray(image), [shown.get(label, IGNORE) for label in LABELS]


def pretrain(
    model: LlavaForConditionalGeneration,
    steps: int,
    rate: float,
    tick: Callable[[int, float, float], None],
    *,
    batch: int = 128,
    seed: int = 0,
) -> None:
    """Train the vision tower of `model` in place.

    Args:
        model: An untrained model; only its tower changes.
        steps: Optimiser steps.
        rate: Peak learning rate of a one-cycle schedule.
        tick: Called after each step with its number, the loss and the share of labels right.
        batch: Pictures a step.
        seed: Of the pictures and the heads.
    """
    rng = np.random.default_rng([seed, 61])
    tower = model.model.vision_tower
    width = IMAGE_TOKENS * tower.config.hidden_size
    heads = nn.ModuleDict({label: nn.Linear(width, n) for label, n in LABELS.items()})
    trained = [*tower.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    tower.train()
    for step in range(steps):
        drawn = [picture(rng) for _ in range(batch)]
        pixels = torch.from_numpy(np.stack([p for p, _ in drawn]))
        targets = torch.tensor([t for _, t in drawn])
        loss, right = _loss(model, heads, pixels, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        schedule.step()
        tick(step, loss.item(), right)


def _loss(
    model: LlavaForConditionalGeneration, heads: nn.ModuleDict, pixels: Tensor, targets: Tensor
) -> tuple[Tensor, float]:
    """Mean cross-entropy over labels, and the share of all shown labels named right."""
    layer = model.config.vision_feature_layer
    inputs = ((pixels.float() / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)
    states = model.model.vision_tower(inputs, output_hidden_states=True).hidden_states
    features = states[layer][:, 1:].flatten(1)
    losses, hits = [], []
    for number, head in enumerate(heads.values()):
        target = targets[:, number]
        shown = target != IGNORE
        if not bool(shown.any()):
            continue
        logits = head(features[shown])
        losses.append(functional.cross_entropy(logits, target[shown]))
        hits.append(logits.argmax(-1) == target[shown])
    return torch.stack(losses).mean(), float(torch.cat(hits).float().mean())
