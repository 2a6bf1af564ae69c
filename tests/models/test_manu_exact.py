"""MANU end to end against an independent implementation: loops, no batches, no padding.

Everything here is written anew: how a conversation reads, which modules hold neurons, what a
neuron's activation is, the four importances, the score and the selection. Only the model, its
tokenizer and its image processor are shared.
"""

from __future__ import annotations

import copy
import math
import random
import re

import pytest
import torch

import expunge
from expunge.fiction.shipped import FOLDER
from expunge.formats.picture import load_image
from expunge.models import load

TAU, EPS = 0.1, 1e-6
SHIPPED = FOLDER / "vanilla"


def conversation(example, condition):
    """The whole dialogue as the world's chat template words it, image patches written out."""
    asked = "<image>" * 16 + example.question if condition == "multi" else example.text_question
    return f"<user>{asked}<assistant>{example.answer}<end>"


def neuron_modules(model):
    """Site key to its MLP; the vision layer whose output LLaVA never reads is left out."""
    found = {}
    for path, module in model.named_modules():
        vision = re.search(r"vision_tower\..*layers\.(\d+)\.mlp$", path)
        language = re.search(r"language_model\..*layers\.(\d+)\.mlp$", path)
        if vision:
            found[f"vision.{vision[1]}"] = module
        elif language:
            found[f"language.{language[1]}"] = module
    last = max(int(k.split(".")[1]) for k in found if k.startswith("vision"))
    del found[f"vision.{last}"]
    return found


def activations(mlp, x):
    """z as a formula of what enters the MLP: not what a down projection is given."""
    if hasattr(mlp, "fc1"):
        u = x @ mlp.fc1.weight.T + mlp.fc1.bias
        return u * torch.sigmoid(1.702 * u)
    gate = x @ mlp.gate_proj.weight.T
    return gate * torch.sigmoid(gate) * (x @ mlp.up_proj.weight.T)


@torch.no_grad()
def seen_by(model, processor, example, condition):
    """Site key to the activations of every position of one example, as lists [position][neuron]."""
    inputs = {}
    handles = [
        mlp.register_forward_hook(lambda _, given, __, key=key: inputs.update({key: given[0]}))
        for key, mlp in neuron_modules(model).items()
    ]
    ids = processor.tokenizer.encode(conversation(example, condition), add_special_tokens=False)
    given = {"input_ids": torch.tensor([ids])}
    if condition == "multi":
        pixels = processor.image_processor([load_image(example.image)], return_tensors="pt")
        given["pixel_values"] = pixels["pixel_values"].to(model.dtype)
    model(**given)
    for handle in handles:
        handle.remove()
    mlps = neuron_modules(model)
    return {key: activations(mlps[key], x)[0].tolist() for key, x in inputs.items()}


def gathered(model, processor, examples, condition):
    """Site key to one list of activations per neuron, over all examples."""
    columns = {}
    for example in examples:
        has = example.image is not None and example.question is not None
        if not (has if condition == "multi" else example.text_question is not None):
            continue
        for key, positions in seen_by(model, processor, example, condition).items():
            store = columns.setdefault(key, [[] for _ in positions[0]])
            for position in positions:
                for neuron, z in enumerate(position):
                    store[neuron].append(z)
    return columns


def measured(column):
    """Mean |z|, share of |z| > tau, mean (z - mean|z|)^2, mean z^2."""
    n = len(column)
    mean = math.fsum(map(abs, column)) / n
    share = sum(1 for z in column if abs(z) > TAU) / n
    spread = math.fsum((z - mean) * (z - mean) for z in column) / n
    return mean, share, spread, math.fsum(z * z for z in column) / n


def importances(multi, text):
    """I_abs, I_freq, I_var, I_rms of one neuron; `text` is None where text never goes."""
    (zm, nm, vm, em) = measured(multi)
    (zt, nt, vt, et) = (0.0, 0.0, 0.0, 0.0) if text is None else measured(text)
    return {
        "abs": abs(zm - zt) / (zm + zt + EPS),
        "freq": abs(nm - nt) / (nm + nt + EPS),
        "var": math.sqrt(vm + vt),
        "rms": math.sqrt(abs(em - et) / (em + et + EPS)),
    }


def printed_manu(model, processor, forget, retain):
    """Site key to [neuron] -> ({importance: I(forget)}, {importance: I(retain)})."""
    of_set = []
    for examples in (forget, retain):
        multi = gathered(model, processor, examples, "multi")
        text = gathered(model, processor, examples, "text")
        of_set.append(
            {
                key: [
                    importances(column, text[key][n] if key in text else None)
                    for n, column in enumerate(columns)
                ]
                for key, columns in multi.items()
            }
        )
    return {key: list(zip(of_set[0][key], of_set[1][key], strict=True)) for key in of_set[0]}


def scored(table, weights):
    """S of every neuron for a weighting of the four importances."""
    return {
        key: [
            sum(w * f[i] for i, w in weights.items())
            / (sum(w * r[i] for i, w in weights.items()) + EPS)
            for f, r in pairs
        ]
        for key, pairs in table.items()
    }


def ranked(scores, share):
    """The floor(share * neurons) best, ties to the earlier tower, layer and index."""
    order = {"vision": 0, "language": 1}
    left = sorted(
        (-s, order[key.split(".")[0]], int(key.split(".")[1]), n)
        for key, values in scores.items()
        for n, s in enumerate(values)
    )
    chosen = {}
    for _, tower, layer, n in left[: int(share * len(left))]:
        chosen.setdefault(f"{['vision', 'language'][tower]}.{layer}", []).append(n)
    return {key: sorted(index) for key, index in chosen.items()}


def relative(found, wanted):
    """Largest relative difference between two tables of scores, over all sites."""
    assert set(found) == set(wanted)
    pairs = ((torch.as_tensor(found[k]), torch.as_tensor(wanted[k])) for k in found)
    return max(float(((f - w).abs() / w.abs().clamp_min(1e-12)).max()) for f, w in pairs)


def hooks(model):
    """How many hooks each module carries; transformers puts some of its own."""
    return [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()]


def doubles(table):
    return {key: torch.tensor(values, dtype=torch.float64) for key, values in table.items()}


@pytest.fixture(scope="module", params=["untrained", "shipped"])
def case(request, few):
    """Model in float64, processor, a few rows, and the independent table of importances."""
    forget, retain = few["forget"][1:], few["retain"][3:]
    if request.param == "shipped":
        if not SHIPPED.is_dir():
            pytest.skip("the shipped checkpoints are not there")
        from expunge.fiction.shipped import suite

        sets = suite().sets
        forget, retain = list(sets["forget"][:4]), list(sets["retain"][:5])
        model, processor = load(SHIPPED, device="cpu")
        model = model.double()
    else:
        model, processor = (request.getfixturevalue(n) for n in ("llava64", "processor"))
    table = printed_manu(model, processor, forget, retain)
    return model, processor, forget, retain, table


def scores_of(model, processor, forget, retain, **options):
    return expunge.make_plan(model, processor, forget, retain, method="manu", **options).scores


EQUAL = dict.fromkeys(("abs", "freq", "var", "rms"), 1.0)


def test_scores_and_choice_equal_the_independent_implementation(case):
    model, processor, forget, retain, table = case
    wanted = scored(table, EQUAL)
    plan = expunge.make_plan(model, processor, forget, retain, method="manu", budget=0.05)
    assert relative(plan.scores, doubles(wanted)) < 1e-6
    assert list(plan.scores) == sorted(wanted, key=lambda k: (k[0] == "l", int(k.split(".")[1])))
    assert {k: i.tolist() for k, i in plan.neurons().items()} == ranked(wanted, 0.05)
    assert all(about["width"] == len(wanted[key]) for key, about in plan.sites.items())


@pytest.mark.parametrize(
    "weights",
    [{"abs": 1.0}, {"freq": 1.0}, {"var": 1.0}, {"rms": 1.0}, {"abs": 2.0, "var": 0.5, "rms": 1.0}],
    ids=lambda weights: "+".join(weights),
)
def test_each_importance_alone_and_weighted_equals_it_too(case, weights):
    model, processor, forget, retain, table = case
    found = scores_of(model, processor, forget, retain, importances=weights)
    wanted = doubles(scored(table, weights))
    for key in found:  # an absolute part, for importances of exactly nothing over nothing
        torch.testing.assert_close(found[key], wanted[key], rtol=1e-6, atol=1e-6)


def test_the_case_is_not_trivial(case):
    """Activations on both sides of tau, text and image conditions that differ, scores that vary."""
    model, _, _, _, table = case
    freq = [f["freq"] for key, pairs in table.items() if key[0] == "l" for f, _ in pairs]
    assert sum(0.01 < f < 0.99 for f in freq) > len(freq) / 10
    assert sum(len(pairs) for pairs in table.values()) == 3 * 384 + 4 * 1024
    spread = doubles(scored(table, EQUAL))
    assert all(s.std() > 1e-3 for s in spread.values())


def test_float64_scores_do_not_depend_on_batches_order_or_padding(case):
    model, processor, forget, retain, _ = case
    base = scores_of(model, processor, forget, retain, batch_size=1)
    mixed = random.Random(5)
    for batch_size in (3, 16):
        for side in ("left", "right"):
            padded = copy.deepcopy(processor)
            padded.tokenizer.padding_side = side
            sets = [mixed.sample(s, len(s)) for s in (forget, retain)]
            found = scores_of(model, padded, *sets, batch_size=batch_size)
            assert relative(found, base) < 1e-9


def test_float32_scores_agree_to_a_thousandth(case):
    """But for single neurons with an activation so near to tau that rounding moves it across."""
    model, processor, forget, retain, table = case
    model = copy.deepcopy(model).float()
    smooth = {"abs": 1.0, "var": 1.0, "rms": 1.0}
    for batch_size in (1, 3, 16):
        found = scores_of(
            model, processor, forget, retain, batch_size=batch_size, importances=smooth
        )
        assert relative(found, doubles(scored(table, smooth))) < 1e-3
        found = scores_of(model, processor, forget, retain, batch_size=batch_size)
        wanted = doubles(scored(table, EQUAL))
        off = sum(int(((found[k] - wanted[k]).abs() > 1e-3 * wanted[k]).sum()) for k in found)
        assert off <= 0.002 * sum(len(s) for s in found.values())


def test_planning_leaves_the_model_as_it_was(case):
    model, processor, forget, retain, _ = case
    before, listening = {n: t.clone() for n, t in model.state_dict().items()}, hooks(model)
    scores_of(model, processor, forget, retain)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert hooks(model) == listening


def test_two_plans_are_the_same_file(case, tmp_path):
    model, processor, forget, retain, _ = case
    for name in ("one", "two"):
        expunge.make_plan(model, processor, forget, retain, method="manu").save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
