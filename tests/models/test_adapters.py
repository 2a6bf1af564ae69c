"""A low-rank plan as a LoRA folder: peft's own loader must say what the edited model says."""

from __future__ import annotations

import copy
import json

import peft
import pytest
import torch

import expunge
from expunge.adapters import write_lora
from expunge.encoding import batches
from expunge.errors import InputError
from expunge.models import Prompter
from expunge.plan import Plan, SiteEdit
from expunge.sites import down_weight, find_sites

RANKS = {"vision.1": 1, "connector.0": 5, "language.0": 3, "language.1": 16, "language.3": 2}


@pytest.fixture(scope="module")
def plan(llava):
    generator = torch.Generator().manual_seed(0)
    sites = {s.key: s for s in find_sites(llava)}
    edits = {}
    for key, rank in RANKS.items():
        out, width = down_weight(llava, sites[key]).shape
        a, b = (0.2 * torch.randn(n, rank, generator=generator) for n in (out, width))
        edits[key] = SiteEdit(lowrank=(a, b.T))
    about = {
        k: {"tower": sites[k].tower, "path": sites[k].path, "width": sites[k].width} for k in RANKS
    }
    return Plan(edits, about, {"method": "filter", "base": {"id": "tiny"}})


@torch.no_grad()
def logits_of(model, processor, rows, condition):
    usable = [e for e in rows if e.has(condition)]
    batch = next(iter(batches(model, Prompter(processor), usable, condition)))
    return model(**batch.inputs).logits[batch.mask]


def test_peft_loads_what_the_plan_does(plan, llava, processor, few, tmp_path):
    folder = plan.to_peft(tmp_path / "adapter")
    assert sorted(p.name for p in folder.iterdir()) >= [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    adapted = peft.PeftModel.from_pretrained(copy.deepcopy(llava), folder).eval()
    ranks = {n: m.r["default"] for n, m in adapted.named_modules() if hasattr(m, "lora_A")}
    assert sorted(ranks.values()) == sorted(RANKS.values())
    for condition in ("multi", "text"):
        plain = logits_of(llava, processor, few["forget"], condition)
        with expunge.applied(llava, plan):
            wanted = logits_of(llava, processor, few["forget"], condition)
        found = logits_of(adapted, processor, few["forget"], condition)
        assert float((found - wanted).abs().max()) <= 1e-4 * max(1.0, float(wanted.abs().max()))
        assert float((wanted - plain).abs().max()) > 0.1


def test_merged_weights_are_the_edited_weights(plan, llava, tmp_path):
    write_lora(plan, tmp_path / "adapter")
    whole = peft.PeftModel.from_pretrained(copy.deepcopy(llava), tmp_path / "adapter")
    merged = dict(whole.merge_and_unload().named_parameters())
    with expunge.applied(llava, plan):
        for name, weight in llava.named_parameters():
            torch.testing.assert_close(merged[name], weight, rtol=1e-5, atol=1e-5)


def test_the_filter_becomes_an_adapter(llava, processor, few, tmp_path):
    made = expunge.make_plan(
        llava, processor, few["forget"], few["retain"], method="directions", budget=0.02
    )
    made.to_peft(tmp_path / "adapter")
    adapted = peft.PeftModel.from_pretrained(copy.deepcopy(llava), tmp_path / "adapter").eval()
    with expunge.applied(llava, made):
        wanted = logits_of(llava, processor, few["forget"], "text")
    found = logits_of(adapted, processor, few["forget"], "text")
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_site_of_rank_zero_is_left_out(plan, tmp_path):
    a, b = plan.edits["language.0"].lowrank
    edits = {**plan.edits, "language.0": SiteEdit(lowrank=(a[:, :0], b[:0]))}
    folder = write_lora(Plan(edits, plan.sites), tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert len(config["target_modules"]) == len(RANKS) - 1


def test_other_edits_are_refused(plan, tmp_path):
    pruned = {**plan.edits, "language.0": SiteEdit(prune=torch.tensor([1]))}
    with pytest.raises(InputError, match="edits language.0 by prune; only low-rank"):
        write_lora(Plan(pruned, plan.sites), tmp_path / "a")
    both = SiteEdit(prune=torch.tensor([1]), lowrank=plan.edits["language.0"].lowrank)
    with pytest.raises(InputError, match=r"by prune\+lowrank"):
        write_lora(Plan({"language.0": both}, plan.sites), tmp_path / "a")
    with pytest.raises(InputError, match="no low-rank edit"):
        write_lora(Plan({}, {}), tmp_path / "a")
    expert = {"language.0.expert.2": plan.edits["language.0"]}
    with pytest.raises(InputError, match="one expert of many"):
        write_lora(Plan(expert, {"language.0.expert.2": plan.sites["language.0"]}), tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_left_alone(plan, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        write_lora(plan, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert write_lora(plan, empty).joinpath("adapter_config.json").is_file()
