"""Render questions as a model expects them, encode them, and find the answer's tokens again."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from expunge.data import Example
from expunge.errors import InputError
from expunge.formats.signal import Sound, is_sound

APPENDED = 4  # a processor adds fewer tokens than this behind the text


class Prompter:
    """Renders examples as the processor's chat template does and encodes them.

    Args:
        processor: A processor, or a tokenizer for a text-only model.
        system: Words of a system turn put before every question.
        template: Prompt template with `{question}`, and `{image}` where the image token goes
            (not for processors that put it there themselves, as BLIP-2's), used instead of a chat
            template.
    """

    def __init__(
        self, processor: Any, *, system: str | None = None, template: str | None = None
    ) -> None:
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.system = system
        self.template = template
        if template is not None:
            _check_template(template)
        if template is None and not getattr(processor, "chat_template", None):
            raise InputError(
                "the processor has no chat template; give one with --prompt-template, for example"
                " 'USER: {image}{question} ASSISTANT: '"
            )
        if not getattr(self.tokenizer, "is_fast", False):
            raise InputError(
                "the tokenizer gives no token offsets (it is not a fast tokenizer), so answer"
                " positions cannot be found; convert it to a tokenizer.json"
            )

    @property
    def plain(self) -> Prompter:
        """Renders questions and answers as one text, with no conversation around them."""
        return Prompter(self.tokenizer, template="{question} ")

    def render(self, example: Example, condition: str, answer: str | None = None) -> str:
        """The conversation as text, ending where the answer starts, or after `answer`."""
        words = example.prompt(condition)
        if condition == "multi" and self.processor is self.tokenizer:
            raise InputError(
                "the model has a tokenizer but no image processor, so rows with an image"
                " cannot be asked; leave `image` out of the rows"
            )
        kind = "audio" if is_sound(example.image) or self.medium == "audio" else "image"
        if self.template is not None:
            image = getattr(self.processor, f"{kind}_token", f"<{kind}>")
            prompt = self.template.format(
                question=words, image=image if condition == "multi" else ""
            )
            return prompt + (answer + (self.tokenizer.eos_token or "") if answer else "")
        user: list[dict[str, Any]] = [{"type": "text", "text": words}]
        if condition == "multi":
            user.insert(0, {"type": kind})
        turns = [{"role": "user", "content": self._content(user)}]
        if self.system:
            system = [{"type": "text", "text": self.system}]
            turns.insert(0, {"role": "system", "content": self._content(system)})
        if answer is not None:
            said = [{"type": "text", "text": answer}]
            turns.append({"role": "assistant", "content": self._content(said)})
        return str(
            self.processor.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=answer is None
            )
        )

    def _content(self, parts: list[dict[str, Any]]) -> Any:
        if self.processor is self.tokenizer:
            return " ".join(p["text"] for p in parts)
        return parts

    def answer_start(self, prompt: str, text: str, answer: str) -> int:
        """Where the answer begins in a rendered conversation, in characters.

        Args:
            prompt: The conversation up to the answer.
            text: The conversation with the answer.
            answer: The answer.

        Raises:
            InputError: The answer is empty, or is not in the text as it was given.
        """
        words = answer.strip()
        shared = len(os.path.commonprefix([prompt, text]))
        start = text.find(words, shared) if words else -1
        if start < 0:
            raise InputError(
                "an answer is empty or the chat template changes it, so its tokens cannot be found"
            )
        return start

    def locate(self, row: Sequence[int], text: str, start: int, answer: str) -> tuple[int, int]:
        """Find an answer's tokens in an encoded conversation.

        The tokens are those whose characters lie in the answer. Placeholders of images expand in
        front of it, so that its distance from the end stays, up to what a processor appends.

        Args:
            row: Token ids of the encoded conversation, without padding.
            text: The conversation.
            start: Where the answer begins in `text`, in characters.
            answer: The answer.

        Returns:
            (first, stop): positions in `row` of the answer's first token and behind its last one.

        Raises:
            InputError: The tokens are not there.
        """
        stop = start + len(answer.strip())
        plain = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        places = plain["offset_mapping"]
        inside = [i for i, (a, b) in enumerate(places) if b > start and a < stop and b > a]
        if inside:
            wanted = plain["input_ids"][inside[0] : inside[-1] + 1]
            behind = len(places) - inside[-1] - 1
            for more in range(behind, behind + APPENDED):
                first = len(row) - more - len(wanted)
                if first >= 0 and list(row[first : first + len(wanted)]) == wanted:
                    return first, first + len(wanted)
        raise InputError(
            "the processor encodes an answer in other tokens than its tokenizer does, so the"
            " answer's positions cannot be found"
        )

    @property
    def takes_answers_apart(self) -> bool:
        """Whether the processor wants answers beside the prompts, as PaliGemma's does."""
        call = type(self.processor).__call__
        return (
            self.processor is not self.tokenizer and "suffix" in inspect.signature(call).parameters
        )

    @cached_property
    def medium(self) -> str:
        """Under which name the processor takes what stands beside the text.

        `images`, `audio` where it hears and does not see, or its own name for something else.
        """
        named = inspect.signature(type(self.processor).__call__).parameters.values()
        own = [p.name for p in named if p.kind is p.POSITIONAL_OR_KEYWORD]
        others = [name for name in own if name not in ("self", "text")]
        if others and "images" not in others:
            return others[0]
        blind = self._ear is not None and not hasattr(self.processor, "image_processor")
        return "audio" if blind else "images"

    @property
    def _ear(self) -> Any:
        """What makes features of sounds, under either of its names; None where nothing hears."""
        named = (getattr(self.processor, f, None) for f in ("feature_extractor", "audio_processor"))
        return next((each for each in named if each is not None), None)

    @property
    def question_tokenizer(self) -> Any:
        """The tokenizer of a connector that reads the question too, as InstructBLIP's, or None."""
        return getattr(self.processor, "qformer_tokenizer", None)

    @property
    def pad(self) -> int:
        """The token that fills up: its own, or else that which ends a text."""
        own = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if own is None else own)

    def encode(
        self,
        texts: Sequence[str],
        images: Sequence[Any],
        *,
        side: str,
        answers: Sequence[str] | None = None,
        prompts: Sequence[str] | None = None,
    ) -> dict[str, Tensor]:
        """Tokenise and pad on `side`.

        Args:
            texts: Rendered conversations; prompts alone where `answers` are given.
            images: Pictures (a list for a text with several), sounds, or arrays of another
                modality, in the order of the texts, or empty.
            side: `left` or `right`.
            answers: For a processor that takes them apart.
            prompts: The texts without answers, where they hold some.

        Returns:
            Keyword arguments of the model's `forward`, on the CPU.
        """
        start = self.tokenizer.bos_token or "\0"
        options = {
            "padding": True,
            "padding_side": side,
            "add_special_tokens": self.template is not None and not self.template.startswith(start),
            "return_tensors": "pt",
        }
        if self.processor is self.tokenizer or not images:
            with _padding(self.tokenizer, side):
                return dict(self.tokenizer(list(texts), **options))
        if answers is not None:
            options["suffix"] = list(answers)
        with _padding(self.tokenizer, side):
            inputs = dict(self.processor(text=list(texts), **self._beside(images), **options))
        inputs.pop("labels", None)
        if self.question_tokenizer is not None:
            asked = self.question_tokenizer(
                list(texts if prompts is None else prompts),
                padding=True,
                padding_side="right",
                return_tensors="pt",
            )
            for name in ("input_ids", "attention_mask"):
                inputs[f"qformer_{name}"] = asked[name]
        return inputs

    def _beside(self, images: Sequence[Any]) -> dict[str, Any]:
        """What stands beside the texts, as arguments of the processor."""
        sounds = [each for each in images if isinstance(each, Sound)]
        medium, name = self.medium, type(self.processor).__name__
        if not sounds and medium != "audio":
            return {medium: [each if isinstance(each, list) else [each] for each in images]}
        deaf = self._ear is None and medium != "audio"
        if deaf or len(sounds) not in (0, len(images)):
            raise InputError(
                f"rows have sounds beside the text, but {name} takes {medium} there, or not"
                " both in one batch; give a model that hears, and sounds alone"
            )
        rate = getattr(self._ear, "sampling_rate", None)
        wrong = next((each.rate for each in sounds if rate and each.rate != rate), None)
        if wrong is not None:
            raise InputError(
                f"a sound has {wrong} samples a second, {name} expects {rate}; resample it"
            )
        given = [each.samples if isinstance(each, Sound) else each for each in images]
        told = rate and "sampling_rate" in inspect.signature(type(self._ear).__call__).parameters
        return {"audio": given, **({"sampling_rate": rate} if told else {})}


@contextlib.contextmanager
def _padding(tokenizer: Any, side: str) -> Iterator[None]:
    """Within the block the tokenizer pads on `side`, also for processors that ask only it.

    One that has no token to pad with takes that which ends a text, as is the custom.
    """
    before, token = tokenizer.padding_side, tokenizer.pad_token
    tokenizer.padding_side = side
    if token is None:
        tokenizer.pad_token = tokenizer.eos_token
    try:
        yield
    finally:
        tokenizer.padding_side = before
        if token is None:
            tokenizer.pad_token = None


def _check_template(template: str) -> None:
    try:
        named = "\0" in template.format(question="\0", image="")
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"the prompt template {template!r} cannot be filled in ({error!r}); it may name"
            " {question} and {image} only, other braces are doubled"
        ) from error
    if not named:
        raise InputError(f"the prompt template {template!r} lacks {{question}}")
