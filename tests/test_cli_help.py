"""Help pages: quick to show, every option in its group with unit and default."""

from __future__ import annotations

import re
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from portal_extract.cli import COMMANDS, cli, cluster
from portal_extract.cli.grouped import GroupedCommand, GroupedOption

#: modules that take long to import and that no help page needs
HEAVY = ("numpy", "numba", "scipy", "pandas", "dask", "distributed", "zarr", "s3fs", "fsspec", "aiohttp")
HEAVY += ("cryoet_data_portal", "matplotlib", "starfile", "mrcfile", "graphql", "rich.progress")

PAGES = [[], *([name] for name in COMMANDS), ["plan", "data-portal"], ["plan", "local"]]


def commands() -> dict[str, click.Command]:
    """All commands that have options, by name; those of a group too."""
    context = click.Context(cli)
    found: dict[str, click.Command] = {}
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        inner = command.commands if isinstance(command, click.Group) else {}
        found |= {f"{name} {key}": one for key, one in inner.items()} if inner else {name: command}
    return found


def test_no_help_page_imports_anything_heavy():
    program = f"""
import sys
from portal_extract.cli import main
for page in {PAGES!r}:
    try:
        main([*page, "--help"])
    except SystemExit as ended:
        assert ended.code == 0, page
    heavy = [name for name in {HEAVY!r} if name in sys.modules]
    assert not heavy, (page, heavy)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: ") == len(PAGES)


def test_the_version_is_told():
    from portal_extract import __version__

    done = CliRunner().invoke(cli, ["--version"])
    assert done.output == f"portal-extract, version {__version__}\n"


@pytest.mark.parametrize("page", PAGES, ids=" ".join)
def test_a_page_fits_80_columns(page):
    text = CliRunner().invoke(cli, [*page, "--help"], terminal_width=80).output
    assert text.startswith("Usage: ")
    assert [line for line in text.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("name", [n for n, c in commands().items() if isinstance(c, GroupedCommand)])
def test_every_option_is_in_a_group_and_tells_its_default(name):
    command = commands()[name]
    context = click.Context(command)
    for option in command.params:
        assert isinstance(option, GroupedOption)
        if option.hidden:
            continue
        assert option.group != "Other options"
        assert option.help
        record = option.get_help_record(context)
        assert record is not None
        if option.secondary_opts or not (
            option.is_flag or not isinstance(option.get_default(context), str | int | float)
        ):
            assert "default:" in record[1], option.name


#: word that the help of an option must have, so that nobody has to guess a unit
UNITS = {
    "box_size": "binned pixels",
    "crop_size": "binned pixels",
    "max_dose": "e/A^2",
    "pixel_size": " in A",
    "cone_angle": "degrees",
    "taper": "pixels",
}


def test_units_are_told():
    seen = set()
    for command in commands().values():
        for option in command.params:
            if isinstance(option, GroupedOption) and option.name in UNITS:
                seen.add(option.name)
                assert UNITS[option.name] in (option.help or "")
    assert seen == set(UNITS)


def test_every_command_says_what_it_does():
    listed = CliRunner().invoke(cli, ["--help"], terminal_width=80).output
    for name, (_, text) in COMMANDS.items():
        assert re.search(rf"^  {name} +\S", listed, re.MULTILINE)
        assert text.endswith(".")


def test_plan_has_the_options_of_extraction():
    found = commands()
    for name in ("data-portal", "local"):
        extraction = {option.name for option in found[name].params}
        plan = {option.name for option in found[f"plan {name}"].params}
        assert extraction - plan == {"dry_run", "overwrite", "paths", *cluster.DEFAULTS}
        assert plan - extraction == {"bandwidth"}
        required = {option.name for option in found[f"plan {name}"].params if option.required}
        assert required == {"box_size"}
        assert {option.name for option in found[name].params if option.required} == {"box_size", "output_dir"}


def test_without_a_command_the_help_is_shown(capfd):
    from portal_extract.cli import main

    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "Commands:" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["lokal"], "no such command 'lokal'"),
        (["--nothing"], "no such option '--nothing'"),
        (["local", "--output-dir", "out"], "missing option '--box-size'; see portal-extract local --help"),
        (["local", "--box-size", "16", "-o", "out", "words"], "got unexpected extra argument (words)"),
    ],
)
def test_a_slip_of_the_keyboard_is_answered_in_one_line(arguments, sentence, capfd):
    from portal_extract.cli import main

    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"portal-extract: {sentence}")
    assert line.endswith("--help")
