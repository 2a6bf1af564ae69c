"""Questions about subjects: one `Example` per question, files in, files out."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge import formats
from expunge.errors import InputError, unknown
from expunge.formats.picture import load_image, opened, pixel_digest
from expunge.formats.row import Row
from expunge.formats.signal import is_signal, read_signal
from expunge.formats.source import Source, data_file, sources
from expunge.formats.wording import named

if TYPE_CHECKING:
    from PIL.Image import Image

TASKS = ("generation", "classification", "cloze")
CONDITIONS = ("multi", "text")
SETS = ("forget", "test", "retain", "neighbor", "real", "skills")
STRANGER = "stranger"
GIVEN = (*SETS, STRANGER)
"""Sets that can be given: those that are evaluated, and people whom no model has ever seen."""


@dataclass(frozen=True)
class Example:
    """One question with its reference answer.

    Attributes:
        subject: Whom or what the question is about; examples of one subject are not independent.
        answer: The reference answer.
        question: The question asked beside the image (`multi`), or None.
        image: A path, encoded bytes, a PIL image, or None; for a modality of the user's own the
            path of a `.npy` file, whose array goes to the processor.
        text_question: The same question answerable without the image (`text`), or None.
        choices: Possible answers for `classification`, else None.
        task: One of `TASKS`.
        attribute: Optional name of what is asked for.
        letters: The letters by which a release calls the choices, one for each, where they are not
            A, B, C in order; of choices that read alike the right one comes first.
    """

    subject: str
    answer: str
    question: str | None = None
    image: str | bytes | Image | None = field(default=None, repr=False)
    text_question: str | None = None
    choices: tuple[str, ...] | None = None
    task: str = "generation"
    attribute: str | None = None
    letters: str | None = None

    def has(self, condition: str) -> bool:
        """Whether the example can be asked under `condition` (`multi` or `text`)."""
        if condition == "multi":
            return self.image is not None and self.question is not None
        return self.text_question is not None

    def prompt(self, condition: str) -> str:
        """The user's words under `condition`; only call where `has(condition)`."""
        words = self.question if condition == "multi" else self.text_question
        if words is None:
            raise InputError(f"an example about {self.attribute!r} has no {condition} form")
        return words


@dataclass(frozen=True)
class Suite:
    """Examples under the names of `GIVEN`.

    Attributes:
        sets: Set name to its examples; sets that were not given are absent.
        remarks: What there was to say when the sets were read, a sentence each.
    """

    sets: Mapping[str, tuple[Example, ...]]
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, examples in self.sets.items():
            if name not in GIVEN:
                raise unknown("set", name, GIVEN)
            if not examples:
                raise InputError(
                    f"set {name!r} is empty; give at least one example or leave it out."
                )

    @classmethod
    def of(cls, **sets: Iterable[Example] | None) -> Suite:
        """A suite of the sets given by name; None stands for a set that is not there."""
        return cls({name: tuple(given) for name, given in sets.items() if given is not None})

    @property
    def evaluated(self) -> dict[str, tuple[Example, ...]]:
        """The sets of `SETS`."""
        return {name: rows for name, rows in self.sets.items() if name in SETS}

    def counts(self) -> dict[str, dict[str, int]]:
        """How many examples of each set can be asked: ``{set: {"multi": n, "text": n}}``."""
        return {
            name: {c: sum(example.has(c) for example in examples) for c in CONDITIONS}
            for name, examples in self.sets.items()
        }

    def notes(self) -> list[str]:
        """The remarks, and a sentence for each set and condition that some examples lack."""
        lines = list(self.remarks)
        for name, counts in self.counts().items():
            total = len(self.sets[name])
            for condition, lack in (("multi", "image question"), ("text", "text question")):
                missing = total - counts[condition]
                other = "text" if condition == "multi" else "multi"
                if missing:
                    lines.append(
                        f"{name}: {missing} of {total} rows have no {lack} and count for "
                        f"the {other} condition only."
                    )
        return lines


def read(
    path: str | os.PathLike[str],
    *,
    format: str = "auto",
    split: str | None = None,
    subject_field: str | None = None,
    check_images: bool = True,
) -> list[Example]:
    """Read examples from a file, a folder or a hub.

    Args:
        path: A `.jsonl`, `.json` or `.parquet` file, a folder of them, a folder written by
            `datasets`, or ``owner/name`` on a hub where no such path exists. Relative image paths
            start at the file.
        format: A name in `formats.FORMATS`; ``auto`` decides by the columns of the first row.
        split: Which part of a folder or hub data set, or which subjects of a release that lists
            them beside the file.
        subject_field: Column that names the subject, where it is not the format's own.
        check_images: Whether every image must exist and be a readable picture of at most
            `formats.picture.MAX_PIXELS` (its header is read, not its pixels).

    Raises:
        InputError: Anything missing or malformed; names file, line or row, and field.
    """
    return read_as(
        path, format=format, split=split, subject_field=subject_field, check_images=check_images
    )[1]


def read_as(
    path: str | os.PathLike[str],
    *,
    format: str = "auto",
    split: str | None = None,
    subject_field: str | None = None,
    check_images: bool = True,
) -> tuple[formats.Format, list[Example]]:
    """The format that was recognised, and the examples: `read`, with its arguments and errors."""
    place = data_file(Path(path).expanduser(), split)
    name = str(place) if place.exists() else os.fspath(path)
    chosen = None if format == "auto" else formats.get(format)
    examples: list[Example] = []
    checked: set[str | bytes] = set()
    keep = None
    for row, folder in _rows(sources(name, split)):
        chosen = chosen or formats.detect(row.values.keys())
        keep = keep or _selection(chosen, place, split)
        if not keep(row):
            continue
        for record in chosen.read(_renamed(row, chosen, subject_field)):
            if subject_field and chosen.name != "plain":
                record["subject"] = row.text(subject_field)
            example = Example(**formats.plain.checked(row, record, folder, TASKS))
            if check_images:
                _check_image(row, example.image, checked)
            examples.append(example)
    if chosen is None or not examples:
        where = f" in split {split!r}" if split else ""
        raise InputError(f"{name}: no rows{where}; expected at least one.")
    return chosen, examples


def write_jsonl(
    examples: Iterable[Example], path: str | os.PathLike[str], image_dir: str | None = None
) -> None:
    """Write examples so that `read` gives them back; an existing file is replaced at once.

    Images given as paths stay where they are; bytes and PIL images are saved as PNG files named
    by their content, and read back as paths with the same pixels.

    Args:
        examples: What to write.
        path: The `.jsonl` file.
        image_dir: Folder for saved images, relative to the file's; by default
            ``<file name without suffix>_images``.

    Raises:
        InputError: An image cannot be read.
    """
    target = Path(path)
    folder = target.parent / (image_dir or f"{target.stem}_images")
    lines = []
    for example in examples:
        record = {k: getattr(example, k) for k in formats.plain.FIELDS}
        record["image"] = _stored(example.image, folder, target.parent)
        shown = {k: v for k, v in record.items() if v is not None}
        lines.append(json.dumps(shown, ensure_ascii=False) + "\n")
    _replace(target, "".join(lines).encode())


def text_only(
    examples: Sequence[Example], subject_names: Mapping[str, str] | None = None
) -> tuple[list[Example], list[int]]:
    """Give examples the text form that they lack, by naming the subject in the question.

    Args:
        examples: Any examples; those with a `text_question` stay as they are.
        subject_names: Subject to the name to write; without it the subject is its own name.

    Returns:
        The examples in the same order, and the indices of those that still have no text form: no
        question, no known name, no words that point at the subject, or a question that asks for
        the very name or a part of it (and would then contain its answer).
    """
    turned, failed = [], []
    for index, example in enumerate(examples):
        words = example.text_question
        if words is None and example.question is not None:
            known = {} if subject_names is None else subject_names
            name = known.get(
                example.subject, None if subject_names is not None else example.subject
            )
            words = named(example.question, name, example.answer) if name else None
        if words is None:
            failed.append(index)
        turned.append(replace(example, text_question=words))
    return turned, failed


def _rows(found: Iterable[Source]) -> Iterator[tuple[Row, Path | None]]:
    for source in found:
        for number, (place, values) in enumerate(source.rows, 1):
            where = f"{source.name}, {source.unit} {place}"
            if not isinstance(values, dict):
                raise InputError(f"{where}: expected an object, found {type(values).__name__}.")
            yield Row(values, where, number, source.stem), source.folder


def _selection(chosen: formats.Format, path: Path, split: str | None) -> Callable[[Row], bool]:
    """The test for the rows to keep: all, but for one file with a split."""
    if split is None or not path.is_file():
        return lambda row: True
    if chosen.subset is None:
        raise InputError(
            f"{path}: a single {chosen.name} file has no split {split!r}; leave split out, or give "
            "the folder."
        )
    return chosen.subset(path.parent, split)


def _renamed(row: Row, chosen: formats.Format, subject_field: str | None) -> Row:
    if subject_field is None or chosen.name != "plain" or subject_field == "subject":
        return row
    values = {k: v for k, v in row.values.items() if k != subject_field}
    return replace(row, values={**values, "subject": row.text(subject_field)})


def _check_image(row: Row, image: Any, checked: set[str | bytes]) -> None:
    if image is None or image in checked:
        return
    name = f"{len(image)} bytes" if isinstance(image, bytes) else image
    try:
        if is_signal(image):
            read_signal(image)
        else:
            opened(image, name).close()
    except InputError as error:
        raise row.error("image", str(error)) from error
    checked.add(image)


def _stored(image: Any, folder: Path, start: Path) -> str | None:
    """The path, from `start`, of an image that is on disk afterwards."""
    if image is None:
        return None
    if isinstance(image, str):
        return os.path.relpath(image, start)
    rgb = load_image(image)
    target = folder / f"{pixel_digest(rgb)[:24]}.png"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        rgb.save(buffer, format="PNG")
        _replace(target, buffer.getvalue())
    return os.path.relpath(target, start)


def _replace(target: Path, content: bytes) -> None:
    """Write to a temporary name beside `target`, then rename."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
