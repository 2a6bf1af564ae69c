"""Language models that a Llama can compute: they are given biases and saved as a Llama."""

import copy

import pytest
import torch
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen2ForCausalLM

from expunge.edit import apply, fingerprint, restore, save_checkpoint
from expunge.encoding import batches
from expunge.fiction.build import as_kind
from expunge.fiction.shipped import checkpoint, suite
from expunge.models import Prompter, load
from expunge.plan import Plan, SiteEdit
from expunge.rewire import Rewire
from expunge.sites import find_sites, inner_of, takes_bias
from expunge.sites.kin import as_llama

KEYS = ("language.0", "language.2")
WINDOWED = {"sliding_window": 4096}
KINDS = {"Qwen2": (Qwen2Config, {}), "Mistral": (MistralConfig, {"sliding_window": None})}


@pytest.fixture(scope="module")
def shipped():
    return load(checkpoint("vanilla"))


@pytest.fixture(params=KINDS)
def world(shipped, request):
    """The shipped model as one of another kind; attention has biases where that kind has them."""
    kind, options = KINDS[request.param]
    model = as_kind(*shipped, kind, **options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias")):
                value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    return model, shipped[1]


def plan_for(model):
    """New neurons that speak everywhere, at two sites."""
    generator = torch.Generator().manual_seed(1)
    edits, about = {}, {}
    for site in find_sites(model):
        if site.key in KEYS:
            gate, bias = (torch.randn(3, *n, generator=generator) for n in ([128], []))
            factor = torch.randn(3, generator=generator)
            down = torch.randn(128, 3, generator=generator)
            index = torch.tensor([1, 5, 9])
            edits[site.key] = SiteEdit(rewire=Rewire(index, gate, bias, factor, down, index))
            about[site.key] = {"tower": site.tower, "path": site.path, "width": site.width}
    return Plan(edits, about, {"base": {"fingerprint": fingerprint(model)}})


def logits(model, processor, condition):
    rows = suite().sets["retain"][:4]
    (batch,) = batches(model, Prompter(processor), rows, condition, batch_size=4)
    with torch.inference_mode():
        return model(**batch.inputs).logits


def taking(model):
    sites = [s for s in find_sites(model) if s.key in KEYS]
    return [takes_bias(model, inner_of(model, s)) for s in sites]


@pytest.mark.parametrize("condition", ["multi", "text"])
def test_it_is_saved_as_a_llama_that_says_the_same(world, condition, tmp_path):
    model, processor = world
    assert taking(model) == [True, True]
    kind, before = model.config.text_config.model_type, logits(model, processor, condition)
    print_before, names = fingerprint(model), [n for n, _ in model.named_parameters()]
    undo = plan_for(model).apply(model)
    said = logits(model, processor, condition)
    assert (said - before).abs().max() > 0.1
    save_checkpoint(model, processor, tmp_path / "edited")
    undo()
    assert fingerprint(model) == print_before
    assert [n for n, _ in model.named_parameters()] == names
    assert model.config.text_config.model_type == kind
    assert torch.equal(logits(model, processor, condition), before)
    again, processor = load(tmp_path / "edited")
    assert isinstance(again.config.text_config, LlamaConfig) and again.config.text_config.mlp_bias
    assert torch.equal(logits(again, processor, condition), said)


def test_undo_gives_the_model_of_its_own_kind_back(world, tmp_path):
    model, processor = world
    save_checkpoint(model, processor, tmp_path / "base")
    undo = plan_for(model).apply(model)
    save_checkpoint(model, processor, tmp_path / "edited")
    undo()
    restore(tmp_path / "edited", tmp_path / "base", tmp_path / "restored")
    again, _ = load(tmp_path / "restored")
    assert again.config.text_config.model_type == model.config.text_config.model_type
    assert fingerprint(again) == fingerprint(model)


def test_as_an_adapter_it_says_the_same(world, tmp_path):
    """On the model of its own kind, in float64."""
    from peft import PeftModel

    model, processor = world
    plan = plan_for(model)
    plan.to_peft(tmp_path / "adapter", model)
    exact = copy.deepcopy(model).double()
    undo = apply(exact, plan, check=False)
    said = logits(exact, processor, "multi")
    undo()
    adapted = PeftModel.from_pretrained(exact, str(tmp_path / "adapter")).eval().double()
    assert (logits(adapted, processor, "multi") - said).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (MistralConfig, WINDOWED),
        (Qwen2Config, WINDOWED | {"use_sliding_window": True, "max_window_layers": 0}),
    ],
)
def test_a_window_is_no_llamas(shipped, kind, options):
    assert taking(as_kind(*shipped, kind, **options)) == [False, False]


def test_a_language_model_by_itself_stays_what_it_is():
    config = Qwen2Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    assert as_llama(model, model.model) is None and taking(model) == [False, False]


def test_a_configuration_that_reads_one_kind_alone_names_no_llama(world, monkeypatch):
    """One may take any language model and still read its own kind from a file."""
    model = world[0]
    config, own = type(model.config), model.config.text_config.to_dict()
    read = config.from_dict

    def reads_its_own(values, **options):
        return read({**values, "text_config": dict(own)}, **options)

    monkeypatch.setattr(config, "from_dict", reads_its_own)
    assert as_llama(model, model.model.language_model) is None
    assert taking(model) == [False, False]


def test_a_configuration_that_cannot_read_a_llama_names_none(world, monkeypatch):
    def refuses(values, **options):
        raise ValueError(values["text_config"]["model_type"])

    monkeypatch.setattr(type(world[0].config), "from_dict", refuses)
    assert as_llama(world[0], world[0].model.language_model) is None
