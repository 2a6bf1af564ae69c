"""Remove chosen knowledge from a multimodal language model without training it."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from expunge.errors import ExpungeError, InputError

_LAZY = {
    "Example": "expunge.data",
    "Suite": "expunge.data",
    "read": "expunge.data",
    "write_jsonl": "expunge.data",
    "load": "expunge.models",
    "collect": "expunge.collect",
    "find_sites": "expunge.sites",
    "Site": "expunge.sites",
    "Plan": "expunge.plan",
    "SiteEdit": "expunge.plan",
    "make_plan": "expunge.planning",
    "apply": "expunge.edit",
    "applied": "expunge.edit",
    "save_checkpoint": "expunge.edit",
    "evaluate": "expunge.evaluate",
    "NeuronStats": "expunge.stats",
    "SecondMoment": "expunge.stats",
}
__all__ = ["ExpungeError", "InputError", *_LAZY]


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used, so that `import expunge` is quick."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'expunge' has no attribute {name!r}")


class _Package(ModuleType):
    """Keeps `expunge.collect` and `expunge.evaluate` the functions, not the modules they are in."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _LAZY and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
