"""Options from a TOML file: who wins, what is refused, and the examples in ``configs/``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from portal_extract.cli import cli
from portal_extract.cli.params import extract_options, listed, running_options
from portal_extract.errors import UsageError

CONFIGS = Path(__file__).parents[1] / "configs"
NEEDED = ["--box-size", "16", "--output-dir", "out"]


def parsed(command: str, *arguments: str) -> dict[str, Any]:
    """Parameters of a command (``plan local`` too) as it would be called."""
    context = click.Context(cli, info_name="portal-extract")
    group: Any = cli
    *outer, last = command.split()
    for name in outer:
        group = group.get_command(context, name)
        context = click.Context(group, info_name=name, parent=context)
    return group.get_command(context, last).make_context(last, list(arguments), parent=context).params


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> list[str]:
        path = tmp_path / "options.toml"
        path.write_text(text)
        return ["--config", str(path)]

    return write


def test_a_file_gives_defaults_and_the_command_line_wins(write):
    config = write("box-size = 64\nbin = 2.5\noutput-dir = 'there'\n")
    values = parsed("local", *config)
    assert (values["box_size"], values["binning"], values["output_dir"]) == (64, 2.5, "there")
    values = parsed("local", "--bin", "3", *config, "--output-dir", "here")
    assert (values["box_size"], values["binning"], values["output_dir"]) == (64, 3.0, "here")


def test_the_table_of_a_command_goes_before_the_top(write):
    config = write("bin = 2\nmin-frames = 3\n[local]\nbin = 4\n[data-portal]\nbin = 5\n")
    local, portal = (parsed(name, *config, *NEEDED) for name in ("local", "data-portal"))
    assert (local["binning"], local["min_frames"]) == (4.0, 3)
    assert (portal["binning"], portal["min_frames"]) == (5.0, 3)


def test_options_at_the_top_may_be_for_other_commands(write):
    config = write("run-ids = [1]\nbox-size = 64\n")
    assert parsed("local", *config, "--output-dir", "out")["box_size"] == 64
    assert "box_size" not in parsed("resolve", *config)


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("no-ctf = true", "ctf", False),
        ("no-ctf = false", "ctf", True),
        ("ctf = false", "ctf", False),
        ("ctf = true", "ctf", True),
        ("no-ic = true", "invert_contrast", False),
        ("float16 = true", "float16", True),
        ("memory = '512MiB'", "memory", 512 << 20),
        ("memory = 268435456", "memory", 256 << 20),
        ("bin = 2", "binning", 2.0),
        ("paths = 'absolute'", "paths", "absolute"),
        ("json = true", "as_json", True),
    ],
)
def test_values(text, name, expected, write):
    assert parsed("local", *write(text), *NEEDED)[name] == expected


def test_a_flag_of_the_command_line_wins_over_the_file(write):
    assert parsed("local", *write("no-ctf = true"), *NEEDED, "--ctf")["ctf"] is True
    assert parsed("local", *write("ctf = true"), *NEEDED, "--no-ctf")["ctf"] is False


@pytest.mark.parametrize(
    "text", ["run-ids = [16463, 16464]", "run-id = '16463,16464'", "run-ids = ['16463,16464']"]
)
def test_lists(text, write):
    values = parsed("data-portal", *write(text + "\nannotation-names = 'a, b'"), *NEEDED)
    assert listed(values["run_ids"], int) == (16463, 16464)
    # a comma with a blank behind it is a part of a name
    assert listed(values["annotation_names"]) == ("a, b",)
    values = parsed("data-portal", *write(text), *NEEDED, "--run-id", "7", "--run-ids", "8,9")
    assert listed(values["run_ids"], int) == (7, 8, 9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("boxsize = 3", ["no option 'boxsize'", "did you mean 'box-size'"]),
        ("box_size = 3", ["no option 'box_size'", "did you mean 'box-size'"]),
        ("[local]\nrun-ids = [1]", ["[local] has no option 'run-ids'"]),
        ("[lokal]\nbin = 2", ["no command is named 'lokal'", "did you mean 'local'"]),
        ("[data-portal]\nbinn = 2", ["[data-portal] has no option 'binn'"]),
        ("bin = 'x'", ["bin = 'x'", "not a valid float"]),
        ("bin = true", ["bin = true", "takes a value"]),
        ("no-ctf = 'yes'", ["no-ctf = 'yes'", "true or false"]),
        ("no-ctf = 1", ["no-ctf = 1", "true or false"]),
        ("box-size = [3, 4]", ["box-size = [3, 4]", "one value"]),
        ("memory = 0", ["memory = 0", "too small"]),
        ("paths = 'here'", ["paths = 'here'", "auto"]),
        ("ctf = true\nno-ctf = true", ["'ctf' and 'no-ctf' are the same option"]),
        ("config = 'other.toml'", ["'config' in a file", "command line"]),
        ("[local]\ndebug = true", ["'debug' in a file", "command line"]),
        ("box-size =\n", ["not a TOML file", "line 1"]),
        ("[local.box]\nsize = 3", ["[local] has no option 'box'"]),
    ],
)
def test_what_a_file_must_not_say(text, words, write):
    config = write(text)
    with pytest.raises(UsageError) as caught:
        parsed("local", *config, *NEEDED)
    message = str(caught.value)
    assert message.startswith(f"--config {config[1]}: ")
    assert "\n" not in message
    for word in words:
        assert word in message


def test_all_that_is_wrong_in_a_file_at_once(write):
    with pytest.raises(UsageError, match="3 problems") as caught:
        parsed("local", *write("boxsize = 3\nbin = 'x'\n[nothing]\na = 1\n"), *NEEDED)
    for word in ("boxsize", "bin = 'x'", "'nothing'"):
        assert word in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"--config .*none.toml: No such file or directory; check the path"):
        parsed("local", "--config", str(tmp_path / "none.toml"), *NEEDED)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not a TOML file"):
        parsed("local", "--config", str(tmp_path / "bytes.toml"), *NEEDED)


def test_a_file_knows_the_options_of_all_commands():
    from portal_extract.cli.config import options_of_all_commands

    known = options_of_all_commands()
    assert set(known) == set(cli.list_commands(click.Context(cli)))
    assert {"box-size", "no-ctf", "ctf", "run-id", "run-ids", "portal-url"} <= known["data-portal"]
    assert not {"config", "debug", "help"} & set().union(*known.values())


# ---------------------------------------------------------------------------------- the examples


def test_example_for_local():
    values = parsed("local", "--config", str(CONFIGS / "local.toml"))
    options, run = extract_options(values), running_options(values)
    assert (options.box_size, options.binning, options.crop_size) == (128, 2.0, 96)
    assert (options.max_dose_e_per_a2, options.min_frames) == (60.0, 10)
    assert options.float16
    assert not options.circle_crop
    assert options.ctf
    assert run.memory_bytes == 4 << 30
    assert values["output_dir"] == "Extract/bin2"
    assert values["particles_starfile"] == "particles.star"


def test_example_for_data_portal():
    from portal_extract.cli.portal import filters_from

    config = ["--config", str(CONFIGS / "data-portal.toml")]
    values = parsed("data-portal", *config)
    filters = filters_from(values)
    filters.check()
    assert filters.run_ids == (16463, 16464)
    assert filters.annotation_names == ("ribosome",)
    assert filters.inexact_match
    assert not filters.ground_truth
    assert values["on_missing_ctf"] == "skip"
    assert (extract_options(values).box_size, extract_options(values).binning) == (64, 4.0)
    assert running_options(values).workers == 4
    values = parsed("resolve", *config)
    assert filters_from(values) == filters
    assert values["output_dir"] == "ribosomes/tables"


def test_there_is_a_test_for_every_example():
    assert sorted(path.name for path in CONFIGS.iterdir()) == [
        "data-portal.toml",
        "local.toml",
        "lsf.toml",
        "pbs.toml",
        "sge.toml",
        "slurm.toml",
    ]
