"""Load a model with its processor, and ask what it takes."""

from __future__ import annotations

import contextlib
import inspect
import json
import tempfile
import weakref
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoProcessor, AutoTokenizer
from transformers.utils import logging as hf_logging

from expunge.encoding import batches as batches
from expunge.errors import InputError
from expunge.prompting import Prompter as Prompter
from expunge.sites.find import AUTO


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


def generates(model: Any) -> bool:
    """Whether the model can write a text by itself."""
    return bool(getattr(model, "can_generate", bool)())


def accepts(model: Any, name: str, *, unnamed: bool = False) -> bool:
    """Whether the model's forward pass takes an argument of this name; `unnamed`: or of any."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    parameters = inspect.signature(inner.forward).parameters
    passed_on = unnamed and any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return name in parameters or passed_on
