"""Sites of every supported family: found, named, and true to what the forward pass computes."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from families import FAMILIES
from torch import nn

from expunge.errors import InputError
from expunge.sites import (
    Site,
    describe,
    down_module,
    down_weight,
    find_sites,
    inner_of,
    inspect_config,
    layer_of,
    passed_on,
    towers,
)

NAMES = sorted(FAMILIES)
# Where LLaVA keeps the layers of its vision tower differs between versions of transformers.
ENCODER = next(
    path for path, _ in FAMILIES["llava"].build().named_modules() if path.endswith(".encoder")
)
NORMED = {"gemma3", "glm4v"}
OTHERWISE = {"qwen2_moe", "florence2"}
"""A shared expert has a gate of the input; a BART norms the sum, but takes no new neurons."""


@pytest.fixture(scope="module", params=NAMES)
def case(request):
    """A family, its model and its sites."""
    family = FAMILIES[request.param]
    model = family.build()
    yield family, model, find_sites(model)
    del model
    gc.collect()


def batch_of(family, model):
    return family.inputs(model, "multi") or family.inputs(model, "text")


@torch.no_grad()
def logits(model, batch):
    return model(**batch).logits


@torch.no_grad()
def without_neuron(model, site, neuron, batch):
    """Logits when the neuron is silenced on its way into the down projection."""

    def silence(_, args):
        hidden = args[0].clone()
        hidden[..., neuron] = 0
        return (hidden, *args[1:])

    handle = down_module(model, site).register_forward_pre_hook(silence)
    try:
        return logits(model, batch)
    finally:
        handle.remove()


@torch.no_grad()
def without_rows(model, site, neuron, batch):
    """Logits when the rows that make an expert's neuron are zero (gate and up, with biases)."""
    experts = down_module(model, site)
    width, interleaved = site.width, type(experts).__name__ == "GptOssExperts"
    rows = [2 * neuron, 2 * neuron + 1] if interleaved else [neuron, neuron + width]
    before = {name: p.clone() for name, p in experts.named_parameters()}
    fused = experts.gate_up_proj[site.expert]
    if fused.shape[0] == 2 * width:
        fused[rows] = 0
    else:
        fused[:, rows] = 0
    if hasattr(experts, "gate_up_proj_bias"):
        # (up + 1) * gate * sigmoid(...): a gate of zero silences the neuron
        experts.gate_up_proj_bias[site.expert, rows] = 0
    result = logits(model, batch)
    for name, parameter in experts.named_parameters():
        parameter.copy_(before[name])
    return result


@torch.no_grad()
def with_zeroed(model, site, columns, batch):
    weight = down_weight(model, site)
    before = weight[:, columns].clone()
    weight[:, columns] = 0
    result = logits(model, batch)
    weight[:, columns] = before
    return result


def test_keys_and_widths_follow_from_the_configuration(case):
    family, _, sites = case
    assert {site.key: site.width for site in sites} == dict(family.widths)
    assert len({site.key for site in sites}) == len(sites)
    assert {site.key for site in sites if site.dead} == family.dead


@torch.no_grad()
def test_what_a_layer_adds_is_a_share_of_what_its_mlp_says(case):
    """Against the layer itself, with twice as much said."""
    family, model, sites = case
    for name, gate in model.named_parameters():
        gate.fill_(0.5) if name.endswith("cross_attn_mlp_gate") else None
    batch, known = batch_of(family, model), [s for s in sites if inner_of(model, s) is not None]
    for site in [s for s in known if s.tower == "language" and layer_of(s)][:2]:
        said, out = [], []

        def more(_, __, output, said=said):
            said.append(output.clone())
            return 2 * output if len(said) > 1 else None

        def passed(_, __, output, out=out):
            out.append(output[0] if isinstance(output, tuple) else output)

        hooks = [
            down_module(model, site).register_forward_hook(more),
            model.get_submodule(layer_of(site)).register_forward_hook(passed),
        ]
        for _ in range(2):
            logits(model, batch)
        for hook in hooks:
            hook.remove()
        share, added = passed_on(model, site), out[1] - out[0]
        if family.model_type in NORMED:
            assert share is None
        elif family.model_type not in OTHERWISE:
            expected = share * said[0].reshape(added.shape)
            torch.testing.assert_close(added, expected, rtol=1e-3, atol=1e-5)


def test_order_is_by_tower_then_layer(case):
    _, _, sites = case
    towers_in_order = list(dict.fromkeys(site.tower for site in sites))
    assert towers_in_order == [
        t for t in ("vision", "audio", "connector", "language") if t in towers_in_order
    ]
    for tower in towers_in_order:
        numbers = [int(site.key.split(".")[1]) for site in sites if site.tower == tower]
        assert numbers == sorted(numbers)


def test_zero_column_equals_silenced_neuron(case):
    family, model, sites = case
    batch = batch_of(family, model)
    for site in sites:
        neuron = site.width // 3
        zeroed = with_zeroed(model, site, slice(neuron, neuron + 1), batch)
        ablate = without_rows if site.kind == "expert" else without_neuron
        torch.testing.assert_close(zeroed, ablate(model, site, neuron, batch), msg=site.key)


def test_dead_sites_and_only_they_have_no_effect(case):
    family, model, sites = case
    batch = batch_of(family, model)
    whole = logits(model, batch)
    for site in sites:
        change = (with_zeroed(model, site, slice(None), batch) - whole).abs().max().item()
        without_effect = site.dead or site.key in family.silent
        assert (change == 0.0) if without_effect else (change > 1e-5), (site.key, change)
    torch.testing.assert_close(logits(model, batch), whole, rtol=0, atol=0)


@pytest.mark.parametrize("condition", ["multi", "text"])
def test_sites_fire_under_their_condition(case, condition):
    family, model, sites = case
    batch = family.inputs(model, condition)
    if batch is None:
        pytest.skip(f"no {condition} input in this family")
    hooked = [site for site in sites if site.kind != "expert"]
    fired: dict[str, torch.Size] = {}
    handles = [
        down_module(model, site).register_forward_pre_hook(
            lambda _, args, key=site.key: fired.setdefault(key, args[0].shape) and None
        )
        for site in hooked
    ]
    logits(model, batch)
    for handle in handles:
        handle.remove()
    assert all(fired[site.key][-1] == site.width for site in hooked if site.key in fired)
    live = {site.key for site in hooked if not site.dead and site.key not in family.silent}
    if condition == "multi":
        assert live <= set(fired)
    else:
        expected = {key for key in live if key.startswith("language.")}
        assert set(fired) == expected - family.asleep_without_media


def test_attention_sites_read_the_heads():
    for name in ("llava", "gpt2", "t5", "qwen2-vl", "blip2-opt", "internvl", "granite-speech"):
        family = FAMILIES[name]
        model = family.build()
        batch = batch_of(family, model)
        sites = find_sites(model, attention=True)
        mlps = [site for site in sites if site.kind != "attention"]
        assert mlps == find_sites(model)
        heads = [site for site in sites if site.kind == "attention"]
        assert {"language.0.attention", "language.1.attention"} <= {site.key for site in heads}
        for site in heads:
            assert site.width == 32
            zeroed = with_zeroed(model, site, slice(5, 6), batch)
            torch.testing.assert_close(zeroed, without_neuron(model, site, 5, batch))


def test_cross_attention_of_a_layer_has_a_key_of_its_own():
    sites = find_sites(FAMILIES["t5"].build(), attention=True)
    paths = {site.key: site.path for site in sites}
    assert paths["language.3.attention"] == "decoder.block.1.layer.0.SelfAttention.o"
    assert paths["language.3.attention.1"] == "decoder.block.1.layer.1.EncDecAttention.o"


@pytest.mark.parametrize(
    ("name", "key", "parameters"),
    [
        ("llama", "language.1", 3 * 32 * 56),
        ("gpt2", "language.0", 2 * 32 * 56 + 56 + 32),
        ("opt", "language.1", 2 * 32 * 56 + 56 + 32),
        ("glm4v", "language.0", 3 * 32 * 56),
        ("llava", "vision.0", 2 * 32 * 48 + 48 + 32),
        ("llava", "connector.0", 2 * (32 * 32 + 32)),
        ("qwen2-vl", "connector.0", 128 * 128 + 128 + 128 * 32 + 32),
        ("mixtral", "language.0.expert.3", 3 * 32 * 24),
        ("aria", "language.1.expert.0", 3 * 32 * 24),
        ("aria", "language.1.shared", 3 * 32 * 48),
        ("gpt-oss", "language.0.expert.1", 3 * 32 * 24 + 2 * 24 + 32),
    ],
)
def test_parameters_count_the_whole_block(name, key, parameters):
    if name not in FAMILIES:
        pytest.skip(f"{name} is refused under this transformers")
    by_key = {site.key: site for site in find_sites(FAMILIES[name].build())}
    assert by_key[key].parameters == parameters


def test_towers_are_the_models_own_modules():
    model = FAMILIES["llava"].build()
    found = towers(model)
    assert found["vision"] is model.model.vision_tower
    assert found["language"] is model.model.language_model
    assert set(towers(FAMILIES["gpt2"].build())) == {"language"}


def test_describe_has_the_keys_of_the_contract():
    sites = find_sites(FAMILIES["llava"].build())
    rows = describe(sites)
    assert json.loads(json.dumps(rows)) == rows
    assert rows[0] == {
        "key": "vision.0",
        "tower": "vision",
        "kind": "mlp",
        "path": f"{ENCODER}.layers.0.mlp.fc2",
        "width": 48,
        "parameters": 3152,
        "dead": False,
    }


# Layers of vision towers that are never read


@pytest.mark.parametrize(
    ("read", "dead"),
    [(-1, []), (-2, [3]), (-4, [1, 2, 3]), (2, [2, 3]), ([-2, -3], [3]), ([1, -5], [1, 2, 3])],
)
def test_dead_layers_lie_above_the_last_one_read(read, dead):
    base = FAMILIES["llava"]
    config = transformers.AutoConfig.for_model("llava", **base.config)
    config.vision_config.num_hidden_layers = 4
    config.vision_feature_layer = read
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    found = [site.key for site in find_sites(model) if site.dead]
    assert found == [f"vision.{layer}" for layer in dead]


# Declared towers


class WithEeg(nn.Module):
    """A language model with an encoder of brain signals beside it."""

    def __init__(self, eeg: nn.Module):
        super().__init__()
        self.language = FAMILIES["llama"].build()
        self.config = self.language.config
        self.eeg = eeg

    def get_decoder(self):
        return self.language.model


class Plain(nn.Module):
    """An MLP whose layers have names of their own."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(6, 20)
        self.act = nn.GELU()
        self.leave = nn.Linear(20, 32)

    def forward(self, signal):
        return self.leave(self.act(self.enter(signal)))


def test_declared_sequence_plain_module_and_layers():
    chain = nn.Sequential(
        nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 12), nn.Tanh(), nn.Dropout(), nn.Linear(12, 32)
    )
    cases = [
        (chain, [("eeg.0", "eeg.2", 10), ("eeg.1", "eeg.5", 12)]),
        (Plain(), [("eeg.0", "eeg.leave", 20)]),
        (
            nn.Sequential(Plain(), nn.Sequential(nn.Linear(32, 7), nn.ReLU(), nn.Linear(7, 32))),
            [("eeg.1", "eeg.1.2", 7)],
        ),
    ]
    for module, expected in cases:
        sites = find_sites(WithEeg(module), declared={"eeg": "eeg"})
        found = [(s.key, s.path, s.width) for s in sites if s.tower == "eeg"]
        assert found == expected
        assert [s.key for s in sites if s.tower == "language"] == ["language.0", "language.1"]
        assert sites[-1].tower == "eeg"


def test_declared_tower_takes_the_place_of_a_known_one():
    model = FAMILIES["llava"].build()
    sites = find_sites(model, declared={"vision": ENCODER})
    assert [s.key for s in sites] == [s.key for s in find_sites(model)]
    sites = find_sites(model, declared={"head": "multi_modal_projector"})
    assert [s.key for s in sites if s.tower == "head"] == ["head.0"]
    assert not [s for s in sites if s.tower == "connector"]


def test_wrong_path_names_the_nearest():
    with pytest.raises(InputError, match=r"no module 'vision_towr'.*model\.vision_tower"):
        find_sites(FAMILIES["llava"].build(), declared={"eye": "vision_towr"})


def test_unknown_layout_names_what_is_there():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Plain() for _ in range(3))

    with pytest.raises(InputError, match=r"layers\.N\.enter x3.*--tower language=path"):
        find_sites(Odd())
    sites = find_sites(Odd(), declared={"language": "layers.1"})
    assert [(s.key, s.path) for s in sites] == [("language.1", "layers.1.leave")]


def test_shapes_must_agree_with_names():
    model = FAMILIES["llama"].build()
    model.model.layers[0].mlp.up_proj = nn.Linear(32, 55)
    assert [s.key for s in find_sites(model)] == ["language.1"]


# Weights that cannot be edited


def test_down_weight_is_a_view():
    for name, key in (
        ("gpt2", "language.0"),
        ("mixtral", "language.1.expert.2"),
        ("aria", "language.1.expert.2"),
        ("llama", "language.0"),
    ):
        if name not in FAMILIES:
            continue
        model = FAMILIES[name].build()
        site = next(site for site in find_sites(model) if site.key == key)
        weight = down_weight(model, site)
        assert weight.shape == (32, site.width)
        before = sum(p.double().sum() for p in model.parameters())
        weight.add_(1)
        after = sum(p.double().sum() for p in model.parameters())
        assert (after - before).item() == pytest.approx(32 * site.width, rel=1e-6)


def test_experts_in_one_linear_map_are_refused():
    """As Aria has them in transformers 5.0: tokens reach them sorted by expert."""

    class Grouped(nn.Module):
        def __init__(self):
            super().__init__()
            self.in_features, self.out_features = 24, 32
            self.weight = nn.Parameter(torch.zeros(4, 24, 32))

    model = FAMILIES["llama"].build()
    model.model.layers[1].mlp.down_proj = Grouped()
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.down_proj \(Grouped\).*4 experts"):
        find_sites(model)


def refused(model, site, match):
    with pytest.raises(InputError, match=match):
        down_weight(model, site)


def test_meta_weights_are_refused_but_listed():
    model = FAMILIES["llama"].build().to("meta")
    refused(model, find_sites(model)[0], "language.0.*not in memory.*load the model whole")


def test_other_number_formats_are_refused_but_listed():
    model = FAMILIES["llama"].build()
    down = model.model.layers[0].mlp.down_proj
    down.weight = nn.Parameter(down.weight.to(torch.float8_e4m3fn), requires_grad=False)
    site = find_sites(model)[0]
    assert site.width == 56
    refused(model, site, "float8.*unquantised")


def test_quantised_weights_are_refused_but_listed():
    torchao = pytest.importorskip("torchao.quantization")
    model = FAMILIES["llama"].build()
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    site = find_sites(model)[0]
    assert site.width == 56
    refused(model, site, "expected a plain floating-point tensor.*quantise again")


def test_adapters_are_refused_but_listed():
    import peft

    model = FAMILIES["llama"].build()
    keys = [site.key for site in find_sites(model)]
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["down_proj"]))
    sites = find_sites(adapted)
    assert [site.key for site in sites] == keys
    refused(adapted, sites[0], "merge_and_unload")


def test_site_of_another_model_is_refused():
    model = FAMILIES["llama"].build()
    wrong = Site("language.0", "language", "mlp", "model.layers.0.mlp.down_proj", 7, 1, False)
    refused(model, wrong, r"shape \(32, 56\), expected \(out, 7\)")


# From the configuration alone


@pytest.mark.parametrize("name", ["llava", "gpt2", "t5", "qwen2-audio", "mllama", "mixtral"])
def test_configuration_gives_the_same_table(name, tmp_path):
    model = FAMILIES[name].build()
    model.config.save_pretrained(tmp_path)
    kind, sites = inspect_config(str(tmp_path))
    assert kind == FAMILIES[name].model_type
    assert sites == find_sites(model)


def test_configuration_errors(tmp_path):
    with pytest.raises(InputError, match="expected a folder with config.json"):
        inspect_config(str(tmp_path / "nowhere"))
    transformers.ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="model type 'vit'.*no model that writes text"):
        inspect_config(str(tmp_path))


def test_configuration_of_70_billion_parameters_is_cheap(tmp_path):
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of a process without that of its parent is read from /proc")
    transformers.LlavaConfig(
        text_config={
            "model_type": "llama",
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
        }
    ).save_pretrained(tmp_path)
    code = (
        "import json, sys, time; from expunge.sites import inspect_config; "
        "import transformers.models.llava; start = time.perf_counter(); "
        "kind, sites = inspect_config(sys.argv[1]); "
        "print(json.dumps([kind, len(sites), sum(s.parameters for s in sites), "
        "time.perf_counter() - start, next(x for x in open('/proc/self/status') if 'VmHWM' in x)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    kind, count, parameters, seconds, peak = json.loads(done.stdout)
    assert (kind, count) == ("llava", 24 + 1 + 80)
    assert parameters > 80 * 3 * 8192 * 28672
    assert seconds < 10
    assert int(peak.split()[1]) * 1024 < 2e9
