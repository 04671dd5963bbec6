"""Every option of RELION's extraction job has its place in the table."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from portal_extract.cli import cli
from portal_extract.errors import UnsupportedError

# all that relion_tomo_subtomo 5.0.1 accepts
RELION = [
    "--i", "--p", "--t", "--mot", "--b", "--crop", "--bin", "--stack2d", "--multi", "--ctf", "--div",
    "--nrm", "--no_comb", "--SNR", "--min_frames", "--max_dose", "--cone_weight", "--cone_angle",
    "--cone_sig0", "--no_circle_crop", "--circle_precrop", "--grid_precorr", "--taper", "--no_center",
    "--env", "--diag", "--whiten", "--no_ic", "--no_ctf", "--dont_apply_offsets",
    "--apply_orientations", "--only_do_unfinished", "--float16", "--j", "--cutoff_fract", "--o",
    "--real_subtomo", "--sum", "--no_writing", "--theme", "--list_themes", "--pipeline_control",
    "--version", "--help",
]  # fmt: skip


def test_every_option_of_relion_is_told_of():
    told = json.loads(CliRunner().invoke(cli, ["options", "--json"]).stdout)["options"]
    assert set(told) == set(RELION)


def test_options_named_in_the_table_exist():
    told = json.loads(CliRunner().invoke(cli, ["options", "--json"]).stdout)["options"]
    ours = {
        name
        for param in cli.get_command(None, "local").params
        for name in [*param.opts, *param.secondary_opts]
    }
    for name in told.values():
        if name.startswith("--") and " " not in name:
            assert name in ours | {"--version", "--help"}


def test_texts_and_markdown():
    runner = CliRunner()
    assert "--box-size" in runner.invoke(cli, ["options"]).stdout
    assert "| `--b` | `--box-size` |" in runner.invoke(cli, ["options", "--markdown"]).stdout


def test_real_subtomo_is_refused_by_name():
    with pytest.raises(UnsupportedError, match="real_subtomo"):
        cli.main(["local", "--real-subtomo", "--box-size", "32", "-o", "out"], standalone_mode=False)
