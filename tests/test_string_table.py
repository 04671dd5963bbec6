"""Tables of strings."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portal_extract.relion_io.string_table import StringTable

values = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
rows = st.integers(0, 5)


@st.composite
def columns(draw: st.DrawFn) -> dict[str, list[str]]:
    n = draw(rows)
    labels = draw(st.lists(st.sampled_from("abcdef"), unique=True, min_size=1))
    return {label: draw(st.lists(values, min_size=n, max_size=n)) for label in labels}


@settings(deadline=None)  # the first call loads pandas
@given(columns())
def test_a_table_gives_back_what_it_was_made_of(made: dict[str, list[str]]) -> None:
    table = StringTable.of(made)
    assert {label: table[label] for label in table.labels} == made
    assert table.labels == tuple(made)
    assert len(table) == len(next(iter(made.values())))
    assert [table.row(n) for n in range(len(table))] == [
        dict(zip(made, row, strict=True)) for row in zip(*made.values(), strict=True)
    ]
    assert table == StringTable.of({label: tuple(column) for label, column in made.items()})
    frame = table.to_pandas()
    assert {label: frame[label].tolist() for label in frame.columns} == made


@given(columns(), st.data())
def test_rows_and_columns_are_chosen_as_from_lists(made: dict[str, list[str]], data: st.DataObject) -> None:
    table, n = StringTable.of(made), len(next(iter(made.values())))
    chosen = data.draw(st.lists(st.integers(0, n - 1), max_size=7)) if n else []
    taken = table.take(chosen)
    assert len(taken) == len(chosen)
    assert {label: taken[label] for label in taken.labels} == {
        label: [column[i] for i in chosen] for label, column in made.items()
    }
    left = table.without(["a", "z"])
    assert left.labels == tuple(label for label in made if label != "a")
    assert len(left) == n
    new = data.draw(st.lists(values, min_size=n, max_size=n))
    for label in ("a", "z"):
        changed = table.with_column(label, new)
        assert changed.labels == (table.labels if label in table else (*table.labels, label))
        assert changed[label] == new
        assert {other: changed[other] for other in made if other != label} == {
            other: column for other, column in made.items() if other != label
        }
    assert {label: table[label] for label in table.labels} == made


def test_columns_that_are_not_there_or_of_another_length() -> None:
    table = StringTable.of({"a": ["1", "nan", ""], "b": ["x", "2.50", "<NA>"]})
    assert table.get("a") == ["1", "nan", ""]
    assert table.get("c") is None
    with pytest.raises(KeyError):
        table["c"]
    with pytest.raises(ValueError, match="2 values of c for 3 rows"):
        table.with_column("c", ["1", "2"])
    with pytest.raises(ValueError, match="columns of 1 and 2 rows"):
        StringTable.of({"a": ["1"], "b": ["1", "2"]})


def test_a_table_without_columns_has_no_rows() -> None:
    assert len(StringTable.of({})) == 0
    assert StringTable.of({"a": [], "b": []})["b"] == []
