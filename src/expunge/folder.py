"""The run folder: who owns it, and files that appear under their final name when complete."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from expunge.errors import InputError
from expunge.stats import load_stats, save_stats

STATE = "run.json"
OUTPUTS = ("stats", "plan.safetensors", "model", "figures")


# Settings and data that the files of a stage do not depend on: they may still change.
FREE_WITH_FIGURES = {"device", "device_map", "memory", "stranger", "official"}
FREE_WITH_PLAN = FREE_WITH_FIGURES | {
    "test", "neighbor", "real", "skills", "gold", "batch_size", "show_content",
}  # fmt: skip
FREE_WITH_STATS = FREE_WITH_PLAN | {
    "method", "budget", "strength", "keep", "importances", "per_tower", "eps", "seed",
}  # fmt: skip


def refuse_other(folder: Path, state: Mapping[str, Any]) -> None:
    """Raise `InputError` unless the folder is free, or what is done in it agrees with `state`.

    Args:
        folder: The run folder.
        state: `config` and `data` (both mappings) and, where it is known, `weights`.
    """
    path = folder / STATE
    if not path.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} exists and holds no expunge run; choose another --out")
        return
    held = json.loads(path.read_text(encoding="utf-8"))
    wanted = json.loads(json.dumps(state))
    differ = [
        f"{part} {name}"
        for part in ("config", "data")
        for name in sorted({*held[part], *wanted[part]})
        if held[part].get(name) != wanted[part].get(name) and not _free(folder, name)
    ]
    if held["weights"] != wanted.get("weights", held["weights"]) and _done(folder):
        differ.append("weights of the model")
    if differ:
        raise InputError(
            f"{folder} holds another run (it differs in: {', '.join(differ)}); choose another"
            " --out or remove it"
        )


def _done(folder: Path) -> bool:
    return any((folder / name).exists() for name in OUTPUTS)


def _free(folder: Path, name: str) -> bool:
    """Whether nothing that is done in the folder depends on this setting or data set."""
    if (folder / "figures").exists():
        return name in FREE_WITH_FIGURES
    if (folder / "plan.safetensors").exists() or (folder / "model").exists():
        return name in FREE_WITH_PLAN
    return name in FREE_WITH_STATS or not _done(folder)


def claim(folder: Path, state: Mapping[str, Any]) -> bool:
    """Make the run folder, or make sure that it holds this very run.

    Returns:
        Whether the folder's state is new or has changed.
    """
    refuse_other(folder, state)
    path, text = folder / STATE, as_json(state)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, state)
    except OSError as error:
        raise InputError(f"the run folder {folder} cannot be written: {error.strerror}") from error
    return True


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


def write_content(folder: Path, said: Mapping[str, Path]) -> None:
    """Write content.json: the forget questions and what each model answered.

    Args:
        folder: The run folder.
        said: Model name -> JSON list of {subject, question, answer}, all in the same order.
    """
    rows: list[dict[str, str]] = []
    for model, path in said.items():
        answers = json.loads(path.read_text(encoding="utf-8"))
        rows = rows or [{"subject": a["subject"], "question": a["question"]} for a in answers]
        for row, answer in zip(rows, answers, strict=True):
            row[model] = answer["answer"]
    write_json(folder / "content.json", {"forget": rows})


def as_json(value: Any) -> str:
    """The text of a JSON file."""
    return json.dumps(value, indent=1, sort_keys=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write JSON under a temporary name, then rename."""
    replace_with(path, lambda p: p.write_text(as_json(value), encoding="utf-8"))


def replace_with(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file of a temporary name beside `path`, then rename it."""
    partial = path.with_name(path.name + ".partial")
    write(partial)
    partial.replace(path)
