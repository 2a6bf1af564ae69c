"""FIUBench (arXiv 2411.03554): fictitious facial identities, image questions only."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Set
from pathlib import Path

from expunge.errors import InputError, unknown
from expunge.formats.row import Record, Row

KEY = "unique_id"
SPLITS = "split.json"


def claims(columns: Set[str]) -> bool:
    """Whether a row with these columns is one FIUBench identity."""
    return {KEY, "qa_list"} <= columns


def read(row: Row) -> Iterator[Record]:
    """One generation question for each entry of `qa_list`."""
    subject, image = row.text(KEY), row.text("image_path")
    for entry in row.rows("qa_list"):
        yield {
            "subject": subject,
            "image": image,
            "question": entry.text("question"),
            "answer": entry.text("answer"),
        }


def subset(folder: Path, split: str) -> Callable[[Row], bool]:
    """The test that keeps the rows of one split, from the `split.json` beside the data.

    Args:
        folder: Where the data file is.
        split: A name in `split.json`, or ``"retain"`` for all that no forget list names.

    Raises:
        InputError: There is no `split.json`, or it has no such split.
    """
    path = folder / SPLITS
    if not path.is_file():
        raise InputError(f"split {split!r} needs the file {path}, which does not exist.")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        lists = {name: {str(key) for key in keys} for name, keys in table.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: expected an object of lists of ids ({error}).") from error
    if split in lists:
        return lambda row: row.text(KEY) in lists[split]
    if split == "retain":
        forget = {key for name, keys in lists.items() if name.startswith("forget") for key in keys}
        return lambda row: row.text(KEY) not in forget
    raise unknown("split", split, [*lists, "retain"])
