"""One row of a source file, with checked access to its fields."""

from __future__ import annotations

import ast
import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from expunge.errors import InputError

Record = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """The values of one row and where they were found.

    Attributes:
        values: Field names to raw values.
        where: File and line, as an error message names them.
        number: Place among the rows of the file, from 1.
        stem: Name of the file without its suffix.
        prefix: Path to these values inside the row, such as ``"metadata[2]."``.
    """

    values: Mapping[str, Any]
    where: str
    number: int = 1
    stem: str = ""
    prefix: str = ""

    def error(self, field: str, problem: str) -> InputError:
        """The error for `field` of this row; it names the place and never the content."""
        return InputError(f"{self.where}, field {self.prefix + field!r}: {problem}")

    def get(self, field: str) -> Any:
        """The raw value of a required field.

        Raises:
            InputError: The field is absent or null; a similar name is offered where there is one.
        """
        value = self.values.get(field)
        if value is None:
            near = difflib.get_close_matches(field, [k for k in self.values if k != field], n=1)
            hint = f" (found {near[0]!r}; did you mean {field!r}?)" if near else ""
            raise self.error(field, f"missing or null{hint}; expected a value")
        return value

    def text(self, field: str) -> str:
        """A required string that is not blank."""
        value = self.get(field)
        if not isinstance(value, str):
            raise self.error(field, f"expected text, found {type(value).__name__}")
        if not value.strip():
            raise self.error(field, "expected text, found an empty string")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.error(field, "not valid Unicode (a lone surrogate)") from None
        return value

    def maybe(self, field: str) -> str | None:
        """Like `text`, but None where the field is absent or null."""
        return None if self.values.get(field) is None else self.text(field)

    def texts(self, field: str) -> list[str]:
        """A required list of strings, none of them blank."""
        values = self._list(field)
        return [self._child(field, {f"[{i}]": v}).text(f"[{i}]") for i, v in enumerate(values)]

    def rows(self, field: str) -> list[Row]:
        """A required list of objects."""
        return [self._object(f"{field}[{i}]", v) for i, v in enumerate(self._list(field))]

    def inner(self, field: str) -> Row:
        """A required object."""
        return self._object(field, self.get(field))

    def parsed(self, field: str) -> Row:
        """This row with `field`, a string of JSON or of a Python literal, replaced by its value.

        A field that is no string stays as it is.

        Raises:
            InputError: The string is neither.
        """
        value = self.get(field)
        if not isinstance(value, str):
            return self
        try:
            value = json.loads(value)
        except ValueError:
            try:
                value = ast.literal_eval(value)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                problem = "expected JSON or a Python literal in the string, found neither"
                raise self.error(field, problem) from None
        values = {**self.values, field: value}
        return Row(values, self.where, self.number, self.stem, self.prefix)

    def only(self, known: Iterable[str]) -> None:
        """Refuse fields outside `known`, with the nearest known name for each."""
        names = sorted(known)
        strange = [field for field in self.values if field not in names]
        if not strange:
            return
        words = []
        for field in strange:
            near = difflib.get_close_matches(field, names, n=1)
            words.append(f"{field!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
        plural = "s" if len(words) > 1 else ""
        listed = ", ".join(words)
        raise InputError(
            f"{self.where}: unknown field{plural} {listed}; expected: {', '.join(names)}."
        )

    def _list(self, field: str) -> list[Any]:
        value = self.get(field)
        if not isinstance(value, list | tuple):
            raise self.error(field, f"expected a list, found {type(value).__name__}")
        return list(value)

    def _object(self, field: str, value: Any) -> Row:
        if not isinstance(value, Mapping):
            raise self.error(field, f"expected an object, found {type(value).__name__}")
        return self._child(f"{field}.", value)

    def _child(self, field: str, values: Mapping[str, Any]) -> Row:
        return Row(values, self.where, self.number, self.stem, self.prefix + field)
