"""Statistics of each expert of a mixture, against transformers' own loop over the experts."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, TEXT, Family, unmake
from torch import nn
from transformers import CONFIG_MAPPING
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from expunge.collect import Counting, collect_inputs, record
from expunge.edit import fingerprint
from expunge.errors import InputError
from expunge.experts import listening
from expunge.plan import Plan, SiteEdit
from expunge.sites import find_sites
from expunge.stats import NeuronStats

DECORATED = ["gpt-oss", "mixtral", "qwen2-moe", "qwen3-moe", "qwen3-vl-moe"]
DECORATED += [name for name in ("aria",) if name in FAMILIES]
MIXTURES = [*DECORATED, "llama4"]
DISPATCH = ("eager", "grouped_mm", "batched_mm")


@pytest.fixture(params=MIXTURES)
def mixture(request):
    """Model, a padded batch, and the sites of its experts."""
    family = FAMILIES[request.param]
    model = family.build()
    batch = family.inputs(model, "multi") or family.inputs(model, "text")
    return model, batch, [s for s in find_sites(model) if s.kind == "expert"]


@torch.no_grad()
def logits(model, batch):
    return model(**batch).logits


def hidden_units(experts, hidden, expert):
    """z of an expert in float64, written out for each kind of weights."""
    up = experts.gate_up_proj[expert].detach().double()
    hidden = hidden.double()
    if type(experts).__name__ == "GptOssExperts":
        mixed = hidden @ up + experts.gate_up_proj_bias[expert].detach().double()
        gate, line = mixed[:, 0::2].clamp(max=7.0), mixed[:, 1::2].clamp(-7.0, 7.0)
        return (line + 1) * gate * torch.sigmoid(1.702 * gate)
    turned = up.shape[0] == hidden.shape[1] and up.shape[1] == 2 * experts.down_proj.shape[1]
    gate, line = (hidden @ (up if turned else up.T)).chunk(2, dim=-1)
    return nn.functional.silu(gate) * line


def slow_sums(model, sites, batch):
    """Count, sum of z and of |z| by site, token by token, from what enters the experts."""
    mask = batch["attention_mask"].bool().flatten().tolist()
    sums = {s.key: [0, torch.zeros(s.width).double(), torch.zeros(s.width).double()] for s in sites}

    def hook(experts, inputs, path):
        own = {s.expert: s.key for s in sites if s.path == path}
        for token, counted in enumerate(mask):
            for expert, key in own.items():
                if len(inputs) == 1:  # every expert has a copy of all tokens
                    hidden = inputs[0][expert * len(mask) + token]
                    routed = bool((hidden != 0).any())
                else:
                    hidden, routed = inputs[0][token], expert in inputs[1][token].tolist()
                if counted and routed:
                    z = hidden_units(experts, hidden[None], expert)[0]
                    sums[key][0] += 1
                    sums[key][1] += z
                    sums[key][2] += z.abs()

    handles = [
        model.get_submodule(path).register_forward_pre_hook(
            lambda module, inputs, path=path: hook(module, inputs, path)
        )
        for path in {s.path for s in sites}
    ]
    logits(model, batch)
    for handle in handles:
        handle.remove()
    return sums


def test_each_expert_has_its_own_sums(mixture):
    model, batch, sites = mixture
    found = collect_inputs(model, [batch], sites=sites).neurons
    for key, (count, total, absolute) in slow_sums(model, sites, batch).items():
        assert found[key].count == count
        torch.testing.assert_close(found[key].total, total, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found[key].absolute, absolute, rtol=1e-4, atol=1e-4)


def test_every_counted_token_is_routed_k_times(mixture):
    model, batch, sites = mixture
    found = collect_inputs(model, [batch], sites=sites).neurons
    config = model.config.get_text_config()
    top = getattr(config, "moe_topk", None) or config.num_experts_per_tok
    for path in {s.path for s in sites}:
        counts = [found[s.key].count for s in sites if s.path == path]
        assert sum(counts) == top * int(batch["attention_mask"].sum())


def test_second_moments_have_the_same_counts(mixture):
    model, batch, sites = mixture
    found = collect_inputs(model, [batch], sites=sites, moments=True)
    for site in sites:
        stats, moment = found.neurons[site.key], found.moments[site.key]
        assert stats.count == moment.count
        diagonal = moment.outer.diagonal().double()
        torch.testing.assert_close(diagonal, stats.square, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dispatch", DISPATCH)
@pytest.mark.parametrize("name", DECORATED)
def test_logits_stay_whatever_ran_before(name, dispatch):
    family = FAMILIES[name]
    model = family.build()
    model.set_experts_implementation(dispatch)
    batch = family.inputs(model, "multi") or family.inputs(model, "text")
    sites = [s for s in find_sites(model) if s.kind == "expert"]
    configs = [m.config for m in model.modules() if hasattr(m, "gate_up_proj")]
    names = set(ALL_EXPERTS_FUNCTIONS)
    before = logits(model, batch)
    heard = []
    with record(model, sites, lambda site, z, tokens: heard.append(site.key)):
        during = logits(model, batch)
    assert heard
    torch.testing.assert_close(during, before, rtol=1e-5, atol=1e-5)
    assert {c._experts_implementation for c in configs} == {dispatch}
    assert set(ALL_EXPERTS_FUNCTIONS) == names
    assert torch.equal(logits(model, batch), before)


def test_all_is_restored_after_an_error():
    model = FAMILIES["mixtral"].build()
    batch = FAMILIES["mixtral"].inputs(model, "text")
    implementation, names = model.config._experts_implementation, set(ALL_EXPERTS_FUNCTIONS)

    def fail(*_):
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"), record(model, find_sites(model), fail):
        logits(model, batch)
    assert model.config._experts_implementation == implementation
    assert set(ALL_EXPERTS_FUNCTIONS) == names
    logits(model, batch)


def test_an_expert_without_tokens_has_count_zero():
    model = FAMILIES["mixtral"].build()
    batch = FAMILIES["mixtral"].inputs(model, "text")
    with torch.no_grad():
        model.model.layers[1].mlp.gate.weight.zero_()  # equal scores: the first two always win
    found = collect_inputs(model, [batch], condition="text").neurons
    counts = [found[f"language.1.expert.{expert}"].count for expert in range(4)]
    assert sorted(counts) == [0, 0, *[int(batch["attention_mask"].sum())] * 2]
    silent = next(f"language.1.expert.{e}" for e in range(4) if counts[e] == 0)
    assert torch.equal(found[silent].total, torch.zeros(24, dtype=torch.float64))


def test_examples_as_units_are_means_over_their_routed_tokens():
    model = FAMILIES["qwen3-moe"].build()
    batch = FAMILIES["qwen3-moe"].inputs(model, "text")
    sites = [s for s in find_sites(model) if s.kind == "expert"]
    rows = {s.key: [[], []] for s in sites}
    mask = batch["attention_mask"].bool()

    def receive(site, z, tokens):
        for one, token in zip(z.double(), tokens.tolist(), strict=True):
            example, position = divmod(token, mask.shape[1])
            if mask[example, position]:
                rows[site.key][example].append(one)

    with record(model, sites, receive):
        logits(model, batch)
    found = collect_inputs(model, [batch], sites=sites, counting=Counting(unit="example")).neurons
    for key, examples in rows.items():
        expected = NeuronStats.zeros(24)
        for own in examples:
            if own:
                expected.update(torch.stack(own).mean(0, keepdim=True))
        assert found[key].count == expected.count
        torch.testing.assert_close(found[key].total, expected.total)
        torch.testing.assert_close(found[key].square, expected.square)


def test_shared_experts_count_every_token_once():
    for name, key in (("qwen2-moe", "language.0.shared"), ("llama4", "language.1.shared")):
        model = FAMILIES[name].build()
        batch = FAMILIES[name].inputs(model, "text")
        found = collect_inputs(model, [batch], condition="text").neurons
        assert found[key].count == int(batch["attention_mask"].sum())


def test_pruned_experts_neurons_say_nothing(mixture):
    """Against the same weights where what makes the neuron is zero."""
    model, batch, sites = mixture
    loud = max(sites, key=lambda s: collect_inputs(model, [batch], sites=[s]).neurons[s.key].count)
    about = {loud.key: {"tower": "language", "path": loud.path, "width": loud.width}}
    origin = {"base": {"fingerprint": fingerprint(model)}}
    plan = Plan({loud.key: SiteEdit(prune=torch.tensor([3, 7]))}, about, origin)
    before = logits(model, batch)
    undo = plan.apply(model)
    after = logits(model, batch)
    assert (after - before).abs().max() > 1e-6
    undo()
    assert torch.equal(logits(model, batch), before)
    unmake(model.get_submodule(loud.path), loud, torch.tensor([3, 7]))
    torch.testing.assert_close(logits(model, batch), after, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif("nemotron_h" not in CONFIG_MAPPING, reason="not in this transformers")
def test_experts_without_gates():
    family = Family(
        "nemotron_h",
        {
            **TEXT,
            "layers_block_type": ["moe", "attention", "moe"],
            "num_hidden_layers": 3,
            "moe_intermediate_size": 24,
            "moe_shared_expert_intermediate_size": 40,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "ssm_state_size": 8,
            "n_groups": 1,
        },
        {},
    )
    model = family.build()
    batch = family.inputs(model, "text")
    sites = [s for s in find_sites(model) if s.kind == "expert"]
    found = collect_inputs(model, [batch], sites=sites).neurons
    assert sum(s.count for s in found.values()) == 2 * 2 * int(batch["attention_mask"].sum())
    before = logits(model, batch)
    with record(model, sites, lambda *_: None):
        torch.testing.assert_close(logits(model, batch), before, rtol=1e-5, atol=1e-5)


def test_experts_that_cannot_be_heard_are_refused():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.down_proj = nn.Parameter(torch.zeros(2, 4, 3))

    with (
        pytest.raises(InputError, match="Odd does not run through.*--towers"),
        listening({Odd(): lambda *_: None}),
    ):
        pass
    low = Odd()
    low.down_proj = nn.Parameter(low.down_proj.to(torch.float8_e4m3fn), requires_grad=False)
    with (
        pytest.raises(InputError, match="float8.*load the checkpoint unquantised"),
        listening({low: lambda *_: None}),
    ):
        pass


def test_separate_modules_of_experts_cannot_tell_padding_apart():
    """Experts as a list of MLPs, as remote code has them, get tokens that have lost their place."""
    model = FAMILIES["llama"].build()

    class Block(nn.Module):
        def __init__(self, mlp):
            super().__init__()
            self.experts = nn.ModuleList([mlp])

        def forward(self, hidden):
            return self.experts[0](hidden.flatten(0, 1)[:5]).sum() + hidden

    layer = model.model.layers[0]
    layer.mlp = Block(layer.mlp)
    batch = FAMILIES["llama"].inputs(model, "text")
    with pytest.raises(InputError, match=r"language\.0\.expert\.0.*batch size of 1"):
        collect_inputs(model, [batch], condition="text")
    alone = {name: value[:1] for name, value in batch.items()}
    found = collect_inputs(model, [alone], condition="text").neurons
    assert found["language.0.expert.0"].count == 5
