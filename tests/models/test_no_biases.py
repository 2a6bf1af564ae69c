"""The default method on a model whose MLPs can have no biases."""

import pytest
import torch
from transformers import Qwen2Config

from expunge.data import CONDITIONS
from expunge.edit import applied, save_checkpoint
from expunge.encoding import batches
from expunge.fiction.build import as_kind
from expunge.fiction.shipped import checkpoint, suite
from expunge.models import Prompter, load
from expunge.planning import make_plan
from expunge.probe_set import ProbeSet


@pytest.fixture(scope="module")
def world():
    """The shipped model as a Qwen2 with a window wider than any question, which says the same.

    A Llama knows no windows, so this cannot be made one that has biases.
    """
    llama, processor = load(checkpoint("vanilla"))
    window = {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 0}
    return as_kind(llama, processor, Qwen2Config, **window), processor


def logits(model, processor, rows):
    (batch,) = batches(model, Prompter(processor), rows, "text", batch_size=len(rows))
    with torch.inference_mode():
        return model(**batch.inputs).logits


def test_it_forgets_all_the_same(world, tmp_path):
    model, processor = world
    sets = suite(5, 2).sets
    plan = make_plan(model, processor, sets["forget"][::3], sets["retain"][::8])
    assert plan.provenance["used"] == "filter-search"
    assert {e.kind for e in plan.edits.values()} == {"lowrank"}
    with applied(model, plan):
        found = {
            name: [
                ProbeSet(model, Prompter(processor), rows, c).run(model).accuracy
                for c in CONDITIONS
            ]
            for name, rows in (("forget", sets["forget"]), ("neighbor", sets["neighbor"][::2]))
        }
        said = logits(model, processor, sets["forget"][:3])
        save_checkpoint(model, processor, tmp_path / "model")
    # with an eighth of the retain questions; with all, neighbours keep 0.91 (docs/experiments.md)
    assert max(found["forget"]) < 0.4 and min(found["neighbor"]) > 0.83
    again, processor = load(tmp_path / "model")
    assert again.config.text_config.model_type == "qwen2"
    assert torch.equal(logits(again, processor, sets["forget"][:3]), said)
