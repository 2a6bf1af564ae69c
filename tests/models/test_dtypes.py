"""Weights of other kinds: half precision, tied, quantised, adapted, offloaded, in many files."""

from __future__ import annotations

import copy
import json

import accelerate
import peft
import pytest
import torch
import transformers
from families import FAMILIES

from expunge import make_plan
from expunge.collect import collect_inputs
from expunge.edit import applied, fingerprint, save_checkpoint
from expunge.encoding import as_floats, input_device
from expunge.errors import InputError
from expunge.models import load
from expunge.plan import Plan, SiteEdit
from expunge.sites import down_module, down_weight, find_sites


def batch_of(name, model, dtype=torch.float32):
    family = FAMILIES[name]
    return as_floats(family.inputs(model, "multi") or family.inputs(model, "text"), dtype)


@torch.no_grad()
def logits(model, batch):
    return model(**batch).logits


def plan_for(model, keys, edit=None, check=True):
    """A plan that prunes two neurons of each site, made for these very weights."""
    sites = {s.key: s for s in find_sites(model) if s.key in keys}
    about = {k: {"tower": s.tower, "path": s.path, "width": s.width} for k, s in sites.items()}
    edit = edit or SiteEdit(prune=torch.tensor([3, 11]))
    origin = {"base": {"fingerprint": fingerprint(model)}} if check else {}
    return Plan(dict.fromkeys(about, edit), about, origin)


# Half precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float64(dtype):
    model = FAMILIES["llama"].build().to(dtype)
    batch = batch_of("llama", model)
    seen = []
    site = find_sites(model)[1]
    handle = down_module(model, site).register_forward_pre_hook(lambda _, z: seen.append(z[0]))
    logits(model, batch)
    handle.remove()
    found = collect_inputs(model, [batch], sites=[site]).neurons[site.key]
    rows = seen[0][batch["attention_mask"].bool()].double()
    assert rows.dtype == torch.float64 and seen[0].dtype == dtype
    assert {found.total.dtype, found.absolute.dtype, found.square.dtype} == {torch.float64}
    torch.testing.assert_close(found.total, rows.sum(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.absolute, rows.abs().sum(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.square, rows.square().sum(0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["llava", "mixtral"])
def test_every_precision_is_edited_saved_and_undone(name, dtype, tmp_path):
    model = FAMILIES[name].build().to(dtype)
    keys = {s.key for s in find_sites(model) if s.tower == "language"}
    factors = torch.tensor([0.5, 1.25], dtype=torch.float64)
    edit = SiteEdit(prune=torch.tensor([0]), scale=(torch.tensor([2, 5]), factors))
    before = {n: p.clone() for n, p in model.state_dict().items()}
    plan = plan_for(model, keys, edit)
    undo = plan.apply(model)
    changed = {n: p.clone() for n, p in model.state_dict().items()}
    save_checkpoint(model, None, tmp_path / "model")
    undo()
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
    reloaded = type(model).from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(reloaded[n], p) and p.dtype == dtype for n, p in changed.items())
    assert sum(not torch.equal(p, before[n]) for n, p in changed.items()) == 2


def test_half_precision_agrees_with_single_precision():
    model = FAMILIES["llava"].build()
    exact = collect_inputs(model, [batch_of("llava", model)]).neurons
    half = collect_inputs(model.half(), [batch_of("llava", model, torch.float16)]).neurons
    for key, stats in exact.items():
        torch.testing.assert_close(half[key].absolute, stats.absolute, rtol=0.05, atol=0.05)


# Tied weights


def test_tied_embeddings_stay_tied(tmp_path):
    config = transformers.LlamaConfig(**{**FAMILIES["llama"].config, "tie_word_embeddings": True})
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    batch = batch_of("llama", model)
    with applied(model, plan_for(model, {"language.0"})):
        assert model.lm_head.weight is model.model.embed_tokens.weight
        expected = logits(model, batch)
        save_checkpoint(model, None, tmp_path / "model")
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "model")
    assert again.lm_head.weight is again.model.embed_tokens.weight
    torch.testing.assert_close(logits(again, batch), expected)


# Quantised weights


def test_quantised_weights_are_read_and_not_edited():
    torchao = pytest.importorskip("torchao.quantization")
    model = FAMILIES["llama"].build()
    batch = batch_of("llama", model)
    exact = collect_inputs(model, [batch]).neurons
    plan = plan_for(model, {"language.1"}, check=False)
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    near = collect_inputs(model, [batch]).neurons
    for key, stats in exact.items():
        assert near[key].count == stats.count
        torch.testing.assert_close(near[key].absolute, stats.absolute, rtol=0.1, atol=0.3)
    with pytest.raises(InputError, match=r"language\.1.*load the checkpoint unquantised"):
        plan.apply(model)


def test_plans_are_made_on_a_quantised_model_and_carried_out_on_the_whole_one(
    llava, processor, few
):
    torchao = pytest.importorskip("torchao.quantization")
    small = copy.deepcopy(llava)
    torchao.quantize_(small, torchao.Int8WeightOnlyConfig())
    assert fingerprint(small) not in (fingerprint(llava), fingerprint(copy.deepcopy(llava).half()))
    plan = make_plan(small, processor, few["forget"], few["retain"], method="manu", budget=0.05)
    with pytest.raises(InputError, match="load the checkpoint unquantised.*quantise again"):
        plan.apply(small)
    with pytest.raises(InputError, match="made for other weights"):
        plan.apply(llava)
    before = {name: value.clone() for name, value in llava.state_dict().items()}
    with applied(llava, plan, check=False):
        changed = [n for n, v in llava.state_dict().items() if not v.equal(before[n])]
        assert len(changed) == len(plan.edits) > 0
    assert all(value.equal(before[name]) for name, value in llava.state_dict().items())


def test_methods_that_read_weights_refuse_quantised_ones(llava, processor, few):
    torchao = pytest.importorskip("torchao.quantization")
    small = copy.deepcopy(llava)
    torchao.quantize_(small, torchao.Int8WeightOnlyConfig())
    with pytest.raises(InputError, match="load the checkpoint unquantised"):
        make_plan(small, processor, few["forget"], few["retain"], method="filter")


# Adapters


def adapted(targets):
    torch.manual_seed(0)
    base = FAMILIES["llama"].build()
    config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    return peft.get_peft_model(base, config).eval()


def test_statistics_run_through_an_adapter():
    plain = collect_inputs(base := FAMILIES["llama"].build(), [batch_of("llama", base)]).neurons
    model = adapted(["q_proj", "down_proj"])
    batch = batch_of("llama", model)
    through = collect_inputs(model, [batch]).neurons
    merged = collect_inputs(model.merge_and_unload(), [batch]).neurons
    for key, stats in through.items():
        torch.testing.assert_close(stats.total, merged[key].total, rtol=1e-4, atol=1e-4)
        assert (stats.total - plain[key].total).abs().max() > 1e-3


def test_adapted_weights_are_edited_only_once_merged(tmp_path):
    model = adapted(["down_proj"])
    plan = plan_for(model, {"language.0"}, check=False)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(InputError, match=r"PEFT adapter.*merge_and_unload"):
        plan.apply(model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    merged = model.merge_and_unload()
    undo = plan.apply(merged)
    column = down_weight(merged, find_sites(merged)[0])[:, 3]
    assert column.abs().max() == 0
    undo()
    assert column.abs().max() > 0


def test_a_model_with_an_adapter_is_not_saved_as_a_checkpoint(tmp_path):
    with pytest.raises(InputError, match=r"adapter.*merge_and_unload"):
        save_checkpoint(adapted(["q_proj"]), None, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_adapter_folders_are_loaded_and_merged_on_request(tmp_path):
    from expunge.fiction.build import build_processor

    base = FAMILIES["llama"].build()
    base.save_pretrained(tmp_path / "base")
    build_processor().tokenizer.save_pretrained(tmp_path / "base")
    model = peft.get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base"),
        peft.LoraConfig(target_modules=["down_proj"], init_lora_weights=False),
    ).eval()
    batch = batch_of("llama", model)
    expected = logits(model, batch)
    model.save_pretrained(tmp_path / "adapter")
    through, _ = load(tmp_path / "adapter", device="cpu")
    merged, _ = load(tmp_path / "adapter", device="cpu", merge_adapter=True)
    torch.testing.assert_close(logits(through, batch), expected)
    torch.testing.assert_close(logits(merged, batch), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="merge_and_unload"):
        down_weight(through, find_sites(through)[0])
    assert down_weight(merged, find_sites(merged)[0]).shape == (32, 56)
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="names no base_model_name_or_path"):
        load(tmp_path / "adapter")


# Offload

PLACES = {
    "model.vision_tower": "cpu",
    "model.multi_modal_projector": "cpu",
    "model.language_model.embed_tokens": "cpu",
    "model.language_model.layers.0": "cpu",
    "model.language_model.layers.1": "disk",
    "model.language_model.norm": "disk",
    "model.language_model.rotary_emb": "cpu",
    "lm_head": "disk",
}


@pytest.fixture
def offloaded(tmp_path):
    """A checkpoint, the model loaded whole, and loaded with a layer on disk."""
    FAMILIES["llava"].build().save_pretrained(tmp_path / "base")
    auto = transformers.AutoModelForImageTextToText
    whole = auto.from_pretrained(tmp_path / "base").eval()
    apart = auto.from_pretrained(
        tmp_path / "base", device_map=dict(PLACES), offload_folder=tmp_path / "offload"
    ).eval()
    return tmp_path, whole, apart


def on_meta(model):
    return [n for n, p in model.named_parameters() if p.device.type == "meta"]


def test_disk_offload_reads_and_edits(offloaded):
    folder, whole, apart = offloaded
    assert any("layers.1.mlp.down_proj" in name for name in on_meta(apart))
    assert input_device(apart) == torch.device("cpu")
    batch = batch_of("llava", whole)
    same(collect_inputs(whole, [batch]).neurons, collect_inputs(apart, [batch]).neurons)
    assert fingerprint(apart) == fingerprint(whole)
    files = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    before = logits(apart, batch)
    plan = plan_for(whole, {"vision.0", "language.0", "language.1"})
    undo = plan.apply(apart)
    assert fingerprint(apart) != fingerprint(whole)
    with applied(whole, plan):
        torch.testing.assert_close(logits(apart, batch), logits(whole, batch))
        save_checkpoint(apart, None, folder / "edited")
        reloaded = type(whole).from_pretrained(folder / "edited").state_dict()
        assert all(torch.equal(reloaded[n], p) for n, p in whole.state_dict().items())
    undo()
    assert torch.equal(logits(apart, batch), before)
    assert fingerprint(apart) == fingerprint(whole)
    assert all(p.read_bytes() == content for p, content in files.items())


def same(one, two):
    assert one.keys() == two.keys()
    for key, stats in one.items():
        assert stats.count == two[key].count
        torch.testing.assert_close(stats.total, two[key].total)


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_offload_of_every_layer_reads_and_edits(name):
    model, whole = FAMILIES[name].build(), FAMILIES[name].build()
    batch = batch_of(name, whole)
    print_ = fingerprint(model)
    accelerate.cpu_offload(model, torch.device("cpu"))
    assert len(on_meta(model)) == len(list(model.parameters()))
    assert fingerprint(model) == print_
    same(collect_inputs(model, [batch]).neurons, collect_inputs(whole, [batch]).neurons)
    plan = plan_for(whole, {s.key for s in find_sites(whole)})
    before = logits(model, batch)
    undo = plan.apply(model)
    with applied(whole, plan):
        torch.testing.assert_close(logits(model, batch), logits(whole, batch))
    undo()
    assert torch.equal(logits(model, batch), before)


# Several files


def test_checkpoints_of_several_files_are_written_back_so(tmp_path):
    built = FAMILIES["llava"].build()
    built.save_pretrained(tmp_path / "base", max_shard_size=30_000)
    names = {p.name for p in (tmp_path / "base").glob("*.safetensors")}
    assert len(names) > 2
    model = type(built).from_pretrained(tmp_path / "base").eval()
    batch = batch_of("llava", model)
    plan = plan_for(model, {"language.0", "vision.0"})
    with applied(model, plan):
        expected = logits(model, batch)
        save_checkpoint(model, None, tmp_path / "edited")
    index = json.loads((tmp_path / "edited" / "model.safetensors.index.json").read_text())
    shards = {p.name: p.stat().st_size for p in (tmp_path / "edited").glob("*.safetensors")}
    assert set(index["weight_map"].values()) == set(shards) and len(shards) > 2
    largest = max(p.stat().st_size for p in (tmp_path / "base").glob("*.safetensors"))
    assert max(shards.values()) <= 1.1 * largest
    again = type(model).from_pretrained(tmp_path / "edited").eval()
    assert torch.equal(logits(again, batch), expected)
    save_checkpoint(built, None, tmp_path / "one")
    assert [p.name for p in (tmp_path / "one").glob("*.safetensors")] == ["model.safetensors"]
