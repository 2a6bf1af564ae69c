"""A checkpoint that is a peft adapter beside its base: refused, or merged on request."""

from __future__ import annotations

import peft
import pytest
import torch
from commands import expunge

from expunge import load


@pytest.fixture(scope="module")
def adapter(task, tmp_path_factory):
    """An adapter on the down projections of the task's model."""
    folder = tmp_path_factory.mktemp("peft") / "adapter"
    model, _ = load(task.vanilla, device="cpu")
    config = peft.LoraConfig(
        r=2, target_modules=r".*language_model.*down_proj", init_lora_weights=False
    )
    wrapped = peft.get_peft_model(model, config)
    wrapped.peft_config["default"].base_model_name_or_path = str(task.vanilla)
    wrapped.save_pretrained(str(folder))
    return folder


def test_an_adapter_is_refused_with_the_option_that_helps(task, adapter, tmp_path):
    said = expunge("run", *task.brief, "--model", adapter, "--out", tmp_path / "run")
    assert said.code == 2 and "--merge-adapter" in said.err
    assert not (tmp_path / "run" / "model").exists()


def test_a_merged_adapter_is_edited_and_saved_whole(task, adapter, tmp_path):
    out = tmp_path / "run"
    said = expunge("run", *task.brief, "--model", adapter, "--merge-adapter", "--out", out)
    assert said.code == 0, said.err
    whole, _ = load(adapter, device="cpu", merge_adapter=True)
    edited, _ = load(out / "model", device="cpu")
    pruned = 0
    for (name, before), after in zip(whole.named_parameters(), edited.parameters(), strict=True):
        if name.endswith(("down_proj.weight", "fc2.weight", "linear_2.weight")):
            changed = (before != after).any(0)
            assert not after[:, changed].any()
            pruned += int(changed.sum())
        else:
            assert torch.equal(before, after), name
    assert pruned > 100

    again = tmp_path / "again"
    options = ("--model", adapter, "--merge-adapter", "--out", again)
    assert expunge("apply", out / "plan.safetensors", *options).code == 0
    for one, two in zip(edited.parameters(), load(again)[0].parameters(), strict=True):
        assert torch.equal(one, two)

    base = tmp_path / "base"
    options = ("--model", adapter, "--merge-adapter", "--out", base)
    said = expunge("undo", again, *options)
    assert said.code == 0, said.err
    for one, two in zip(whole.parameters(), load(base)[0].parameters(), strict=True):
        assert torch.equal(one, two)
