"""Running commands, and a small task for them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

# For commands in a process of their own: one thread, and nothing that keeps libraries quiet.
HUSHED = ("TRANSFORMERS_", "TOKENIZERS_", "HF_HUB_DISABLE", "PYTHONWARNINGS")
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith(HUSHED)},
    "OMP_NUM_THREADS": "1",
}
SETTINGS = ("--method", "manu", "--budget", "0.1", "--seed", "5", "--batch-size", "8")


@dataclass(frozen=True)
class Said:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        """The one JSON object on stdout."""
        return json.loads(self.out)


def expunge(*arguments) -> Said:
    """Run the command line in this process."""
    from expunge.cli import main

    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["expunge", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stop:
        return Said(int(stop.code or 0), out.getvalue(), err.getvalue())
    finally:
        sys.argv = before
    raise AssertionError("main() always exits")


def tree(folder: Path) -> dict[str, int]:
    """Every file and folder below a folder, with the time of its last change in nanoseconds."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in sorted(folder.rglob("*"))}


@dataclass(frozen=True)
class Task:
    """A checkpoint, question files, and the options that name them."""

    home: Path
    sets: dict[str, list] = field(repr=False)

    @property
    def vanilla(self) -> Path:
        return self.home / "vanilla"

    @property
    def gold(self) -> Path:
        return self.home / "gold"

    def file(self, name: str) -> Path:
        return self.home / f"{name}.jsonl"

    def options(self, *names: str) -> list[str]:
        """`--name file` for each set."""
        return [part for n in names for part in (f"--{n}", str(self.file(n)))]

    @property
    def core(self) -> list[str]:
        """What every planning command needs."""
        return ["--model", str(self.vanilla), *self.options("forget", "retain")]

    @property
    def full(self) -> list[str]:
        """All sets, gold, and a method with settings of its own."""
        rest = self.options("test", "neighbor", "real", "skills")
        return [*self.brief, *rest, "--gold", str(self.gold)]

    @property
    def brief(self) -> list[str]:
        """Forget and retain alone, with the same settings."""
        return [*self.core, *SETTINGS]
