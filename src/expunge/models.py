"""Load a model with its processor, and turn examples into batches the model can run."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)
from transformers.utils import logging as hf_logging

from expunge.data import Example, load_image
from expunge.errors import InputError

PLACEHOLDERS = ("image_token_id", "image_token_index", "audio_token_id", "audio_token_index")


@dataclass(frozen=True)
class Batch:
    """Some examples as model inputs.

    Attributes:
        rows: Positions of the examples in the sequence they came from.
        inputs: What the model takes, on the model's device.
        mask: Positions that hold a token, bool [batch, length].
        answer: Positions that hold a token of the reference answer, bool [batch, length].
        closing: Position of the first token after the answer, or -1, int64 [batch].
    """

    rows: list[int]
    inputs: dict[str, Tensor]
    mask: Tensor
    answer: Tensor
    closing: Tensor


def load(
    model_id: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> tuple[Any, Any]:
    """Load a checkpoint and its processor.

    Args:
        model_id: Folder or Hub id.
        dtype: Weight dtype; "auto" is what the checkpoint holds.
        device: Where the model goes; None is the first CUDA device if there is one.
        trust_remote_code: Run code that comes with the checkpoint.
        **options: Passed to `from_pretrained`, for instance `device_map`.

    Returns:
        The model in evaluation mode, and its processor (a tokenizer for text-only models).

    Raises:
        InputError: No checkpoint there, no weights in it, or an architecture that is unknown.
    """
    check_checkpoint(model_id)
    common: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(model_id, **common)
        auto = (
            AutoModelForImageTextToText
            if type(config) in AutoModelForImageTextToText._model_mapping
            else AutoModelForCausalLM
        )
        with quietly():
            model = auto.from_pretrained(model_id, dtype=dtype, **common, **options)
        processor = load_processor(model_id, **common)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{model_id} cannot be loaded as a model: {first}") from error
    if "device_map" not in options:
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return model.eval(), processor


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' progress bars inside the block."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()


def load_processor(model_id: str | Path, **options: Any) -> Any:
    """The processor of a checkpoint, or its tokenizer where it has no processor."""
    try:
        return AutoProcessor.from_pretrained(model_id, backend="pil", **options)
    except (OSError, ValueError, TypeError):
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


class Prompter:
    """Renders examples as the processor's chat template does and encodes them.

    Args:
        processor: A processor, or a tokenizer for a text-only model.
        system: Words of a system turn put before every question.
        template: Prompt template with `{question}` (and `{image}` where the image token goes),
            used instead of a chat template.
    """

    def __init__(
        self, processor: Any, *, system: str | None = None, template: str | None = None
    ) -> None:
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.system = system
        self.template = template
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

    def render(self, example: Example, condition: str, answer: str | None = None) -> str:
        """The conversation as text, ending where the answer starts, or after `answer`."""
        words = example.prompt(condition)
        if self.template is not None:
            image = getattr(self.processor, "image_token", "<image>")
            prompt = self.template.format(
                question=words, image=image if condition == "multi" else ""
            )
            return prompt + (answer + (self.tokenizer.eos_token or "") if answer else "")
        user: list[dict[str, Any]] = [{"type": "text", "text": words}]
        if condition == "multi":
            user.insert(0, {"type": "image"})
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

    def answer_span(self, text: str, answer: str) -> tuple[int, int, int]:
        """Where the answer's tokens lie, counted from the end of the encoded text.

        Image placeholders expand before the answer, so counting from the end is exact.

        Returns:
            (first, last, closing): distance from the end of the answer's first token, of its
            last token, and of the first token after it (0 if there is none).
        """
        start = text.rfind(answer.strip())
        if start < 0:
            raise InputError("the chat template changes the answer, so its tokens cannot be found")
        stop = start + len(answer.strip())
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
        inside = [i for i, (a, b) in enumerate(offsets) if b > start and a < stop and b > a]
        length = len(offsets)
        return length - inside[0], length - inside[-1], length - inside[-1] - 1

    def encode(
        self, texts: Sequence[str], images: Sequence[Any], *, side: str
    ) -> dict[str, Tensor]:
        """Tokenise and pad on `side`; images in the order of the texts, or empty."""
        options = {
            "padding": True,
            "padding_side": side,
            "add_special_tokens": False,
            "return_tensors": "pt",
        }
        if self.processor is self.tokenizer or not images:
            return dict(self.tokenizer(list(texts), **options))
        return dict(self.processor(text=list(texts), images=[[i] for i in images], **options))


def batches(
    model: Any,
    prompter: Prompter,
    examples: Sequence[Example],
    condition: str,
    *,
    batch_size: int = 32,
    answers: Sequence[str] | None = None,
    prompt_only: bool = False,
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

    Yields:
        Batches; together they cover every example once.
    """
    told = [e.answer for e in examples] if answers is None else list(answers)
    texts = [
        prompter.render(e, condition, None if prompt_only else a)
        for e, a in zip(examples, told, strict=True)
    ]
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
    side = "left" if prompt_only else "right"
    device = next(model.parameters()).device
    for at in range(0, len(order), batch_size):
        rows = order[at : at + batch_size]
        images = [load_image(examples[i].image) for i in rows] if condition == "multi" else []
        inputs = prompter.encode([texts[i] for i in rows], images, side=side)
        mask = inputs["attention_mask"].bool()
        answer, closing = torch.zeros_like(mask), torch.full((len(rows),), -1)
        if not prompt_only:
            lengths = mask.sum(1).tolist()
            for place, i in enumerate(rows):
                first, last, after = prompter.answer_span(texts[i], told[i])
                answer[place, lengths[place] - first : lengths[place] - last + 1] = True
                closing[place] = lengths[place] - after if after else -1
        inputs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
        inputs = as_floats(inputs, model.dtype)
        yield Batch(rows, inputs, mask.to(device), answer.to(device), closing.to(device))


def as_floats(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Cast floating-point inputs (pixels, audio features) to the model's dtype."""
    return {
        k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in inputs.items()
    }


def placeholder_mask(model: Any, ids: Tensor) -> Tensor:
    """Positions of `ids` [batch, length] that stand for an image or sound, bool."""
    config = model.config
    tokens = [getattr(config, name, None) for name in PLACEHOLDERS]
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for token in tokens:
        if isinstance(token, int):
            mask |= ids == token
    return mask


def accepts(model: Any, name: str) -> bool:
    """Whether the model's forward pass takes an argument of this name."""
    return name in inspect.signature(model.forward).parameters
