"""STAR files: read exactly as they stand, written as RELION lays them out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import starfile
from hypothesis import given
from hypothesis import strategies as st

from portal_extract.errors import OutputError, StarFileError
from portal_extract.relion_io.numbers import (
    format_double,
    format_doubles,
    format_flags,
    format_vector,
    parse_numbers,
    parse_vector,
)
from portal_extract.relion_io.star import parse_star, quote, read_star, write_star
from portal_extract.relion_io.string_table import StringTable

# ------------------------------------------------------------------------------------- reading


def test_a_file_as_relion_writes_it():
    text = (
        "\n# version 50001\n\ndata_general\n\n_rlnTomoSubTomosAre2DStacks                       1\n \n"
        "\n# version 50001\n\ndata_optics\n\nloop_ \n_rlnOpticsGroup #1 \n_rlnOpticsGroupName #2 \n"
        "           1 opticsGroup1 \n           2      krios \n \n"
    )
    star = parse_star(text, "p.star")
    assert list(star.blocks) == ["general", "optics"]
    assert star.block("general").values() == {"rlnTomoSubTomosAre2DStacks": "1"}
    assert star.block("optics").columns == {
        "rlnOpticsGroup": ("1", "2"),
        "rlnOpticsGroupName": ("opticsGroup1", "krios"),
    }


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_blanks_tabs_comments_and_line_ends(end):
    lines = [
        "# a comment", "", "  data_x \t", "# another", "loop_\t", "", "_a #1", "# in between", "\t_b #2 ",
        "_c", "", " 1\t2   3  # why", "", "# no row", "4 5 6", "   ", "data_y", "_k  v  # w", "data_", "_n 7",
    ]  # fmt: skip
    star = parse_star(end.join(lines), "f")
    assert star.block("x").columns == {"a": ("1", "4"), "b": ("2", "5"), "c": ("3", "6")}
    assert star.block("y").values() == {"k": "v"}
    assert star.block("").values() == {"n": "7"}


def test_quotes_and_hashes_count_only_where_a_value_begins():
    text = "data_\nloop_\n_a\n_b\n'x y' \"\"\nit's a\"b\nn#1 \"it's # 'so'\"\n'a'b' \" \"\n"
    assert parse_star(text, "f").block("").columns == {
        "a": ("x y", "it's", "n#1", "a'b"),
        "b": ("", 'a"b', "it's # 'so'", " "),
    }


def test_only_ascii_blanks_part_values():
    text = "data_\nloop_\n_a\n_b\nx\u00a0y\x1cz \u3000\n"
    assert parse_star(text, "f").block("").columns == {"a": ("x\u00a0y\x1cz",), "b": ("\u3000",)}


def test_what_looks_like_a_number_stays_as_it_is():
    table = parse_star("data_p\nloop_\n_n\n_m\n007 nan\n1e5 <NA>\n1_0 None\n", "f").block("p").table()
    assert table["n"] == ["007", "1e5", "1_0"]
    assert table["m"] == ["nan", "<NA>", "None"]


def test_data_in_a_value_is_no_block():
    text = "data_x\nloop_\n_a\n_b\n/my/data_set/1 data_y\ndata_1 2\n"
    assert parse_star(text, "f").block("x").columns == {
        "a": ("/my/data_set/1", "data_1"),
        "b": ("data_y", "2"),
    }


def test_empty_blocks_and_tables_without_rows():
    star = parse_star("data_a\n\ndata_b\nloop_\n_x\n_y\n", "f")
    assert len(star.block("a")) == 0
    table = star.block("b").table()
    assert list(table.labels) == ["x", "y"]
    assert len(table) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no data_ block"),
        ("hello\ndata_\n", "line 1: 'hello' stands before"),
        ("data_x\n_a 1\n\ndata_x\n_b 2\n", "line 4: a second block data_x"),
        ("data_x\n_a 1\n_a 2\n", "data_x, line 3: a second label _a"),
        ("data_x\nloop_\n_a\n_a\n1 2\n", "data_x, line 4: a second label _a"),
        ("data_x\nloop_\n_a\n_b\n1 2\n\n3\n", "data_x, line 7: 1 values in a row of 2 columns"),
        ("data_x\nloop_\n_a\n_b\n1 2\n3 4 5\n6\n", "data_x, line 6: 3 values in a row of 2 columns"),
        ("data_x\nloop_\n1 2\n", "data_x, line 2: loop_ without labels"),
        ("data_x\n_a 1\n2 3\n", "data_x, line 3: expected a label"),
        ("data_x\n_a 1 2\n", "data_x, line 2: expected a label"),
        ("data_x\n_a\n", "data_x, line 2: expected a label"),
    ],
)
def test_malformed_files_name_block_and_line(text, message):
    with pytest.raises(StarFileError) as error:
        parse_star(text, "bad.star")
    assert str(error.value).startswith("bad.star")
    assert message in str(error.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(StarFileError, match=r"none.star does not exist"):
        read_star(tmp_path / "none.star")
    with pytest.raises(StarFileError, match="cannot be read"):
        read_star(tmp_path)
    (tmp_path / "latin.star").write_bytes(b"data_\n_a \xb5m\n")
    with pytest.raises(StarFileError, match="line 2: not UTF-8"):
        read_star(tmp_path / "latin.star")


def test_a_missing_block_lists_those_found():
    star = parse_star("data_a\n_x 1\ndata_\n_y 2\n", "f.star")
    with pytest.raises(StarFileError, match=r"f.star has no block data_particles \(found data_a, data_\)"):
        star.block("particles")
    with pytest.raises(StarFileError, match="table of 2 rows"):
        parse_star("data_a\nloop_\n_x\n1\n2\n", "f").block("a").values()


# ------------------------------------------------------------------------------------- writing


def test_layout_is_relions(tmp_path):
    path = tmp_path / "w.star"
    table = StringTable.of({"rlnA": ["TS_1", "x"], "rlnB": ["-1.50000", "2.000000"], "rlnC": ["a b", ""]})
    write_star(path, [("general", {"rlnTomoSubTomosAre2DStacks": "1"}), ("t", table), ("", {"rlnX": "p"})])
    assert path.read_text() == (
        "\n# version 50001\n\ndata_general\n\n_rlnTomoSubTomosAre2DStacks                       1\n \n"
        "\n# version 50001\n\ndata_t\n\nloop_ \n_rlnA #1 \n_rlnB #2 \n_rlnC #3 \n"
        '      TS_1     -1.50000      "a b" \n         x     2.000000         "" \n \n'
        "\n# version 50001\n\ndata_\n\n_rlnX            p\n \n"
    )
    assert [file.name for file in tmp_path.iterdir()] == ["w.star"]


VALUES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\x00"), max_size=12).filter(
    lambda value: not ("'" in value and '"' in value)
)
LABELS = st.from_regex(r"[a-zA-Z][a-zA-Z0-9]{0,8}", fullmatch=True)
TABLES = st.lists(LABELS, min_size=1, max_size=4, unique=True).flatmap(
    lambda labels: st.lists(st.tuples(*[VALUES] * len(labels)), max_size=5).map(
        lambda rows: {label: [row[i] for row in rows] for i, label in enumerate(labels)}
    )
)


@given(TABLES, st.dictionaries(LABELS, VALUES, min_size=1, max_size=3))
def test_what_is_written_is_read_back(tmp_path_factory, columns, values):
    path = tmp_path_factory.getbasetemp() / "round.star"
    write_star(path, [("values", values), ("table", StringTable.of(columns)), ("x/1", values)])
    star = read_star(path)
    assert list(star.blocks) == ["values", "table", "x/1"]
    assert star.block("values").values() == values
    assert star.block("table").table() == StringTable.of(columns)


@given(
    st.lists(st.tuples(*[st.text("ab17.-+eE_#'@/[],", min_size=1, max_size=6)] * 3), min_size=1, max_size=6)
)
def test_a_table_reads_the_same_whichever_way_it_is_split(rows):
    rows = [[quote(value) if value[0] in "_#'" else value for value in row] for row in rows]
    text = "data_t\nloop_\n_a\n_b\n_c\n" + "\n".join(" ".join(row) for row in rows) + "\n"
    careful = parse_star(text + "# it's\n\"q\" '' z #x\n", "f").block("t")
    plain = parse_star(text, "f").block("t")
    assert [values[:-1] for values in careful.columns.values()] == list(plain.columns.values())


def test_values_that_no_star_file_can_hold(tmp_path):
    for value in ("a\nb", "a' b\" c"):
        with pytest.raises(OutputError, match=r"t.star: the value"):
            write_star(tmp_path / "t.star", [("t", StringTable.of({"a": [value]}))])
    with pytest.raises(OutputError, match="because of its blanks"):
        write_star(tmp_path / "t.star", [("a b", {"x": "1"})])
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "t.star"
    target.mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        write_star(target, [("t", {"x": "1"})])
    assert [path.name for path in tmp_path.iterdir()] == ["t.star"]
    with pytest.raises(OutputError, match="No such file or directory"):
        write_star(tmp_path / "none" / "t.star", [("t", {"x": "1"})])


def test_starfile_reads_what_we_write(tmp_path):
    table = StringTable.of({
        "rlnTomoName": ["TS_01", "lamella 07"],
        "rlnCenteredCoordinateXAngst": format_doubles([-639.17577, 1e-5]),
        "rlnTomoVisibleFrames": [format_flags([True, False]), format_flags([False])],
        "rlnOpticsGroup": ["1", "2"],
    })  # fmt: skip
    write_star(tmp_path / "t.star", [("general", {"rlnTomoSubTomosAre2DStacks": "1"}), ("particles", table)])
    read = starfile.read(tmp_path / "t.star", always_dict=True)
    assert read["general"] == {"rlnTomoSubTomosAre2DStacks": 1}
    assert read["particles"]["rlnTomoName"].tolist() == ["TS_01", "lamella 07"]
    assert read["particles"]["rlnCenteredCoordinateXAngst"].tolist() == [-639.17577, 1e-5]
    assert read["particles"]["rlnTomoVisibleFrames"].tolist() == ["[1,0]", "[0]"]
    assert read["particles"]["rlnOpticsGroup"].tolist() == [1, 2]


# ------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000000"), (-0.0, "-0.000000"), (6.8, "6.800000"), (-0.002, "-0.00200"), (0.001, "0.001000"),
        (0.0009999, "9.999000e-04"), (-0.0001234567, "-1.23457e-04"), (1e-300, "1.00000e-300"),
        (-1.5e-300, "-1.5000e-300"), (100000.0, "100000.00000"), (-100000.0, "-100000.0000"),
        (99999.9999999, "100000.00000"), (123456.0, "1.234560e+05"), (-123456.0, "-1.23456e+05"),
        (27983.939, "27983.939000"), (-1176.64223, "-1176.64223"), (math.inf, "inf"), (-math.inf, "-inf"),
    ],
)  # fmt: skip
def test_numbers_have_relions_format(value, text):
    assert format_double(value) == text
    assert format_doubles([value, 1.0]) == [text, "1.000000"]


@given(st.floats(-1e308, 1e308))
def test_numbers_fit_and_keep_their_value(value):
    text = format_double(value)
    assert len(text) <= 12
    assert format_doubles([value]) == [text]
    assert float(text) == pytest.approx(value, rel=6e-5, abs=5.1e-6 if 0.001 <= abs(value) <= 1e5 else 0.0)


def test_vectors():
    assert format_flags([]) == "[]"
    assert format_flags(np.array([True, False, True])) == "[1,0,1]"
    assert format_vector([0.05, 40, -1 / 3, 1e-7, 1e6]) == "[0.05,40,-0.333333333333,1e-07,1000000]"
    np.testing.assert_array_equal(parse_vector("[ 1, -2.5 ,3e2]"), [1.0, -2.5, 300.0])
    assert len(parse_vector("[]")) == 0
    for wrong in ("1,2", "[1,2", "[1,,2]", "[1,x]", "[nan]", "", "[1 2]"):
        assert parse_vector(wrong) is None


@given(st.lists(st.floats(-1e12, 1e12), max_size=5))
def test_vectors_keep_12_digits(values):
    assert parse_vector(format_vector(values)) == pytest.approx(values, rel=5.1e-12)


def test_numbers_are_read_exactly_and_nothing_else_is():
    values = ["1.1", "-0.000123456789012345678", "1e-320", "nan", "inf", "0x10", "1_0", "", "one", "1,5"]
    numbers = parse_numbers(values)
    assert numbers[:3].tolist() == [1.1, -0.000123456789012345678, 1e-320]
    assert np.isnan(numbers[[3, 5, 6, 7, 8, 9]]).all()
    assert np.isinf(numbers[4])


@given(st.lists(st.floats(allow_nan=False), max_size=20))
def test_numbers_survive_repr(values):
    np.testing.assert_array_equal(parse_numbers([repr(value) for value in values]), values)
