"""The trainer of the embedded world: what it draws, what it changes, what it writes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from expunge.fiction import tower
from expunge.fiction.build import build_model, build_processor
from expunge.fiction.draw import COLOURS, SHAPES
from expunge.fiction.skills import held_out_look
from expunge.fiction.train import NAMES, main

FACE = {"skin", "hair", "style", "shirt", "pattern", "glasses", "hat", "beard"}


def test_pictures_of_the_tower_are_labelled_right():
    rng = np.random.default_rng(3)
    seen = set()
    for _ in range(200):
        pixels, classes = tower.picture(rng)
        shown = {k: c for k, c in zip(tower.LABELS, classes, strict=True) if c != tower.IGNORE}
        assert all(0 <= c < tower.LABELS[k] for k, c in shown.items())
        if "kind" not in shown:
            assert shown.keys() >= FACE
            continue
        assert not held_out_look(SHAPES[shown["kind"]], list(COLOURS)[shown["colour"]])
        assert ("cell" in shown) == (shown["number"] == 1)
        seen.add(shown["kind"])
        if "cell" in shown:
            row, column = divmod(shown["cell"], 3)
            middle = pixels[9 + 20 * row : 15 + 20 * row, 9 + 20 * column : 15 + 20 * column]
            drawn = np.array(list(COLOURS.values())[shown["colour"]], dtype=float)
            lights = np.linspace(0.8, 1.2, 41)[:, None]
            distance = np.abs(np.clip(lights * drawn, 0, 255) - np.median(middle, (0, 1))).max(1)
            assert distance.min() < 12
    assert len(seen) == len(SHAPES)


def test_the_tower_learns_alone_and_the_same_way_twice():
    models = [build_model(build_processor()) for _ in range(2)]
    before = {k: v.clone() for k, v in models[0].state_dict().items()}
    losses: list[list[float]] = []
    for model in models:
        torch.manual_seed(0)
        losses.append([])
        tower.pretrain(model, 30, 2e-3, lambda s, loss, r: losses[-1].append(loss), batch=32)
    assert losses[0] == losses[1]
    assert np.mean(losses[0][-5:]) < 0.9 * np.mean(losses[0][:5])
    changed = {k for k, v in models[0].state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all(".vision_tower." in k for k in changed)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Every checkpoint after one step."""
    out = tmp_path_factory.mktemp("trained")
    steps = ["--tower-steps", "1", "--base-steps", "1", "--steps", "1"]
    assert main(["--out", str(out), *steps]) == 0
    return out


def test_trainer_writes_plain_checkpoints(trained):
    assert sorted(p.name for p in trained.iterdir()) == sorted(NAMES)
    weights = {}
    for name in ("base", "vanilla", "gold"):
        model = AutoModelForImageTextToText.from_pretrained(trained / name)
        assert model.config.model_type == "llava"
        assert AutoProcessor.from_pretrained(trained / name).chat_template
        weights[name] = model.lm_head.weight
        assert (trained / name / "model.safetensors").stat().st_size < 12e6
    assert not torch.equal(weights["vanilla"], weights["gold"])
    assert not torch.equal(weights["vanilla"], weights["base"])
