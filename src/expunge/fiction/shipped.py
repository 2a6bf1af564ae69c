"""The checkpoints in the package, and the embedded world as ordinary files."""

from __future__ import annotations

import shutil
from pathlib import Path

from expunge.data import Suite, write_jsonl
from expunge.errors import ExpungeError, InputError, unknown
from expunge.fiction.world import World, person_rows

FOLDER = Path(__file__).parent / "checkpoints"


def checkpoints() -> list[str]:
    """Names of the shipped checkpoints."""
    return sorted(p.name for p in FOLDER.iterdir() if p.is_dir()) if FOLDER.is_dir() else []


def checkpoint(name: str) -> Path:
    """Folder of a shipped checkpoint: `vanilla`, or `gold` (never saw the 10 % forget people)."""
    known = checkpoints()
    if not known:
        raise ExpungeError(f"the package lacks its checkpoints in {FOLDER}; install it again")
    if name not in known:
        raise unknown("checkpoint", name, known)
    return FOLDER / name


def suite(percent: float = 10, group: int = 0) -> Suite:
    """Question sets of the shipped world."""
    return Suite.of(**World().suite(percent, group))


def with_strangers(sets: Suite) -> Suite:
    """The question sets of a split and the same about as many people whom nobody has ever seen."""
    number = len({e.subject for e in sets.sets["forget"]})
    asked = person_rows(World().strangers(number), seen=True)
    return Suite.of(**sets.sets, stranger=asked)


def export(folder: str | Path, percent: float = 10, group: int = 0) -> list[str]:
    """Write images, one JSONL file per set and the checkpoints into a new folder.

    Returns:
        The paths written: one per set, then one per checkpoint.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not empty; choose another folder")
    world = World()
    world.split(percent, group)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        sets = with_strangers(Suite.of(**world.suite(percent, group))).sets
        for name, rows in sets.items():
            write_jsonl(rows, partial / f"{name}.jsonl", f"images/{name}")
        names = checkpoints()
        for name in names:
            shutil.copytree(checkpoint(name), partial / name)
        if folder.exists():
            folder.rmdir()
        partial.replace(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise InputError(f"{folder} cannot be written: {error.strerror}") from error
    return [str(folder / f"{n}.jsonl") for n in sets] + [str(folder / n) for n in names]
