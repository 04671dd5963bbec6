"""The documentation is true: links lead somewhere, options exist, commands parse, snippets run."""

from __future__ import annotations

import ast
import re
import shlex
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click
import pytest

import portal_extract as pe
from portal_extract.cli import cli
from portal_extract.cli.options_table import markdown_tables, option_rows
from portal_extract.demo.plan import DemoOptions
from portal_extract.demo.simulate import simulate_portal
from portal_extract.sources.portal import build

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]

#: a snippet after this comment is shown and not run
NOT_RUN = "<!-- no test"
#: options of other programs, and of our own scripts
OTHERS = {"--ios", "--o", "--no-sign-request", "--write", "--shared"}
#: what the snippets say of the real portal, and what stands for it in the small simulated one
STAND_INS = {"16463": "18213", "box_size=64, binning=4": "box_size=32, binning=2"}


def named(pages: list[Path]) -> list[object]:
    return [pytest.param(page, id=page.name) for page in pages]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    line: int
    is_run: bool


def blocks(page: Path) -> list[Block]:
    found, lines, start = [], page.read_text(encoding="utf-8").splitlines(), None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
            continue
        text = "\n".join(lines[start + 1 : number])
        before = lines[start - 1] if start else ""
        found.append(Block(lines[start][3:].strip(), text, start + 2, not before.startswith(NOT_RUN)))
        start = None
    assert start is None, f"{page.name}: a fenced block has no end"
    return found


def without_blocks(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


# ------------------------------------------------------------------------------------------- links


@cache
def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", named(PAGES))
def test_relative_links_lead_somewhere(page):
    text = without_blocks(page)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"<img[^>]* src=\"([^\"]+)\"", text)
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / urllib.parse.unquote(path)) if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


def test_the_index_has_every_page():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in sorted((ROOT / "docs").glob("*.md")):
        assert page.name == "index.md" or f"({page.name})" in index


# ------------------------------------------------------------------------------- options and commands


def commands(
    group: click.Group, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


@cache
def all_commands() -> dict[tuple[str, ...], click.Command]:
    return dict(commands(cli))


@cache
def known_options() -> set[str]:
    ours = {
        name
        for command in [cli, *all_commands().values()]
        for param in command.get_params(click.Context(command))
        for name in [*param.opts, *param.secondary_opts]
    }
    relion = {name for name, _ in option_rows()} | RECONSTRUCTION_OF_RELION
    return ours | relion | OTHERS


#: of RELION's other job, which the option table does not have
RECONSTRUCTION_OF_RELION = {
    *(
        "--sym",
        "--nr_helical_asu",
        "--helical_rise",
        "--helical_twist",
        "--mem",
        "--no_backup",
        "--j_in",
        "--j_out",
    ),
    *("--no_recon", "--b", "--crop"),
}


@pytest.mark.parametrize("page", named(PAGES))
def test_every_option_exists(page):
    words = re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", page.read_text(encoding="utf-8"))
    assert sorted(set(words) - known_options()) == []


def shell_commands(page: Path) -> list[tuple[int, list[str]]]:
    """Every ``portal-extract`` command of the shell blocks and of the inline code of a page."""
    found = []
    for block in blocks(page):
        if block.language in ("console", "bash", "sh", "shell"):
            text = re.sub(r"\\\n\s*", " ", block.text)
            found += [(block.line, line.removeprefix("$ ")) for line in text.splitlines()]
    for match in re.finditer(r"`(portal-extract [^`]*)`", without_blocks(page)):
        found.append((0, match[1].replace("\n", " ")))
    split = [(line, shlex.split(text, comments=True)) for line, text in found if "portal-extract " in text]
    return [
        (line, words[words.index("portal-extract") + 1 :])
        for line, words in split
        if "portal-extract" in words
    ]


@pytest.mark.parametrize("page", named(PAGES))
def test_commands_parse(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for line, words in shell_commands(page):
        if "..." in words or "…" in words:
            # not a whole command: its options must be those of the command all the same
            check_names(page, line, words)
        else:
            check_whole(page, line, words)


def find_command(words: list[str]) -> tuple[click.Command, list[str]]:
    for n in (2, 1):
        if tuple(words[:n]) in all_commands() and len(words) >= n:
            return all_commands()[tuple(words[:n])], words[n:]
    return cli, words


def check_names(page: Path, line: int, words: list[str]) -> None:
    command, arguments = find_command(words)
    known = {
        name
        for param in command.get_params(click.Context(command))
        for name in [*param.opts, *param.secondary_opts]
    }
    for word in arguments:
        assert not word.startswith("-") or word in known, f"{page.name}:{line}: {word}"


def check_whole(page: Path, line: int, words: list[str]) -> None:
    command, arguments = find_command(words)
    if command is cli or isinstance(command, click.Group):
        check_names(page, line, words)
        return
    if arguments in ([], ["--help"]):
        return
    try:
        command.make_context(str(command.name), list(arguments))
    except click.ClickException as error:
        pytest.fail(f"{page.name}:{line}: portal-extract {' '.join(words)}: {error.format_message()}")


def test_the_table_of_options_is_up_to_date():
    page = (ROOT / "docs" / "relion-options.md").read_text(encoding="utf-8")
    assert page.endswith(markdown_tables() + "\n"), "run: portal-extract options --markdown"


def test_the_readme_names_the_command_that_the_continuous_integration_runs():
    readme, checks = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", ".ci/run"))
    for script in ("scripts/test", "scripts/check"):
        assert script in checks.split()
    assert re.search(r"^\$? ?scripts/test\b", readme, flags=re.MULTILINE)
    assert re.search(r"^\$? ?scripts/demo\b", readme, flags=re.MULTILINE)


def test_the_readme_quotes_the_table_of_parity():
    readme, parity = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/parity.md"))
    found = re.search(
        r"^(\d+) cases with (\d+) image files: all agree. .* is (\S+) of the RMS", parity, re.MULTILINE
    )
    assert found is not None
    cases, files, largest = found.groups()
    quote = f"{files} files in {cases} reference cases is compared: the largest difference is {largest} of"
    assert quote in " ".join(readme.split())


# ------------------------------------------------------------------------------------------ Python


def test_the_api_page_has_every_public_name():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert [name for name in pe.__all__ if name[0] != "_" and f"`{name}`" not in page] == []


def test_the_changelog_has_this_version():
    assert f"## {pe.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def portal(tmp_path_factory):
    dataset = simulate_portal(tmp_path_factory.mktemp("portal"), DemoOptions.tiny())
    with dataset.portal() as serving:
        yield serving


@pytest.mark.parametrize(
    "page", named([page for page in PAGES if any(b.language == "python" and b.is_run for b in blocks(page))])
)
def test_snippets_run(page, portal, tmp_path, monkeypatch):
    for name, value in portal.environment().items():
        monkeypatch.setenv(name, value)
    # the snippets speak of the real portal
    monkeypatch.setattr(build, "PortalConnection", pe.PortalConnection.from_environment)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "snippet"}
    for block in blocks(page):
        if block.language == "python" and block.is_run:
            code = "\n" * (block.line - 1) + block.text
            for real, stand_in in STAND_INS.items():
                code = code.replace(real, stand_in)
            exec(compile(code, str(page), "exec"), namespace)


def test_the_snippets_say_what_the_stand_ins_replace():
    text = "".join(block.text for page in PAGES for block in blocks(page) if block.language == "python")
    for real in STAND_INS:
        assert real in text


# ------------------------------------------------------------------------------------ architecture

OPEN = {"errors", "model", "options", "_version", "__init__"}


def rooms_of_the_page() -> dict[str, set[str]]:
    """What each room may use, from the table of the architecture page."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|.*\| ([\w, ]*) ?\|$", page, flags=re.MULTILINE)
    return {
        room: {name.strip() for name in uses.split(",") if name.strip()}
        for rooms, uses in rows
        for room in re.findall(r"`(\w+)`", rooms)
    }


def imported_rooms(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            if node.module == "portal_extract":
                names |= {alias.name for alias in node.names}
            elif node.module.startswith("portal_extract."):
                names.add(node.module.split(".")[1])
    return names


def test_rooms_use_what_the_page_says():
    allowed = rooms_of_the_page()
    package = ROOT / "portal_extract"
    for folder in sorted(path for path in package.iterdir() if (path / "__init__.py").exists()):
        assert folder.name in allowed
        if "everything" in allowed[folder.name]:
            continue
        for file in sorted(folder.rglob("*.py")):
            beyond = imported_rooms(file) - allowed[folder.name] - OPEN - {folder.name}
            assert not beyond, f"{file.relative_to(ROOT)} uses {', '.join(sorted(beyond))}"
