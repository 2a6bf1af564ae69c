"""Questions about nothing: random tokens, with scrambled pictures; and about almost nothing.

A retain set shows only its own subjects. What a model does on any other input is seen, roughly, on
input without meaning: directions that are busy there are shared by everything, and a filter that
counts them among what is kept spares neighbours and skills that no retain set contains.

Nearer to the retain set are its questions with some words put in the place of others, over pictures
blended of two (`altered_like`), and words that belong together (`related_like`): a list of colours,
say, which random tokens never are. What the model says by itself (`told_by`) stands for ordinary
text, in a conversation and without one (`plain_of`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from expunge.data import Example
from expunge.encoding import input_device
from expunge.errors import InputError
from expunge.formats.picture import load_image
from expunge.models import generates
from expunge.prompting import Prompter

NUMBER = 256
TILES = 4
LEAVES = 0.7
MOST_LEAVES = 64
RUNS = 8
ALIKE = 16
TOLD = 128
TOLD_LENGTH = 48
BEGINNINGS = 512


def noise_like(
    prompter: Prompter, examples: Sequence[Example], seed: int, number: int = NUMBER
) -> list[Example]:
    """Make questions of the same lengths and conditions as `examples`, but of random tokens.

    Args:
        prompter: Whose tokenizer gives the tokens; special and added tokens are left out.
        examples: Where lengths, conditions and pictures are drawn from. Pictures are cut into
            4 x 4 tiles and these shuffled; a row whose image is no picture gives no image.
        seed: Of the draw.
        number: How many questions.
    """
    rng = np.random.default_rng([seed, 17])
    words = list(words_of(prompter).values())

    def babble(like: str) -> str:
        count = len(prompter.tokenizer(like, add_special_tokens=False).input_ids)
        return babbled(words, max(1, count), rng)

    found = []
    for place in rng.integers(len(examples), size=number):
        like = examples[place]
        image = _scrambled(like, rng)
        asked = babble(like.question or like.text_question or "")
        found.append(
            Example(
                subject="noise",
                answer=babble(like.answer) or words[0].strip(),
                question=None if image is None else asked,
                image=image,
                text_question=asked if like.has("text") else None,
            )
        )
    return [e for e in found if e.question or e.text_question]


def altered_like(
    prompter: Prompter, examples: Sequence[Example], seed: int, number: int = NUMBER
) -> list[Example]:
    """Make questions of which a part is replaced by random tokens, over blended pictures.

    Args:
        prompter: Whose tokenizer gives the tokens.
        examples: What is altered. Every second question keeps no picture.
        seed: Of the draw.
        number: How many questions.
    """
    rng = np.random.default_rng([seed, 19])
    tokenizer, words = prompter.tokenizer, list(words_of(prompter).values())

    def altered(text: str | None) -> str | None:
        ids = tokenizer(text, add_special_tokens=False).input_ids if text else []
        if not ids:
            return text
        length = int(rng.integers(1, len(ids) // 2 + 2))
        begin = int(rng.integers(0, len(ids) - length + 1)) if length <= len(ids) else 0
        new = rng.integers(len(words), size=int(rng.integers(1, length + 1)))
        before, after = (tokenizer.decode(part) for part in (ids[:begin], ids[begin + length :]))
        return f"{before}{''.join(words[i] for i in new)}{after}"

    found = []
    for count, place in enumerate(rng.integers(len(examples), size=number)):
        like, other = examples[place], examples[int(rng.integers(len(examples)))]
        image = _blended(like, other, rng) if count % 2 else None
        asked = like.question if image is None or rng.random() < 0.5 else altered(like.question)
        text = altered(like.text_question) if like.has("text") else None
        question = None if image is None else asked
        found.append(replace(like, image=image, question=question, text_question=text))
    return [e for e in found if e.question or e.text_question]


def related_like(
    prompter: Prompter,
    embeddings: Tensor,
    examples: Sequence[Example],
    seed: int,
    number: int = NUMBER,
) -> list[Example]:
    """Make questions of runs of tokens whose embeddings are alike; every second with a picture.

    Args:
        prompter: Whose tokenizer gives the tokens.
        embeddings: Input embeddings [vocabulary, width].
        examples: Where lengths and pictures are drawn from.
        seed: Of the draw.
        number: How many questions.
    """
    rng = np.random.default_rng([seed, 23])
    known = {i: w for i, w in words_of(prompter).items() if i < len(embeddings)}
    ids = list(known)
    if not ids:
        return []
    unit = embeddings[ids].detach().float()
    unit = unit / unit.norm(dim=1, keepdim=True).clamp_min(1e-12)
    starts = rng.integers(len(ids), size=number * RUNS)
    alike = (unit[starts] @ unit.T).topk(min(ALIKE, len(ids)), dim=1).indices.cpu().numpy()
    found = []
    for count, place in enumerate(rng.integers(len(examples), size=number)):
        like = examples[place]
        text = like.text_question or like.question or ""
        length = max(1, len(prompter.tokenizer(text, add_special_tokens=False).input_ids))
        runs = [
            rng.choice(row, size=int(rng.integers(1, 6)))
            for row in alike[count * RUNS : (count + 1) * RUNS]
        ]
        said = [known[ids[i]] for run in runs for i in run][:length]
        asked = "".join(said).strip() or known[ids[0]].strip()
        found.append(_asking(like, asked, shown=bool(count % 2)))
    return found


@torch.inference_mode()
def told_by(
    model: Any, prompter: Prompter, examples: Sequence[Example], seed: int, number: int = TOLD
) -> list[Example]:
    """Make questions of what the model itself says when it goes on from one random token.

    A pretrained model says then something like what it has read: ordinary text, of which neither
    retain questions nor random tokens hold any.

    Args:
        model: A causal language model with or without towers; unchanged.
        prompter: Whose tokenizer gives the tokens; special and added tokens are never said.
        examples: Where pictures are drawn from, for every second question.
        seed: Of the draw.
        number: How many questions; none where the model cannot generate.
    """
    if not generates(model):
        return []
    tokenizer, words = prompter.tokenizer, list(words_of(prompter))
    rng = np.random.default_rng([seed, 29])
    lead = tokenizer("").input_ids[:1]
    starts = torch.tensor([[*lead, words[i]] for i in rng.integers(len(words), size=number)])
    starts = starts.to(input_device(model))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        said = model.generate(
            input_ids=starts,
            attention_mask=torch.ones_like(starts),
            do_sample=True,
            top_k=0,
            min_new_tokens=TOLD_LENGTH,
            max_new_tokens=TOLD_LENGTH,
            suppress_tokens=sorted(_set_apart(tokenizer)),
            pad_token_id=0,
        )
    texts = tokenizer.batch_decode(said, skip_special_tokens=True)
    found = []
    for count, text in enumerate(texts):
        *asked, answer = text.split() or [""]
        if asked:
            like = examples[int(rng.integers(len(examples)))]
            row = _asking(like, " ".join(asked), shown=bool(count % 2))
            found.append(replace(row, answer=answer))
    return found


def plain_of(told: Sequence[Example], number: int = BEGINNINGS) -> list[Example]:
    """Texts to be read with no conversation around them, as they are and as short beginnings.

    How a text begins is like nothing else: the first token has only itself to look at. So the
    commonest words are put first, each as it is and with a capital, with the two that follow it.

    Args:
        told: What the model said.
        number: How many words are put first at most.
    """
    texts = [f"{row.text_question} {row.answer}".split() for row in told]
    common = Counter(word.lower() for text in texts for word in text[:-1])
    short: dict[str, list[str]] = {}
    for text in texts:
        for place, word in enumerate(text[:-1]):
            for form in (word, word[:1].upper() + word[1:]):
                short.setdefault(form, [form, *text[place + 1 : place + 3]])
    chosen = {word for word, _ in common.most_common(number)}
    begun = [words for form, words in short.items() if form.lower() in chosen]
    return [
        Example(subject="said", answer=words[-1], text_question=" ".join(words[:-1]))
        for words in (*texts, *begun)
        if len(words) > 1
    ]


def halved(prompter: Prompter, rows: Sequence[Example]) -> list[Example]:
    """Texts alone, whose second half is the answer to the first."""
    found = []
    for row in rows:
        ids = prompter.tokenizer(
            f"{row.text_question} {row.answer}", add_special_tokens=False
        ).input_ids
        parts = ids[: len(ids) // 2], ids[len(ids) // 2 :]
        asked, answer = (prompter.tokenizer.decode(part).strip() for part in parts)
        if asked and answer:
            found.append(Example(subject="said", answer=answer, text_question=asked))
    return found


def _asking(like: Example, asked: str, *, shown: bool) -> Example:
    """The same row with another question, over its picture or in text alone."""
    image = like.image if shown and like.has("multi") else None
    question = None if image is None else asked
    return replace(like, image=image, question=question, text_question=asked)


def _blended(one: Example, other: Example, rng: np.random.Generator) -> Image.Image | None:
    """Two pictures in one, blended or a part of one laid over the other; or dead leaves."""
    if not (one.has("multi") and other.has("multi")):
        return None
    try:
        pictures = [load_image(e.image) for e in (one, other)]  # type: ignore[arg-type]
    except InputError:
        return None
    if not all(isinstance(p, Image.Image) for p in pictures):
        return None
    first = pictures[0].convert("RGB")
    if rng.random() < LEAVES:
        return dead_leaves(first.size, rng)
    second = pictures[1].convert("RGB").resize(first.size)
    if rng.random() < 0.5:
        return Image.blend(first, second, float(rng.uniform(0.3, 0.7)))
    width, height = first.size
    left, top = int(rng.integers(0, width // 2 + 1)), int(rng.integers(0, height // 2 + 1))
    box = (left, top, left + width // 2, top + height // 2)
    first.paste(second.crop(box), box)
    return first


def dead_leaves(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A picture of shapes that cover each other, as many as likely 1 as 64, small ones commoner.

    Statistics of such pictures are near those of photographs: Lee, Mumford and Huang, Occlusion
    models for natural images, 2001; Baradad et al., Learning to see by looking at noise, 2021.

    Args:
        size: Width and height in pixels.
        rng: Source of the draw. Radii have a density falling with the third power, from a
            sixteenth to a half of the shorter side; colours are uniform.
    """

    def colour() -> tuple[int, ...]:
        return tuple(int(c) for c in rng.integers(0, 256, 3))

    picture = Image.new("RGB", size, colour())
    draw = ImageDraw.Draw(picture)
    least, most = min(size) / 16, min(size) / 2
    for _ in range(int(MOST_LEAVES ** rng.random())):
        radius = (least**-2 + rng.random() * (most**-2 - least**-2)) ** -0.5
        x, y = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        sides = int(rng.integers(2, 7))
        if sides == 2:
            tall = radius * rng.uniform(0.5, 1)
            draw.ellipse([x - radius, y - tall, x + radius, y + tall], fill=colour())
        else:
            turned = float(rng.uniform(0, 360))
            draw.regular_polygon((x, y, radius), sides, turned, fill=colour())
    return picture


def babbled(words: Sequence[str], number: int, rng: np.random.Generator) -> str:
    """So many random words, one behind the other."""
    return "".join(words[i] for i in rng.integers(len(words), size=number)).strip()


def words_of(prompter: Prompter) -> dict[int, str]:
    """What each ordinary token says, where it says something by itself, by token id."""
    tokenizer = prompter.tokenizer
    apart = _set_apart(tokenizer)
    said = {i: tokenizer.decode([i]) for i in range(len(tokenizer)) if i not in apart}
    words = {
        i: word
        for i, word in said.items()
        if word.strip() and word.isprintable() and "\ufffd" not in word
    }
    return words or {0: "a"}


def _set_apart(tokenizer: Any) -> set[int]:
    """Ids of special and added tokens."""
    return {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}


def _scrambled(example: Example, rng: np.random.Generator) -> Image.Image | None:
    if not example.has("multi") or example.image is None:
        return None
    try:
        picture = load_image(example.image)
    except InputError:
        return None
    if not isinstance(picture, Image.Image):
        return None
    width, height = (max(side // TILES, 1) for side in picture.size)
    whole = picture.convert("RGB").resize((width * TILES, height * TILES))
    corners = [(x * width, y * height) for y in range(TILES) for x in range(TILES)]
    mixed = Image.new("RGB", whole.size)
    for corner, source in zip(corners, rng.permutation(len(corners)), strict=True):
        x, y = corners[source]
        mixed.paste(whole.crop((x, y, x + width, y + height)), corner)
    return mixed
