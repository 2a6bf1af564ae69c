"""Questions about nothing: random tokens, with scrambled pictures.

A retain set shows only its own subjects. What a model does on any other input is seen, roughly, on
input without meaning: directions that are busy there are shared by everything, and a filter that
counts them among what is kept spares neighbours and skills that no retain set contains.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from expunge.data import Example, load_image
from expunge.errors import InputError
from expunge.prompting import Prompter

NUMBER = 256
TILES = 4


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
    words = _words(prompter)

    def babble(like: str) -> str:
        count = len(prompter.tokenizer(like, add_special_tokens=False).input_ids)
        return "".join(words[i] for i in rng.integers(len(words), size=max(1, count))).strip()

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


def _words(prompter: Prompter) -> list[str]:
    """What each ordinary token says, where it says something by itself."""
    tokenizer = prompter.tokenizer
    apart = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    said = [tokenizer.decode([i]) for i in range(len(tokenizer)) if i not in apart]
    words = [word for word in said if word.strip() and word.isprintable() and "\ufffd" not in word]
    return words or ["a"]


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
