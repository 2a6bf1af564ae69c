"""Attacks on a tiny LLaVA that was really taught a few answers."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as images
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from expunge import metrics
from expunge.attacks import (
    ATTACKS,
    Candidate,
    Context,
    attack_run,
    base,
    collapse,
    leakage,
    lens,
    membership,
    paraphrase,
    prefix,
    probe,
    quantize,
    relearn,
    states,
    typographic,
    views,
)
from expunge.cli import app
from expunge.config import RunConfig
from expunge.data import Suite, write_jsonl
from expunge.edit import save_checkpoint
from expunge.encoding import batches
from expunge.errors import InputError
from expunge.evaluate import answer_logits, teacher_forced
from expunge.fiction.build import build_model
from expunge.models import Prompter
from expunge.pipeline import Run
from expunge.plan import Plan
from expunge.planning import make_plan, settled
from expunge.probe_set import ProbeSet


@pytest.fixture(scope="module")
def prompter(processor):
    return Prompter(processor)


@pytest.fixture(scope="module")
def lessons(rows):
    """Six open questions about two forget subjects, with all different answers."""
    found = [e for e in rows["forget"] if e.task == "generation"]
    return found[:6]


@pytest.fixture(scope="module")
def taught(processor, prompter, lessons):
    """An untrained model after it learned the lessons by heart, and the untrained one."""
    blank = build_model(processor, seed=5).eval()
    model = copy.deepcopy(blank)
    candidate = Candidate("vanilla", model, prompter)
    for _ in relearn.learn(model, candidate, lessons, range(80), 0):
        pass
    return model, blank


@pytest.fixture(scope="module")
def suite(rows, lessons):
    retain = [e for e in rows["retain"] if not e.choices][:6]
    neighbor = rows["neighbor"][:8]
    return Suite.of(forget=lessons, test=rows["test"][:6], retain=retain, neighbor=neighbor)


@pytest.fixture(scope="module")
def context(taught, processor, prompter, suite):
    model, blank = taught
    unlearned = copy.deepcopy(model)

    def remake(forget):
        retain = suite.sets["retain"]
        return make_plan(model, processor, forget, retain, method="manu", budget=0.05)

    remake(suite.sets["forget"]).apply(unlearned)
    models = {"vanilla": model, "unlearned": unlearned, "gold": blank}
    candidates = {n: Candidate(n, m, prompter) for n, m in models.items()}
    return Context(candidates, suite, remake, seed=3, size=6, batch_size=4)


def column(rows, name):
    return [row[base.COLUMNS.index(name)] for row in rows]


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model, before):
    return all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


# Drawing and tables


def test_samples_are_bounded_ordered_and_follow_the_seed(context, rows):
    forget = rows["forget"]
    drawn = context.draw(forget, 20)
    places = [next(i for i, e in enumerate(forget) if e is d) for d in drawn]
    assert len(places) == 20 and places == sorted(set(places))
    assert drawn == context.draw(forget, 20)
    assert drawn != replace(context, seed=4).draw(forget, 20)
    assert context.draw(forget, len(forget)) == list(forget)


def test_the_table_holds_the_scores_and_their_differences(context):
    points = {"vanilla": (1.0, 1.0), "unlearned": (0.25, 0.75), "gold": (0.0, 0.125)}

    def scorer(place):
        return lambda c, examples, _: [points[c.name][place]] * len(examples)

    rows = base.compared(context, {"a": scorer(0), "b": scorer(1)}, sets=("forget", "absent"))
    assert [row[0] for row in rows] == ["a", "b"] * 2
    assert column(rows, "questions") == [6] * 4
    assert column(rows, "unlearned") == column(rows, "low") == column(rows, "high")
    assert column(rows, "recovered") == [0.0, 0.5] * 2
    assert column(rows, "above gold") == [0.0, 0.375] * 2
    alone = replace(context, models={k: v for k, v in context.models.items() if k != "gold"})
    rows = base.compared(alone, {"a": scorer(0)})
    assert set(column(rows, "gold")) == set(column(rows, "above gold")) == {None}


def test_asking_finds_what_was_taught_and_nothing_in_the_blank_model(context, lessons):
    score = base.asking(context)
    for condition in ("multi", "text"):
        assert score(context.models["vanilla"], lessons, condition) == [1.0] * len(lessons)
        assert score(context.models["gold"], lessons, condition) == [0.0] * len(lessons)


def test_what_json_cannot_hold_becomes_none():
    value = {"a": [1.5, float("inf"), (float("nan"), "x", None)], 3: {"b": -float("inf")}}
    assert base.finite(value) == {"a": [1.5, None, [None, "x", None]], "3": {"b": None}}


# Rewrites


def test_a_slip_swaps_two_letters_and_spares_names_and_answers(rows):
    for example in [*rows["forget"], *rows["test"]]:
        text = example.prompt("text")
        slipped = paraphrase.slip(text, example)
        differ = [i for i, (a, b) in enumerate(zip(text, slipped, strict=True)) if a != b]
        assert len(differ) in (0, 2)
        if differ:
            i, j = differ
            assert j == i + 1 and (text[i], text[j]) == (slipped[j], slipped[i])
        for protected in (example.subject, *(example.choices or ())):
            assert slipped.count(protected) == text.count(protected)


def test_rewrites_change_the_words_of_one_condition_only(lessons):
    example = lessons[0]
    for name, change in paraphrase.REWRITES.items():
        for condition, field in (("multi", "question"), ("text", "text_question")):
            other = paraphrase.reworded(change)(example, condition)
            assert getattr(other, field) != getattr(example, field), name
            assert replace(other, **{field: getattr(example, field)}) == example


def test_hints_name_the_start_of_the_answer_and_never_all_of_it(rows):
    for example in rows["forget"]:
        for hint in (prefix.letter_hint, prefix.word_hint):
            added = hint("", example)
            assert example.answer not in added
        assert example.answer.startswith(prefix.start(example.answer))
    assert prefix.start("glass blower") == "glass"
    assert prefix.start("Oslo") == "Os" and prefix.start("x") == "x"


def test_begun_answers_are_judged_by_the_tokens_that_are_left(context, rows):
    examples = rows["forget"][:8]
    for candidate in (context.models["vanilla"], context.models["gold"]):
        forced = teacher_forced(candidate.model, candidate.prompter, examples, "text")
        recalled = ProbeSet(candidate.model, candidate.prompter, examples, "text").run(
            candidate.model
        )
        assert prefix.begun(context, 0)(candidate, examples, "text") == [
            float(r) for r in recalled.recalled
        ]
        for given in (1, 2, 50):
            wanted = []
            for one in forced:
                hits = one.hits.tolist()
                wanted.append(float(all(hits[given:] if given < len(hits) else hits[-1:])))
            assert prefix.begun(context, given)(candidate, examples, "text") == wanted


def test_led_in_answers_are_judged_behind_the_lead(context, rows):
    """Behind an answer's first word vanilla goes on with the second, and with no other."""
    candidate = context.models["vanilla"]
    for example in rows["forget"][:18:3]:
        first, second = example.answer.split()
        score = prefix.begun(context, 0, first)
        right, wrong = replace(example, answer=second), replace(example, answer="tower")
        assert score(candidate, [right, wrong], "text") == [1.0, 0.0]
    assert prefix.begun(context, 0, "It is")(candidate, rows["forget"][:4], "text") == [0.0] * 4


# Pictures


def test_views_keep_the_size_and_do_what_they_say():
    ramp = np.tile(np.arange(100, dtype=np.uint8)[None, :, None] * 2, (60, 1, 3))
    picture = images.fromarray(ramp)
    for change in views.VIEWS.values():
        assert change(picture).size == picture.size
    cropped = np.asarray(views.crop(picture), dtype=float)[30, 10:90, 0]
    wanted = 2 * (10 + 0.8 * (np.arange(10, 90) + 0.5) - 0.5)
    assert np.abs(cropped - wanted).max() <= 1.5
    mirrored = views.VIEWS["mirrored"](picture)
    assert np.array_equal(np.asarray(mirrored), ramp[:, ::-1])
    brighter = np.asarray(views.VIEWS["brighter"](picture), dtype=float)[0, :, 0]
    assert np.abs(brighter - np.minimum(255, 1.4 * ramp[0, :, 0])).max() <= 1


@pytest.mark.parametrize("text", ["Who?", "What is the job of this person? " * 12])
@pytest.mark.parametrize("size", [(64, 64), (500, 200), (30, 90)])
def test_the_question_is_written_inside_the_lower_half(text, size):
    page = typographic.written(images.new("RGB", size, (200, 0, 0)), text)
    assert page.width == page.height == max(336, *size)
    pixels = np.asarray(page).astype(int)
    half = page.height // 2
    assert (pixels[:half, :, 1] < 128).any() and (pixels[: half // 2, :, 0] > 150).all()
    ink = np.argwhere(pixels[half:].sum(-1) < 300)
    assert len(ink) > 20
    assert ink[:, 0].max() < half - 1 and 0 < ink[:, 1].min() and ink[:, 1].max() < page.width - 1


def test_drawn_questions_leave_only_an_instruction_in_the_words(lessons):
    drawn = typographic.drawn(lessons[0], "multi")
    assert drawn.question == typographic.INSTRUCTION
    both = typographic.drawn_and_asked(lessons[0], "multi")
    assert both.question == lessons[0].question
    assert np.array_equal(np.asarray(both.image), np.asarray(drawn.image))


# Quantization


def test_quantized_weights_lie_within_half_a_step(context):
    model = context.models["vanilla"].model
    before = state_of(model)
    for bits, (dtype, group) in zip((8, 4), quantize.SCHEMES.values(), strict=True):
        twin = quantize.quantized(model, dtype, group)
        name = "model.language_model.layers.0.mlp.down_proj"
        weight = model.get_submodule(name).weight.detach().double()
        rounded = twin.get_submodule(name).weight.dequantize().detach().double()
        width = group or weight.shape[1]
        parts = weight.reshape(weight.shape[0], -1, width)
        step = parts.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 0.5)
        error = (rounded.reshape(parts.shape) - parts).abs()
        assert bool((error <= 0.5 * step * (1 + 1e-3) + 1e-7).all())
        assert float(error.max()) > 0
        values = rounded.reshape(-1, width)
        assert max(len(v.unique()) for v in values[:50]) <= 2**bits
        head = twin.get_output_embeddings().weight
        assert torch.equal(head, model.get_output_embeddings().weight)
    assert unchanged(model, before)


def test_quantization_of_a_taught_model_is_measured_beside_gold(context):
    result = quantize.run(context)
    assert {row[1] for row in result["rows"]} == {"forget", "test", "retain"}
    first = [r for r in result["rows"] if r[0] == "as saved" and r[1] == "forget"]
    assert column(first, "vanilla") == [1.0, 1.0] and column(first, "gold") == [0.0, 0.0]
    int8 = [r for r in result["rows"] if r[0].startswith("int8") and r[1] == "forget"]
    assert column(int8, "vanilla") == [1.0, 1.0]


# Leakage


def test_only_leaves_one_form(rows):
    examples = [*rows["forget"][:3], replace(rows["forget"][3], image=None)]
    multi, text = leakage.only(examples, "multi"), leakage.only(examples, "text")
    assert len(multi) == 3 and all(e.has("multi") and not e.has("text") for e in multi)
    assert len(text) == 4 and all(e.has("text") and not e.has("multi") for e in text)


def test_leakage_deletes_from_a_copy(context):
    model = context.models["vanilla"].model
    before = state_of(model)
    result = leakage.run(context)
    assert unchanged(model, before)
    assert {row[0] for row in result["rows"]} == {
        "deleted under both",
        "deleted with image + text",
        "deleted with text only",
    }


# Relearning


def test_splits_share_no_fact(context, rows):
    sets = Suite.of(forget=rows["forget"], test=rows["test"], retain=rows["retain"])
    found = relearn.splits(replace(context, suite=sets))
    assert set(found) == {"other facts", "retain only"} | (
        {"few subjects"} if len({e.subject for e in rows["forget"]}) > 1 else set()
    )
    for train, measured in found.values():
        assert train and measured and not any(e.choices for e in measured)
        assert not {relearn.fact(e) for e in train} & {relearn.fact(e) for e in measured}
    facts = {relearn.fact(e) for e in rows["forget"]}
    told = {relearn.fact(e) for e in found["other facts"][0]}
    assert len(told) == len(facts) // 2


def test_few_subjects_are_a_tenth_rounded_up(context, rows):
    people = [*rows["retain"], *rows["neighbor"]]
    sets = Suite.of(forget=people)
    found = relearn.splits(replace(context, suite=sets))
    train, measured = found["few subjects"]
    total = len({e.subject for e in people})
    assert len({e.subject for e in train}) == -(-total // 10)
    assert not {e.subject for e in train} & {e.subject for e in measured}
    assert "retain only" not in found


def test_learning_teaches_and_gold_has_no_lead_over_itself(context, lessons, taught):
    model, blank = taught
    before = state_of(blank)
    candidate = context.models["gold"]
    split = (lessons, lessons)
    found = relearn.curves(context, candidate, split, (0, 2, 40))
    again = relearn.curves(context, candidate, split, (0, 2))
    assert again == {c: v[:2] for c, v in found.items()} and unchanged(blank, before)
    assert {c: v[0] for c, v in found.items()} == {"multi": 0.0, "text": 0.0}
    assert found["text"][-1] == 1.0
    areas = relearn.areas({"unlearned": found, "gold": found}, (0, 2, 40))
    assert areas == {"multi": 0.0, "text": 0.0}
    wanted = ProbeSet(model, context.models["vanilla"].prompter, lessons, "multi").run(model)
    assert relearn.curves(context, context.models["vanilla"], split, (0,))["multi"] == [
        wanted.accuracy
    ]


def test_the_area_is_the_mean_lead():
    found = {"unlearned": {"text": [0.0, 0.5, 0.5]}, "gold": {"text": [0.0, 0.0, 0.5]}}
    wanted = np.trapezoid([0.0, 0.5, 0.0], [0, 5, 20]) / 20
    assert relearn.areas(found, (0, 5, 20))["text"] == pytest.approx(wanted, abs=1e-12)
    assert relearn.areas({"unlearned": {"text": [0.0, 1.0]}}, (0, 5)) == {"text": None}


def test_relearn_has_a_curve_for_each_split_and_model(context):
    result = relearn.run(context, (0, 1, 2))
    splits = set(relearn.splits(context))
    assert result["axes"] == ["fine-tuning steps", "accuracy"]
    assert set(result["curves"]) == {f"{s}, {m}" for s in splits for m in base.MODELS}
    for name, points in result["curves"].items():
        split, model = name.split(", ")
        place = result["columns"].index(model)
        for step, value in points:
            cells = [r[place] for r in result["rows"] if r[0] == split and r[2] == step]
            assert value == pytest.approx(sum(cells) / len(cells))
    assert len(result["figures"]) == 2 * len(splits)


def test_other_facts_are_the_mean_of_draws_of_which_the_note_tells_the_spread(context):
    steps = (0, 2)
    result = relearn.run(context, steps)
    seeds = range(context.seed, context.seed + relearn.DRAWS["other facts"])
    told = {}
    for seed in seeds:
        drawn = replace(context, seed=seed)
        split = relearn.splits(drawn)["other facts"]
        told[seed] = {
            model: relearn.curves(drawn, context.models[model], split, steps)
            for model in ("unlearned", "gold")
        }
    assert len({str(relearn.splits(replace(context, seed=s))["other facts"]) for s in seeds}) > 1
    for condition, label in base.ASKED_WITH.items():
        rows = [r for r in result["rows"] if r[:2] == ["other facts", label]]
        for place, (*_, step, _, ours, theirs) in enumerate(rows):
            assert step == steps[place]
            for model, mean in (("unlearned", ours), ("gold", theirs)):
                each = [told[seed][model][condition][place] for seed in seeds]
                assert mean == pytest.approx(sum(each) / len(each))
        each = [relearn.areas(told[seed], steps)[condition] for seed in seeds]
        title = f"area above gold, other facts, {label}"
        assert result["figures"][title] == pytest.approx(sum(each) / len(each))
        assert f"({min(each):+.2f} to {max(each):+.2f})" in result["note"]


def test_the_rate_falls_with_the_root_of_the_size():
    class Sized(torch.nn.Module):
        def __init__(self, n):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.empty(n, device="meta"))

    assert relearn.rate_for(Sized(1_000_000)) == pytest.approx(1e-3)
    assert relearn.rate_for(Sized(100_000_000)) == pytest.approx(1e-4)
    assert relearn.rate_for(Sized(10)) == pytest.approx(1e-3)


# Hidden states


@pytest.mark.parametrize("condition", ["multi", "text"])
def test_states_are_those_of_the_bare_question(context, rows, condition):
    candidate = context.models["vanilla"]
    examples = rows["forget"][:5]
    found, first = states.prompt_states(candidate, examples, condition, 3)
    for i, example in enumerate(examples):
        (batch,) = batches(
            candidate.model, candidate.prompter, [example], condition, prompt_only=True
        )
        with torch.inference_mode():
            out = candidate.model(**batch.inputs, output_hidden_states=True)
        wanted = torch.stack([h[0, -1] for h in out.hidden_states])
        torch.testing.assert_close(found[i], wanted, rtol=1e-4, atol=1e-4)
        token = candidate.prompter.tokenizer.decode([int(first[i])])
        assert example.answer.startswith(token.strip())


@pytest.mark.parametrize("condition", ["multi", "text"])
def test_the_last_layer_ranks_as_the_model_does(context, rows, condition):
    candidate = context.models["vanilla"]
    examples = rows["forget"][:5]
    found = lens.ranks(candidate, examples, condition, 3)
    for i, example in enumerate(examples):
        (batch,) = batches(candidate.model, candidate.prompter, [example], condition)
        with torch.inference_mode():
            logits = answer_logits(candidate.model, batch)[0][0].tolist()
        token = int(batch.inputs["input_ids"][0, int(batch.answer[0].int().argmax())])
        order = sorted(range(len(logits)), key=lambda t: -logits[t])
        assert int(found[i, -1]) == order.index(token) + 1


def test_the_lens_sees_taught_answers_at_the_last_layer(context):
    result = lens.run(context)
    last = [r for r in result["rows"] if r[0] == max(row[0] for row in result["rows"])]
    place = result["columns"].index("median rank, vanilla")
    assert [row[place] for row in last] == [1.0, 1.0]
    assert all(len(row) == len(result["columns"]) for row in result["rows"])


# Probes


def test_probe_tasks_ask_for_known_answers_only(lessons):
    def person(name, attribute, answer):
        return replace(lessons[0], subject=name, attribute=attribute, answer=answer)

    retain = [person("a", "town", "Oslo"), person("b", "town", "Rome"), person("a", "pet", "cat")]
    forget = [person("c", "town", "oslo."), person("c", "town", "Bern"), person("c", "pet", "cat")]
    assert probe.tasks(retain, forget) == {"town": ([0, 1], [0])}
    assert probe.guessing([*retain, person("d", "town", "Rome")], forget) == 0.0
    assert probe.guessing([*retain, person("d", "town", "Oslo")], forget) == 1.0


def test_probes_find_linear_classes_and_no_others():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 400)
    centres = 3 * rng.normal(size=(4, 16))
    x = centres[y] + rng.normal(size=(400, 16))
    assert probe.probed(x[:200], y[:200], x[200:], y[200:]).mean() > 0.97
    noise = rng.normal(size=(400, 16))
    assert abs(probe.probed(noise[:200], y[:200], noise[200:], y[200:]).mean() - 0.25) < 0.12


def test_probe_says_when_there_is_nothing_to_probe(context):
    strangers = [replace(e, attribute=None) for e in context.suite.sets["forget"][:2]]
    sets = {**context.suite.sets, "forget": tuple(replace(e, answer="zzz") for e in strangers)}
    result = probe.run(replace(context, suite=Suite(sets)))
    assert result["rows"] == [] and "Nothing to probe" in result["note"]


def test_probe_has_a_row_for_each_layer(context, rows):
    sets = Suite.of(forget=rows["forget"], retain=[*rows["retain"], *rows["neighbor"]])
    result = probe.run(replace(context, suite=sets, size=64, batch_size=64))
    layers = context.models["vanilla"].model.config.text_config.num_hidden_layers + 1
    assert [r[0] for r in result["rows"]] == [*range(layers), *range(layers)]
    lead = max(r[3] - r[4] for r in result["rows"] if r[1] == "text only")
    assert result["figures"]["most above gold, text only"] == pytest.approx(lead)


# Membership


def slow_scores(candidate, example, condition):
    """The scores of one example run alone, written out in float64."""
    (batch,) = batches(candidate.model, candidate.prompter, [example], condition)
    logits = candidate.model(**batch.inputs).logits[0].detach().double()
    tokens = batch.inputs["input_ids"][0]
    own, standard = [], []
    for place in torch.nonzero(batch.answer[0])[:, 0].tolist():
        logp = torch.log_softmax(logits[place - 1], -1).numpy()
        p = np.exp(logp)
        mu = sum(a * b for a, b in zip(p, logp, strict=True))
        variance = sum(a * (b - mu) ** 2 for a, b in zip(p, logp, strict=True))
        own.append(float(logp[tokens[place]]))
        standard.append((own[-1] - mu) / max(variance**0.5, 1e-6))
    few = max(1, int(0.2 * len(own)))
    return {
        "loss": sum(own) / len(own),
        "min_k": sum(sorted(own)[:few]) / few,
        "min_k_plus_plus": sum(sorted(standard)[:few]) / few,
    }


@pytest.mark.parametrize("condition", ["multi", "text"])
def test_likelihood_scores_equal_slow_loops(context, rows, condition):
    candidate = context.models["gold"]
    examples = rows["neighbor"][:4]
    found = membership.likelihood_scores(candidate, examples, condition, 3)
    for i, example in enumerate(examples):
        for name, value in slow_scores(candidate, example, condition).items():
            assert found[name][i] == pytest.approx(value, rel=1e-3, abs=1e-4), name
        assert found["zlib"][i] == pytest.approx(
            metrics.zlib([found["loss"][i]], example.answer), rel=1e-6
        )


def test_gradient_scores_equal_a_backward_pass_of_each_example(context, rows):
    candidate = context.models["gold"]
    examples = rows["neighbor"][:2]
    twin = copy.deepcopy(candidate.model)
    found = membership.gradient_scores(candidate, examples, "text")
    for i, example in enumerate(examples):
        twin.zero_grad()
        (batch,) = batches(twin, candidate.prompter, [example], "text")
        logp = twin(**batch.inputs).logits[0].log_softmax(-1)
        places = torch.nonzero(batch.answer[0])[:, 0]
        tokens = batch.inputs["input_ids"][0, places]
        (-logp[places - 1, tokens].mean()).backward()
        slopes = [p.grad.double() for p in twin.parameters() if p.grad is not None]
        square = sum(float((slope**2).sum()) for slope in slopes)
        assert found[i] == pytest.approx(-(square**0.5), rel=1e-3)
    assert all(p.grad is None for p in candidate.model.parameters())


def test_membership_of_what_was_taught_shows(context):
    result = membership.run(context)
    vanilla = {(r[0], r[1]): r[2] for r in result["rows"]}
    assert len(vanilla) == 10 and vanilla["loss", "text only"] == 1.0
    forget, neighbor = (
        membership.likelihood_scores(context.models["gold"], context.sample(s, "text"), "text")
        for s in ("forget", "neighbor")
    )
    wanted = roc_auc_score([1] * 6 + [0] * 6, [*forget["loss"], *neighbor["loss"]])
    row = next(r for r in result["rows"] if r[:2] == ["loss", "text only"])
    assert row[4] == pytest.approx(wanted)
    assert row[5] == pytest.approx(row[3] - row[4])


# Collapse


def test_a_model_that_repeats_itself_is_flagged_and_vanilla_is_not(context, taught):
    broken = copy.deepcopy(taught[0])
    with torch.no_grad():
        for layer in broken.model.language_model.layers:
            layer.mlp.down_proj.weight.zero_()
            layer.self_attn.o_proj.weight.zero_()
    other = replace(context.models["unlearned"], model=broken)
    bad = collapse.run(replace(context, models={**context.models, "unlearned": other}))
    assert bad["figures"]["collapsed"] == 1.0 and "HAS COLLAPSED" in bad["note"]
    place = bad["columns"].index("collapsed by")
    vanilla = [r[place] for r in bad["rows"] if r[:1] == ["forget"] and r[2] == "vanilla"]
    assert vanilla == [None, None]


# The command


@pytest.fixture(scope="module")
def small(rows, lessons):
    """As few questions as every attack can do with; some answers of retain are forget's."""
    known = {e.answer for e in lessons}
    shared = [e for e in rows["neighbor"] + rows["retain"] if e.answer in known]
    others = [e for e in rows["retain"] if e.attribute == shared[0].attribute]
    retain = list({id(e): e for e in [*shared[:2], *others[:3]]}.values())
    told = {e.subject for e in retain}
    neighbor = [e for e in rows["neighbor"] if e.subject not in told][:3]
    return Suite.of(forget=lessons, retain=retain, neighbor=neighbor)


def test_membership_is_asked_against_strangers(context, rows):
    """Of two copies of one set the chance is even; without strangers neighbours stand in."""
    forget = list(context.suite.sets["forget"])
    alike = Suite({**context.suite.sets, "stranger": tuple(forget)})
    result = membership.run(replace(context, suite=alike))
    assert [row[2:5] for row in result["rows"]] == [[0.5] * 3] * len(result["rows"])
    assert "stranger whom no model has seen" in result["note"]
    assert set(result["dots"]) == {"vanilla", "unlearned", "gold"}
    row = result["rows"][0]
    assert result["dots"]["gold"][f"{row[0]}, {row[1]}"] == [row[4]]
    assert "no stranger set was given" in membership.run(context)["note"]


def test_strangers_of_the_embedded_world_are_known_to_nobody():
    from expunge.attacks.run import suite_of
    from expunge.config import RunConfig
    from expunge.fiction.world import World

    sets = suite_of(RunConfig(forget="fiction")).sets
    known = {word for person in World().people for word in person.name.split()}
    strangers = {e.subject for e in sets["stranger"]}
    assert len(strangers) == len({e.subject for e in sets["forget"]})
    assert all(known.isdisjoint(name.split()) for name in strangers)
    forms = [{(e.attribute, e.task) for e in sets[n]} for n in ("forget", "stranger")]
    assert forms[0] == forms[1]


def test_the_rows_about_forget_are_drawn(context):
    scores = {"vanilla": 1.0, "unlearned": 0.5, "gold": 0.25}

    def scorer(c, examples, _):
        return [scores[c.name]] * len(examples)

    drawn = base.dots(base.compared(context, {"a": scorer, "b": scorer}))
    labels = [f"{v}, {c}" for c in base.ASKED_WITH.values() for v in "ab"]
    assert drawn == {
        "vanilla": dict.fromkeys(labels, [1.0, None, None]),
        "unlearned": dict.fromkeys(labels, [0.5, 0.5, 0.5]),
        "gold": dict.fromkeys(labels, [0.25, None, None]),
    }


@pytest.mark.parametrize("attack", [membership, probe, lens, collapse, relearn])
def test_without_gold_the_others_stand_alone(context, small, attack):
    """No figure is made up for a gold that is not there."""
    models = {name: c for name, c in context.models.items() if name != "gold"}
    alone = replace(context, models=models, suite=small)
    run = attack.run if attack is not relearn else lambda c: relearn.run(c, (0, 1))
    both, single = run(replace(context, suite=small)), run(alone)
    told = json.dumps(single)
    assert "NaN" not in told and "gold" in json.dumps(both["rows"] + both["columns"])
    if attack is collapse:
        assert {row[2] for row in single["rows"]} == set(models)
        return
    at = [i for i, name in enumerate(single["columns"]) if name.split(", ")[-1] == "gold"]
    assert at and all(row[i] is None for row in single["rows"] for i in at)
    drawn = " ".join(single.get("curves") or single["dots"])
    assert "gold" not in drawn and "unlearned" in drawn
    mine = [i for i, name in enumerate(both["columns"]) if "unlearned" in name]
    assert [[r[i] for i in mine] for r in both["rows"]] == [
        [r[i] for i in mine] for r in single["rows"]
    ]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, taught, processor, small):
    """A finished run on disk."""
    home = tmp_path_factory.mktemp("attacked")
    for name, model in zip(("vanilla", "gold"), taught, strict=True):
        save_checkpoint(model, processor, home / name)
    files = {}
    for name, examples in small.sets.items():
        files[name] = str(home / f"{name}.jsonl")
        write_jsonl(examples, files[name])
    config = RunConfig(
        model=str(home / "vanilla"), gold=str(home / "gold"), method="manu", budget=0.02, **files
    )
    Run(home / "run", settled(config), small).all()
    return home / "run"


KINDS = [name for name in ATTACKS if name != "relearn"]


def test_every_attack_writes_a_table_that_quotes_nobody(run_folder, small):
    before = (run_folder / "report.html").read_text("utf-8")
    attack_run(run_folder, ["lens"])
    attack_run(run_folder, [k for k in KINDS if k != "lens"])
    text = (run_folder / "attacks.json").read_text("utf-8")
    held = json.loads(text)
    assert list(held) == KINDS
    for name, entry in held.items():
        assert entry["rows"], name
        assert all(len(row) == len(entry["columns"]) for row in entry["rows"]), name
        assert "vanilla" in json.dumps(entry) and "gold" in json.dumps(entry), name
        drawn = " ".join(entry.get("curves") or entry["dots"])
        assert all(model in drawn for model in base.MODELS), name
    for example in small.sets["forget"]:
        for secret in (example.subject, example.answer, example.question, example.text_question):
            assert secret not in text
    after = (run_folder / "report.html").read_text("utf-8")
    assert "Membership inference" in after and "Membership inference" not in before
    titles = {f'id="attack-{n}-t">{entry["title"]}<' for n, entry in enumerate(held.values())}
    assert all(title in after for title in titles)
    assert not list(run_folder.glob("*.partial"))
    seconds = json.loads((run_folder / "seconds.json").read_text("utf-8"))
    assert all(seconds[f"attack {name}"] > 0 for name in KINDS) and seconds["plan"] > 0


def test_attacking_again_gives_the_same_and_keeps_the_rest(run_folder):
    runner = CliRunner()
    first = runner.invoke(app, ["attack", str(run_folder), "--kind", "views,lens", "--json"])
    held = json.loads((run_folder / "attacks.json").read_text("utf-8"))
    twice = ["--kind", "lens", "--kind", "views", "--json"]
    again = runner.invoke(app, ["attack", str(run_folder), *twice])
    assert json.loads(first.stdout) == json.loads(again.stdout)
    assert set(json.loads(first.stdout)) == {"views", "lens"}
    assert json.loads((run_folder / "attacks.json").read_text("utf-8")) == held
    words = runner.invoke(app, ["attack", str(run_folder), "--kind", "lens"]).stdout
    assert "median rank, gold" in words and "Logit lens" in words


def test_wrong_input_is_said_in_one_line(run_folder, tmp_path):
    with pytest.raises(InputError, match="unknown attack 'lense'. Did you mean 'lens'"):
        attack_run(run_folder, ["lense"])
    with pytest.raises(InputError, match=r"holds no config\.yaml"):
        attack_run(tmp_path)
    (tmp_path / "run").mkdir()
    for name in ("config.yaml", "plan.safetensors"):
        (tmp_path / "run" / name).write_bytes((run_folder / name).read_bytes())
    (tmp_path / "run" / "attacks.json").write_text("[1]")
    with pytest.raises(InputError, match="is a list, expected an object"):
        attack_run(tmp_path / "run", ["lens"])


def test_a_plan_for_other_weights_is_refused(run_folder, tmp_path):
    plan = Plan.load(run_folder / "plan.safetensors")
    base_of = {**plan.provenance["base"], "fingerprint": "0" * 32}
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_bytes((run_folder / "config.yaml").read_bytes())
    other = Plan(plan.edits, plan.sites, {**plan.provenance, "base": base_of})
    other.save(folder / "plan.safetensors")
    with pytest.raises(InputError, match="made for other weights"):
        attack_run(folder, ["lens"])


def test_an_attack_whose_set_is_missing_is_refused_by_name_and_left_out_of_all(suite):
    from expunge.attacks.run import chosen

    sets = Suite({k: v for k, v in suite.sets.items() if k != "neighbor"})
    with pytest.raises(InputError, match="stranger or neighbor set.* --stranger or --neighbor"):
        chosen(["membership"], sets)
    assert set(ATTACKS) - set(chosen(None, sets)) == {"membership"}
    with_others = Suite({**sets.sets, "stranger": suite.sets["neighbor"]})
    assert chosen(None, with_others) == list(ATTACKS)
    assert chosen(None, suite) == list(ATTACKS)
