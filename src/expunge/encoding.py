"""Turn examples into batches the model can run."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from expunge.data import Example
from expunge.errors import InputError
from expunge.formats.picture import load_image
from expunge.prompting import Prompter

MEDIA = ("image", "video", "audio", "speech")


@dataclass(frozen=True)
class Batch:
    """Some examples as model inputs.

    Attributes:
        rows: Positions of the examples in the sequence they came from.
        inputs: What the model takes, on the model's device.
        mask: Positions of the text that hold a token, bool [batch, length].
        answer: Positions of `tokens` that hold a token of the reference answer, bool.
        closing: Position of the first token after the answer, or -1, int64 [batch].
    """

    rows: list[int]
    inputs: dict[str, Tensor]
    mask: Tensor
    answer: Tensor
    closing: Tensor

    @property
    def tokens(self) -> Tensor:
        """What the model continues, int64 [batch, length]: the decoder's input where it has one."""
        return self.inputs.get("decoder_input_ids", self.inputs.get("input_ids", self.mask))

    @property
    def decoder_mask(self) -> Tensor:
        """Positions of the decoder's input that hold a token, bool [batch, length]."""
        given = self.inputs.get("decoder_attention_mask")
        return torch.ones_like(self.tokens, dtype=torch.bool) if given is None else given.bool()

    @classmethod
    def of(
        cls,
        inputs: Mapping[str, Tensor],
        device: torch.device | None = None,
        answer: Tensor | None = None,
    ) -> Batch:
        """A batch of ready inputs.

        Args:
            inputs: Keyword arguments of `forward`; of `input_ids` and `decoder_input_ids` at
                least one. Without `attention_mask` every position holds a token.
            device: Where to put them; None leaves them.
            answer: Positions of the decoder's input, or else of `input_ids`, that hold a token of
                the answer, bool [batch, length]; None is nowhere.

        Raises:
            InputError: There is no text, or a mask does not fit it.
        """
        ready = {k: v.to(device) if device is not None else v for k, v in inputs.items()}
        ids = ready.get("input_ids", ready.get("decoder_input_ids"))
        if ids is None:
            raise InputError(
                f"the inputs are {', '.join(ready) or 'empty'}, expected input_ids or"
                " decoder_input_ids among them"
            )
        mask = ready.get("attention_mask") if "input_ids" in ready else None
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        told = ready.get("decoder_input_ids", ids)
        answer = torch.zeros_like(told, dtype=torch.bool) if answer is None else answer
        for name, given, wanted in (("attention_mask", mask, ids), ("answer", answer, told)):
            if given.shape != wanted.shape:
                raise InputError(
                    f"{name} has shape {tuple(given.shape)}, expected {tuple(wanted.shape)}"
                )
        closing = torch.full((len(ids),), -1, device=ids.device)
        return cls(list(range(len(ids))), ready, mask, answer.to(told.device), closing)

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """The batch on a device, with floating-point inputs in the model's dtype."""
        inputs = {
            k: _sent(v, device) if isinstance(v, Tensor) else v for k, v in self.inputs.items()
        }
        mask, answer, closing = (_sent(t, device) for t in (self.mask, self.answer, self.closing))
        return Batch(self.rows, as_floats(inputs, dtype), mask, answer, closing)


def predicting(at: Tensor) -> Tensor:
    """Where the token behind is one of those at `at`, both bool [batch, length]."""
    before = torch.zeros_like(at)
    before[:, :-1] = at[:, 1:]
    return before


def _sent(value: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; to a CUDA device it goes while that still computes."""
    if device.type == "cuda" and value.device.type == "cpu":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


def loaded(pictures: Sequence[Any]) -> list[Any]:
    """Pictures as `load_image` reads them, each once, several at a time."""
    once = {picture_key(each): each for each in pictures}
    with ThreadPoolExecutor() as pool:
        read = dict(zip(once, pool.map(load_image, once.values()), strict=True))
    return [read[picture_key(each)] for each in pictures]


def picture_key(picture: Any) -> Any:
    """What tells pictures apart: a path, encoded bytes, or which object it is."""
    return picture if isinstance(picture, str | bytes) else id(picture)


def batches(
    model: Any,
    prompter: Prompter,
    examples: Sequence[Example],
    condition: str,
    *,
    batch_size: int = 32,
    answers: Sequence[str] | None = None,
    prompt_only: bool = False,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Encode examples in batches of similar length.

    Args:
        model: For its device.
        prompter: How conversations are rendered.
        examples: Examples that all have a form under `condition`.
        condition: `multi` or `text`.
        batch_size: Examples per batch.
        answers: Answers to teach instead of the reference ones.
        prompt_only: Leave the answer out and pad on the left, for generating.
        share: (i, n): every n-th batch from the i-th on; the n shares have each batch once.

    Yields:
        Batches; together they cover every example once.
    """
    asked = asked_of(prompter, examples, condition, answers, prompt_only)
    asked.sort(key=lambda each: (len(each.text), each.row))
    for at in range(share[0] * batch_size, len(asked), share[1] * batch_size):
        yield from encoded(model, prompter, asked[at : at + batch_size], examples, condition)


class Asked(NamedTuple):
    """One question to encode: its row, prompt, whole conversation, and answer (None: leave out)."""

    row: int
    prompt: str
    text: str
    answer: str | None


def asked_of(
    prompter: Prompter,
    examples: Sequence[Example],
    condition: str,
    answers: Sequence[str] | None = None,
    prompt_only: bool = False,
) -> list[Asked]:
    """The questions of examples as conversations; the arguments are those of `batches`."""
    told = [e.answer for e in examples] if answers is None else list(answers)
    found = []
    for row, (example, answer) in enumerate(zip(examples, told, strict=True)):
        prompt = prompter.render(example, condition)
        text = prompt if prompt_only else prompter.render(example, condition, answer)
        found.append(Asked(row, prompt, text, None if prompt_only else answer))
    return found


def encoded(
    model: Any,
    prompter: Prompter,
    asked: Sequence[Asked],
    examples: Sequence[Example],
    condition: str,
) -> Iterator[Batch]:
    """Encode questions in one batch, or one by one where the model would read the padding.

    Args:
        model: For its device, and for how it reads.
        prompter: How conversations are rendered.
        asked: Questions, whose rows are positions in `examples`.
        examples: Where their pictures are.
        condition: `multi` or `text`.

    Yields:
        Batches; together they cover every question once.
    """
    pictures = [examples[a.row].image for a in asked] if condition == "multi" else []
    images = loaded([each for each in pictures if each is not None])
    batch = encode(model, prompter, asked, images)
    if len(asked) > 1 and (padded_media(batch.inputs) or miscounted(batch)):
        for each in asked:
            yield from encoded(model, prompter, [each], examples, condition)
    else:
        yield batch.to(input_device(model), model.dtype)


def encode(model: Any, prompter: Prompter, asked: Sequence[Asked], images: Sequence[Any]) -> Batch:
    """Encode questions in one batch, on the CPU; `images` are as `Prompter.encode` takes them."""
    if encodes_apart(model):
        return encode_apart(prompter, asked, images, decoder_start(model))
    return encode_together(prompter, asked, images)


def encode_together(prompter: Prompter, asked: Sequence[Asked], images: Sequence[Any]) -> Batch:
    """Encode for a model that reads the prompt and the answer as one text."""
    side = "left" if asked[0].answer is None else "right"
    starts = [
        0 if a.answer is None else prompter.answer_start(a.prompt, a.text, a.answer) for a in asked
    ]
    texts, answers = [a.text for a in asked], None
    if images and asked[0].answer is not None and prompter.takes_answers_apart:
        answers = [str(a.answer).strip() for a in asked]
        texts = [a.text[:start] for a, start in zip(asked, starts, strict=True)]
    prompts = [a.prompt for a in asked]
    inputs = prompter.encode(texts, images, side=side, answers=answers, prompts=prompts)
    mask = inputs["attention_mask"].bool()
    answer, closing = torch.zeros_like(mask), torch.full((len(asked),), -1)
    for place, (each, start) in enumerate(zip(asked, starts, strict=True)):
        if each.answer is None:
            continue
        row = inputs["input_ids"][place][mask[place]].tolist()
        whole, begin = (each.text, start) if answers is None else (each.answer.strip(), 0)
        first, stop = prompter.locate(row, whole, begin, each.answer)
        answer[place, first:stop] = True
        closing[place] = stop if stop < len(row) else -1
    if not images and prompter.takes_answers_apart:  # the prompt is read in both directions
        inputs["token_type_ids"] = (answer.cumsum(1) > 0).long()
    return Batch([a.row for a in asked], inputs, mask, answer, closing)


def encode_apart(
    prompter: Prompter, asked: Sequence[Asked], images: Sequence[Any], start: int
) -> Batch:
    """Encode prompts for an encoder, and answers behind the token `start` for its decoder.

    Without answers the batch has no decoder input and serves to generate.
    """
    inputs = prompter.encode([a.prompt for a in asked], images, side="right")
    mask = inputs["attention_mask"].bool()
    rows, none = [a.row for a in asked], torch.full((len(asked),), -1)
    if asked[0].answer is None:
        return Batch(rows, inputs, mask, torch.zeros_like(mask), none)
    tokenizer = prompter.tokenizer
    told = [
        [start, *tokenizer(str(a.answer).strip(), add_special_tokens=False).input_ids]
        for a in asked
    ]
    length = max(len(ids) for ids in told) + 1
    tokens = torch.full((len(told), length), prompter.pad)
    decoded, answer, closing = tokens.bool() & False, tokens.bool() & False, none
    for place, ids in enumerate(told):
        tokens[place, : len(ids) + 1] = torch.tensor([*ids, tokenizer.eos_token_id])
        decoded[place, : len(ids) + 1] = True
        answer[place, 1 : len(ids)] = True
        closing[place] = len(ids)
    inputs |= {"decoder_input_ids": tokens, "decoder_attention_mask": decoded}
    return Batch(rows, inputs, mask, answer, closing)


def encodes_apart(model: Any) -> bool:
    """Whether the model reads the prompt in an encoder and writes in a decoder."""
    configs = (model.config, model.config.get_text_config())
    return any(getattr(config, "is_encoder_decoder", False) for config in configs)


def decoder_start(model: Any) -> int:
    """The token that a decoder's input begins with."""
    for config in (model.config, model.config.get_text_config(), model.generation_config):
        token = getattr(config, "decoder_start_token_id", None)
        if isinstance(token, int):
            return token
    raise InputError(
        f"the configuration of {model.config.model_type} names no decoder_start_token_id, so"
        " answers cannot be given to its decoder; add it to the config.json"
    )


def padded_media(inputs: Mapping[str, Tensor]) -> bool:
    """Whether pictures or sounds of several sizes were padded, which a tower would count or hear.

    Sounds that are always padded to one length, of which none then fills it, are left together.
    """
    mask = inputs.get("pixel_attention_mask")
    if mask is not None and not bool(mask.all()):
        return True
    heard = (inputs.get(name) for name in ("audio_attention_mask", "input_features_mask"))
    return any(
        m is not None and bool(m.flatten(1).all(1).any()) and not bool(m.all()) for m in heard
    )


def miscounted(batch: Batch) -> bool:
    """Whether the model would number what it says by padding too, as Kosmos-2 does on the left."""
    return "image_embeds_position_mask" in batch.inputs and not bool(batch.mask[:, 0].all())


def input_device(model: Any) -> torch.device:
    """Where the model's inputs go: the first device it computes on."""
    placed = getattr(model, "hf_device_map", None) or {}
    for device in placed.values():
        if device not in ("cpu", "disk"):
            return torch.device(device)
    devices = {p.device for p in model.parameters()} - {torch.device("meta")}
    return torch.device("cpu") if placed or not devices else next(model.parameters()).device


def as_floats(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Cast floating-point inputs (pixels, audio features) to the model's dtype."""
    return {
        k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in inputs.items()
    }


def placeholder_mask(model: Any, batch: Batch, towers: Iterable[str] = ()) -> Tensor:
    """Positions of `batch.tokens` that stand for an image, a sound or a declared tower, bool.

    The configuration names them: ``image_token_id``, ``audio_token_index``, ``eeg_token_id``. Of
    Kosmos-2, whose pictures stand at the ids of letters, an input marks them.
    """
    names = {f"{m}_token_{end}" for m in {*MEDIA, *towers} for end in ("id", "index")}
    mask = torch.zeros_like(batch.tokens, dtype=torch.bool)
    for token in _named(model.config.to_dict(), names):
        mask |= batch.tokens == token
    marked = batch.inputs.get("image_embeds_position_mask")
    return mask if marked is None else mask | marked.bool()


def _named(config: Mapping[str, Any], names: Collection[str]) -> set[int]:
    """Whole numbers under one of `names`, at any depth."""
    found = set()
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= _named(value, names)
        elif name in names and isinstance(value, int):
            found.add(value)
    return found
