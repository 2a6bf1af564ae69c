"""Progress on stderr, and only where stderr is a terminal."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator


def speaks() -> bool:
    """Whether this process is the one that speaks: the first where torchrun started several."""
    return os.environ.get("RANK", "0") == "0"


class Progress:
    """Shows one bar per task on a terminal; silent elsewhere."""

    def __init__(self, *, show: bool | None = None) -> None:
        self.show = sys.stderr.isatty() and speaks() if show is None else show

    @contextlib.contextmanager
    def task(self, name: str, total: int, *, adds: bool = False) -> Iterator[Callable[[int], None]]:
        """Yield a function that takes the number done so far, or (`adds`) the number just done."""
        if not self.show:
            yield lambda done: None
            return
        from rich.console import Console
        from rich.progress import Progress as Bar

        with Bar(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(name, total=total)

            def tick(done: int) -> None:
                if adds:
                    bar.advance(task, done)
                else:
                    bar.update(task, completed=done)

            yield tick
