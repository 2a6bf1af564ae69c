"""Load a model with its processor, and turn examples into batches the model can run."""

from __future__ import annotations

import contextlib
import inspect
import json
import tempfile
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoProcessor, AutoTokenizer
from transformers.utils import logging as hf_logging

from expunge.data import Example, load_image
from expunge.errors import InputError
from expunge.prompting import Prompter as Prompter
from expunge.sites.find import AUTO

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
        inputs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.inputs.items()}
        mask, answer, closing = (t.to(device) for t in (self.mask, self.answer, self.closing))
        return Batch(self.rows, as_floats(inputs, dtype), mask, answer, closing)


def load(
    model_id: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    merge_adapter: bool = False,
    **options: Any,
) -> tuple[Any, Any]:
    """Load a checkpoint and its processor.

    Args:
        model_id: Folder or Hub id.
        dtype: Weight dtype; "auto" is what the checkpoint holds.
        device: Where the model goes; None is the first CUDA device if there is one.
        device_map: Instead of a device: how accelerate spreads the model over GPUs, CPU and disk,
            "auto" or module -> device. Weights that must be written to disk again go to a
            temporary folder that lasts as long as the model.
        trust_remote_code: Run code that comes with the checkpoint.
        merge_adapter: For a folder with a peft adapter: put it into the weights of its base model,
            so that they can be edited; else statistics run through it and edits are refused.
        **options: Passed to `from_pretrained`, for instance `max_memory`.

    Returns:
        The model in evaluation mode, and its processor (a tokenizer for text-only models).

    Raises:
        InputError: No checkpoint there, no weights in it, or an architecture that is unknown.
    """
    base = adapter_base(model_id)
    source = model_id if base is None else base
    check_checkpoint(source)
    common: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if device_map is not None:
        spare = tempfile.TemporaryDirectory(prefix="expunge-offload-")
        options = {"device_map": device_map, "offload_folder": spare.name, **options}
    try:
        config = AutoConfig.from_pretrained(source, **common)
        auto = auto_class(config)
        with quietly():
            model, found = auto.from_pretrained(
                source, dtype=dtype, output_loading_info=True, **common, **options
            )
            _check_complete(source, model, found["missing_keys"])
            model = model if base is None else _adapted(model, model_id, merge_adapter)
        processor = load_processor(source, **common)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        where = "" if Path(source).exists() else "is no folder here and "
        raise InputError(f"{source} {where}cannot be loaded as a model: {first}") from error
    if device_map is not None:
        weakref.finalize(model, spare.cleanup)
    else:
        _put(model, device)
    return model.eval(), processor


def _put(model: Any, device: str | torch.device | None) -> None:
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model.to(chosen)
    except (RuntimeError, AssertionError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"the model cannot be put on device {chosen}: {first}") from error


def _check_complete(source: str | Path, model: Any, absent: Collection[str]) -> None:
    """Refuse a checkpoint without all weights: the others would be random numbers."""
    missing = {name for name, _ in model.named_parameters()} & set(absent)
    if missing:
        raise InputError(
            f"{source} lacks {len(missing)} of its weights, such as {min(missing)}; expected a"
            " complete checkpoint"
        )


def adapter_base(model_id: str | Path) -> str | None:
    """The base model that a folder with a peft adapter names; None for any other folder."""
    path = Path(model_id) / "adapter_config.json"
    if not path.is_file() or (Path(model_id) / "config.json").is_file():
        return None
    base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise InputError(f"{path} names no base_model_name_or_path; load the base model yourself")
    return str(base)


def _adapted(model: Any, folder: str | Path, merge: bool) -> Any:
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(model, str(folder))
    return adapted.merge_and_unload() if merge else adapted


def auto_class(config: Any) -> Any:
    """The class that loads a generative model of this configuration."""
    classes = [getattr(transformers, f"AutoModelFor{name}", None) for name in AUTO]
    mapped = getattr(config, "auto_map", None) or {}
    for auto in classes:
        if auto is not None and (auto.__name__ in mapped or type(config) in auto._model_mapping):
            return auto
    return transformers.AutoModelForCausalLM


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' progress bars inside the block."""
    bars: Any = hf_logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def load_processor(model_id: str | Path, **options: Any) -> Any:
    """The processor of a checkpoint, or its tokenizer where it has no processor."""
    kind: Any = AutoProcessor
    try:
        return kind.from_pretrained(model_id, backend="pil", **options)
    except (ImportError, AttributeError, TypeError) as error:  # no library for videos
        first = str(error).strip().splitlines()[0]
        raise InputError(
            f"the processor of {model_id} cannot be built ({first}); install what it needs, for"
            " processors that also take videos: pip install torchvision"
        ) from error
    except (OSError, ValueError):
        return AutoTokenizer.from_pretrained(model_id, **options)


def check_checkpoint(model_id: str | Path) -> None:
    """Raise `InputError` if `model_id` is a folder without a model in it, or no such folder."""
    folder = Path(model_id)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder} holds no config.json, so it is no model checkpoint")
        if not any(p.suffix in (".safetensors", ".bin", ".gguf") for p in folder.iterdir()):
            raise InputError(f"{folder} holds a config but no weights (*.safetensors)")
    elif folder.is_absolute() or str(model_id).startswith(".") or str(model_id).count("/") != 1:
        raise InputError(f"there is no model folder {model_id}, and it is no Hub id (owner/name)")


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
    order = sorted(range(len(asked)), key=lambda i: (len(asked[i].text), i))

    def encoded(rows: list[int]) -> Iterator[Batch]:
        pictures = [examples[i].image for i in rows] if condition == "multi" else []
        images = [load_image(each) for each in pictures if each is not None]
        mine = [asked[i] for i in rows]
        if encodes_apart(model):
            batch = encode_apart(prompter, mine, images, decoder_start(model))
        else:
            batch = encode_together(prompter, mine, images)
        if len(rows) > 1 and (padded_media(batch.inputs) or miscounted(batch)):
            for row in rows:
                yield from encoded([row])
        else:
            yield batch.to(input_device(model), model.dtype)

    for at in range(share[0] * batch_size, len(order), share[1] * batch_size):
        yield from encoded(order[at : at + batch_size])


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
    tokens = torch.full((len(told), length), tokenizer.pad_token_id)
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


def accepts(model: Any, name: str) -> bool:
    """Whether the model's forward pass takes an argument of this name."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    parameters = inspect.signature(inner.forward).parameters
    return name in parameters
