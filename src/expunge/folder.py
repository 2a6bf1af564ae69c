"""The run folder: who owns it, and files that appear under their final name when complete."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from expunge.errors import InputError
from expunge.stats import load_stats, save_stats

STATE = "run.json"


def refuse_other(folder: Path, state: Mapping[str, Any]) -> None:
    """Raise `InputError` unless the folder is free, or holds a run that agrees with `state`."""
    path = folder / STATE
    if path.is_file():
        held, wanted = (_flat(json.loads(t)) for t in (path.read_text("utf-8"), json.dumps(state)))
        differ = [k for k in sorted({*held, *wanted}) if held.get(k) != wanted.get(k)]
        if "weights" not in wanted:
            differ = [k for k in differ if k != "weights"]
        if differ:
            raise InputError(
                f"{folder} holds another run (it differs in {', '.join(differ)}); choose another"
                " --out or remove it"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and holds no expunge run; choose another --out")


def _flat(state: Mapping[str, Any]) -> dict[str, Any]:
    parts = {k: v if isinstance(v, dict) else {"": v} for k, v in state.items()}
    return {f"{k} {n}".strip(): v for k, part in parts.items() for n, v in part.items()}


def claim(folder: Path, state: Mapping[str, Any]) -> None:
    """Make the run folder, or make sure that it holds this very run."""
    refuse_other(folder, state)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / STATE, state)
    except OSError as error:
        raise InputError(f"the run folder {folder} cannot be written: {error.strerror}") from error


def write_stats(folder: Path, neurons: Mapping[tuple[str, str], Any]) -> None:
    """Write neuron statistics, one file per set and condition; the folder appears when complete."""
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(exist_ok=True)
    for (name, condition), stats in neurons.items():
        about = {"set": name, "condition": condition}
        save_stats(partial / f"{name}.{condition}.safetensors", dict(stats), about)
    partial.replace(folder)


def read_stats(folder: Path) -> dict[tuple[str, str], Any]:
    """Read what `write_stats` wrote."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        stats, about = load_stats(path)
        found[about["set"], about["condition"]] = stats
    return found


def write_json(path: Path, value: Any) -> None:
    """Write JSON under a temporary name, then rename."""
    text = json.dumps(value, indent=1, sort_keys=False, allow_nan=False)
    replace_with(path, lambda p: p.write_text(text + "\n", encoding="utf-8"))


def replace_with(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file of a temporary name beside `path`, then rename it."""
    partial = path.with_name(path.name + ".partial")
    write(partial)
    partial.replace(path)
