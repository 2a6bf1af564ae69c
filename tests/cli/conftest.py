"""A small task on disk and a finished run of it, shared by the tests of the commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Said, Task, expunge

# Every n-th question of each set of the small world: few, but of all tasks and both conditions.
EVERY = {"forget": 4, "test": 6, "retain": 9, "neighbor": 8, "real": 4, "skills": 30}


@pytest.fixture(scope="session")
def task(tmp_path_factory, llava, processor, rows) -> Task:
    from expunge.data import write_jsonl
    from expunge.edit import save_checkpoint
    from expunge.fiction.build import build_model

    home = tmp_path_factory.mktemp("task")
    save_checkpoint(llava, processor, home / "vanilla")
    save_checkpoint(build_model(processor, seed=4), processor, home / "gold")
    sets = {name: rows[name][::step] for name, step in EVERY.items()}
    for name, examples in sets.items():
        write_jsonl(examples, home / f"{name}.jsonl", f"images/{name}")
    return Task(home, sets)


@pytest.fixture(scope="session")
def finished(task, tmp_path_factory) -> tuple[Path, Said]:
    """The folder of a complete run, not to be changed, and what the command said."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, expunge("run", *task.full, "--out", folder, "--json")


@pytest.fixture(scope="session")
def brief(task, tmp_path_factory) -> tuple[Path, Said]:
    """The same with forget and retain alone, for what does not need more."""
    folder = tmp_path_factory.mktemp("brief") / "run"
    return folder, expunge("run", *task.brief, "--out", folder, "--json")
