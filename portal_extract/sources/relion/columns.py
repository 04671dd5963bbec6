"""Typed columns out of tables of strings, with every problem collected before one error is raised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from portal_extract.errors import StarFileError, join_problems
from portal_extract.model import Bools, Floats, Ints
from portal_extract.relion_io.numbers import parse_numbers, parse_vector
from portal_extract.relion_io.string_table import StringTable

_ROWS_NAMED = 5


@dataclass
class Problems:
    """What is wrong with a project, so that all of it can be said at once."""

    found: list[str] = field(default_factory=list)

    def add(self, sentence: str) -> None:
        """Note one problem."""
        if sentence not in self.found:
            self.found.append(sentence)

    def raise_if_any(self) -> None:
        """Raise what was noted.

        Raises
        ------
        StarFileError
            At least one problem was noted.
        """
        if self.found:
            raise StarFileError(join_problems(tuple(self.found)))


@dataclass(frozen=True)
class Columns:
    """Columns of a table, and where the table stands.

    Attributes
    ----------
    table
        All values are strings.
    where
        File and block, for messages.
    problems
        Collects what is missing or wrong.
    """

    table: StringTable
    where: str
    problems: Problems

    def __contains__(self, label: str) -> bool:
        return label in self.table

    def __len__(self) -> int:
        return len(self.table)

    def has(self, *labels: str) -> bool:
        """Whether all of these columns are there."""
        return all(label in self for label in labels)

    def has_all_or_none(self, *labels: str) -> bool:
        """Whether all of these columns are there; a part of them is a problem."""
        missing = [label for label in labels if label not in self]
        if missing and len(missing) < len(labels):
            present = [label for label in labels if label in self]
            self.problems.add(
                f"{self.where}: has {', '.join(present)} but not {', '.join(missing)}; add them"
            )
        return not missing

    def require(self, *labels: str) -> bool:
        """Whether all of these columns are there; that one is not is a problem."""
        missing = [label for label in labels if label not in self]
        if missing:
            word = "column" if len(missing) == 1 else "columns"
            self.problems.add(f"{self.where}: {word} {', '.join(missing)} missing")
        return not missing

    def strings(self, label: str) -> list[str]:
        """Values of a compulsory column."""
        if not self.require(label):
            return [""] * len(self)
        return self.table[label]

    def numbers(self, label: str, default: float | None = None) -> Floats:
        """Values of a column of finite numbers.

        Parameters
        ----------
        label
            The column.
        default
            Value of every row where the column is missing; None makes the column compulsory.

        Returns
        -------
        ``(n,)``; NaN where a problem was noted.
        """
        if label not in self and default is not None:
            return np.full(len(self), default)
        if not self.require(label):
            return np.full(len(self), np.nan)
        values = self.table[label]
        numbers = parse_numbers(values)
        self._note_bad_rows(label, values, np.isfinite(numbers), "is no finite number")
        return numbers

    def integers(self, label: str, default: int | None = None) -> Ints:
        """Values of a column of whole numbers, as :meth:`numbers`; 0 where a problem was noted."""
        numbers = self.numbers(label, default)
        whole = numbers == np.trunc(numbers)
        if label in self:
            values = self.table[label]
            self._note_bad_rows(label, values, whole | ~np.isfinite(numbers), "is no whole number")
        return np.where(whole, numbers, 0.0).astype(np.int64)

    def triples(self, labels: Sequence[str], default: float | None = None) -> Floats:
        """Columns of numbers side by side, ``(n, len(labels))``, as :meth:`numbers`."""
        return np.stack([self.numbers(label, default) for label in labels], axis=1)

    def vectors(self, label: str) -> list[Floats | None]:
        """Values of a compulsory column of vectors ``[a,b,c]``; None where a problem was noted."""
        values = self.strings(label)
        vectors = [parse_vector(value) for value in values]
        if label in self:
            good = np.array([vector is not None for vector in vectors], dtype=bool)
            self._note_bad_rows(label, values, good, "is no vector of numbers such as [1,2,3]")
        return vectors

    def _note_bad_rows(self, label: str, values: Sequence[str], good: Bools, complaint: str) -> None:
        bad = np.flatnonzero(~good)
        if len(bad):
            self.problems.add(
                f"{self.where}: {label} {complaint} in {rows(bad, [values[i] for i in bad[:_ROWS_NAMED]])}"
            )


def rows(indices: Ints, values: Sequence[str] = ()) -> str:
    """Rows for a message, counted from 1, with the first values: ``row 3 ('nan')``."""
    shown = [f"{index + 1}" for index in indices[:_ROWS_NAMED].tolist()]
    if values:
        shown = [f"{row} ({value!r})" for row, value in zip(shown, values, strict=False)]
    more = f" and {len(indices) - _ROWS_NAMED} more" if len(indices) > _ROWS_NAMED else ""
    return ("row " if len(indices) == 1 else "rows ") + ", ".join(shown) + more


def names(values: Sequence[str], limit: int = 8) -> str:
    """Names for a message, the first few of many."""
    more = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(values[:limit]) + more
