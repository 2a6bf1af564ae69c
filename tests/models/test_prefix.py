"""What questions share is run once, and everything comes out as in the plain way."""

from __future__ import annotations

import importlib.util
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from test_prompting import made

from expunge import prefix
from expunge.collect import Counting, collect_inputs, collect_statistics
from expunge.data import Example
from expunge.edit import edited
from expunge.encoding import batches
from expunge.evaluate import generate, teacher_forced
from expunge.plan import SiteEdit
from expunge.prefix import Shared, shared_batches
from expunge.probe_set import ProbeSet
from expunge.sites import find_sites

EXACT = ("llava", "qwen2-vl", "qwen2.5-vl", "qwen3-vl", "smolvlm", "internvl", "gemma3")
PLAIN_IN_5_0 = ("qwen2.5-vl", "qwen3-vl")  # what a picture stands for cannot be continued there
# reads prompts in both directions; attends to the picture anew; hands out no cache
PLAIN = ("paligemma", "mllama", "blip2-opt")
COUNTINGS = [
    Counting(),
    Counting("no_image"),
    Counting("answer"),
    Counting(unit="example"),
    Counting("answer", "example"),
]
ASKED = [("what is the town?", "Bath"), ("where is the inn", "the end"), ("who?", "inn")]


def row(picture, number, size=(16, 16)):
    """A question about a picture; the picture is drawn anew, or stored, for each question."""
    question, answer = ASKED[number]
    image = Image.new("RGB", size, (60 * picture % 255, 90, 200))
    image.putpixel((2, 3 + picture), (255, 0, 0))
    if picture == 1:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        image = buffer.getvalue()
    return Example(f"s{picture}", answer, question, image, f"{question} in words", None)


ROWS = [
    *(row(0, number) for number in range(3)),
    *(row(1, number) for number in range(3)),
    *(row(2, number, (24, 16)) for number in range(2)),
    row(3, 1),
]


def double(name):
    _, model, prompter = made(name)
    return name, model.double(), prompter


@pytest.fixture(scope="module", params=EXACT)
def case(request):
    """Name, model and prompter of a family that shares."""
    return double(request.param)


@pytest.fixture(scope="module")
def llava_case():
    return double("llava")


def sites_of(model):
    return [s for s in find_sites(model) if not s.dead]


def assert_same(one, two, tolerance=1e-6):
    assert one.neurons.keys() == two.neurons.keys()
    for key, stats in one.neurons.items():
        other = two.neurons[key]
        assert stats.count == other.count, key
        for name in ("total", "absolute", "over", "square"):
            wanted = getattr(other, name)
            torch.testing.assert_close(getattr(stats, name), wanted, rtol=tolerance, atol=1e-9)
    assert one.moments.keys() == two.moments.keys()
    for key, moment in one.moments.items():
        assert moment.count == two.moments[key].count
        torch.testing.assert_close(moment.outer, two.moments[key].outer, rtol=tolerance, atol=1e-9)


def plainly(model, prompter, rows, counting, batch_size, condition="multi"):
    feed = batches(model, prompter, rows, condition, batch_size=batch_size)
    sites = sites_of(model)
    return collect_inputs(
        model, feed, sites=sites, moments=True, counting=counting, condition=condition
    )


def sharing(model, prompter, rows, counting, batch_size, condition="multi"):
    return collect_statistics(
        model,
        prompter,
        rows,
        condition,
        sites=sites_of(model),
        moments=True,
        counting=counting,
        batch_size=batch_size,
    )


@pytest.mark.parametrize("counting", COUNTINGS, ids=lambda c: f"{c.positions}-{c.unit}")
def test_statistics_are_those_of_the_plain_way(case, counting):
    name, model, prompter = case
    found = list(shared_batches(model, prompter, ROWS, "multi", batch_size=6))
    alike = [each for each in found if isinstance(each, Shared)]
    shared = sorted(r for each in alike for r in each.tail.rows)
    if not (name in PLAIN_IN_5_0 and transformers.__version__ == "5.0.0"):
        assert shared == list(range(8))
    size = 1 if counting.unit == "example" else 4
    plain = plainly(model, prompter, ROWS, counting, size)
    assert_same(sharing(model, prompter, ROWS, counting, 6), plain)


def test_trying_out_a_new_model_does_not_count():
    _, model, prompter = double("llava")
    found = sharing(model, prompter, ROWS, Counting(), 6)
    assert_same(found, plainly(model, prompter, ROWS, Counting(), 4))


def test_neither_order_nor_batch_size_counts(llava_case):
    _, model, prompter = llava_case
    one = sharing(model, prompter, ROWS, Counting(), 6)
    for rows, size in ((ROWS[::-1], 6), (ROWS[4:] + ROWS[:4], 2), (ROWS, 100)):
        assert_same(sharing(model, prompter, rows, Counting(), size), one)


def test_rows_without_a_picture_and_rows_by_themselves(llava_case):
    _, model, prompter = llava_case
    mixed = [replace(ROWS[0], image=None), *ROWS[1:4], ROWS[8], replace(ROWS[7], question=None)]
    for condition in ("multi", "text"):
        usable = [e for e in mixed if e.has(condition)]
        plain = plainly(model, prompter, usable, Counting(), 4, condition)
        assert_same(sharing(model, prompter, mixed, Counting(), 4, condition), plain)
    assert collect_statistics(model, prompter, [], "multi", sites=sites_of(model)).neurons


@pytest.mark.parametrize("unit", ["token", "example"])
def test_experts_that_some_of_the_words_are_routed_to(unit):
    _, model, prompter = double("mixtral")
    model.set_experts_implementation("eager")  # the others know no float64
    rows = [replace(ROWS[0], answer=answer) for answer in ("Bath", "the hat of the baker", "inn")]
    found = list(shared_batches(model, prompter, rows, "text"))
    assert [type(each) for each in found] == [Shared]
    counting = Counting(unit=unit)
    plain = plainly(model, prompter, rows, counting, 1, "text")
    assert_same(sharing(model, prompter, rows, counting, 4, "text"), plain)


def test_every_picture_and_its_beginning_run_once(llava_case):
    _, model, prompter = llava_case
    found = list(shared_batches(model, prompter, ROWS[:6], "multi", batch_size=6))
    assert len(found) == 1
    seen: dict[str, list[tuple[int, ...]]] = {"vision": [], "language": []}
    parts = {"vision": model.model.vision_tower, "language": model.model.language_model.layers[0]}

    def note(name):
        def hook(_, given, options):
            first = given[0] if given else options["pixel_values"]
            seen[name].append(tuple(first.shape[:2]))

        return hook

    handles = [
        module.register_forward_pre_hook(note(name), with_kwargs=True)
        for name, module in parts.items()
    ]
    batch = prefix.begun(model, found[0])
    model(**batch.inputs, use_cache=False)
    for handle in handles:
        handle.remove()
    head, tail = (tuple(each.tokens.shape) for each in (found[0].head, found[0].tail))
    assert [shape[0] for shape in seen["vision"]] == [2]
    assert seen["language"] == [head, tail]
    assert head[0] == 2 and tail[0] == 6


def test_nothing_is_cached_that_nobody_continues(llava_case, monkeypatch):
    kept = []
    update = transformers.DynamicCache.update

    def counted(self, *given, **options):
        kept.append(type(self))
        return update(self, *given, **options)

    monkeypatch.setattr(transformers.DynamicCache, "update", counted)
    _, model, prompter = llava_case
    feed = list(batches(model, prompter, ROWS, "multi", batch_size=4))
    collect_inputs(model, feed)
    assert not kept
    model(**feed[0].inputs)
    assert kept, "nothing was seen where a cache is kept"


@pytest.mark.parametrize("name", PLAIN)
def test_families_that_cannot_go_on_run_in_the_plain_way(name):
    _, model, prompter = double(name)
    found = list(shared_batches(model, prompter, ROWS, "multi", batch_size=6))
    assert not any(isinstance(each, Shared) for each in found)
    assert sorted(r for each in found for r in each.rows) == list(range(len(ROWS)))
    assert_same(
        sharing(model, prompter, ROWS, Counting(), 6), plainly(model, prompter, ROWS, Counting(), 4)
    )


def test_a_model_that_looks_ahead_is_found_out():
    """Every position hears of the whole text, so the beginning depends on the question."""
    _, model, prompter = double("llava")

    def mix(_, given, hidden):
        return hidden + hidden.mean(1, keepdim=True)

    handle = model.model.language_model.layers[0].register_forward_hook(mix)
    for prompt_only in (False, True):
        found = list(shared_batches(model, prompter, ROWS, "multi", prompt_only=prompt_only))
        assert not any(isinstance(each, Shared) for each in found)
        assert sorted(r for each in found for r in each.rows) == list(range(len(ROWS)))
    handle.remove()


def test_answers_are_scored_and_generated_as_one_by_one(case):
    name, model, prompter = case
    together = teacher_forced(model, prompter, ROWS, "multi", batch_size=6)
    for one, other in zip(
        together, teacher_forced(model, prompter, ROWS, "multi", batch_size=1), strict=True
    ):
        torch.testing.assert_close(one.logp, other.logp, rtol=1e-9, atol=1e-9)
        assert torch.equal(one.hits, other.hits) and one.closed == other.closed
    said = [
        generate(model, prompter, ROWS, "multi", max_new_tokens=4, batch_size=size)
        for size in (6, 1)
    ]
    assert said[0] == said[1]


def test_generating_shares_too(llava_case):
    _, model, prompter = llava_case
    found = list(shared_batches(model, prompter, ROWS, "multi", prompt_only=True))
    assert sorted(r for each in found for r in begun_rows(each)) == list(range(len(ROWS)))
    assert sum(isinstance(each, Shared) for each in found) == 2


def begun_rows(each):
    return each.tail.rows if isinstance(each, Shared) else each.rows


def test_choices_share_the_question(llava_case):
    _, model, prompter = llava_case
    rows = [ROWS[0]] * 3 + [ROWS[3]]
    answers = ["Bath", "inn", "the hat", "Bath"]
    kinds = [
        (type(each), begun_rows(each))
        for each in shared_batches(model, prompter, rows, "text", answers=answers)
    ]
    assert kinds == [(Shared, [0, 1, 2, 3])]  # rows 0 and 3 are the same in words
    one, other = (
        teacher_forced(model, prompter, rows, "text", answers=answers, batch_size=size)
        for size in (4, 1)
    )
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a.logp, b.logp, rtol=1e-9, atol=1e-9)


def test_texts_that_share_little_are_not_divided(llava_case):
    _, model, prompter = llava_case
    found = list(shared_batches(model, prompter, ROWS[:3], "text"))
    assert [type(each).__name__ for each in found] == ["Batch"]


def test_probes_follow_the_edits_of_the_model(llava_case):
    """The beginning is run anew each time."""
    _, model, prompter = llava_case
    sites = {s.key: s for s in sites_of(model)}
    together, apart = (ProbeSet(model, prompter, ROWS, "multi", batch_size=n) for n in (6, 1))
    before = together.run(model)
    edits = {
        "language.0": SiteEdit(prune=torch.arange(40)),
        "vision.0": SiteEdit(prune=torch.arange(9)),
    }
    with edited(model, sites, edits):
        after, wanted = together.run(model), apart.run(model)
    assert (after.nll - before.nll).abs().min() > 1e-6
    torch.testing.assert_close(after.nll, wanted.nll, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(together.run(model).nll, before.nll, rtol=1e-12, atol=0)


def test_the_benchmark_compares_equal_statistics(tmp_path, monkeypatch):
    path = Path(__file__).parents[2] / "benchmarks" / "prefix.py"
    spec = importlib.util.spec_from_file_location("prefix_benchmark", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    out = tmp_path / "prefix.json"
    monkeypatch.setattr("sys.argv", ["prefix.py", "--rounds", "1", f"--out={out}", "--pictures=1"])
    benchmark.main()
    found = json.loads(out.read_text())
    assert found["relative difference of statistics in float64"] < 1e-6
    assert found["neuron statistics"]["seconds"]["shared"] > 0
