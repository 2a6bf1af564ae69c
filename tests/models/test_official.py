"""MLLMU-Bench's own prompts and rules, against a slow loop of prompt, `generate` and rule."""

from __future__ import annotations

import random
import statistics
from dataclasses import replace

import pytest
import torch
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from PIL import Image
from processors import RECIPES
from rouge_score.rouge_scorer import RougeScorer

from expunge.data import CONDITIONS, TASKS, Example, Suite
from expunge.errors import InputError
from expunge.fiction.shipped import checkpoint, suite
from expunge.formats import mllmu
from expunge.formats.picture import load_image
from expunge.models import load
from expunge.official import check, exams, official

SEED = 4
FAMILIES = ("idefics2", "idefics3", "qwen2-vl", "gemma3", "llava-next")


@pytest.fixture(scope="module")
def vanilla():
    return load(checkpoint("vanilla"))


@pytest.fixture(scope="module")
def few():
    """Three people of the forget set under both conditions, and skills asked one way each.

    Every other reference is what the model tends to say to prompts that it was not taught.
    """
    sets = suite().sets
    people = sorted({e.subject for e in sets["forget"]})[:3]
    forget = [e for e in sets["forget"] if e.subject in people][::2]
    told = {"generation": "a chess hedgehog and star gazing", "cloze": "hedgehog"}
    forget[::2] = [replace(e, answer=told.get(e.task, e.answer)) for e in forget[::2]]
    return Suite.of(forget=forget, skills=sets["skills"][::12])


def drawn(rows, shots):
    """The first question of each of some subjects."""
    first = {e.subject: e for e in reversed(rows)}
    return [first[who] for who in random.Random(SEED).sample(sorted(first), shots)]


def scored(example, said):
    """The rules of the release."""
    if example.task == "cloze":
        return {"accuracy": example.answer.lower() in said.lower()}
    if example.task == "classification":
        letter = "ABCDEFGH"[example.choices.index(example.answer)]
        return {"accuracy": said[:1].upper() == letter}
    names = ("rouge1", "rouge2", "rougeL")
    rouge = RougeScorer(names, use_stemmer=True).score(example.answer, said)
    smooth = SmoothingFunction().method1
    words = sentence_bleu([example.answer.split()], said.split(), smoothing_function=smooth)
    return {**{n: rouge[n].fmeasure for n in names}, "bleu": words}


@torch.no_grad()
def slow(model, processor, sets, shots, before=""):
    """The same figures, a question at a time."""
    found = {}
    for name, examples in sets.items():
        for condition in CONDITIONS:
            for task in TASKS:
                rows = [e for e in examples if e.task == task and e.has(condition)]
                if not rows:
                    continue
                worked = drawn(rows, shots) if task != "generation" else []
                asked = [e for e in rows if all(e is not each for each in worked)]
                tokens = [
                    len(processor.tokenizer(e.answer, add_special_tokens=False).input_ids)
                    for e in asked
                ]
                scores = []
                for e in asked:
                    prompt = mllmu.official_prompt(e, condition=condition, few_shot=worked)
                    prompt = before + prompt.replace("<image>", processor.image_token)
                    if condition == "multi":
                        shown = [load_image(each.image) for each in (*worked, e)]
                        inputs = processor(text=prompt, images=[shown], return_tensors="pt")
                    else:
                        inputs = processor.tokenizer(prompt, return_tensors="pt")
                    length = inputs["input_ids"].shape[1]
                    out = model.generate(
                        **inputs, do_sample=False, max_new_tokens=2 * max(tokens) + 8
                    )
                    said = processor.tokenizer.decode(out[0, length:], skip_special_tokens=True)
                    scores.append(scored(e, said.strip()))
                cell = {k: pytest.approx(statistics.fmean(s[k] for s in scores)) for k in scores[0]}
                found.setdefault(name, {}).setdefault(condition, {})[task] = {
                    **cell,
                    "n": len(scores),
                }
    return found


def test_figures_are_those_of_a_slow_loop(vanilla, few):
    ticks = []
    found = official(*vanilla, few, seed=SEED, tick=ticks.append)
    assert found == slow(*vanilla, few.sets, 2)
    assert set(found) == {"forget", "skills"}
    assert set(found["forget"]["multi"]) == set(found["forget"]["text"]) == set(TASKS)
    cells = [
        c for conditions in found.values() for tasks in conditions.values() for c in tasks.values()
    ]
    assert sum(ticks) == sum(c["n"] for c in cells) and set(ticks) == {1}
    measures = {"generation": ("rouge2", "bleu"), "classification": ("accuracy",)}
    for task, key in ((t, k) for t in TASKS for k in measures.get(t, ("accuracy",))):
        assert any(0 < tasks[task][key] < 1 for tasks in found["forget"].values()), task


def test_a_seed_draws_and_another_draws_others(vanilla, few):
    def shots(seed):
        return [exam.shots for exam in exams(vanilla[0], few, seed)]

    assert shots(1) == shots(1)
    assert any(shots(seed) != shots(1) for seed in range(2, 6))
    for exam in exams(vanilla[0], few, 1):
        assert len(exam.shots) == (0 if exam.task == "generation" else 2)
        assert not {id(e) for e in exam.shots} & {id(e) for e in exam.asked}
        rows = [e for e in few.sets[exam.name] if e.task == exam.task and e.has(exam.condition)]
        assert len(exam.asked) + len(exam.shots) == len(rows)


def test_words_of_a_system_stand_before_the_prompt(vanilla, few):
    some = Suite.of(forget=few.sets["forget"][::2])
    found = official(*vanilla, some, seed=SEED, system="Be silent.")
    assert found == slow(*vanilla, some.sets, 2, "Be silent.\n")
    assert found != official(*vanilla, some, seed=SEED)  # it makes a difference


@pytest.mark.parametrize("name", FAMILIES)
def test_families_take_several_pictures(name):
    recipe = RECIPES[name]
    processor, model = recipe.build(), recipe.family(name).build().eval()
    rows = [
        Example(
            f"s{i}", "a", "in the tea?", Image.new("RGB", (8, 8), (60 * i, 0, 9)), "the tea?",
            ("a", "b"), "classification",
        )
        for i in range(4)
    ]  # fmt: skip
    rows += [replace(e, choices=None, task="cloze") for e in rows]
    sets = Suite.of(forget=rows)
    shots = 1 if name.startswith("idefics") else 2
    check(model, processor, sets, SEED)
    found = official(model, processor, sets, seed=SEED)
    assert found == slow(model, processor, sets.sets, shots)
    assert found["forget"]["multi"]["cloze"]["n"] == 4 - shots


def test_a_model_of_one_picture_is_refused():
    recipe = RECIPES["kosmos-2"]
    row = Example(
        "s", "a", "the tea?", Image.new("RGB", (8, 8)), None, ("a", "b"), "classification"
    )
    sets = Suite.of(forget=[replace(row, subject=who) for who in "abc"])
    with pytest.raises(
        InputError, match="Kosmos2Processor and its model do not take .* 3 pictures"
    ):
        check(recipe.family("kosmos-2").build().eval(), recipe.build(), sets)


def test_sets_that_do_not_fit_are_refused(vanilla, few):
    cloze = [e for e in few.sets["forget"] if e.task == "cloze"]
    one = [e for e in cloze if e.subject == cloze[0].subject]
    with pytest.raises(
        InputError, match=r"real, cloze under multi: 2 few-shot .* leave the set or"
    ):
        check(*vanilla, Suite.of(forget=few.sets["forget"], real=one))
    heard = replace(few.sets["forget"][0], image="sound.wav")
    with pytest.raises(
        InputError, match="forget: the official prompts show pictures, found sounds"
    ):
        check(*vanilla, Suite.of(forget=[heard]))
    many = Example("s", "1", None, None, "q", tuple(map(str, range(27))), "classification")
    wide = [replace(many, subject=who) for who in "abc"]
    with pytest.raises(InputError, match="skills, classification under text: .*27 choices"):
        check(*vanilla, Suite.of(skills=wide))
