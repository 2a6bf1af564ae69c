"""What to change in a model: edits per site with their provenance, in one small file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from expunge.errors import InputError
from expunge.grid import CODES, GRIDS, STEPS, gridded, packed, turned, unpacked
from expunge.rewire import Rewire

if TYPE_CHECKING:
    from collections.abc import Callable

VERSION = 3


@dataclass(frozen=True)
class SiteEdit:
    """Everything that one plan changes at one site.

    The edited down projection is W' = (W + A B) diag(s), with s = 0 at pruned and `factors` at
    scaled neurons; rewired neurons are then replaced whole; steering acts on activations while the
    model runs: z := z + add, then z := min(z, 0) at the neurons switched off.

    Attributes:
        prune: Indices of neurons whose outgoing weights become zero, sorted int64, or None.
        scale: (indices sorted int64, factors) or None.
        lowrank: (A [out, rank], B [rank, width]) or None.
        steer: (indices sorted int64, add [n], off bool [n]) or None.
        rewire: Neurons replaced whole, or None.
        ground: What is added to the biases of the values of attention in the site's layer, [n], or
            None.
    """

    prune: Tensor | None = None
    scale: tuple[Tensor, Tensor] | None = None
    lowrank: tuple[Tensor, Tensor] | None = None
    steer: tuple[Tensor, Tensor, Tensor] | None = None
    rewire: Rewire | None = None
    ground: Tensor | None = None

    @property
    def kind(self) -> str:
        """`prune`, `scale`, `lowrank`, `steer`, `rewire`, `ground`, or several joined by `+`."""
        names = ("prune", "scale", "lowrank", "steer", "rewire", "ground")
        return "+".join(n for n in names if getattr(self, n) is not None)

    @property
    def count(self) -> int:
        """Number of neurons touched, or the rank of a low-rank edit alone."""
        touched = self.neurons()
        if touched.numel() or self.lowrank is None:
            return int(touched.numel())
        return int(self.lowrank[1].shape[0])

    def neurons(self) -> Tensor:
        """Sorted indices of the neurons pruned, scaled, steered or rewired, int64."""
        parts = [self.prune, *((self.scale or ())[:1]), *((self.steer or ())[:1])]
        parts += [self.rewire.index] if self.rewire is not None else []
        found = [t for t in parts if t is not None]
        return torch.cat(found).unique() if found else torch.zeros(0, dtype=torch.int64)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by the names they have in a plan file."""
        named: dict[str, Tensor] = {}
        if self.prune is not None:
            named["indices"] = self.prune.to(torch.int32)
        if self.scale is not None:
            named["scaled"], named["factors"] = self.scale[0].to(torch.int32), self.scale[1]
        if self.lowrank is not None:
            named["A"], named["B"] = self.lowrank
        if self.steer is not None:
            named["steered"] = self.steer[0].to(torch.int32)
            named["add"], named["off"] = self.steer[1], self.steer[2].to(torch.uint8)
        if self.rewire is not None:
            named |= self.rewire.tensors()
        if self.ground is not None:
            named["ground"] = self.ground
        return named

    @classmethod
    def from_tensors(cls, named: Mapping[str, Tensor]) -> SiteEdit:
        """The inverse of `tensors`."""
        prune = named["indices"].long() if "indices" in named else None
        scale = (named["scaled"].long(), named["factors"]) if "scaled" in named else None
        lowrank = (named["A"], named["B"]) if "A" in named else None
        steer = None
        if "steered" in named:
            steer = (named["steered"].long(), named["add"], named["off"].bool())
        rewire = Rewire.from_tensors(named) if "rewired" in named else None
        return cls(prune, scale, lowrank, steer, rewire, named.get("ground"))

    def cpu(self) -> SiteEdit:
        """The same in the CPU's memory."""
        return SiteEdit.from_tensors({name: t.cpu() for name, t in self.tensors().items()})

    def gridded(self) -> SiteEdit:
        """The same with its matrices on a grid (see `GRIDS`), which takes a fourth of the file."""
        named = self.tensors()
        rounded = {name: _on_grid(name, named[name]) for name in GRIDS.keys() & named}
        return SiteEdit.from_tensors(named | rounded)

    def join(self, other: SiteEdit) -> SiteEdit:
        """Both edits; the same whichever comes first, bit for bit."""
        first, second = sorted((self, other), key=lambda e: _digest(e.tensors()))
        prune = _both(first.prune, second.prune, lambda a, b: torch.cat([a, b]).unique())
        return SiteEdit(
            prune,
            _both(first.scale, second.scale, _join_scale),
            _both(first.lowrank, second.lowrank, _join_lowrank),
            _both(first.steer, second.steer, _join_steer),
            _both(first.rewire, second.rewire, Rewire.join),
            # one constant stands for both: twice as much would be twice the thresholds
            _both(first.ground, second.ground, lambda a, b: max(a, b, key=Tensor.tolist)),
        )


@dataclass(frozen=True)
class Plan:
    """Edits by site, and where they come from.

    Attributes:
        edits: Site key -> edit.
        sites: Site key -> {"tower", "path", "width"} of every site in `edits`.
        provenance: method, config, base (id, model_type, fingerprint), data hashes, versions,
            seed, date; JSON values only.
        scores: Site key -> score float64 [width]; not saved with the plan.
    """

    edits: Mapping[str, SiteEdit]
    sites: Mapping[str, Mapping[str, Any]]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @property
    def method(self) -> str:
        """Name of the method that made the plan."""
        return str(self.provenance.get("method", "unknown"))

    @property
    def system_prompt(self) -> str | None:
        """Words of the system turn the edited model is asked under; several plans' one a line."""
        parts = self.provenance.get("parts", [self.provenance])
        return "\n".join(p["system_prompt"] for p in parts if p.get("system_prompt")) or None

    def neurons(self) -> dict[str, Tensor]:
        """Sorted indices of the neurons pruned, scaled, steered or rewired, by site key."""
        touched = {key: edit.neurons() for key, edit in self.edits.items()}
        return {key: index for key, index in touched.items() if index.numel()}

    def header(self) -> dict[str, Any]:
        """What the file says of itself, as JSON."""
        sites = {
            key: {**self.sites[key], "kind": edit.kind, "count": edit.count}
            for key, edit in self.edits.items()
        }
        return {"version": VERSION, **self.provenance, "sites": sites}

    def tensors(self) -> dict[str, Tensor]:
        """Copies of all tensors by `<site key>/<name>`; none shares memory with another."""
        return {
            f"{key}/{name}": tensor.detach().cpu().contiguous().clone()
            for key, edit in self.edits.items()
            for name, tensor in edit.tensors().items()
        }

    def packed(self) -> dict[str, Tensor]:
        """The tensors of the plan file: those on a grid as codes and steps, see `grid`."""
        held: dict[str, Tensor] = {}
        for name, tensor in self.tensors().items():
            held |= _packed(name, tensor)
        return held

    @property
    def bytes(self) -> int:
        """Size of the tensors in the plan file, in bytes."""
        return sum(t.numel() * t.element_size() for t in self.packed().values())

    def save(self, path: str | Path) -> Path:
        """Write the plan as safetensors with a JSON header; the final name appears when done."""
        path = Path(path)
        if not path.parent.is_dir():
            raise InputError(f"{path.parent} is not a folder, so the plan cannot be written there")
        temporary = path.with_name(path.name + ".partial")
        save_file(self.packed(), temporary, {"expunge": json.dumps(self.header(), sort_keys=True)})
        temporary.replace(path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan; an unreadable or newer file is an `InputError`."""
        path = Path(path)
        if not path.is_file():
            raise InputError(f"there is no plan file at {path}")
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                named = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise InputError(f"{path} is not a safetensors file: {error}") from error
        if "expunge" not in metadata:
            raise InputError(f"{path} is not a plan: its header has no 'expunge' entry")
        try:
            header = json.loads(metadata["expunge"])
            version = header.pop("version")
            if 1 <= version <= VERSION:
                return cls(*_edits(header.pop("sites"), _unpacked(named)), provenance=header)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path} is a damaged plan, or one of an earlier version ({error}); make it again"
            ) from error
        raise InputError(
            f"{path} has plan version {version}, this expunge reads {VERSION}; update to read it"
        )

    def __add__(self, other: Plan) -> Plan:
        """Compose two plans made for the same weights; the order does not matter."""
        mine, theirs = (p.provenance.get("base", {}).get("fingerprint") for p in (self, other))
        if mine != theirs:
            raise InputError(
                f"the plans were made for different weights ({mine} and {theirs}): only plans"
                " for one base model compose"
            )
        first, second = sorted((self, other), key=lambda p: _digest(p.tensors()))
        edits = dict(first.edits)
        for key, edit in second.edits.items():
            edits[key] = edits[key].join(edit) if key in edits else edit
        sites = {**first.sites, **second.sites}
        edits = {key: edits[key] for key in sorted(edits, key=_site_order)}
        parts = [p.provenance.get("parts", [dict(p.provenance)]) for p in (first, second)]
        provenance = {
            "method": "composed",
            "base": first.provenance.get("base", {}),
            "parts": sorted((p for part in parts for p in part), key=json.dumps),
        }
        return Plan(edits, sites, provenance)

    def apply(self, model: Any) -> Callable[[], None]:
        """Carry the plan out on a model; returns a function that undoes it bit for bit."""
        from expunge.edit import apply

        return apply(model, self)

    def to_peft(self, folder: str | Path, model: Any = None) -> Path:
        """Write the plan as a LoRA adapter folder for peft; see `adapters.write_lora`."""
        from expunge.adapters import write_lora

        return write_lora(self, Path(folder), model)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the plan file as `plan.safetensors` to a Hub repository; returns its address."""
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(repo_id, exist_ok=True, **options)
        with tempfile.TemporaryDirectory() as folder:
            file = self.save(Path(folder) / "plan.safetensors")
            done = api.upload_file(path_or_fileobj=file, path_in_repo=file.name, repo_id=repo_id)
        return str(done)


def _edits(
    sites: Mapping[str, dict[str, Any]], named: Mapping[str, Tensor]
) -> tuple[dict[str, SiteEdit], dict[str, dict[str, Any]]]:
    grouped: dict[str, dict[str, Tensor]] = {}
    for name, tensor in named.items():
        key, part = name.rsplit("/", 1)
        grouped.setdefault(key, {})[part] = tensor
    edits = {key: SiteEdit.from_tensors(grouped.get(key, {})) for key in sites}
    about = {
        k: {n: v for n, v in s.items() if n not in ("kind", "count")} for k, s in sites.items()
    }
    return edits, about


def _site_order(key: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in key.split(".")]


def _digest(named: Mapping[str, Tensor]) -> str:
    summary = hashlib.sha256()
    for name in sorted(named):
        tensor = named[name].detach().cpu().contiguous()
        summary.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        summary.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return summary.hexdigest()


def _on_grid(name: str, matrix: Tensor) -> Tensor:
    rows = turned(name, matrix.float().cpu().numpy())
    found = turned(name, gridded(rows, GRIDS[name][0]))
    return torch.from_numpy(found).to(matrix.device)


def _packed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """What a file holds of a tensor: it, or its codes and steps where it is on a grid."""
    gridable = name.rsplit("/", 1)[1] in GRIDS and tensor.dtype == torch.float32
    found = packed(turned(name, tensor.numpy())) if gridable else None
    if found is None:
        return {name: tensor}
    return {name + CODES: torch.tensor(found[0]), name + STEPS: torch.tensor(found[1])}


def _unpacked(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `_packed`, of all tensors of a file."""
    whole = {n: t for n, t in named.items() if not n.endswith((CODES, STEPS))}
    for name in (n.removesuffix(CODES) for n in named if n.endswith(CODES)):
        rows = unpacked(named[name + CODES].numpy(), named[name + STEPS].numpy())
        whole[name] = torch.from_numpy(turned(name, rows))
    return whole


def _both(first: Any, second: Any, join: Callable[[Any, Any], Any]) -> Any:
    if first is None or second is None:
        return second if first is None else first
    return join(first, second)


def _pairs(index: Tensor, value: Tensor) -> Iterator[tuple[int, Any]]:
    yield from zip(index.tolist(), value.tolist(), strict=True)


def _join_scale(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    factors = dict(_pairs(*first))
    for i, f in _pairs(*second):
        factors[i] = factors.get(i, 1.0) * f
    index = sorted(factors)
    values = torch.tensor([factors[i] for i in index], dtype=first[1].dtype)
    return torch.tensor(index, dtype=torch.int64), values


def _join_lowrank(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    return torch.cat([first[0], second[0]], 1), torch.cat([first[1], second[1]], 0)


def _join_steer(
    first: tuple[Tensor, Tensor, Tensor], second: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    add = dict(_pairs(first[0], first[1]))
    off = dict(_pairs(first[0], first[2]))
    for i, a in _pairs(second[0], second[1]):
        add[i] = add.get(i, 0.0) + a
    for i, o in _pairs(second[0], second[2]):
        off[i] = off.get(i, False) or o
    index = sorted(add)
    values = torch.tensor([add[i] for i in index], dtype=first[1].dtype)
    switched = torch.tensor([bool(off[i]) for i in index], dtype=torch.bool)
    return torch.tensor(index, dtype=torch.int64), values, switched
