"""Edits on a real LLaVA: what they do to the function, and that nothing remains after undoing."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    MixtralConfig,
    MixtralForCausalLM,
)

from expunge.edit import applied, apply, fingerprint, restore, save_checkpoint
from expunge.errors import InputError
from expunge.formats.picture import load_image
from expunge.plan import Plan, SiteEdit
from expunge.rewire import Rewire
from expunge.sites import down_weight, find_sites, inner_of, inner_weight

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def numbers(seed, *shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def index(*values):
    return torch.tensor(values, dtype=torch.int64)


def plan_for(model, edits, **provenance):
    sites = {s.key: s for s in find_sites(model, attention=True)}
    about = {
        k: {"tower": k.split(".")[0], "path": sites[k].path, "width": sites[k].width}
        if k in sites
        else {"tower": k.split(".")[0], "path": "", "width": 4}
        for k in edits
    }
    base = {"model_type": model.config.model_type, "fingerprint": fingerprint(model)}
    return Plan(edits, about, {"method": "manu", "base": base, **provenance})


def weight_of(model, key):
    return down_weight(model, {s.key: s for s in find_sites(model, attention=True)}[key])


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model, before):
    """Every stored number as it was, bit for bit, and no hook left."""
    after = model.state_dict()
    return all(torch.equal(after[n].view(torch.uint8), before[n].view(torch.uint8)) for n in before)


def hooks(model):
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


@pytest.fixture(scope="module")
def batch(processor, rows):
    picture = load_image(rows["forget"][0].image)
    text = f"<user><image>{rows['forget'][0].question}<assistant>cook<end>"
    return dict(processor(text=[text], images=[picture], return_tensors="pt"))


@pytest.fixture(scope="module")
def logits(batch):
    @torch.no_grad()
    def run(model):
        return model(**batch, use_cache=False).logits

    return run


def pruning():
    return {
        "vision.1": SiteEdit(prune=index(3, 100, 383)),
        "connector.0": SiteEdit(prune=index(*range(0, 128, 2))),
        "language.0": SiteEdit(prune=index(0, 17, 511)),
        "language.3": SiteEdit(prune=index(*range(100))),
    }


def mixed():
    """Every kind of edit, several at one site."""
    off = torch.tensor([False, True, True])
    return {
        "vision.0": SiteEdit(scale=(index(2, 7), torch.tensor([0.3, -1.7]))),
        "language.1": SiteEdit(
            prune=index(4, 5),
            scale=(index(5, 9), torch.tensor([3.0, 0.1])),
            lowrank=(numbers(1, 128, 2), numbers(2, 2, 1024)),
        ),
        "language.2": SiteEdit(
            prune=index(30),
            steer=(index(0, 8, 500), torch.tensor([2.0, 0.5, 0.0]), off),
        ),
    }


def test_pruned_columns_are_zero_and_all_else_is_untouched(llava):
    before = state(llava)
    plan = plan_for(llava, pruning())
    expected = {k: weight_of(llava, k).clone() for k in plan.edits}
    with applied(llava, plan) as edited:
        assert edited is llava
        for key, edit in plan.edits.items():
            expected[key][:, edit.prune] = 0
            assert torch.equal(weight_of(llava, key), expected[key])
        changed = {n for n, t in llava.state_dict().items() if not torch.equal(t, before[n])}
        assert changed == {f"{about['path']}.weight" for about in plan.sites.values()}
    assert unchanged(llava, before)


def test_pruning_equals_silencing_the_neurons_while_the_model_runs(llava, logits):
    plan = plan_for(llava, pruning())
    handles = []
    for key, edit in plan.edits.items():

        def silence(_, inputs, edit=edit):
            z = inputs[0].clone()
            z[..., edit.prune] = 0
            return (z,)

        module = llava.get_submodule(plan.sites[key]["path"])
        handles.append(module.register_forward_pre_hook(silence))
    silenced = logits(llava)
    for handle in handles:
        handle.remove()
    with applied(llava, plan):
        pruned = logits(llava)
    torch.testing.assert_close(pruned, silenced, **CLOSE)
    assert (pruned - logits(llava)).abs().max() > 1e-2


def test_weights_follow_the_definition(llava):
    """W' = (W + A B) diag(s), computed densely in float64."""
    plan = plan_for(llava, mixed())
    wanted = {}
    for key, edit in plan.edits.items():
        dense = weight_of(llava, key).double().clone()
        if edit.lowrank is not None:
            dense += edit.lowrank[0].double() @ edit.lowrank[1].double()
        diagonal = torch.ones(dense.shape[1], dtype=torch.float64)
        if edit.scale is not None:
            diagonal[edit.scale[0]] = edit.scale[1].double()
        if edit.prune is not None:
            diagonal[edit.prune] = 0
        wanted[key] = dense * diagonal
    with applied(llava, plan):
        for key, dense in wanted.items():
            torch.testing.assert_close(weight_of(llava, key).double(), dense, **CLOSE)


def test_float64_weights_keep_their_precision_under_float32_factors(llava64):
    factor = torch.tensor([0.5])
    with applied(llava64, plan_for(llava64, {"vision.0": SiteEdit(scale=(index(2), factor))})):
        scaled = weight_of(llava64, "vision.0")[:, 2].clone()
    assert torch.equal(scaled, weight_of(llava64, "vision.0")[:, 2] * 0.5)


def test_steering_equals_a_hook_written_by_hand(llava, logits):
    edit = mixed()["language.2"].steer
    plan = plan_for(llava, {"language.2": SiteEdit(steer=edit)})

    def steer(_, inputs):
        z = inputs[0].clone()
        z[..., 0] += 2.0
        z[..., 8] = torch.clamp(z[..., 8] + 0.5, max=0)
        z[..., 500] = torch.clamp(z[..., 500], max=0)
        return (z,)

    handle = llava.get_submodule(plan.sites["language.2"]["path"]).register_forward_pre_hook(steer)
    by_hand = logits(llava)
    handle.remove()
    before, quiet = logits(llava), hooks(llava)
    with applied(llava, plan):
        assert torch.equal(logits(llava), by_hand) and hooks(llava) == quiet + 1
    assert not torch.equal(by_hand, before)
    assert torch.equal(logits(llava), before) and hooks(llava) == quiet


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_undoing_is_bit_exact_in_every_dtype(llava, dtype):
    model = copy.deepcopy(llava).to(dtype)
    weight_of(model, "language.1")[0, :4] = torch.tensor([-0.0, 0.0, 1e-7, -1e4], dtype=dtype)
    before, quiet = state(model), hooks(model)
    undo = apply(model, plan_for(model, mixed()))
    assert not unchanged(model, before)
    undo()
    assert unchanged(model, before) and hooks(model) == quiet
    undo()
    assert unchanged(model, before) and hooks(model) == quiet


def test_undoing_follows_a_model_that_moved_to_other_memory(llava):
    model = copy.deepcopy(llava)
    before = state(model)
    undo = Plan.apply(plan_for(model, pruning()), model)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    undo()
    assert unchanged(model, before)


def test_an_exception_inside_the_block_undoes_and_goes_on(llava):
    before, quiet = state(llava), hooks(llava)
    with pytest.raises(KeyError, match="ours"), applied(llava, plan_for(llava, mixed())):
        assert hooks(llava) == quiet + 1
        raise KeyError("ours")
    assert unchanged(llava, before) and hooks(llava) == quiet


def test_a_failure_half_way_undoes_what_was_done(llava):
    """The last edit breaks in the middle of its site: factors that do not fit their indices."""
    before, quiet = state(llava), hooks(llava)
    edits = mixed()
    a, b = numbers(3, 128, 1), numbers(4, 1, 1024)
    edits["language.3"] = SiteEdit(lowrank=(a, b), scale=(index(1, 2, 3), torch.ones(2)))
    with pytest.raises(RuntimeError):
        apply(llava, plan_for(llava, edits))
    assert unchanged(llava, before) and hooks(llava) == quiet


def test_composed_plans_act_as_one(llava, logits):
    one, other = plan_for(llava, pruning()), plan_for(llava, mixed())
    with applied(llava, one + other):
        forth = logits(llava)
    with applied(llava, other + one):
        assert torch.equal(logits(llava), forth)
    with applied(llava, one), applied(llava, other, check=False):
        torch.testing.assert_close(logits(llava), forth, **CLOSE)


def test_a_plan_for_other_weights_is_refused(llava):
    plan = plan_for(llava, pruning())
    model = copy.deepcopy(llava)
    model.lm_head.weight.data[0, 0] += 1e-3
    before = state(model)
    with pytest.raises(InputError, match=f"fingerprint {fingerprint(llava)}.*{fingerprint(model)}"):
        apply(model, plan)
    assert unchanged(model, before)
    with applied(model, plan, check=False):
        assert not weight_of(model, "language.0")[:, 17].any()


def test_a_plan_is_not_applied_twice(llava):
    plan = plan_for(llava, pruning())
    with applied(llava, plan), pytest.raises(InputError, match="made for other weights"):
        apply(llava, plan)


def test_any_change_of_any_number_changes_the_fingerprint(llava):
    """Also two changes whose sum is zero, and two numbers that change places."""
    model = copy.deepcopy(llava)
    seen = {fingerprint(model)}
    weight = model.model.language_model.layers[2].mlp.down_proj.weight.data.view(-1)
    bits = weight.view(torch.int32)
    for at in (1, 12_345, weight.numel() - 1):
        bits[at] += 1
        seen.add(fingerprint(model))
        bits[at - 1] -= 1
        seen.add(fingerprint(model))
        bits[at] -= 1
        bits[at - 1] += 1
    weight[[70, 9000]] = weight[[9000, 70]]
    seen.add(fingerprint(model))
    weight[[70, 9000]] = weight[[9000, 70]]
    assert len(seen) == 8 and fingerprint(model) == fingerprint(llava)
    assert fingerprint(model.to(torch.float16)) not in seen


@pytest.mark.parametrize(
    ("key", "edit", "message"),
    [
        ("language.9", SiteEdit(prune=index(0)), "site language.9, which this model does not"),
        ("language.0", SiteEdit(prune=index(1024)), "neurons 1024 to 1024 .* 0 to 1023"),
        ("language.0", SiteEdit(prune=index(-1, 3)), "neurons -1 to 3 .* 0 to 1023"),
        (
            "language.0",
            SiteEdit(lowrank=(numbers(0, 127, 2), numbers(1, 2, 1024))),
            r"\(127, 2\) and \(2, 1024\), which do not multiply to \(128, 1024\)",
        ),
        (
            "language.0",
            SiteEdit(lowrank=(numbers(0, 128, 3), numbers(1, 2, 1024))),
            r"\(128, 3\) and \(2, 1024\)",
        ),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_before_anything_changes(llava, key, edit, message):
    before = state(llava)
    with pytest.raises(InputError, match=message):
        apply(llava, plan_for(llava, {"vision.0": SiteEdit(prune=index(1)), key: edit}))
    assert unchanged(llava, before)


def test_a_plan_for_a_wider_site_is_refused(llava):
    plan = plan_for(llava, pruning())
    wider = {k: {**about, "width": 2 * about["width"]} for k, about in plan.sites.items()}
    with pytest.raises(InputError, match=r"expects 768 neurons at vision\.1, .* has 384"):
        apply(llava, Plan(plan.edits, wider, plan.provenance))


def test_attention_sites_can_be_edited(llava, logits):
    plan = plan_for(llava, {"language.1.attention": SiteEdit(prune=index(5, 6))})
    before = logits(llava)
    with applied(llava, plan):
        assert not weight_of(llava, "language.1.attention")[:, 5:7].any()
        assert not torch.equal(logits(llava), before)


@pytest.fixture(scope="module")
def mixture():
    """A tiny model with four experts a layer."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    return MixtralForCausalLM(config).eval()


def test_one_expert_can_be_pruned_and_comes_back(mixture):
    key = "language.0.expert.2"
    before = state(mixture)
    plan = plan_for(mixture, {key: SiteEdit(prune=index(3, 20))})
    with applied(mixture, plan):
        assert not weight_of(mixture, key)[:, [3, 20]].any()
        kept = [n for n in range(24) if n not in (3, 20)]
        assert torch.equal(weight_of(mixture, key)[:, kept] != 0, torch.ones(16, 22).bool())
        for other in (0, 1, 3):
            assert weight_of(mixture, f"language.0.expert.{other}").all()
    assert unchanged(mixture, before)


def test_one_expert_cannot_be_steered(mixture):
    steer = (index(0), torch.ones(1), torch.tensor([False]))
    with pytest.raises(InputError, match=r"language\.0\.expert\.2 is one expert of many"):
        apply(mixture, plan_for(mixture, {"language.0.expert.2": SiteEdit(steer=steer)}))


def test_a_plan_from_a_file_does_the_same(llava, logits, tmp_path):
    edits = {k: e for k, e in mixed().items() if k != "vision.0"}
    plan = plan_for(llava, edits)
    with applied(llava, plan):
        wanted = logits(llava)
    with applied(llava, Plan.load(plan.save(tmp_path / "plan"))):
        assert torch.equal(logits(llava), wanted)


@pytest.fixture(scope="module")
def saved(llava, processor, tmp_path_factory):
    """Folders of the base and the edited checkpoint."""
    folder = tmp_path_factory.mktemp("saved")
    save_checkpoint(llava, processor, folder / "base")
    with applied(llava, plan_for(llava, pruning())):
        save_checkpoint(llava, processor, folder / "edited")
    return folder


def test_a_saved_checkpoint_is_an_ordinary_one(llava, logits, batch, rows, saved):
    model = AutoModelForImageTextToText.from_pretrained(saved / "edited").eval()
    plan = plan_for(llava, pruning())
    with applied(llava, plan):
        assert torch.equal(logits(model), logits(llava))
    for key, edit in plan.edits.items():
        assert not weight_of(model, key)[:, edit.prune].any()
    processor = AutoProcessor.from_pretrained(saved / "edited", backend="pil")
    text = f"<user><image>{rows['forget'][0].question}<assistant>cook<end>"
    again = processor(text=[text], images=[load_image(rows["forget"][0].image)])
    assert torch.equal(torch.as_tensor(again["input_ids"]), batch["input_ids"])
    assert torch.allclose(torch.as_tensor(again["pixel_values"][0]), batch["pixel_values"][0])


def test_the_fingerprint_survives_saving_and_loading(llava, saved):
    loaded = AutoModelForImageTextToText.from_pretrained(saved / "base")
    assert fingerprint(loaded) == fingerprint(llava)


def test_no_partial_folder_remains_and_full_folders_are_kept(llava, saved, tmp_path):
    assert sorted(p.name for p in saved.iterdir()) == ["base", "edited"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(InputError, match=f"{name} exists and is not an empty folder"):
            save_checkpoint(llava, None, tmp_path / name)
    assert (tmp_path / "full" / "note.txt").read_text() == "mine"
    assert (tmp_path / "file").read_text() == "mine"


def test_an_empty_folder_and_leftovers_are_taken_over(llava, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial" / "half.safetensors").write_bytes(b"half")
    save_checkpoint(llava, None, tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert "half.safetensors" not in {p.name for p in (tmp_path / "model").iterdir()}


def test_a_checkpoint_that_cannot_be_written_leaves_nothing(llava, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written to"):
        save_checkpoint(llava, None, tmp_path / "file" / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_restoring_a_checkpoint_gives_the_base_back(llava, saved, tmp_path):
    folder = restore(saved / "edited", saved / "base", tmp_path / "restored")
    restored = AutoModelForImageTextToText.from_pretrained(folder)
    assert unchanged(restored, state(llava))


def test_restoring_from_another_base_is_refused(llava, processor, saved, tmp_path):
    other = copy.deepcopy(llava)
    other.model.language_model.norm.weight.data += 0.1
    save_checkpoint(other, processor, tmp_path / "other")
    with pytest.raises(InputError, match="was not made from .*: model.language_model.norm.weight"):
        restore(saved / "edited", tmp_path / "other", tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


@pytest.mark.parametrize("constants", [1, 3])
def test_new_neurons_of_which_some_lack_a_constant_are_refused(llava64, constants):
    """A constant for each or none; nothing is changed before that is known."""
    before = {name: value.clone() for name, value in llava64.state_dict().items()}
    site = next(s for s in find_sites(llava64) if s.key == "language.0")
    inner = inner_of(llava64, site)
    wide, out = inner_weight(llava64, inner.gate[0], site).shape[1], len(down_weight(llava64, site))
    each = numbers(1, 2)
    rows, down = numbers(2, 2, wide), numbers(3, out, 2)
    new = Rewire(index(0, 5), rows, each, each, down, index(0, 5), numbers(4, constants))
    with pytest.raises(InputError, match=r"new neurons at language\.0 are .* expected"):
        apply(llava64, plan_for(llava64, {site.key: SiteEdit(rewire=new)}))
    assert all(torch.equal(v, before[n]) for n, v in llava64.state_dict().items())
