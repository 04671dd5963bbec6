"""How far our files are from RELION's, case by case: prints the tables of docs/parity.md, or puts them there.

Needs the reference data beside the checkout (``../shared``). Exits with 1 if a file is outside of its
tolerance.

    python benchmarks/parity.py [--write] [--shared FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import relion_cases  # noqa: E402
import test_portal_cases  # noqa: E402

from portal_extract.cli import cli  # noqa: E402
from portal_extract.demo.portal import EmbeddedPortal, load_portal_folder  # noqa: E402

PAGE = ROOT / "docs" / "parity.md"
BEGIN, END = "<!-- made by benchmarks/parity.py: begin -->", "<!-- made by benchmarks/parity.py: end -->"
#: files that change by more than this when each input pixel moves by its last place say nothing of a program
ILL_CONDITIONED = 1e-4
ILL_TITLE = "Files that are ill-conditioned in RELION itself"
#: kinds of files that are not listed one by one
MANY_KINDS = 6
#: arguments that name input, not what is done
INPUTS = ("--p", "--t", "--mot")


@dataclass(frozen=True)
class Difference:
    """Files of one kind of one case, or of several kinds together.

    Attributes
    ----------
    case, arguments
        Name of the case, and RELION's arguments for it.
    kind, n_files
        Which files.
    largest, rms
        Largest and RMS difference of voxels, divided by the RMS of RELION's file; the worst file counts.
    rounding
        Largest difference in RELION's own output when each input pixel moves by its last place.
    n_wrong
        Files outside of their tolerance.
    """

    case: str
    arguments: str
    kind: str
    n_files: int
    largest: float
    rms: float
    rounding: float
    n_wrong: int


def compare_case(case: relion_cases.Case) -> list[Difference]:
    """Run a case and compare every file; one entry for each kind of file."""
    compare = relion_cases.tool("compare_relion")
    recorded = json.loads((case.project / "cases.json").read_text())["cases"]
    record = next(one for one in recorded if one["name"] == case.name)
    floor, rounding = record["noise_floor"], record["rounding"]
    extra = {
        kind: {key: floor[key] + 4 * value[key] for key in ("max", "rms")} for kind, value in rounding.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        run_case(case, out)
        results = compare.compare_folders(out, case.expected, extra=extra, ignored=ours_alone(case))
    by_kind = defaultdict(list)
    for result in results:
        by_kind[compare.kind_of(result.name)].append(result)
        for error in result.errors:
            print(f"{case}: {result.name}: {error}", file=sys.stderr)
    return [
        Difference(
            case=f"{case.project.name} / {case.name}",
            arguments=shown_arguments(case.args),
            kind=kind,
            n_files=len(found),
            largest=max(one.max_diff for one in found),
            rms=max(one.rms_diff for one in found),
            rounding=rounding.get(kind, {"max": 0.0})["max"],
            n_wrong=sum(bool(one.errors) for one in found),
        )
        for kind, found in by_kind.items()
    ]


def run_case(case: relion_cases.Case, out: Path) -> None:
    """Run a case as RELION ran it."""
    command = ["reconstruct", "local"] if is_reconstruction(case) else ["local"]
    translated = relion_cases.our_arguments(case.args, case.program)
    run_in(case.project, [*command, *translated, "--output-dir", str(out), "--quiet"])


def is_reconstruction(case: relion_cases.Case) -> bool:
    """Whether RELION reconstructed, rather than extracted."""
    return "reconstruct" in case.program


def ours_alone(case: relion_cases.Case) -> list[str]:
    """Patterns of files that RELION does not write."""
    return ["report*", *(["*.star", "*.png"] if is_reconstruction(case) else [])]


def run_in(folder: Path, arguments: list[str]) -> None:
    """Run a command in a folder, as the paths in the STAR files of a project want it."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        cli.main(args=arguments, standalone_mode=False)
    finally:
        os.chdir(before)


def shown_arguments(arguments: Sequence[str]) -> str:
    """Write RELION's arguments without the names of the input files."""
    pairs = list(zip(["", *arguments], arguments, strict=False))
    return " ".join(now for before, now in pairs if now not in INPUTS and before not in INPUTS)


def compare_portal_case(portal: EmbeddedPortal, fixture: Path, case: dict[str, Any]) -> Difference:
    """Run a case over the portal's API and its object store, and compare."""
    relion_cases.tool("compare_relion")  # the next one imports it by name
    compare = relion_cases.tool("compare_portal")
    with tempfile.TemporaryDirectory() as folder:
        test_portal_cases.extract(portal, case, Path(folder) / "out")
        errors, (count, largest, rms) = compare.compare(
            Path(folder) / "out",
            fixture / case["expected"],
            case,
            max_tol=1e-4,
            rms_tol=1e-5,
            coordinate_tol=0.01,
        )
    for error in errors:
        print(f"portal {case['name']}: {error}", file=sys.stderr)
    rounding = max(value["max"] for value in case["rounding"].values())
    arguments = shlex.join(test_portal_cases.our_options({**case["request"], **case["parameters"]}))
    return Difference(
        f"portal / {case['name']}", arguments, "stack2d", count, largest, rms, rounding, len(errors)
    )


def together(kinds: Sequence[Difference]) -> Difference:
    """Sum up the well-conditioned image files of one case."""
    images = [one for one in kinds if is_image(one) and one.rounding <= ILL_CONDITIONED]
    return replace(
        images[0],
        kind=", ".join(short_kind(one) for one in images) if len(images) < MANY_KINDS else "maps and weights",
        n_files=sum(one.n_files for one in images),
        largest=max(one.largest for one in images),
        rms=max(one.rms for one in images),
        rounding=max(one.rounding for one in images),
        n_wrong=sum(one.n_wrong for one in kinds),
    )


def short_kind(one: Difference) -> str:
    """Name a kind of files as RELION ends their names."""
    return Path(one.kind).stem.lstrip("*_")


def is_image(one: Difference) -> bool:
    """Whether these are image files, not tables."""
    return one.kind.endswith((".mrc", ".mrcs"))


def table(differences: Sequence[Difference]) -> Iterator[str]:
    """Write differences as a table."""
    same_kind = len({one.kind for one in differences}) == 1
    files = "files" if same_kind else "kinds and number of files"
    yield f"| case | arguments | {files} | largest | RMS | RELION's own | |"
    yield "|---|---|---|---|---|---|---|"
    for one in differences:
        verdict = "agrees" if not one.n_wrong else f"**{one.n_wrong} files differ**"
        files = str(one.n_files) if same_kind else f"{one.kind}: {one.n_files}"
        numbers = " | ".join(shown(value) for value in (one.largest, one.rms, one.rounding))
        yield f"| {one.case} | `{one.arguments}` | {files} | {numbers} | {verdict} |"


def shown(value: float) -> str:
    """Write a difference with two digits."""
    return f"{value:.1e}".replace("e-0", "e-") if value else "0"


def relion_tables(shared: Path) -> Iterator[tuple[str, list[Difference]]]:
    """Compare the cases of the reference projects; give titles and rows."""
    poor: list[Difference] = []
    for title, prefix in (
        ("2D stacks", "stack_"),
        ("3D pseudo-subtomograms", "volume_"),
        ("Reconstructions", "recon_"),
    ):
        rows = []
        for case in relion_cases.cases(shared / "relion5", prefix):
            found = compare_case(case)
            rows.append(together(found))
            ill = (one for one in found if is_image(one) and one.rounding > ILL_CONDITIONED)
            poor += [replace(one, kind=short_kind(one)) for one in ill]
        yield title, rows
    yield ILL_TITLE, poor


def portal_rows(shared: Path) -> list[Difference]:
    """Compare the cases of the reference portal."""
    fixture = shared / "portal"
    recorded = json.loads((fixture / "cases.json").read_text())["cases"]
    with load_portal_folder(fixture) as portal:
        return [compare_portal_case(portal, fixture, case) for case in recorded]


def in_short(sections: Sequence[tuple[str, Sequence[Difference]]]) -> Iterator[str]:
    """Sum up what agrees."""
    sound = [row for title, rows in sections for row in rows if title != ILL_TITLE]
    wrong = sum(row.n_wrong > 0 for row in sound)
    verdict = "all agree" if not wrong else f"**{wrong} do not agree**"
    n_files, worst = sum(row.n_files for row in sound), max(row.largest for row in sound)
    yield (
        f"{len(sound)} cases with {n_files} image files: {verdict}. The largest difference of a single voxel "
        f"is {shown(worst)} of the RMS."
    )


def main() -> int:
    """Compare everything, print or write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put the tables into docs/parity.md")
    parser.add_argument("--shared", type=Path, default=relion_cases.SHARED, help="reference data")
    given = parser.parse_args()
    sections = [*relion_tables(given.shared), ("The portal", portal_rows(given.shared))]
    lines = ["", *in_short(sections)]
    for title, rows in sections:
        if rows:
            lines += ["", f"### {title}", "", *table(rows)]
    text = "\n".join([BEGIN, *lines, "", END])
    if given.write:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(page.split(BEGIN)[0] + text + page.split(END)[1], encoding="utf-8")
    else:
        print(text)
    return int(any(row.n_wrong for _, rows in sections for row in rows))


if __name__ == "__main__":
    sys.exit(main())
