"""The default method on models whose MLPs can have no biases."""

from dataclasses import replace

import pytest
import torch
from test_gated import little_noise
from transformers import MistralConfig, Qwen2Config

from expunge.data import CONDITIONS
from expunge.edit import applied, save_checkpoint
from expunge.encoding import batches
from expunge.fiction.build import as_kind
from expunge.fiction.shipped import checkpoint, suite
from expunge.models import Prompter, load
from expunge.plan import SiteEdit
from expunge.planning import make_plan
from expunge.probe_set import ProbeSet


@pytest.fixture(scope="module")
def shipped():
    return load(checkpoint("vanilla"))


@pytest.fixture(scope="module")
def world(shipped):
    """The shipped model as a Qwen2 with a window wider than any question, which says the same.

    A Llama knows no windows, so this cannot be made one that has biases in its MLPs; the values of
    its attention have some.
    """
    window = {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 0}
    return as_kind(*shipped, Qwen2Config, **window), shipped[1]


def logits(model, processor, rows):
    (batch,) = batches(model, Prompter(processor), rows, "text", batch_size=len(rows))
    with torch.inference_mode():
        return model(**batch.inputs).logits


def accuracies(model, processor, rows):
    return [ProbeSet(model, Prompter(processor), rows, c).run(model).accuracy for c in CONDITIONS]


def test_biases_of_values_stand_in(world, tmp_path):
    model, processor = world
    sets = dict(suite(5, 2).sets)
    some = sorted({e.subject for e in sets["forget"]})[:2]
    sets["forget"] = [e for e in sets["forget"] if e.subject in some]
    before = accuracies(model, processor, sets["neighbor"][::2])
    with little_noise():
        plan = make_plan(model, processor, sets["forget"][::3], sets["retain"][::8], strength=1.5)
    assert "used" not in plan.provenance
    assert plan.provenance["notes"]["ground"][0] == "language.0"
    assert any(e.rewire is not None and not e.rewire.bias.any() for e in plan.edits.values())
    ground = {k: SiteEdit(ground=e.ground) for k, e in plan.edits.items() if e.ground is not None}
    with applied(model, replace(plan, edits=ground)):  # alone they cost nothing
        assert accuracies(model, processor, sets["forget"]) == [1.0, 1.0]
        assert accuracies(model, processor, sets["neighbor"][::2]) == before
    with applied(model, plan):
        forgotten = accuracies(model, processor, sets["forget"])
        kept = accuracies(model, processor, sets["neighbor"][::2])
        said = logits(model, processor, sets["forget"][:3])
        save_checkpoint(model, processor, tmp_path / "model")
    # of an eighth of the retain questions and little noise; with all, docs/results.md
    assert max(forgotten) < 0.2 and min(kept) > 0.85
    again, processor = load(tmp_path / "model")
    assert again.config.text_config.model_type == "qwen2"
    assert torch.equal(logits(again, processor, sets["forget"][:3]), said)


def test_without_any_the_filter_decides(shipped):
    """A Mistral with a window has no biases at all."""
    model = as_kind(*shipped, MistralConfig, sliding_window=4096)
    sets = suite(5, 2).sets
    with little_noise():
        plan = make_plan(
            model, shipped[1], sets["forget"][::9], sets["retain"][::24], strength=10.0
        )
    assert plan.provenance["used"] == "filter-search"
    assert {e.kind for e in plan.edits.values()} == {"lowrank"}
    with applied(model, plan):
        assert max(accuracies(model, shipped[1], sets["forget"])) < 0.9
