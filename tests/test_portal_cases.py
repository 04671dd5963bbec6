"""The command line on the reference portal: every case, refusal and resolution, over real protocols."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mrcfile
import pytest
import starfile
from relion_cases import HERE, SHARED, tool

from portal_extract.cli import cli, main
from portal_extract.demo.portal import EmbeddedPortal, load_portal_folder

SMALL, FULL = HERE / "data" / "portal", SHARED / "portal"
CASES = json.loads((SMALL / "cases.json").read_text())
#: the pixels of one run are in the repository
SMALL_CASE = "second_alignment"

#: names of cases.json that are not ours with dashes for underscores
OURS = {"inexact": "--inexact-match"}

#: words that the sentence of a refusal must have
REFUSAL_WORDS = {
    "no_ctf_rows": ("run 17843", "CTF", "null"),
    "no_alignment_id": ("run 17844", "no alignment id", "17458", "17459", "--alignment-ids"),
    "unknown_run": ("no run 99999",),
    "unknown_name": ("'ribosome'", "'cytosolic ribosome'", "'ferritin complex'", "--inexact-match"),
    "only_identified": ("'proteasome complex'", "no picks"),
    "no_points": ("'membrane'", "segmentation mask", "no points"),
}

needs_full = pytest.mark.skipif(not FULL.is_dir(), reason="the reference portal is not beside the checkout")


def named(cases: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(case, id=case.get("name") or case["remark"].replace(" ", "_")) for case in cases]


def our_options(values: dict[str, Any]) -> list[str]:
    """Translate a request or parameters of cases.json."""
    arguments = []
    for name, value in values.items():
        option = OURS.get(name, "--" + name.replace("_", "-"))
        assert value is not False
        arguments.append(option)
        if value is not True:
            arguments.append(",".join(map(str, value)) if isinstance(value, list) else str(value))
    return arguments


@pytest.fixture(scope="module")
def small_portal() -> Iterator[EmbeddedPortal]:
    with load_portal_folder(SMALL) as portal:
        yield portal


@pytest.fixture(scope="module")
def full_portal() -> Iterator[EmbeddedPortal]:
    with load_portal_folder(FULL) as portal:
        yield portal


def addresses(portal: EmbeddedPortal) -> list[str]:
    return ["--portal-url", portal.portal_url, "--s3-endpoint-url", portal.s3_endpoint_url]


def case_named(name: str) -> dict[str, Any]:
    return next(case for case in CASES["cases"] if case["name"] == name)


def extract(portal: EmbeddedPortal, case: dict[str, Any], out: Path) -> None:
    arguments = ["data-portal", *our_options(case["request"]), *our_options(case["parameters"])]
    arguments += [*addresses(portal), "--output-dir", str(out), "--quiet"]
    cli.main(args=arguments, standalone_mode=False)


def check_case(portal: EmbeddedPortal, fixture: Path, case: dict[str, Any], out: Path) -> None:
    extract(portal, case, out)
    tool("compare_relion")  # the next one imports it by name
    errors, (count, _, _) = tool("compare_portal").compare(
        out, fixture / case["expected"], case, max_tol=1e-4, rms_tol=1e-5, coordinate_tol=0.01
    )
    assert errors == []
    assert count == case["particles_extracted"]
    assert len(list((out / "Subtomograms").rglob("*.mrcs"))) == count


def check_same_from_files(
    portal: EmbeddedPortal, case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``resolve``, then ``local`` on its files: what ``data-portal`` writes, byte for byte."""
    for name in ("at_once", "in_two_steps"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "at_once")
    extract(portal, case, Path("out"))
    monkeypatch.chdir(tmp_path / "in_two_steps")
    request = [*our_options(case["request"]), *addresses(portal)]
    cli.main(args=["resolve", *request, "--output-dir", "found", "--quiet"], standalone_mode=False)
    arguments = [
        "local",
        "--optimisation-set",
        "found/optimisation_set.star",
        *our_options(case["parameters"]),
    ]
    arguments += ["--s3-endpoint-url", portal.s3_endpoint_url, "--output-dir", "out", "--quiet"]
    cli.main(args=arguments, standalone_mode=False)
    one, other = (files_of(tmp_path / name / "out") for name in ("at_once", "in_two_steps"))
    assert len(one) == case["particles_extracted"] + 1
    assert one == other


def files_of(out: Path) -> dict[str, bytes]:
    """The stacks and the particle table."""
    paths = [out / "particles.star", *sorted((out / "Subtomograms").rglob("*_stack2d.mrcs"))]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


# ---------------------------------------------------------------------------------- in every clone


def test_every_refusal_is_expected():
    assert {case["name"] for case in CASES["refusals"]} == set(REFUSAL_WORDS)


def test_small_case(small_portal, tmp_path):
    check_case(small_portal, SMALL, case_named(SMALL_CASE), tmp_path / "out")


def test_two_steps_give_the_same_bytes(small_portal, tmp_path, monkeypatch):
    check_same_from_files(small_portal, case_named(SMALL_CASE), tmp_path, monkeypatch)


@pytest.mark.parametrize("case", named(CASES["refusals"]))
def test_refusal(case, small_portal, tmp_path, capfd):
    arguments = ["data-portal", *our_options(case["request"]), *our_options(case["parameters"])]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, *addresses(small_portal), "--output-dir", str(tmp_path / "out"), "--quiet"])
    said = capfd.readouterr()
    assert ended.value.code == 2
    assert said.out == ""
    lines = said.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("portal-extract: ")
    for word in REFUSAL_WORDS[case["name"]]:
        assert word in lines[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", named(CASES["resolutions"]))
def test_resolution(case, small_portal, capfd):
    arguments = ["resolve", *our_options(case["request"]), *addresses(small_portal), "--json"]
    cli.main(args=arguments, standalone_mode=False)
    found = json.loads(capfd.readouterr().out)["eligibility"]
    assert sorted({row["file_id"] for row in found["rows"]}) == case["files"]
    assert found["ineligible_run_ids"] == case.get("ineligible_runs", [])


def portal_request(portal: EmbeddedPortal, *arguments: str) -> list[str]:
    case = case_named(SMALL_CASE)
    return [*our_options(case["request"]), *our_options(case["parameters"]), *addresses(portal), *arguments]


def test_json_has_the_summary_and_what_was_found(small_portal, tmp_path, capfd):
    arguments = portal_request(small_portal, "--json", "--output-dir", str(tmp_path / "out"))
    cli.main(args=["data-portal", *arguments, "--handedness", "1"], standalone_mode=False)
    said = capfd.readouterr()
    assert said.err == ""
    summary = json.loads(said.out)
    assert summary["extracted"] == 6
    (row,) = summary["portal"]["eligibility"]["rows"]
    assert (row["status"], row["alignment_id"], row["file_id"]) == ("extract", 17459, 63118)
    assert summary["portal"]["request"] == {"run_ids": [17844], "annotation_names": ["cytosolic ribosome"]}
    report = json.loads((tmp_path / "out" / "report" / "report.json").read_text())
    for assumptions in (summary["assumptions"], report["assumptions"]):
        assert (assumptions["handedness"], assumptions["amplitude_contrast"]) == (1.0, 0.07)
        assert any(sentence.startswith("handedness 1 ") for sentence in assumptions["sentences"])


def test_text_has_the_table_and_the_assumptions(small_portal, tmp_path, capfd):
    arguments = portal_request(small_portal, "--output-dir", str(tmp_path / "out"), "--pixel-size", "6.8")
    cli.main(args=["data-portal", *arguments], standalone_mode=False)
    said = capfd.readouterr()
    assert "6 particles of 1 run will be extracted" in said.err
    assert "will be extracted" in said.err
    for assumed in ("handedness -1", "amplitude contrast 0.07", "pixel size 6.8 A"):
        assert f"  assumed: {assumed}" in said.out


def test_what_cannot_be_extracted_is_told_as_json_too(small_portal, capfd):
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "resolve",
                "--run-ids",
                "17843,17844",
                "--annotation-ids",
                "41205,41207",
                "--json",
                *addresses(small_portal),
            ]
        )
    assert ended.value.code == 2
    said = capfd.readouterr()
    found = json.loads(said.out)["eligibility"]
    assert [row["status"] for row in found["rows"]] == ["ineligible", "ambiguous"]
    assert found["rows"][1]["option"] == "--alignment-ids"
    assert said.err.startswith("portal-extract: nothing can be extracted, for 2 reasons:")


def test_refusals_show_the_table_too(small_portal, tmp_path, capfd):
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "data-portal",
                "--run-id",
                "17843",
                "--box-size",
                "32",
                "-o",
                str(tmp_path / "o"),
                *addresses(small_portal),
            ]
        )
    assert ended.value.code == 2
    lines = capfd.readouterr().err.splitlines()
    assert any("ineligible" in line and "63116" in line for line in lines)
    assert lines[-1].startswith("portal-extract: run 17843 (TS_027)")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
def test_addresses_from_the_environment(variable, small_portal, tmp_path, monkeypatch):
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CRYOET_PORTAL_URL", small_portal.portal_url)
    monkeypatch.setenv(variable, small_portal.s3_endpoint_url)
    small_portal.objects.log.clear()
    arguments = [*our_options(case_named(SMALL_CASE)["request"]), "--output-dir", str(tmp_path / "found")]
    cli.main(args=["resolve", *arguments, "--quiet"], standalone_mode=False)
    assert small_portal.objects.log.count(contains="ndjson") == 1
    assert sorted(path.name for path in (tmp_path / "found").iterdir()) == [
        "optimisation_set.star",
        "particles.star",
        "tilt_series",
        "tomograms.star",
    ]


def test_resolve_keeps_what_is_there(small_portal, tmp_path, capfd):
    arguments = [*our_options(case_named(SMALL_CASE)["request"]), *addresses(small_portal), "--quiet"]
    target = tmp_path / "optimisation_set.star"
    target.write_text("precious")
    for more, code, written in ([], 2, False), (["--overwrite"], 0, True):
        with pytest.raises(SystemExit) as ended:
            main(["resolve", *arguments, "--output-dir", str(tmp_path), *more])
        assert ended.value.code == code
        assert (target.read_text() != "precious") == written
        assert (tmp_path / "particles.star").exists() == written
    assert "use --overwrite" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--run-id", "TS_028"], "--run-ids TS_028: ids are whole numbers, separated by commas"),
        ([], "nothing selects particles: give at least one of --deposition-ids,"),
        (["--run-id", "0"], "--run-ids 0: ids of the portal are whole numbers from 1"),
        (["--run-id", "17843", "--on-missing-ctf", "no-ctf"], "add --no-ctf"),
        (["--run-id", "17844", "--handedness", "0"], "--handedness 0: must be a number other than 0"),
    ],
)
def test_requests_that_make_no_sense(arguments, sentence, small_portal, tmp_path, capfd):
    request = [*arguments, "--box-size", "32", "--quiet", *addresses(small_portal)]
    with pytest.raises(SystemExit) as ended:
        main(["data-portal", *request, "--output-dir", str(tmp_path / "out")])
    assert ended.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert sentence in line
    assert not (tmp_path / "out").exists()


def test_the_folder_of_a_portal_run(small_portal, tmp_path, monkeypatch):
    """RELION's layout, the tables of the project, a report and a journal; nothing else."""
    monkeypatch.chdir(tmp_path)
    extract(small_portal, case_named(SMALL_CASE), Path("out"))
    name = "run_17844_tiltseries_17210_alignment_17459_spacing_21315"
    found = {str(path.relative_to("out")) for path in Path("out").rglob("*") if path.is_file()}
    assert {path for path in found if not path.startswith(".journal/")} == {
        *(f"Subtomograms/{name}/{n}_stack2d.mrcs" for n in range(1, 7)),
        f"tilt_series/{name}.star",
        f"report/headers/{name}.mrcs",
        "optimisation_set.star",
        "particles.star",
        "report/report.json",
        "tomograms.star",
    }
    # and it is a project again: with the same options it gives the same images
    options = our_options(case_named(SMALL_CASE)["parameters"])
    again = [
        "local",
        "--optimisation-set",
        "out/optimisation_set.star",
        *options,
        "--output-dir",
        "again",
        "--quiet",
    ]
    cli.main(args=[*again, "--s3-endpoint-url", small_portal.s3_endpoint_url], standalone_mode=False)
    compare = tool("compare_relion").compare_mrc
    for n in range(1, 7):
        one, other = (Path(out, "Subtomograms", name, f"{n}_stack2d.mrcs") for out in ("out", "again"))
        assert compare(one, other, "again", 1e-4, 1e-5).errors == []


def test_a_plan_reads_metadata_and_predicts_the_rest(small_portal, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    small_portal.objects.log.clear()
    arguments = portal_request(small_portal, "--json", "--bandwidth", "100MB")
    cli.main(args=["plan", "data-portal", *arguments], standalone_mode=False)
    plan = json.loads(capfd.readouterr().out)
    before = small_portal.objects.log.body_bytes
    assert list(tmp_path.iterdir()) == []
    reading = plan["reading"]
    # metadata, the file of picks and the table of one chunk
    assert before < 0.02 * reading["fetched_bytes"]
    assert reading["fetched_bytes"] <= reading["chunk_bytes"] <= reading["total_bytes"]
    assert plan["fetch_seconds"] == reading["fetched_bytes"] / 1e8
    assert (plan["particles"], plan["views"], plan["portal"]["eligibility"]["n_picks"]) == (6, 45, 6)

    small_portal.objects.log.clear()
    cli.main(
        args=["data-portal", *portal_request(small_portal, "--json", "-o", "out")], standalone_mode=False
    )
    done = json.loads(capfd.readouterr().out)
    assert done["views"] == plan["views"]
    assert done["bytes_written"] == plan["bytes_written"]
    # all that is known of the sizes is the table of one chunk, whose last block is not full
    assert small_portal.objects.log.body_bytes == pytest.approx(reading["fetched_bytes"], rel=0.25)
    metadata = 2 + 1  # of the array, and the file of picks
    assert small_portal.objects.log.count() == pytest.approx(reading["requests"] + metadata, abs=3)


# ---------------------------------------------------------------------------------- with the full data


@needs_full
@pytest.mark.shared
@pytest.mark.parametrize("case", named(CASES["cases"]))
def test_every_case(case, full_portal, tmp_path):
    check_case(full_portal, FULL, case, tmp_path / "out")


@needs_full
@pytest.mark.shared
def test_the_small_portal_is_a_part_of_the_full_one():
    for name in ("cases.json", "tables.json"):
        assert json.loads((SMALL / name).read_text()) == json.loads((FULL / name).read_text())


@needs_full
@pytest.mark.shared
@pytest.mark.parametrize("name", ["default", "no_ctf"])
def test_two_steps_give_the_same_bytes_everywhere(name, full_portal, tmp_path, monkeypatch):
    check_same_from_files(full_portal, case_named(name), tmp_path, monkeypatch)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # mrcfile tells that such a file holds no data
def test_relion_finds_the_size_of_the_tilt_images_but_no_pixels(small_portal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    addresses = ["--portal-url", small_portal.portal_url, "--s3-endpoint-url", small_portal.s3_endpoint_url]
    case = next(c for c in CASES["cases"] if c["name"] == SMALL_CASE)
    picks, box = our_options(case["request"]), our_options(case["parameters"])
    cli.main(["data-portal", *picks, *box, *addresses, "-o", "out", "-q"], standalone_mode=False)
    row = next(
        row for row in json.loads((SMALL / "tables.json").read_text())["Tiltseries"] if row["runId"] == 17844
    )
    (table,) = (tmp_path / "out" / "tilt_series").glob("*.star")
    names = starfile.read(table)["rlnMicrographName"]
    (file,) = {name.partition("@")[2] for name in names}
    assert file == f"out/report/headers/{table.stem}.mrcs"
    assert Path(file).stat().st_size == 1024
    with mrcfile.open(file, header_only=True, permissive=True) as mrc:
        header = mrc.header
    assert (header.nx, header.ny, header.mode) == (row["sizeX"], row["sizeY"], 2)
    assert header.nz >= max(int(name.partition("@")[0]) for name in names)
    assert header.dmax < header.dmin  # nothing is known of the density
