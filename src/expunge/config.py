"""The one frozen configuration of a run; YAML in, YAML out, strict keys."""

from __future__ import annotations

import dataclasses
import math
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from expunge.errors import InputError, unknown

DTYPES = ("auto", "float16", "bfloat16", "float32", "float64")
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


@dataclass(frozen=True)
class RunConfig:
    """Everything a run depends on.

    Questions are a file, a folder or a data set on a hub. ``PATH::SPLIT`` takes a part of it: a
    configuration, a split, ``configuration:split`` or a sub-folder, or for one file the subjects
    that its release lists beside it (see `reading.part_of`).

    Attributes:
        model: Checkpoint to unlearn, folder or Hub id.
        forget: Questions about what is to be forgotten.
        retain: Questions about what the method is given to keep.
        test: Forget subjects under unseen questions and images.
        neighbor: Subjects like those of forget and retain, never shown to the method.
        real: Well-known subjects of another kind, never shown to the method.
        skills: General abilities.
        stranger: Subjects like those of forget whom neither model nor gold has ever seen, for
            membership inference; not evaluated otherwise.
        gold: Checkpoint trained without the forget set, for comparison.
        method: Name of the method.
        budget: Share of the neurons to prune, 0 to 1; None is the method's default.
        strength: Strength of a filter; None is the method's default, or found by search.
        keep: Share of the accuracy on held-out retain subjects that must stay, for the search; of
            texts that the model says by itself a tenth of that loss is allowed.
        towers: Towers whose sites are edited; None is the method's default.
        towers_declared: Tower name -> module path, for modalities of the user's own.
        attention: Also edit attention output projections.
        importances: Importance name -> weight, for MANU; None is all four, weight 1.
        per_tower: Rank each tower by itself.
        positions: Language positions that count: all, no_image, image or answer;
            None is the method's own.
        unit: token or example.
        tau: |z| above which a neuron counts as active.
        eps: Added to denominators of importances and scores.
        batch_size: Examples per forward pass.
        memory: Most that second moments and the work on them may take beside the model and its
            forward pass, in each process, such as 8GiB; None is half or three quarters of what is
            free.
        sketch: Hold second moments of wide sites in twice so many rows, within an error that the
            plan states (see `sketch`); None holds them exactly.
        seed: Of everything random.
        dtype: Weight dtype, or auto.
        device: Where the model runs; None is the first CUDA device if there is one.
        device_map: Instead of a device: how accelerate spreads the model over GPUs, CPU and disk
            (`auto`, or module -> device, such as `cpu` or `disk`).
        data_format: Format of the question files, or auto.
        official: Also ask and score as MLLMU-Bench's release does.
        merge_adapter: Where the checkpoint is a folder with a peft adapter: put it into the weights
            of its base model first, so that they can be edited.
        prompt_template: Used instead of a chat template.
        allow_overlap: Accept subjects that are in both forget and retain.
        show_content: Let questions, answers and names of the forget set into the report.
        trust_remote_code: Run code that comes with the checkpoint.
    """

    model: str = ""
    forget: str = ""
    retain: str = ""
    test: str | None = None
    neighbor: str | None = None
    real: str | None = None
    skills: str | None = None
    stranger: str | None = None
    gold: str | None = None
    method: str = "auto"
    budget: float | None = None
    strength: float | None = None
    keep: float = 0.9
    towers: tuple[str, ...] | None = None
    towers_declared: Mapping[str, str] = field(default_factory=dict)
    attention: bool = False
    importances: Mapping[str, float] | None = None
    per_tower: bool = False
    positions: str | None = None
    unit: str = "token"
    tau: float = 0.1
    eps: float = 1e-6
    batch_size: int = 32
    memory: str | None = None
    sketch: int | None = None
    seed: int = 0
    dtype: str = "auto"
    device: str | None = None
    device_map: str | Mapping[str, str] | None = None
    data_format: str = "auto"
    official: bool = False
    merge_adapter: bool = False
    prompt_template: str | None = None
    allow_overlap: bool = False
    show_content: bool = False
    trust_remote_code: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> RunConfig:
        """Build from a mapping.

        Raises:
            InputError: A key that does not exist (the message names the nearest one), a value of
                another type, or a figure out of range.
        """
        hints = get_type_hints(cls)
        given = {}
        for name, value in values.items():
            if name not in hints:
                raise unknown("configuration key", str(name), hints)
            given[name] = _value(name, value, hints[name])
        config = cls(**given)
        _check_figures(config)
        return config

    @classmethod
    def read(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
        """Read a YAML file; `overrides` win."""
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{path} cannot be read as YAML: {reason}") from error
        if not isinstance(values, dict):
            raise InputError(f"{path} holds {type(values).__name__}, expected key: value lines")
        try:
            cls.of(values)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        return cls.of({**values, **(overrides or {})})

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as they are written to YAML and JSON."""
        values = dataclasses.asdict(self)
        values["towers"] = list(self.towers) if self.towers is not None else None
        return values

    def write(self, path: Path) -> None:
        """Write YAML."""
        path.write_text(yaml.safe_dump(self.as_dict(), sort_keys=False), encoding="utf-8")


def bytes_of(text: str) -> int:
    """The number of bytes that `8GiB`, `500 MB` or `2.5e9B` says.

    Raises:
        InputError: It is none, or not above 0.
    """
    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([KMGT]?)(i?)B\s*", text, re.IGNORECASE)
    try:
        number = float(found[1]) if found else 0.0
    except ValueError:
        number = 0.0
    if found is None or number <= 0:
        raise InputError(f"memory is {text!r}, expected an amount such as 8GiB or 500MB")
    power = "KMGT".find(found[2].upper()) + 1 if found[2] else 0
    return int(number * (1024 if found[3] else 1000) ** power)


def _value(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type of the key, or an `InputError`."""
    allowed = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kinds = [get_origin(kind) or kind for kind in allowed]
    if float in kinds and str not in kinds and isinstance(value, str):
        value = _number(value)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if tuple in kinds and isinstance(value, list | tuple):
        if value and all(isinstance(v, str) and v for v in value):
            return tuple(value)
        raise InputError(f"{name} is {list(value)!r}, expected a list of names")
    for kind, full in zip(kinds, allowed, strict=True):
        if kind is Mapping and isinstance(value, Mapping):
            inner = get_args(full)[1]
            return {str(k): _value(f"{name}.{k}", v, inner) for k, v in value.items()}
        if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
            return value
    raise InputError(f"{name} is {value!r}, expected {_words(kinds)}")


def _number(text: str) -> float | str:
    """YAML reads 1e-6 as text; here it is the number that it looks like."""
    try:
        return float(text)
    except ValueError:
        return text


def _words(kinds: list[Any]) -> str:
    known = {**WORDS, tuple: "a list of names", Mapping: "a mapping", type(None): "nothing"}
    return " or ".join(known[kind] for kind in kinds)


def _check_figures(config: RunConfig) -> None:
    wrong = {
        "batch_size": config.batch_size < 1 and "at least 1",
        "sketch": config.sketch is not None and config.sketch < 1 and "at least 1",
        "seed": config.seed < 0 and "at least 0",
        "tau": not 0 <= config.tau < math.inf and "a number of at least 0",
        "eps": not 0 < config.eps < math.inf and "a number above 0",
    }
    for name, expected in wrong.items():
        if expected:
            raise InputError(f"{name} is {getattr(config, name)}, expected {expected}")
    if config.memory is not None:
        bytes_of(config.memory)
    if config.device is not None and config.device_map is not None:
        raise InputError("device and device_map are both given, expected one of them")
    if config.dtype not in DTYPES:
        raise unknown("dtype", config.dtype, DTYPES)
