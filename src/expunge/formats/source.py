"""Where rows come from: a file, a folder of files, a saved data set, or a data set on a hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.errors import InputError, unknown
from expunge.formats import FORMATS

SUFFIXES = (".jsonl", ".json", ".parquet")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SHARD = re.compile(r"(?P<set>.*?)-?\d{5}-of-\d{5}|part-?\d+.*|\d+")
_SAVED = ("dataset_dict.json", "state.json")
_BATCH = 64


@dataclass(frozen=True)
class Source:
    """One file, or one saved data set.

    Attributes:
        name: What an error message calls it.
        folder: Where its relative image paths start; None on a hub, which has none here.
        stem: Its name without a suffix.
        unit: What `rows` counts: ``"line"`` or ``"row"``.
        rows: Pairs of place (from 1) and raw value.
    """

    name: str
    folder: Path | None
    stem: str
    unit: str
    rows: Iterator[tuple[int, Any]]


def sources(path: str, split: str | None) -> list[Source]:
    """Everything to read for `path`.

    Args:
        path: A file, a folder, or ``owner/name`` on a hub.
        split: Which part of a folder or hub data set (a configuration, a split, or
            ``configuration:split``). For one file it selects rows, which is not done here.

    Raises:
        InputError: Nothing is there, or what is there cannot be told apart without `split`.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return [_file(place)]
    if place.is_dir():
        return _folder(place, split)
    if HUB_ID.fullmatch(path) and place.suffix not in SUFFIXES:
        return [_saved(path, None, _pick(path, *_hub(path, split)))]
    raise InputError(f"{path}: no such file or folder, and not an owner/name id of a data set hub.")


def data_file(path: Path, split: str | None) -> Path:
    """Of a folder with one data file beside lists of ids (`Format.lists`) that file, else `path`.

    What a folder holds under the name of the split is that part of it all the same.
    """
    if not path.is_dir() or not any(map(_lists_ids, path.iterdir())):
        return path
    held = _held(path)
    part = split is not None and ((path / split).is_dir() or split in [p.stem for p in held])
    return held[0] if len(held) == 1 and not part else path


def _held(folder: Path) -> list[Path]:
    """The data files of a folder, sorted; lists of ids hold no data."""
    return sorted(
        p for p in folder.iterdir() if p.suffix in SUFFIXES and p.is_file() and not _lists_ids(p)
    )


def _lists_ids(path: Path) -> bool:
    """Whether a file says, beside a release's data, which subjects are in which split."""
    return any(path.match(f.lists) for f in FORMATS.values() if f.lists)


def _file(path: Path) -> Source:
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: cannot read {path.suffix!r}; expected {', '.join(SUFFIXES)}.")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty; expected at least one row.")
    unit = "row"
    if path.suffix == ".parquet":
        rows = _parquet(path)
    elif path.suffix == ".jsonl" or not _one_document(path):
        unit, rows = "line", _lines(path)
    else:
        rows = _document(path)
    return Source(str(path), path.parent, path.stem, unit, rows)


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield number, json.loads(line)
                    except ValueError as error:
                        raise InputError(f"{path}, line {number}: not JSON ({error}).") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8.") from error


def _one_document(path: Path) -> bool:
    """Whether a `.json` file is one value; some releases put one object on each line instead."""
    lines = (line for line in _text(path).split("\n") if line.strip())
    try:
        return not isinstance(json.loads(next(lines, "")), dict) or next(lines, None) is None
    except ValueError:
        return True


def _document(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        value = json.loads(_text(path))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}).") from error
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise InputError(f"{path}: expected a list of objects, found {type(value).__name__}.")
    yield from enumerate(value, 1)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8.") from error


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                for values in batch.to_pylist():
                    number += 1
                    yield number, values
    except (pyarrow.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a readable parquet file ({reason}).") from error


def _folder(folder: Path, split: str | None) -> list[Source]:
    if any((folder / name).is_file() for name in _SAVED):
        import datasets

        loaded = datasets.load_from_disk(str(folder))
        parts = loaded if isinstance(loaded, dict) else {"": loaded}
        return [_saved(str(folder), folder, _pick(str(folder), parts, split))]
    if split is not None and (folder / split).is_dir():
        return _folder(folder / split, None)
    groups: dict[str, list[Path]] = {}
    for path in _held(folder):
        shard = _SHARD.fullmatch(path.stem) if path.suffix == ".parquet" else None
        groups.setdefault((shard["set"] or "") if shard else path.stem, []).append(path)
    if not groups:
        parts = {p.name: p for p in sorted(folder.iterdir()) if p.is_dir()}
        if parts:
            raise _which(str(folder), parts, split)
        raise InputError(f"{folder}: no data files; expected {', '.join(SUFFIXES)}.")
    return [_file(path) for path in _pick(str(folder), groups, split)]


def _pick(name: str, parts: Mapping[Any, Any], split: str | None) -> Any:
    keyed = {str(key): value for key, value in parts.items()}
    if split is None and len(keyed) == 1:
        return next(iter(keyed.values()))
    if split is None or split not in keyed:
        raise _which(name, keyed, split)
    return keyed[split]


def _which(name: str, parts: Mapping[str, Any], split: str | None) -> InputError:
    named = [part for part in parts if part]
    if split is None:
        return InputError(
            f"{name}: several parts, choose one by split: {', '.join(named)}. A setting names it "
            f"as PATH::SPLIT, for example {name}::{named[0]}"
        )
    if not named:
        return InputError(f"{name}: it has no parts, found split {split!r}; leave the split out.")
    return InputError(f"{name}: {unknown('split', split, named)}")


def _saved(name: str, folder: Path | None, dataset: Any) -> Source:
    def rows() -> Iterator[tuple[int, Any]]:
        number = 0
        for table in dataset.with_format("arrow").iter(batch_size=_BATCH):
            for values in table.to_pylist():
                number += 1
                yield number, values

    return Source(name, folder, Path(name).name, "row", rows())


def _hub(name: str, split: str | None) -> tuple[Mapping[str, Any], str | None]:
    """The parts of a hub data set, and which of them is wanted (None: the only one)."""
    import datasets

    config, _, part = (split or "").partition(":")
    try:
        configs: Sequence[str] = datasets.get_dataset_config_names(name)
        if config in configs:
            splits = datasets.load_dataset(name, config)
            parts = {f"{config}:{key}": value for key, value in splits.items()}
            return parts, f"{config}:{part}" if part else None
        if len(configs) > 1 and "default" not in configs:
            raise _which(name, dict.fromkeys(configs), split)
        return datasets.load_dataset(name), split
    except InputError:
        raise
    except Exception as error:  # every client and cache failure has the same remedy
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{name}: no such file or folder, and the data set could not be fetched from the hub "
            f"({reason}); check the name, the network, and HF_HUB_OFFLINE."
        ) from error
