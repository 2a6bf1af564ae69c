"""What all commands do alike: print a result, and end with an exit code."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import typer

from expunge.errors import ExpungeError, InputError
from expunge.progress import speaks


def quiet() -> None:
    """Keep libraries from printing what no command promised."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("torchao").setLevel(logging.CRITICAL)
    logging.getLogger("torch.utils._pytree").addFilter(lambda record: False)
    warnings.filterwarnings("ignore")


def emit(value: Any, as_json: bool, text: Callable[[], str]) -> None:
    """Print a result: JSON, or words; of several processes only the first does."""
    if speaks():
        print(json.dumps(value, allow_nan=False) if as_json else text())


def exit_code(command: Callable[[], Any]) -> int:
    """Run a command: 0 done, 2 the input is wrong, 1 a fault of ours, 130 interrupted."""
    try:
        code = command()
        return _stopped() if code == 130 else code or 0
    except InputError as error:
        print(f"error: {_line(error)}", file=sys.stderr)
        return 2
    except ExpungeError as error:
        print(f"fault: {_line(error)}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, typer.Abort):
        return _stopped()
    except Exception as error:
        return _unexpected(error)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _stopped() -> int:
    print("interrupted; run the same command again to go on", file=sys.stderr)
    return 130


def _unexpected(error: Exception) -> int:
    """Usage errors of the command line are the user's (2); anything else is ours (1)."""
    if hasattr(error, "format_message"):
        message = error.format_message()
        print(message if message.startswith("Usage") else f"error: {message}", file=sys.stderr)
        return 2
    logging.getLogger("expunge").exception("this is a fault in expunge, please report it")
    return 1
