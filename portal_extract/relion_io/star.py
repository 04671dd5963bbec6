"""STAR files: read exactly, written as RELION lays them out.

Every value is a string, as it stood in the file, so a tomogram named ``007`` stays ``007`` and unknown
columns travel unchanged. This is why the ``starfile`` package is not used here: version 0.5.13 turns
what looks like a number into a number unless every column is known beforehand, reads ``nan`` as missing,
rewrites ``'`` to ``"``, cuts values at ``#``, lets a later block of the same name replace an earlier one,
tells neither file nor line of a ragged row, and writes the time of day. The tests read our files with it.

The dialect: blocks ``data_NAME`` hold one list (``_label value``) or one loop; quotes count only where a
value begins, and end where a blank follows; ``#`` begins a comment only where a value could begin.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from portal_extract.errors import OutputError, StarFileError
from portal_extract.relion_io.atomic import open_atomically, write_atomically
from portal_extract.relion_io.string_table import StringTable

#: one value: quoted, or a run of non-blanks; quotes inside a plain value are ordinary characters
_VALUE = re.compile(r"""(?P<q>["'])(?P<quoted>.*?)(?P=q)(?=[ \t\v\f\r]|$)|(?P<plain>[^ \t\v\f\r]+)""")
_HEADER = re.compile(r"[ \t]*data_([^ \t\v\f\r]*)[ \t\v\f\r]*(?:#.*)?")
#: characters that str.split takes for blanks and STAR does not
_ODD_ASCII_BLANKS = "\x1c\x1d\x1e\x1f"
_BLANKS = " \t\v\f\r"


@dataclass(frozen=True)
class StarBlock:
    """One block of a STAR file.

    Attributes
    ----------
    file
        Name of the file, for messages.
    name
        What follows ``data_``; may be empty.
    columns
        Values of each label (without its underscore), all of one length; of a list, one value each.
    is_loop
        Whether the block is a table (``loop_``) rather than a list.
    """

    file: str
    name: str
    columns: Mapping[str, Sequence[str]]
    is_loop: bool

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    @property
    def where(self) -> str:
        """File and block, for messages."""
        return f"{self.file}, data_{self.name}"

    def table(self) -> StringTable:
        """Table of strings."""
        return StringTable.of(self.columns)

    def values(self) -> dict[str, str]:
        """Return the values of a list; a loop of one row counts as one.

        Raises
        ------
        StarFileError
            The block is a loop of another number of rows.
        """
        if self.is_loop and len(self) != 1:
            raise StarFileError(
                f"{self.where}: expected a list of labels and values, found a table of {len(self)} rows"
            )
        return {label: values[0] for label, values in self.columns.items()}


@dataclass(frozen=True)
class StarFile:
    """Blocks of a STAR file, in file order."""

    file: str
    blocks: Mapping[str, StarBlock]

    def block(self, name: str) -> StarBlock:
        """Return the block of a name.

        Raises
        ------
        StarFileError
            There is none; the message lists the blocks found.
        """
        if name not in self.blocks:
            found = ", ".join(f"data_{block}" for block in list(self.blocks)[:8]) or "no block at all"
            more = f" and {len(self.blocks) - 8} more" if len(self.blocks) > 8 else ""
            raise StarFileError(f"{self.file} has no block data_{name} (found {found}{more})")
        return self.blocks[name]


def read_star(path: str | os.PathLike[str]) -> StarFile:
    """Read a STAR file, every value as a string.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    StarFileError
        The file is missing, unreadable or not UTF-8 text; a block or label occurs twice; a row has
        another number of values than the table has labels. The message names file, block and line.
    """
    name = os.fspath(path)
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError:
        raise StarFileError(f"{name} does not exist: check the path and the current directory") from None
    except OSError as error:
        raise StarFileError(f"{name} cannot be read: {error.strerror or error}") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise StarFileError(f"{name}, line {line}: not UTF-8 text, so no STAR file") from None
    return parse_star(text, name)


def parse_star(text: str, file: str) -> StarFile:
    r"""Parse the text of a STAR file.

    Parameters
    ----------
    text
        Contents of the file; line ends may be ``\n`` or ``\r\n``.
    file
        Name of the file, for messages.

    Raises
    ------
    StarFileError
        As for :func:`read_star`.
    """
    headers = list(_headers(text))
    if not headers:
        raise StarFileError(f"{file} has no data_ block: it is empty or no STAR file")
    _refuse_text_before_blocks(text[: headers[0][1]], file)
    blocks: dict[str, StarBlock] = {}
    line, counted = 1, 0
    ends = [start for _, start, _ in headers[1:]] + [len(text)]
    for (name, start, body), end in zip(headers, ends, strict=True):
        line += text.count("\n", counted, start)
        counted = start
        if name in blocks:
            raise StarFileError(f"{file}, line {line}: a second block data_{name}")
        blocks[name] = _Parser(file, name, line).parse(text[body:end])
    return StarFile(file, blocks)


def _headers(text: str) -> Iterator[tuple[str, int, int]]:
    """Name, start of the line and end of the line of each block header: a line that says ``data_NAME``."""
    found = text.find("data_")
    while found >= 0:
        start = text.rfind("\n", 0, found) + 1
        end = text.find("\n", found)
        end = len(text) if end < 0 else end
        if header := _HEADER.fullmatch(text, start, end):
            yield header[1], start, end
        found = text.find("data_", end)


def _refuse_text_before_blocks(head: str, file: str) -> None:
    for number, line in enumerate(head.split("\n"), start=1):
        content = line.strip(_BLANKS)
        if content and not content.startswith("#"):
            raise StarFileError(f"{file}, line {number}: {content[:40]!r} stands before any data_ block")


@dataclass
class _Parser:
    """Parses the text of one block; ``line`` is that of its header."""

    file: str
    name: str
    line: int

    def parse(self, body: str) -> StarBlock:
        lines = body.split("\n")
        first = next((i for i, line in enumerate(lines) if not self._is_void(line)), None)
        if first is None:
            return StarBlock(self.file, self.name, {}, is_loop=False)
        if self._tokens(lines[first]) == ["loop_"]:
            return self._loop(lines, first + 1)
        return self._list(lines, first)

    def _error(self, offset: int, problem: str) -> StarFileError:
        return StarFileError(f"{self.file}, data_{self.name}, line {self.line + offset}: {problem}")

    @staticmethod
    def _is_void(line: str) -> bool:
        content = line.strip(_BLANKS)
        return not content or content.startswith("#")

    @staticmethod
    def _tokens(line: str) -> list[str]:
        """Values of a line, in full generality."""
        values = []
        for match in _VALUE.finditer(line):
            plain = match["plain"]
            if plain is None:
                values.append(match["quoted"])
            elif plain.startswith("#"):
                break
            else:
                values.append(plain)
        return values

    def _list(self, lines: Sequence[str], first: int) -> StarBlock:
        columns: dict[str, list[str]] = {}
        for offset, line in enumerate(lines[first:], start=first):
            if self._is_void(line):
                continue
            tokens = self._tokens(line)
            if not line.lstrip(_BLANKS).startswith("_") or len(tokens) != 2:
                raise self._error(offset, f"expected a label and its value, found {line.strip()[:60]!r}")
            label = tokens[0][1:]
            if label in columns:
                raise self._error(offset, f"a second label _{label}")
            columns[label] = [tokens[1]]
        return StarBlock(self.file, self.name, columns, is_loop=False)

    def _loop(self, lines: Sequence[str], start: int) -> StarBlock:
        labels: list[str] = []
        position = start
        while position < len(lines):
            line = lines[position]
            if not self._is_void(line):
                if not line.lstrip(_BLANKS).startswith("_"):
                    break
                label = self._tokens(line)[0][1:]
                if label in labels:
                    raise self._error(position, f"a second label _{label}")
                labels.append(label)
            position += 1
        if not labels:
            raise self._error(start - 1, "loop_ without labels")
        rows = self._rows(lines, position, len(labels))
        columns: Iterable[Sequence[str]] = zip(*rows, strict=True) if rows else ([] for _ in labels)
        return StarBlock(self.file, self.name, dict(zip(labels, columns, strict=True)), is_loop=True)

    def _rows(self, lines: Sequence[str], start: int, n_labels: int) -> list[list[str]]:
        end = len(lines)
        while end > start and self._is_void(lines[end - 1]):
            end -= 1  # here the comment before the next block stands
        body = "\n".join(lines[start:end])
        odd = not body.isascii() or any(character in body for character in "\"'#" + _ODD_ASCII_BLANKS)
        split = self._tokens if odd else str.split
        rows = [split(line) for line in lines[start:end]]
        if {len(row) for row in rows} <= {0, n_labels}:
            return [row for row in rows if row]
        for offset, row in enumerate(rows, start=start):
            if len(row) not in (0, n_labels):
                raise self._error(offset, f"{len(row)} values in a row of {n_labels} columns")
        raise AssertionError("unreachable")  # pragma: no cover


def write_star(
    path: str | os.PathLike[str], blocks: Iterable[tuple[str, Mapping[str, str] | StringTable]]
) -> None:
    """Write a STAR file in RELION's layout; it appears whole or not at all.

    The same blocks give the same bytes: nothing depends on the time.

    Parameters
    ----------
    path
        The file; one that exists is replaced.
    blocks
        Name and contents of each block: a mapping becomes a list, a table of strings a loop.

    Raises
    ------
    OutputError
        A value cannot be written in a STAR file, or the disk refuses.
    """
    try:
        text = "".join(_block_text(name, contents) for name, contents in blocks)
    except ValueError as error:
        raise OutputError(f"{os.fspath(path)}: {error}") from None
    write_atomically(path, text.encode("utf-8"))


def write_star_in_parts(
    path: str | os.PathLike[str],
    blocks: Iterable[tuple[str, Mapping[str, str] | StringTable]],
    name: str,
    parts: Iterable[StringTable],
) -> None:
    """Write a STAR file whose last block is a loop too long for the memory.

    Parameters
    ----------
    path
        The file; one that exists is replaced.
    blocks
        The other blocks, as for :func:`write_star`.
    name
        Of the last block.
    parts
        Its rows, some at a time; all parts have the same columns.

    Raises
    ------
    OutputError
        A value cannot be written in a STAR file, or the disk refuses.
    """
    try:
        with open_atomically(path) as file:
            file.writelines(_block_text(*block).encode() for block in blocks)
            for number, part in enumerate(parts):
                text = _block_text(name, part).removesuffix(" \n") if number == 0 else "".join(_rows(part))
                file.write(text.encode())
            file.write(b" \n")
    except ValueError as error:
        raise OutputError(f"{os.fspath(path)}: {error}") from None


def _block_text(name: str, contents: Mapping[str, str] | StringTable) -> str:
    if name.split() != [name] and name:
        raise ValueError(f"a block cannot be named {name[:40]!r}, because of its blanks")
    head = f"\n# version 50001\n\ndata_{name}\n\n"
    lines = _loop_lines(contents) if isinstance(contents, StringTable) else _list_lines(contents)
    return head + "".join(lines) + " \n"


def _list_lines(values: Mapping[str, str]) -> Iterator[str]:
    width = max((len(label) for label in values), default=0) + 13
    for label, value in values.items():
        text = f"{value:>12}" if _NUMBER.fullmatch(value) else quote(value)
        yield f"{'_' + label:<{width}}{text}\n"


def _loop_lines(table: StringTable) -> Iterator[str]:
    yield "loop_ \n"
    for number, label in enumerate(table.labels, start=1):
        yield f"_{label} #{number} \n"
    yield from _rows(table)


def _rows(table: StringTable) -> Iterator[str]:
    columns = [_padded(table[label]) for label in table.labels]
    for row in zip(*columns, strict=True):
        yield "".join(row) + "\n"


def _padded(values: Sequence[str]) -> list[str]:
    """Values right-aligned as RELION does: strings to 10 characters, numbers to 12."""
    if not values:
        return []
    if _may_need_quotes(values):
        values = [quote(value) for value in values]
    width = 12 if _NUMBER.fullmatch(values[0]) else 10
    return [f"{value:>{width}} " for value in values]


_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")
_SPECIAL_START = re.compile(r"[_#\"']|(data|loop|save|global|stop)_")


def _may_need_quotes(values: Sequence[str]) -> bool:
    if "\n".join(values).split() != list(values):
        return True
    return bool({value[0] for value in values} & set("_#\"'dlsg"))


def quote(value: str) -> str:
    """Quote a value if it is empty or would otherwise be read as something else.

    Raises
    ------
    ValueError
        The value holds a line break, or needs quotes and neither kind fits.
    """
    if "\n" in value or "\r" in value:
        raise ValueError(f"the value {value[:40]!r} holds a line break, which a STAR file cannot hold")
    if value and len(value.split()) == 1 and value == value.strip() and not _SPECIAL_START.match(value):
        return value
    for mark in "\"'":
        if not re.search(mark + r"(?=[ \t\v\f\r]|$)", value):
            return f"{mark}{value}{mark}"
    raise ValueError(f"the value {value[:40]!r} holds both kinds of quotes and blanks")
