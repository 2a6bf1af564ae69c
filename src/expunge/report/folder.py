"""Read a run folder: JSON, YAML and safetensors only, each file checked before it is used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from expunge.errors import InputError
from expunge.grid import CODES, STEPS, turned, unpacked
from expunge.report.figures import as_map, figure, natural, ordered
from expunge.report.results import Results

TOWERS = ("vision", "audio", "connector", "language")
READABLE = ("F16", "F32", "F64")


@dataclass(frozen=True)
class SiteEdit:
    """What a plan changes at one site.

    Attributes:
        key: Site key, such as `language.12`.
        tower: Part of the model the site belongs to.
        kind: `prune`, `scale`, `lowrank`, `steer` or `rewire`.
        width: Number of neurons of the site.
        indices: int [count], the neurons changed, or None for a low-rank edit.
        rank: Rank of a low-rank edit, or None.
        energy: Squared Frobenius norm of the change A B, or None.
        mean_factor: Mean factor of a scaling edit, or None.
    """

    key: str
    tower: str
    kind: str
    width: int
    indices: NDArray[Any] | None = None
    rank: int | None = None
    energy: float | None = None
    mean_factor: float | None = None

    @property
    def count(self) -> int:
        """Number of neurons changed one by one (0 for a low-rank edit)."""
        return 0 if self.indices is None else len(self.indices)

    @property
    def share(self) -> float:
        """`count` as a share of the width."""
        return self.count / self.width if self.width else 0.0


@dataclass(frozen=True)
class PlanFile:
    """A plan file: its JSON header and the edits by site, in the order of the towers."""

    header: Mapping[str, Any]
    sites: tuple[SiteEdit, ...]

    @property
    def towers(self) -> list[str]:
        """The towers with at least one edited site."""
        return ordered(TOWERS, (site.tower for site in self.sites))


@dataclass(frozen=True)
class Run:
    """Everything a report is made from; None marks a file that is not there."""

    results: Results
    plan: PlanFile | None
    scores: dict[str, NDArray[np.float64]] | None
    config: Mapping[str, Any] | None
    attacks: Mapping[str, Any] | None
    search: Mapping[str, Any] | None
    experts: Mapping[str, Any] | None
    content: Mapping[str, Any] | None


def read_run(folder: Path, *, show_content: bool) -> Run:
    """Read the run folder; `content.json` is opened only if `show_content`.

    Raises:
        InputError: There is no `results.json`, or a file is damaged.
    """
    results = _json(folder / "results.json")
    if results is None:
        raise InputError(
            f"no results.json in {folder}: expected a run folder that has been evaluated; "
            "run `expunge evaluate` first"
        )
    return Run(
        results=Results(results),
        plan=_plan(folder / "plan.safetensors"),
        scores=_scores(folder / "scores.safetensors"),
        config=_yaml(folder / "config.yaml"),
        attacks=_json(folder / "attacks.json"),
        search=_json(folder / "search.json"),
        experts=_json(folder / "experts.json"),
        content=_json(folder / "content.json") if show_content else None,
    )


def _json(path: Path) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return as_map(json.loads(path.read_text("utf-8")), path.name)
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}); write the file again") from error


def _yaml(path: Path) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return as_map(yaml.safe_load(path.read_text("utf-8")), path.name)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is no YAML ({reason}); write the file again") from error


def _scores(path: Path) -> dict[str, NDArray[np.float64]] | None:
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), framework="numpy") as file:
            return {
                key: np.asarray(file.get_tensor(key), dtype=np.float64)
                for key in sorted(file.keys(), key=natural)
            }
    except SafetensorError as error:
        raise InputError(f"{path} is no safetensors file ({error}); make the plan again") from error


def _plan(path: Path) -> PlanFile | None:
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), framework="numpy") as file:
            header = as_map(_header(file, path), f"{path.name} header")
            entries = as_map(header.get("sites"), f"{path.name} sites")
            sites = [
                _site(file, key, as_map(entry, f"{path.name} sites {key}"))
                for key, entry in entries.items()
            ]
    except SafetensorError as error:
        raise InputError(f"{path} is no safetensors file ({error}); make the plan again") from error
    towers = ordered(TOWERS, (site.tower for site in sites))
    sites.sort(key=lambda site: (towers.index(site.tower), natural(site.key)))
    return PlanFile(header, tuple(sites))


def _header(file: Any, path: Path) -> Any:
    text = (file.metadata() or {}).get("expunge")
    if text is None:
        raise InputError(f"{path} has no `expunge` header: expected a plan written by expunge")
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(
            f"the header of {path} is no JSON ({error}); make the plan again"
        ) from error


def _site(file: Any, key: str, entry: Mapping[str, Any]) -> SiteEdit:
    names = set(file.keys())
    found = next((n for n in ("indices", "rewired") if f"{key}/{n}" in names), None)
    indices = None if found is None else file.get_tensor(f"{key}/{found}")
    count = figure(entry.get("count"), f"plan site {key} count")
    if indices is not None and count is not None and len(indices) != count:
        raise InputError(
            f"plan site {key} holds {len(indices)} indices, its header says {count:.0f}; "
            "make the plan again"
        )
    width = int(figure(entry.get("width"), f"plan site {key} width") or 0)
    if indices is not None and len(indices) and not 0 <= indices.min() <= indices.max() < width:
        raise InputError(
            f"plan site {key} has indices outside its width of {width}; make the plan again"
        )
    factors = _tensor(file, f"{key}/factors", names)
    rank, energy = _lowrank(file, key, names)
    return SiteEdit(
        key=key,
        tower=str(entry.get("tower", key.split(".")[0])),
        kind=str(entry.get("kind", "prune")),
        width=width,
        indices=indices,
        rank=rank,
        energy=energy,
        mean_factor=float(factors.mean()) if factors is not None and factors.size else None,
    )


def _lowrank(file: Any, key: str, names: set[str]) -> tuple[int | None, float | None]:
    """Rank, and tr(A'A BB'), which is the squared Frobenius norm of A B without forming A B."""
    factors = [f"{key}/{part}" for part in "AB"]
    if not all(names & {name, name + CODES} for name in factors):
        return None, None
    a, b = (_tensor(file, name, names) for name in factors)
    left, right = (
        file.get_slice(name).get_shape() if found is None else list(found.shape)
        for name, found in zip(factors, (a, b), strict=True)
    )
    if len(left) != 2 or len(right) != 2 or left[1] != right[0]:
        raise InputError(
            f"plan site {key} has factors of shapes {left} and {right}, expected [out, rank] and "
            "[rank, width]; make the plan again"
        )
    if a is None or b is None:
        return left[1], None
    return left[1], float(np.sum((a.T @ a) * (b @ b.T)))


def _tensor(file: Any, name: str, names: set[str]) -> NDArray[np.float64] | None:
    if name + CODES in names:
        try:
            rows = unpacked(file.get_tensor(name + CODES), file.get_tensor(name + STEPS))
        except ValueError as error:
            raise InputError(f"plan tensor {name}: {error}; make the plan again") from error
        return turned(name, rows).astype(np.float64)
    if name not in names or file.get_slice(name).get_dtype() not in READABLE:
        return None
    return np.asarray(file.get_tensor(name), dtype=np.float64)
