"""Questions that begin alike: run what they share once, and continue each from its cache.

Questions about one picture share the picture and the words in front of the question; the choices
of one question share all of it. Where a model's cache allows it, `shared_batches` has such a
beginning run once. Whether it does is tried out on the first batch of a kind: what the model says
must be what it says in the plain way. If not, the questions run in the plain way.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache

from expunge.data import Example
from expunge.encoding import (
    Asked,
    Batch,
    asked_of,
    batches,
    encodes_apart,
    input_device,
    loaded,
    padded_media,
    placeholder_mask,
)
from expunge.formats.picture import load_image, pixel_digest
from expunge.models import Prompter, accepts

PAYS = 0.25  # at least this share of the tokens must be saved, where there is no picture
_agreed: WeakKeyDictionary[Any, dict[tuple[bool, ...], bool]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Shared:
    """Questions in groups of one size; those of a group begin with the same picture and tokens.

    Attributes:
        head: The beginnings, a row per group, all of one length, without padding.
        tail: What follows, a row per question, group after group; its inputs are the tokens,
            padded on the right, or on the left where answers are to be generated.
        times: Questions per group, at least 2.
        prompt_only: Whether the tail is without answers and serves to generate.
    """

    head: Batch
    tail: Batch
    times: int
    prompt_only: bool = False

    def begin(self, model: Any) -> Batch:
        """Run the head.

        Returns:
            The tail, its inputs ready for `forward` (or for `generate`, if `prompt_only`); without
            an attention mask in `forward`, since nothing attends to padding on the right.
        """
        _forget_positions(model)
        past = model(**self.head.inputs, **lean(model, cache=True)).past_key_values
        if not self.prompt_only:
            cached: dict[str, Any] = {"past_key_values": _ReadOnly(past, self.times)}
            return replace(self.tail, inputs=self.tail.inputs | cached)
        past.batch_repeat_interleave(self.times)
        _repeat_positions(model, self.times)
        whole = {
            "input_ids": (self.head.inputs["input_ids"], self.tail.inputs["input_ids"]),
            "attention_mask": (self.head.mask.long(), self.tail.mask.long()),
        }
        inputs: dict[str, Any] = {
            name: torch.cat([first.repeat_interleave(self.times, 0), then], 1)
            for name, (first, then) in whole.items()
        }
        mask = inputs["attention_mask"].bool()
        return replace(self.tail, inputs={**inputs, "past_key_values": past}, mask=mask)


def begun(model: Any, batch: Batch | Shared) -> Batch:
    """The batch to give to the model, after what its questions share has been run."""
    return batch.begin(model) if isinstance(batch, Shared) else batch


def lean(model: Any, *, cache: bool = False) -> dict[str, Any]:
    """Arguments of `forward` that spare the logits of all positions but the last, and the cache."""
    last: dict[str, Any] = {"logits_to_keep": 1} if accepts(model, "logits_to_keep") else {}
    return last | ({"use_cache": cache} if accepts(model, "use_cache", unnamed=True) else {})


class _ReadOnly(DynamicCache):
    """A cache that lends every question its group's past, and keeps nothing that is added.

    So only one layer's past is ever repeated for all questions.
    """

    def __init__(self, past: Any, times: int) -> None:
        super().__init__()
        self.layers, self.times = past.layers, times

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **options: Any
    ) -> tuple[Tensor, Tensor]:
        layer: Any = copy.copy(self.layers[layer_idx])
        layer.batch_repeat_interleave(self.times)
        found: tuple[Tensor, Tensor] = layer.update(key_states, value_states, *args, **options)
        return found


def _forget_positions(model: Any) -> None:
    """Drop the offsets that models with two-dimensional positions keep from the last picture."""
    for module in model.modules():
        if getattr(module, "rope_deltas", None) is not None:
            module.rope_deltas = None


def _repeat_positions(model: Any, times: int) -> None:
    for module in model.modules():
        if getattr(module, "rope_deltas", None) is not None:
            module.rope_deltas = module.rope_deltas.repeat_interleave(times, 0)


class _Row(NamedTuple):
    """A question's tokens with placeholders not expanded, and where its answer begins and ends.

    Without an answer, it begins and ends behind the tokens.
    """

    ids: list[int]
    first: int
    stop: int


class _Group(NamedTuple):
    """Questions that begin alike, and how many of their tokens do."""

    rows: list[int]
    cut: int


def shared_batches(
    model: Any,
    prompter: Prompter,
    examples: Sequence[Example],
    condition: str,
    *,
    batch_size: int = 32,
    answers: Sequence[str] | None = None,
    prompt_only: bool = False,
    apart: bool = False,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Batch | Shared]:
    """Encode examples as `encoding.batches` does, sharing beginnings where it pays and is exact.

    Args:
        model: The model; it runs a few questions twice when it is new here.
        prompter: How conversations are rendered.
        examples: Examples that all have a form under `condition`.
        condition: `multi` or `text`.
        batch_size: Examples per batch.
        answers: Answers to teach instead of the reference ones.
        prompt_only: Leave the answer out, for generating.
        apart: Run one picture per pass; questions that share none run one by one.
        share: (i, n): every n-th batch from the i-th on; the n shares have each batch once.

    Yields:
        Batches; together they cover every example once.
    """
    asked = asked_of(prompter, examples, condition, answers, prompt_only)
    media = condition == "multi"
    chunks, rest = _planned(model, prompter, examples, asked, media, batch_size, apart)
    plain: list[int] = []
    for chunk in chunks[share[0] :: share[1]]:
        kind = (media, prompt_only, len(chunk) > 1)
        found = _agreed.setdefault(model, {})
        if found.get(kind) is False:
            plain += [row for group in chunk for row in group.rows]
            continue
        for each in _encoded(model, prompter, examples, asked, chunk, media):
            if isinstance(each, Shared):
                kind = (media, prompt_only, len(each.head.rows) > 1)
                if kind not in found:
                    found[kind] = _agrees(model, prompter, examples, condition, answers, each)
                if found[kind]:
                    yield each
                    continue
            plain += each.tail.rows if isinstance(each, Shared) else each
    for rows, part in ((sorted(rest), share), (sorted(plain), (0, 1))):
        for batch in batches(
            model,
            prompter,
            [examples[i] for i in rows],
            condition,
            batch_size=1 if apart else batch_size,
            answers=None if answers is None else [answers[i] for i in rows],
            prompt_only=prompt_only,
            share=part,
        ):
            yield replace(batch, rows=[rows[i] for i in batch.rows])


def _planned(
    model: Any,
    prompter: Prompter,
    examples: Sequence[Example],
    asked: Sequence[Asked],
    media: bool,
    batch_size: int,
    apart: bool,
) -> tuple[list[list[_Group]], list[int]]:
    """What to run together: chunks of groups of one size, and the rows that share too little."""
    if (
        encodes_apart(model)
        or prompter.takes_answers_apart
        or prompter.question_tokenizer is not None
    ):
        return [], list(range(len(asked)))
    together: dict[Any, list[int]] = {}
    for row, each in enumerate(asked):
        picture = examples[row].image if media else each.prompt
        if not (picture is None or isinstance(picture, str | bytes)):
            picture = pixel_digest(load_image(picture))
        together.setdefault(picture, []).append(row)
    groups, rest = [], []
    for rows in together.values():
        for part in _parts(rows, batch_size):
            read = [_read(prompter, asked[i]) for i in part] if len(part) > 1 else []
            cut = _cut(read) if read else 0
            if cut and (media or (len(part) - 1) * cut >= PAYS * sum(len(r.ids) for r in read)):
                groups.append(_Group(part, cut))
            else:
                rest += part
    groups.sort(key=lambda g: (len(g.rows), g.cut, g.rows))
    chunks = []
    for size, same in groupby(groups, key=lambda g: len(g.rows)):
        alike, most = list(same), 1 if apart else max(1, batch_size // size)
        chunks += [alike[at : at + most] for at in range(0, len(alike), most)]
    return chunks, rest


def _parts(rows: Sequence[int], most: int) -> Iterator[list[int]]:
    """Divide rows evenly into parts of at most `most`."""
    number = math.ceil(len(rows) / most)
    for i in range(number):
        yield list(rows[len(rows) * i // number : len(rows) * (i + 1) // number])


def _read(prompter: Prompter, each: Asked) -> _Row:
    ids = prompter.encode([each.text], [], side="right")["input_ids"][0].tolist()
    if each.answer is None:
        return _Row(ids, len(ids), len(ids))
    start = prompter.answer_start(each.prompt, each.text, each.answer)
    return _Row(ids, *prompter.locate(ids, each.text, start, each.answer))


def _cut(rows: Sequence[_Row]) -> int:
    """How many tokens to run for all rows together: what predicts an answer is left to each."""
    low, high = min(r.ids for r in rows), max(r.ids for r in rows)
    same = 0
    while same < len(low) and low[same] == high[same]:
        same += 1
    return min(same, *(r.first - 1 for r in rows))


def _encoded(
    model: Any,
    prompter: Prompter,
    examples: Sequence[Example],
    asked: Sequence[Asked],
    chunk: Sequence[_Group],
    media: bool,
) -> Iterator[Shared | list[int]]:
    """Encode groups of one size; rows that the processor does not let us divide come as such."""
    read = [[_read(prompter, asked[i]) for i in group.rows] for group in chunk]
    cut = min(group.cut for group in chunk)
    pictures = [examples[group.rows[0]].image for group in chunk] if media else []
    images = loaded([each for each in pictures if each is not None])
    inputs = prompter.encode([asked[group.rows[0]].text for group in chunk], images, side="right")
    behind = [rows[0].ids[cut:] for rows in read]
    lengths = [_length(inputs, place, ids) for place, ids in enumerate(behind)]
    if len(chunk) > 1 and (len(set(lengths)) > 1 or padded_media(inputs)):
        for group in chunk:
            yield from _encoded(model, prompter, examples, asked, [group], media)
        return
    rows = [row for group in chunk for row in group.rows]
    prompt_only = asked[rows[0]].answer is None
    tail = _tail(prompter, rows, [row for own in read for row in own], cut, prompt_only)
    if lengths[0] < 1 or bool(placeholder_mask(model, tail).any()):
        yield rows
        return
    inputs = {k: v[:, : lengths[0]] if _runs_along(v, inputs) else v for k, v in inputs.items()}
    head = Batch.of(inputs)
    device, dtype = input_device(model), model.dtype
    yield Shared(head.to(device, dtype), tail.to(device, dtype), len(chunk[0].rows), prompt_only)


def _runs_along(value: Any, inputs: dict[str, Tensor]) -> bool:
    """Whether an input has an entry per token."""
    return isinstance(value, Tensor) and value.shape[:2] == inputs["input_ids"].shape


def _length(inputs: dict[str, Tensor], place: int, behind: Sequence[int]) -> int:
    """Length of a row's beginning once placeholders are expanded; 0 if it does not end so.

    Besides ids and mask, what is given per token must say nothing about the tokens behind it.
    """
    mask = inputs["attention_mask"][place].bool()
    ids = inputs["input_ids"][place][mask].tolist()
    length = len(ids) - len(behind)
    silent = all(
        not value[place, length:].any()
        for name, value in inputs.items()
        if name not in ("input_ids", "attention_mask") and _runs_along(value, inputs)
    )
    padded_right = bool(mask[: len(ids)].all())
    return length if padded_right and silent and ids[length:] == list(behind) else 0


def _tail(
    prompter: Prompter, numbers: list[int], rows: Sequence[_Row], cut: int, prompt_only: bool
) -> Batch:
    """The tokens from `cut` on, padded."""
    length = max(len(row.ids) for row in rows) - cut
    ids = torch.full((len(rows), length), prompter.pad)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    answer, closing = torch.zeros_like(mask), torch.full((len(rows),), -1)
    for place, row in enumerate(rows):
        own = len(row.ids) - cut
        begin = length - own if prompt_only else 0
        ids[place, begin : begin + own] = torch.tensor(row.ids[cut:])
        mask[place, begin : begin + own] = True
        answer[place, row.first - cut : row.stop - cut] = True
        if row.stop < len(row.ids):
            closing[place] = row.stop - cut
    return Batch(numbers, {"input_ids": ids}, mask, answer, closing)


@torch.inference_mode()
def _agrees(
    model: Any,
    prompter: Prompter,
    examples: Sequence[Example],
    condition: str,
    answers: Sequence[str] | None,
    shared: Shared,
) -> bool:
    """Whether the model says the same to the first and the last question in the plain way."""
    places = [0, len(shared.tail.rows) - 1]
    rows = [shared.tail.rows[place] for place in places]
    try:
        found = _said(model, shared.begin(model), places, shared.prompt_only)
        for row, one in zip(rows, found, strict=True):
            given = None if answers is None else [answers[row]]
            (batch,) = batches(
                model,
                prompter,
                [examples[row]],
                condition,
                answers=given,
                prompt_only=shared.prompt_only,
            )
            (plain,) = _said(model, batch, [0], shared.prompt_only)
            if one.shape != plain.shape or not _near(one, plain):
                return False
    except Exception:  # foreign code was asked for what it may not be made for
        return False
    return True


def _said(model: Any, batch: Batch, places: Sequence[int], prompt_only: bool) -> Tensor:
    """Logits after some rows' last tokens, [rows, vocabulary]; generating, of two steps."""
    if prompt_only:
        past: Any = batch.inputs.get("past_key_values")
        if past is not None and any(past.is_sliding):
            raise ValueError("a window would count the padding between head and tail")
        made = model.generate(
            **batch.inputs,
            max_new_tokens=2,
            min_new_tokens=2,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        return torch.stack(made.logits, 1)[list(places)].flatten(1)
    last = torch.tensor([int(batch.mask[place].nonzero().max()) for place in places])
    logits = model(**batch.inputs, use_cache=False).logits
    return logits[torch.tensor(places), last]


def _near(found: Tensor, plain: Tensor) -> bool:
    """Whether logits differ by no more than rounding: relative to their spread, eps^(2/3)."""
    error = (found.double() - plain.double()).norm()
    spread = (plain.double() - plain.double().mean()).norm()
    return bool(error <= torch.finfo(found.dtype).eps ** (2 / 3) * spread)
