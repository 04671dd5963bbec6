"""Tables of strings: what a loop of a STAR file holds, exactly as it stood there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_BREAK = "\n"


@dataclass(frozen=True)
class StringTable:
    r"""Columns of strings, all of one length; nothing is changed in place.

    A column is kept as one text, a value a line: a sixth of the memory of a string for each value. Data
    frames would do too, but loading their library takes as long as all that a run does before its first
    request.

    Attributes
    ----------
    texts
        Text of each column by its label; a tuple of the values where one of them holds a line break.
    n_rows
        Number of rows.
    """

    texts: Mapping[str, str | tuple[str, ...]]
    n_rows: int

    @classmethod
    def of(cls, columns: Mapping[str, Sequence[str]]) -> StringTable:
        """Make a table from the values of each label.

        Raises
        ------
        ValueError
            Columns differ in length.
        """
        lengths = {len(values) for values in columns.values()}
        if len(lengths) > 1:
            raise ValueError(f"columns of {' and '.join(map(str, sorted(lengths)))} rows make no table")
        return cls({label: _text(values) for label, values in columns.items()}, max(lengths, default=0))

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels in order, without underscores."""
        return tuple(self.texts)

    def __len__(self) -> int:
        return self.n_rows

    def __contains__(self, label: str) -> bool:
        return label in self.texts

    def __getitem__(self, label: str) -> list[str]:
        """Values of a column.

        Raises
        ------
        KeyError
            There is no such column.
        """
        text = self.texts[label]
        if isinstance(text, tuple):
            return list(text)
        return text.split(_BREAK) if self.n_rows else []

    def get(self, label: str) -> list[str] | None:
        """Values of a column; None if there is no such column."""
        return self[label] if label in self.texts else None

    def row(self, index: int) -> dict[str, str]:
        """Values of a row by label."""
        return {label: self[label][index] for label in self.texts}

    def take(self, indices: Iterable[int]) -> StringTable:
        """Make a table of some rows, in the order of ``indices``."""
        chosen = list(indices)
        columns = ((label, self[label]) for label in self.texts)
        return StringTable(
            {label: _text([values[i] for i in chosen]) for label, values in columns}, len(chosen)
        )

    def without(self, labels: Iterable[str]) -> StringTable:
        """Make a table without some columns; labels that it does not have do not matter."""
        dropped = set(labels)
        kept = {label: text for label, text in self.texts.items() if label not in dropped}
        return StringTable(kept, self.n_rows)

    def with_column(self, label: str, values: Sequence[str]) -> StringTable:
        """Make a table with a column: in its old place if it was there, else appended.

        Raises
        ------
        ValueError
            Another number of values than the table has rows.
        """
        if len(values) != self.n_rows:
            raise ValueError(f"{len(values)} values of {label} for {self.n_rows} rows")
        return StringTable({**self.texts, label: _text(values)}, self.n_rows)

    def to_pandas(self) -> pd.DataFrame:
        """Make a data frame of strings.

        Raises
        ------
        ImportError
            pandas is not installed.
        """
        import pandas as pd

        return pd.DataFrame({label: self[label] for label in self.texts}, dtype=str)


def _text(values: Sequence[str]) -> str | tuple[str, ...]:
    text = _BREAK.join(values)
    return text if text.count(_BREAK) == max(len(values) - 1, 0) else tuple(values)
