"""``portal-extract options``: where each option of RELION's jobs is."""

from __future__ import annotations

import json
import re
from typing import Any

import click

# what RELION has and this program has not, or does by itself, with the reason
WITHOUT = {
    "--stack2d": "--output-mode stack2d, the default",
    "--j": "--workers; no effect on results, also with --sum",
    "--only_do_unfinished": "always: the same command goes on where it was interrupted",
    "--env": "read and never used by RELION; nothing here",
    "--diag": "read and never used by RELION; nothing here",
    "--real_subtomo": "refused: experimental in RELION, cuts from tomograms instead of tilt images",
    "--theme": "no colour themes",
    "--list_themes": "no colour themes",
    "--pipeline_control": "not run by RELION's pipeliner",
    "--version": "--version",
    "--help": "--help",
}

# oddities of RELION 5.0.1: what is reproduced, and what is refused
ODDITIES = {
    "--b, --crop": "odd sizes are refused: RELION writes images of another size than the STAR file says",
    "--bin": "below 1, or with an odd unbinned box, is refused: RELION reads uninitialised memory",
    "--min_frames": "0 is refused: RELION aborts on a particle without images",
    "--no_ctf": "also switches the dose weights off; odd aberrations are corrected all the same (reproduced)",
    "--no_ctf in 3D": "the STAR file calls the data CTF-premultiplied all the same (reproduced)",
    "--cutoff_fract": "has no effect on 2D stacks (reproduced)",
    "--whiten": "reads the spectrum at binning times the radius, divides the weights once (reproduced)",
    "--grid_precorr": "its weight jumps at radius 1 (reproduced)",
    "--cone_weight": "the cone is turned by all angles, whatever --apply_orientations says (reproduced)",
    "--cone_angle": "enters as a sine, not as a tangent (reproduced)",
    "--no_comb": "the STAR file names the weights all the same (reproduced)",
    "--dont_apply_offsets": "with pixel coordinates the output has no coordinates (reproduced, with a warning)",
    "--float16": "halves round away from zero, no subnormals, saturation at 65504 (reproduced)",
    "aberrations": "all optics groups are drawn at the pixel size of the first one (reproduced)",
    "rlnOpticsGroup": "is a row number, whatever the optics table says (reproduced)",
    "particles of unknown tomograms": "refused, with their rows; RELION leaves them out with a warning",
    "neither angles nor matrices": "refused; RELION projects along z for every tilt",
    "MRC space group": "0 for stacks and 1 for volumes, as the format wants; RELION writes 0 for both",
}


@click.command("options")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--markdown", is_flag=True, help="Print the tables of the documentation.")
def command(as_json: bool, markdown: bool) -> None:
    """Show where each option of RELION's extraction is, and which of its oddities are reproduced."""
    rows = option_rows()
    if as_json:
        click.echo(json.dumps({"options": dict(rows), "oddities": ODDITIES}, indent=1))
    elif markdown:
        click.echo(markdown_tables())
    else:
        width = max(len(name) for name, _ in rows)
        for name, ours in rows:
            click.echo(f"{name:{width}}  {ours}")
        click.echo("\nOddities of RELION 5.0.1")
        for name, told in ODDITIES.items():
            click.echo(f"  {name}: {told}")


def option_rows() -> list[tuple[str, str]]:
    """List RELION's options with ours: those that the help texts name in brackets, and those without."""
    from portal_extract.cli import local

    found: dict[str, str] = {}
    for param in local.command.params:
        if isinstance(param, click.Option):
            for theirs in re.findall(r"\[([^\]]*--[^\]]*)\]", param.help or ""):
                for name in re.findall(r"--\w+", theirs):
                    found.setdefault(name, _our_name(param, theirs))
    return sorted({**found, **WITHOUT}.items(), key=lambda row: row[0].lower())


def _our_name(param: click.Option, theirs: str) -> str:
    if param.secondary_opts and re.search(r"--no_?", theirs):
        return param.secondary_opts[0]
    return param.opts[0]


def markdown_tables() -> str:
    """Write the tables as Markdown."""
    lines: list[Any] = ["| RELION | portal-extract |", "|---|---|"]
    lines += [f"| `{name}` | {_code(ours)} |" for name, ours in option_rows()]
    lines += ["", "| oddity of RELION 5.0.1 | here |", "|---|---|"]
    lines += [f"| `{name}` | {told} |" for name, told in ODDITIES.items()]
    return "\n".join(lines)


def _code(ours: str) -> str:
    return f"`{ours}`" if re.fullmatch(r"--[\w-]+", ours) else ours
