"""The one frozen configuration of a run; YAML in, YAML out, strict keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from expunge.errors import InputError, unknown

DEFAULT_TOWERS = ("vision", "language")


@dataclass(frozen=True)
class RunConfig:
    """Everything a run depends on.

    Attributes:
        model: Checkpoint to unlearn, folder or Hub id.
        forget: Questions about what is to be forgotten, a file.
        retain: Questions about what the method is given to keep, a file.
        test: Forget subjects under unseen questions and images, a file.
        neighbor: Subjects like those of forget and retain, never shown to the method.
        real: Well-known subjects of another kind, never shown to the method.
        skills: General abilities.
        gold: Checkpoint trained without the forget set, for comparison.
        method: Name of the method.
        budget: Share of the neurons to prune, 0 to 1; None is the method's default.
        strength: Strength of a filter; None is the method's default, or found by search.
        keep: Share of the accuracy on held-out retain subjects that must stay, for the search.
        towers: Towers whose sites are edited; None is the method's default.
        towers_declared: Tower name -> module path, for modalities of the user's own.
        attention: Also edit attention output projections.
        importances: Importance name -> weight, for MANU; None is all four, weight 1.
        per_tower: Rank each tower by itself.
        positions: Language positions that count: all, no_image or answer.
        unit: token or example.
        tau: |z| above which a neuron counts as active.
        eps: Added to denominators of importances and scores.
        batch_size: Examples per forward pass.
        seed: Of everything random.
        dtype: Weight dtype, or auto.
        device: Where the model runs; None is the first CUDA device if there is one.
        data_format: Format of the question files, or auto.
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
    gold: str | None = None
    method: str = "auto"
    budget: float | None = None
    strength: float | None = None
    keep: float = 0.97
    towers: tuple[str, ...] | None = None
    towers_declared: Mapping[str, str] = field(default_factory=dict)
    attention: bool = False
    importances: Mapping[str, float] | None = None
    per_tower: bool = False
    positions: str = "all"
    unit: str = "token"
    tau: float = 0.1
    eps: float = 1e-6
    batch_size: int = 32
    seed: int = 0
    dtype: str = "auto"
    device: str | None = None
    data_format: str = "auto"
    prompt_template: str | None = None
    allow_overlap: bool = False
    show_content: bool = False
    trust_remote_code: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> RunConfig:
        """Build from a mapping; an unknown key is an error that names the nearest one."""
        names = {f.name for f in dataclasses.fields(cls)}
        for name in values:
            if name not in names:
                raise unknown("configuration key", str(name), names)
        given = dict(values)
        if isinstance(given.get("towers"), list):
            given["towers"] = tuple(given["towers"])
        return cls(**given)

    @classmethod
    def read(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
        """Read a YAML file; `overrides` win."""
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except (OSError, yaml.YAMLError) as error:
            raise InputError(f"{path} cannot be read as YAML: {error}") from error
        if not isinstance(values, dict):
            raise InputError(f"{path} holds {type(values).__name__}, expected key: value lines")
        return cls.of({**values, **(overrides or {})})

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as they are written to YAML and JSON."""
        values = dataclasses.asdict(self)
        values["towers"] = list(self.towers) if self.towers is not None else None
        return values

    def write(self, path: Path) -> None:
        """Write YAML."""
        path.write_text(yaml.safe_dump(self.as_dict(), sort_keys=False), encoding="utf-8")
