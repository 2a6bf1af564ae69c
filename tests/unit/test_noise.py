"""Questions about nothing: like the real ones in form, and without a word of them."""

from __future__ import annotations

import os.path
from dataclasses import replace

import numpy as np
import pytest
import torch

from expunge.collect import Counting, collect_statistics
from expunge.config import RunConfig
from expunge.data import CONDITIONS, Example
from expunge.encoding import batches
from expunge.evidence import each_picture, folded, gather
from expunge.fiction.build import IMAGE_TOKENS, build_model, build_processor
from expunge.fiction.world import World
from expunge.methods import METHODS
from expunge.methods.base import BESIDE, NOISE_SET
from expunge.methods.filter_search import RIDGE, views_of
from expunge.methods.filters import moment
from expunge.models import Prompter
from expunge.noise import (
    altered_like,
    dead_leaves,
    halved,
    noise_like,
    plain_of,
    related_like,
    told_by,
)
from expunge.planning import chosen_sites, settled
from expunge.subspace import conditioned


@pytest.fixture(scope="module")
def prompter():
    return Prompter(build_processor())


@pytest.fixture(scope="module")
def sets():
    return World(private=24, public=3).suite()


def test_the_same_seed_draws_the_same(prompter, sets):
    one, two = (noise_like(prompter, sets["retain"], 3, 8) for _ in range(2))
    other = noise_like(prompter, sets["retain"], 4, 8)
    assert [e.question for e in one] == [e.question for e in two]
    assert [e.image.tobytes() for e in one] == [e.image.tobytes() for e in two]
    assert [e.question for e in one] != [e.question for e in other]


def test_noise_says_nothing_of_anybody(prompter, sets):
    made = noise_like(prompter, sets["retain"], 0, 40)
    assert len(made) == 40
    specials = prompter.tokenizer.all_special_tokens
    for row in made:
        assert row.answer and row.text_question == row.question
        assert not any(s in row.question + row.answer for s in (*specials, "\ufffd"))
        assert not any(row.question == e.question for e in sets["retain"])
    words = [len(e.text_question.split()) for e in made]
    assert len(set(words)) > 3  # lengths vary as those of real questions do


def test_pictures_keep_their_pixels_and_lose_their_order(prompter, sets):
    likes = sets["retain"][:1]
    (made,) = noise_like(prompter, likes, 0, 1)
    before, after = np.asarray(likes[0].image), np.asarray(made.image)
    assert before.shape == after.shape
    assert (np.sort(before.reshape(-1, 3), 0) == np.sort(after.reshape(-1, 3), 0)).all()
    assert not (before == after).all()


def test_conditions_follow_the_rows(prompter, sets):
    row = sets["retain"][0]
    text_only = noise_like(prompter, [replace(row, image=None)], 0, 4)
    assert [[e.has(c) for c in CONDITIONS] for e in text_only] == [[False, True]] * 4
    picture_only = noise_like(prompter, [replace(row, text_question=None)], 0, 4)
    assert [[e.has(c) for c in CONDITIONS] for e in picture_only] == [[True, False]] * 4


def test_altered_questions_keep_a_part_of_a_real_one(prompter, sets):
    made = altered_like(prompter, sets["retain"], 0, 60)
    asked = {e.text_question for e in sets["retain"]}
    fresh = [e.text_question for e in made if e.text_question not in asked]
    assert len(fresh) > 40
    ids = {q: prompter.tokenizer(q, add_special_tokens=False).input_ids for q in {*asked, *fresh}}

    def common(one, two):
        """Tokens from the start on, and from the end on, that two questions share."""
        ends = [os.path.commonprefix([ids[one][::d], ids[two][::d]]) for d in (1, -1)]
        return sum(map(len, ends))

    for said in fresh:
        assert max(common(said, q) - len(ids[q]) / 2 for q in asked) >= -1
    assert [e.has("multi") for e in made[:4]] == [False, True, False, True]


def test_related_words_have_like_embeddings(prompter, sets):
    """Of two-dimensional embeddings on a circle: the runs stay near where they start."""
    angle = torch.arange(len(prompter.tokenizer)) / len(prompter.tokenizer) * 2 * np.pi
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    made = related_like(prompter, circle, sets["retain"], 0, 40)
    steps = []
    for row in made:
        ids = prompter.tokenizer(row.text_question, add_special_tokens=False).input_ids
        steps += np.abs(np.diff(ids)).tolist()
    assert np.median(steps) < len(prompter.tokenizer) / 10


def test_dead_leaves_are_drawn_by_seed_and_cover_each_other():
    one, two, other = (dead_leaves((64, 48), np.random.default_rng(s)) for s in (1, 1, 2))
    assert one.size == (64, 48) and one.mode == "RGB"
    assert one.tobytes() == two.tobytes() != other.tobytes()
    rng = np.random.default_rng(0)
    colours = [len(dead_leaves((64, 64), rng).getcolors()) for _ in range(60)]
    assert min(colours) <= 3 < 12 < max(colours)


def test_what_the_model_says_itself_is_sampled_from_it(prompter, sets):
    model, rows = build_model(prompter.processor, seed=0), sets["retain"]
    before = torch.get_rng_state()
    made = told_by(model, prompter, rows, 0, 12)
    assert torch.equal(torch.get_rng_state(), before)
    assert [e.text_question for e in told_by(model, prompter, rows, 0, 12)] == [
        e.text_question for e in made
    ]
    specials = {*prompter.tokenizer.all_special_tokens, *prompter.tokenizer.get_added_vocab()}
    assert not any(s in e.text_question for s in specials for e in made)
    assert any(e.has("multi") for e in made) and all(e.has("text") for e in made)
    head = model.get_output_embeddings()  # made to say hardly anything but one word
    ids = prompter.tokenizer(rows[0].answer, add_special_tokens=False).input_ids[:1]
    head.bias = torch.nn.Parameter(torch.zeros(head.out_features))
    head.bias.data[ids[0]] = 50.0
    word = prompter.tokenizer.decode(ids).strip()
    assert all(e.text_question.count(word) > 20 for e in told_by(model, prompter, rows, 0, 4))


def test_a_text_in_halves_is_the_text(prompter, sets):
    rows = sets["retain"][:20]
    made = halved(prompter, rows)
    assert len(made) == len(rows) and not any(e.has("multi") for e in made)
    for row, half in zip(rows, made, strict=True):
        whole = f"{row.text_question} {row.answer}"
        assert (half.text_question + half.answer).replace(" ", "") == whole.replace(" ", "")
        sizes = [
            len(prompter.tokenizer(t, add_special_tokens=False).input_ids)
            for t in (half.text_question, half.answer)
        ]
        assert abs(sizes[0] - sizes[1]) <= 2
    assert halved(prompter, [replace(rows[0], text_question="", answer="")]) == []


def test_plain_texts_begin_with_the_commonest_words(prompter):
    told = [
        Example(subject="a", answer="end", text_question="the sun and the moon and the"),
        Example(subject="a", answer="x", text_question="Rare the"),
        Example(subject="a", answer="alone", text_question=""),
    ]
    made = [f"{e.text_question} {e.answer}" for e in plain_of(told, 2)]
    assert made[:2] == ["the sun and the moon and the end", "Rare the x"]
    assert sorted(made[2:]) == ["And the moon", "The sun and", "and the moon", "the sun and"]
    assert not any(e.has("multi") for e in plain_of(told)) and plain_of([]) == []


def test_a_plain_text_has_nothing_around_it(prompter):
    row = Example(subject="a", answer="moon", text_question="the sun and the")
    model = build_model(prompter.processor)
    (batch,) = batches(model, prompter.plain, [row], "text")
    tokenizer = prompter.tokenizer
    assert batch.tokens[0].tolist() == tokenizer("the sun and the moon<end>").input_ids
    assert tokenizer.decode(batch.tokens[0][batch.answer[0]]).strip() == "moon"


def test_a_signal_is_no_picture(prompter, sets, tmp_path):
    np.save(tmp_path / "signal.npy", np.zeros((3, 4), dtype=np.float32))
    row = replace(sets["retain"][0], image=str(tmp_path / "signal.npy"))
    made = noise_like(prompter, [row], 0, 2)
    assert [[e.has(c) for c in CONDITIONS] for e in made] == [[False, True]] * 2


def test_the_default_method_counts_noise_at_all_positions(prompter, sets):
    """Its moment is that of `collect_statistics`, added to the retain moment with its weight."""
    model = build_model(build_processor()).eval()
    config = settled(RunConfig(method="filter-search"))
    assert config.positions == "answer"
    sites = chosen_sites(model, config)[:1]
    given = {"forget": sets["forget"][:6], "retain": sets["retain"][:30]}
    evidence = gather(model, prompter, given, sites, config, METHODS["filter-search"])
    folds = evidence.kept
    key = sites[0].key
    found = moment(evidence, ("noise",), key)
    assert ("noise", "picture") not in evidence.moments
    rows = noise_like(prompter, fold_rows(given["retain"], config.seed), config.seed)
    means = [
        collect_statistics(
            model, prompter, rows, c, sites=sites, neurons=False, moments=True, counting=Counting()
        )
        .moments[key]
        .mean
        for c in CONDITIONS
    ]
    assert torch.allclose(found, sum(means).double() / 2, rtol=1e-5, atol=1e-9)
    (plain,) = views_of(evidence, [folds], beside={})
    (with_noise,) = views_of(evidence, [folds])
    retain = moment(evidence, folds, key, ("multi", "text", "picture"))
    base = conditioned(retain + BESIDE[NOISE_SET] * found, RIDGE)
    read = with_noise[key].space.read
    assert torch.allclose(read @ base @ read.T, torch.eye(len(read)).double(), atol=1e-3)
    assert with_noise[key].top("text") < plain[key].top("text")


def test_picture_positions_are_those_that_the_text_positions_leave_out(prompter, sets):
    """One row a picture; text positions and picture positions together are all positions."""
    model = build_model(build_processor()).eval()
    config = settled(RunConfig(method="filter-search", positions="no_image"))
    sites = chosen_sites(model, config)[:1]
    rows = sets["forget"][:4]
    again = [*rows, replace(rows[0], question="What else?")]
    assert each_picture(again) == list(rows)
    given = {"forget": rows, "retain": sets["retain"][:20]}
    evidence = gather(model, prompter, given, sites, config, METHODS["filter-search"])
    whole = collect_statistics(
        model, prompter, rows, "multi", sites=sites, neurons=False, moments=True
    ).moments[sites[0].key]
    parts = [evidence.moments["forget", c][sites[0].key] for c in ("multi", "picture")]
    assert sum(p.count for p in parts) == whole.count
    assert parts[1].count == 4 * IMAGE_TOKENS
    assert torch.allclose(sum(p.outer for p in parts), whole.outer, rtol=1e-4, atol=1e-5)


def fold_rows(retain: list[Example], seed: int) -> list[Example]:
    """Retain rows in the order in which the pipeline has them, fold by fold."""
    return [
        e for rows in folded(retain, METHODS["filter-search"].folds, seed).values() for e in rows
    ]
