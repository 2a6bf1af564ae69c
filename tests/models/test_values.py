"""Biases of the values of attention: the same at every position, whatever is attended to."""

from dataclasses import replace

import pytest
import torch
from transformers import MistralConfig, OPTConfig, OPTForCausalLM, Qwen2Config, Qwen2Model

from expunge.edit import applied, fingerprint, restore, save_checkpoint
from expunge.encoding import batches
from expunge.errors import InputError
from expunge.fiction.build import as_gemma, as_kind
from expunge.fiction.shipped import checkpoint, suite
from expunge.models import Prompter, load
from expunge.plan import Plan, SiteEdit
from expunge.sites import find_sites, takes_values, value_bias, values_of
from expunge.sites.grow import Option, owner_of

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 50}


@pytest.mark.parametrize("shared", [4, 2, 1])
def test_what_they_write_comes_out_at_every_position(shared):
    """Heads that share values with others included; against the attention itself."""
    torch.manual_seed(0)
    config = Qwen2Config(**SIZES, num_attention_heads=4, num_key_value_heads=shared)
    model = Qwen2Model(config).eval()
    site = find_sites(model)[1]
    values, bias, heard = values_of(model, site), value_bias(model, site), []
    attention = model.layers[1].self_attn
    attention.register_forward_hook(lambda m, given, out: heard.append(out[0]))
    change = torch.randn(len(bias))
    tokens = torch.randint(0, 50, (3, 7))
    with torch.no_grad():
        model(tokens)
        bias += change
        model(tokens)
    moved = heard[1] - heard[0]
    torch.testing.assert_close(
        moved, (values.write @ change).expand_as(moved), atol=1e-5, rtol=1e-4
    )
    weight = attention.v_proj.weight
    x = torch.randn(4000, 32)
    typical = (x @ weight.detach().T).square().sum(1).mean().sqrt()
    assert values.size == pytest.approx(float(typical), rel=0.05)


@pytest.fixture(scope="module")
def world():
    llama, processor = load(checkpoint("vanilla"))
    return as_kind(llama, processor, Qwen2Config), processor


def plan_for(model, number=128):
    site = next(s for s in find_sites(model) if s.key == "language.1")
    about = {site.key: {"tower": site.tower, "path": site.path, "width": site.width}}
    change = torch.randn(number, generator=torch.Generator().manual_seed(2))
    base = {"base": {"fingerprint": fingerprint(model)}}
    return Plan({site.key: SiteEdit(ground=change)}, about, base)


def test_a_plan_changes_them_and_is_undone(world, tmp_path):
    model, processor = world
    plan = Plan.load(plan_for(model).save(tmp_path / "plan"))
    change = plan.edits["language.1"].ground
    assert plan.edits["language.1"].kind == "ground" and plan.bytes == 4 * len(change)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    name = next(n for n in before if n.endswith("language_model.layers.1.self_attn.v_proj.bias"))
    with applied(model, plan):
        assert torch.equal(model.state_dict()[name], before[name] + change)
        others = {n: v for n, v in model.state_dict().items() if n != name}
        assert all(torch.equal(value, before[n]) for n, value in others.items())
        save_checkpoint(model, processor, tmp_path / "edited")
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())
    save_checkpoint(model, processor, tmp_path / "base")
    again = restore(tmp_path / "edited", tmp_path / "base", tmp_path / "again")
    assert fingerprint(load(again)[0]) == fingerprint(model)


def test_two_plans_have_one_constant(world):
    """Thresholds are in proportion to it, so that the sum would be twice as much."""
    one = plan_for(world[0]).edits["language.1"]
    other = replace(one, ground=one.ground + 0.01)
    for both in (one.join(other), other.join(one), one.join(other).join(one)):
        assert torch.equal(both.ground, other.ground)


@pytest.fixture(scope="module")
def shipped():
    return load(checkpoint("vanilla"))


def test_a_model_that_can_have_none_is_refused(shipped, world):
    mistral = as_kind(*shipped, MistralConfig)
    assert all(takes_values(mistral, s) is None for s in find_sites(mistral))
    assert all(values_of(mistral, s) is None for s in find_sites(mistral))
    with pytest.raises(InputError, match="of which there can be none"):
        replace(plan_for(mistral), provenance={}).apply(mistral)
    with pytest.raises(InputError, match="adds 7 numbers .* of which 128"):
        plan_for(world[0], 7).apply(world[0])


def logits(model, processor):
    rows = suite().sets["retain"][:4]
    (batch,) = batches(model, Prompter(processor), rows, "multi", batch_size=4)
    with torch.inference_mode():
        return model(**batch.inputs).logits


def test_a_model_that_can_be_given_them_is(shipped, tmp_path):
    """A Gemma: they are zero but where the plan says, are saved, and are gone afterwards."""
    model, processor = as_gemma(*shipped), shipped[1]
    said = logits(model, processor)
    torch.testing.assert_close(said, logits(*shipped), atol=1e-4, rtol=1e-4)
    site = next(s for s in find_sites(model) if s.key == "language.1")
    assert value_bias(model, site) is None and takes_values(model, site) == 128
    before = fingerprint(model)
    plan = plan_for(model)
    with applied(model, plan):
        grown = {n: v for n, v in model.state_dict().items() if "self_attn" in n and "bias" in n}
        mine = {n: v for n, v in grown.items() if "language_model" in n and v.any()}
        (changed,) = mine.values()
        assert torch.equal(changed, plan.edits["language.1"].ground)
        assert next(iter(mine)).endswith("layers.1.self_attn.v_proj.bias")
        edited = logits(model, processor)
        assert (edited - said).abs().max() > 0.1
        save_checkpoint(model, processor, tmp_path / "edited")
    assert fingerprint(model) == before and value_bias(model, site) is None
    assert model.config.text_config.attention_bias is False
    again, processor = load(tmp_path / "edited")
    assert again.config.text_config.attention_bias and torch.equal(logits(again, processor), edited)
    save_checkpoint(model, processor, tmp_path / "base")
    restored = restore(tmp_path / "edited", tmp_path / "base", tmp_path / "restored")
    assert fingerprint(load(restored)[0]) == before


@pytest.mark.parametrize("switch", ["attention_bias", "mlp_bias"])
def test_a_switch_that_the_model_does_not_heed_is_none(switch):
    """OPT's layers look at other switches, whatever stands in its configuration."""
    model = OPTForCausalLM(
        OPTConfig(hidden_size=32, ffn_dim=64, num_hidden_layers=1, num_attention_heads=2)
    )
    setattr(model.config, switch, False)
    (site,) = (s for s in find_sites(model) if s.kind == "mlp")
    option = Option(switch, ("v_proj", "fc1", "fc2"))
    assert owner_of(model, site.path, option) is None


def test_an_adapter_cannot_hold_them(world, tmp_path):
    with pytest.raises(InputError, match="by ground; .* save the edited checkpoint instead"):
        plan_for(world[0]).to_peft(tmp_path / "adapter", world[0])
