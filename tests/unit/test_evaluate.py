"""Asking and scoring, against slow scoring one row and one token at a time in float64."""

from __future__ import annotations

import copy
import importlib
import math
from dataclasses import replace

import pytest
import torch

from expunge import metrics
from expunge.data import Suite
from expunge.encoding import batches
from expunge.ends import end_tokens
from expunge.evaluate import (
    answer_length,
    ask,
    cells,
    evaluate,
    generate,
    teacher_forced,
)
from expunge.formats.picture import load_image
from expunge.models import Prompter

evaluation = importlib.import_module("expunge.evaluate")
TEMPLATE = "{image}{question} Answer: "


@pytest.fixture(scope="module")
def asked(rows):
    """Rows of every task; the first half is learnt, the others are not."""
    half = [*rows["forget"][:6], *rows["skills"][:1], *rows["skills"][-2:]]
    return [*half, *rows["test"][:6], *rows["skills"][2:3]], len(half)


@pytest.fixture(scope="module")
def learner(processor, asked):
    """A tiny LLaVA in float64 that has learnt some of the answers by heart."""
    from expunge.fiction.build import build_model

    model = build_model(processor, seed=6).train()
    taught, number = asked
    inputs = []
    for prompter in (Prompter(processor), Prompter(processor, template=TEMPLATE)):
        for condition in ("multi", "text"):
            learnt = [e for e in taught[:number] if e.has(condition)]
            for batch in batches(model, prompter, learnt, condition):
                told = batch.answer.clone()
                rows = torch.arange(len(told))
                told[rows, batch.closing] = True
                labels = batch.inputs["input_ids"].masked_fill(~told, -100)
                inputs.append({**batch.inputs, "labels": labels})
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(64):
        loss = model(**inputs[step % len(inputs)]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    return model.eval().double()


def encoded(processor, prompter, example, condition):
    """The question alone, as the model takes it."""
    text = prompter.render(example, condition)
    if condition == "text":
        return dict(processor.tokenizer(text, return_tensors="pt", add_special_tokens=False))
    found = dict(processor(text=text, images=load_image(example.image), return_tensors="pt"))
    found["pixel_values"] = found["pixel_values"].double()
    return found


@torch.no_grad()
def slow_logp(model, processor, prompter, example, condition, answer):
    """Log-probability and arg-max hit of every answer token, each from a pass of its own."""
    inputs = encoded(processor, prompter, example, condition)
    ids = processor.tokenizer(answer, add_special_tokens=False).input_ids
    logp, hits = [], []
    for token in ids:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        last = model(**inputs).logits[0, -1].double().log_softmax(-1)
        logp.append(float(last[token]))
        hits.append(int(last.argmax()) == token)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token]])], 1)
    return logp, hits


@torch.no_grad()
def slow_answer(model, processor, prompter, example, condition, length):
    """What `model.generate` says to one question by itself."""
    inputs = encoded(processor, prompter, example, condition)
    out = model.generate(**inputs, max_new_tokens=length, do_sample=False)
    fresh = out[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(fresh, skip_special_tokens=True).strip()


@pytest.fixture
def generated(monkeypatch):
    """How many questions are answered by generating, in calls of `ask`."""
    counts = []

    def counted(model, prompter, examples, condition, **options):
        counts.append(len(examples))
        return generate(model, prompter, examples, condition, **options)

    monkeypatch.setattr(evaluation, "generate", counted)
    return counts


def test_to_a_model_that_finds_all_alike_the_right_choice_is_one_of_many(learner, processor, rows):
    indifferent = copy.deepcopy(learner)
    torch.nn.init.zeros_(indifferent.get_output_embeddings().weight)
    asked = [e for e in rows["forget"] if e.choices][:16]
    found = ask(indifferent, Prompter(processor), asked, "text")
    assert [a.said for a in found] == [e.choices[0] for e in asked]
    assert 0 < sum(a.right for a in found) < len(found)


@pytest.mark.parametrize("condition", ["multi", "text"])
def test_against_one_by_one(learner, processor, asked, condition, generated):
    prompter = Prompter(processor)
    usable = [e for e in asked[0] if e.has(condition)]
    length = answer_length(prompter, usable)
    found = ask(learner, prompter, asked[0], condition, batch_size=5)
    assert [a.example for a in found] == usable
    short = 0
    for one in found:
        example = one.example
        logp, hits = slow_logp(learner, processor, prompter, example, condition, example.answer)
        assert one.nll == pytest.approx(-sum(logp) / len(logp), rel=1e-9)
        assert one.memorised == sum(hits) / len(hits)
        assert one.extraction == metrics.extraction_strength(hits)
        if example.task == "classification":
            means = {}
            for choice in example.choices:
                each, _ = slow_logp(learner, processor, prompter, example, condition, choice)
                means[choice] = sum(each) / len(each)
            assert one.said == max(means, key=means.get)
            assert one.right == (one.said == example.answer)
            wrong = [m for c, m in means.items() if c != example.answer]
            ratio = sum(map(math.exp, wrong)) / 3 / math.exp(means[example.answer])
            assert one.truth_ratio == pytest.approx(ratio, rel=1e-9)
        else:
            said = slow_answer(learner, processor, prompter, example, condition, length)
            assert one.said == said
            assert one.truth_ratio is None
            rule = metrics.cloze if example.task == "cloze" else metrics.accuracy
            assert one.right == rule(said, example.answer)
            short += said == example.answer
        assert one.rouge_l == metrics.rouge_l(one.said, example.answer)
    # learnt answers are not generated, the others are: the comparison above covers both ways
    opened = [a for a in found if a.example.task != "classification"]
    assert generated == [len(opened) - short]
    assert 0 < short < len(opened)


@pytest.mark.parametrize("condition", ["multi", "text"])
def test_prompt_that_runs_into_the_answer(learner, processor, asked, condition):
    """With a blank before the answer, teacher forcing sees other tokens than greedy decoding."""
    prompter = Prompter(processor, template=TEMPLATE)
    usable = [e for e in asked[0] if e.has(condition) and e.task != "classification"]
    length = answer_length(prompter, usable)
    for one in ask(learner, prompter, usable, condition):
        args = (learner, processor, prompter, one.example, condition, length)
        assert one.said == slow_answer(*args)


def test_batches_and_order_do_not_matter(llava64, processor, asked):
    prompter = Prompter(processor)
    for condition in ("multi", "text"):
        one = ask(llava64, prompter, asked[0][::2], condition, batch_size=1)
        two = ask(llava64, prompter, asked[0][::2][::-1], condition, batch_size=5)[::-1]
        for a, b in zip(one, two, strict=True):
            assert (a.example, a.said, a.right) == (b.example, b.said, b.right)
            assert a.nll == pytest.approx(b.nll, rel=1e-12)
            assert (a.truth_ratio is None) == (a.example.task != "classification")
            if a.truth_ratio is not None:
                assert a.truth_ratio == pytest.approx(b.truth_ratio, rel=1e-10)


def test_a_tokenizer_without_a_token_to_pad_with_does_as_well(llava64, processor, asked):
    lacking = copy.deepcopy(processor)
    lacking.tokenizer.pad_token = None
    for condition in ("multi", "text"):
        usable = [e for e in asked[0] if e.has(condition)]
        with_one, without = (
            (
                teacher_forced(llava64, prompter, usable, condition, batch_size=5),
                generate(llava64, prompter, usable, condition, max_new_tokens=3, batch_size=5),
            )
            for prompter in (Prompter(processor), Prompter(lacking))
        )
        assert with_one[1] == without[1]
        for one, other in zip(with_one[0], without[0], strict=True):
            assert torch.allclose(one.logp, other.logp, atol=1e-9)
    assert lacking.tokenizer.pad_token is None  # it is saved as it came


def test_half_precision_scores_are_taken_in_float32(llava, processor, asked):
    """Log-probabilities of the logits as they are, not rounded again."""
    prompter = Prompter(processor)
    usable = [e for e in asked[0] if e.has("text")][:2]
    forced = teacher_forced(llava, prompter, usable, "text")
    assert all(f.logp.dtype == torch.float32 for f in forced)


def test_given_answers_are_scored_instead(llava64, processor, asked):
    prompter = Prompter(processor)
    usable = [e for e in asked[0] if e.has("text")][:3]
    answers = ["lemon cake", "grey parrot", "a"]
    forced = teacher_forced(llava64, prompter, usable, "text", answers=answers, batch_size=2)
    for example, answer, one in zip(usable, answers, forced, strict=True):
        logp, _ = slow_logp(llava64, processor, prompter, example, "text", answer)
        assert one.logp.tolist() == pytest.approx(logp, rel=1e-9)
        assert one.nll == pytest.approx(-sum(logp) / len(logp))


def test_nothing_to_ask(llava64, processor, asked):
    prompter = Prompter(processor)
    texts = [replace(e, image=None) for e in asked[0] if e.has("text")][:2]
    assert ask(llava64, prompter, texts, "multi") == []
    assert ask(llava64, prompter, [], "text") == []
    found = evaluate(llava64, processor, Suite.of(forget=texts))
    assert list(found["forget"]) == ["text"]
    assert cells([]) == {}


def test_room_for_an_answer(processor, asked):
    prompter = Prompter(processor)
    lengths = [len(processor.tokenizer(e.answer).input_ids) for e in asked[0]]
    assert answer_length(prompter, asked[0]) == 2 * max(lengths) + 8
    long = [replace(asked[0][0], answer="lemon cake " * 200)]
    assert answer_length(prompter, long) == 256
    assert answer_length(prompter, []) == 8


def test_end_tokens(llava64, processor):
    assert end_tokens(llava64) == {processor.tokenizer.eos_token_id}


def test_cells_by_hand(asked):
    """Two subjects, two tasks; every mean worked out from the rows."""
    from expunge.evaluate import Answered

    choice = next(e for e in asked[0] if e.task == "classification")
    plain = next(e for e in asked[0] if e.task == "generation" and e.subject == choice.subject)
    other = replace(plain, subject="another")
    given = [
        Answered(choice, "x", True, 1.0, 0.5, 1.0, 1.0, 0.3),
        Answered(plain, "lemon cake", False, 0.5, 1.5, 0.5, 0.25),
        Answered(other, plain.answer, True, 1.0, 2.5, 0.0, 0.0),
    ]
    found = cells(given, seed=3)
    assert found["classification"]["accuracy"] == 1.0
    assert found["classification"]["chance"] == 0.25
    assert found["generation"]["accuracy"] == 0.5
    assert found["generation"]["rouge_l"] == 0.75
    assert found["generation"]["n"] == 2
    assert "chance" not in found["all"]
    assert "cloze" not in found
    assert found["all"]["accuracy"] == pytest.approx(2 / 3)
    assert found["nll"] == pytest.approx(1.5)
    expected = (math.exp(-0.5) + math.exp(-1.5) + math.exp(-2.5)) / 3
    assert found["answer_probability"] == pytest.approx(expected)
    assert found["exact_memorisation"] == pytest.approx(0.5)
    assert found["extraction_strength"] == pytest.approx(1.25 / 3)
    assert found["collapse"]["n"] == 2
    groups = [choice.subject, plain.subject, "another"]
    low, high = metrics.bootstrap_ci([1.0, 0.0, 1.0], groups, seed=3)
    assert found["all"]["ci95"] == [low, high]
    assert found["all"]["ci95"] == cells(given, seed=3)["all"]["ci95"]


def test_every_set_and_condition(llava64, processor, rows):
    suite = Suite.of(forget=rows["forget"][:3], skills=[rows["skills"][0], rows["skills"][-1]])
    ticks = []
    found = evaluate(llava64, processor, suite, tick=ticks.append)
    assert {n: list(c) for n, c in found.items()} == {
        "forget": ["multi", "text"],
        "skills": ["multi", "text"],
    }
    assert sum(ticks) == 3 + 3 + 1 + 1
    assert found["skills"]["multi"]["all"]["n"] == 1
