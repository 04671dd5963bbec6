"""Requests of the reference portal: resolutions, refusals, and the equivalent RELION project."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from portal_extract.demo.portal import EmbeddedPortal, load_portal_folder
from portal_extract.errors import IneligibleError, NotFoundError, PortalExtractError, UsageError
from portal_extract.model import Project
from portal_extract.options import ExtractOptions
from portal_extract.relion_io.project_star import write_project_tables
from portal_extract.relion_io.star import read_star
from portal_extract.relion_io.string_table import StringTable
from portal_extract.relion_io.tables import ProjectTables
from portal_extract.sources.portal import PortalAssumptions, PortalConnection, PortalFilters
from portal_extract.sources.portal.build import PortalResolution, resolve_portal
from portal_extract.sources.portal.eligibility import report_table
from portal_extract.sources.relion.project import build_project

DATA = Path(__file__).parent / "data" / "portal"
CASES = json.loads((DATA / "cases.json").read_text())

#: words that the sentence of a refusal must have
REFUSAL_WORDS = {
    "no_ctf_rows": (IneligibleError, ["17843", "no CTF", "null"]),
    "no_alignment_id": (IneligibleError, ["17844", "no alignment id", "17458", "17459", "--alignment-ids"]),
    "unknown_run": (NotFoundError, ["no run 99999"]),
    "unknown_name": (NotFoundError, ["'ribosome'", "'cytosolic ribosome'", "'ferritin complex'"]),
    "only_identified": (IneligibleError, ["proteasome complex", "no picks"]),
    "no_points": (IneligibleError, ["membrane", "segmentation mask", "no points"]),
}


@pytest.fixture(scope="module")
def portal() -> Iterator[EmbeddedPortal]:
    with load_portal_folder(DATA) as portal:
        yield portal


def filters_of(request: dict[str, Any]) -> PortalFilters:
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in request.items()}
    return PortalFilters(inexact_match=values.pop("inexact", False), **values)


def connection_to(portal: EmbeddedPortal) -> PortalConnection:
    return PortalConnection(portal.portal_url, portal.s3_endpoint_url, deadline_s=60)


def resolve(
    portal: EmbeddedPortal, assumptions: PortalAssumptions | None = None, **request: Any
) -> PortalResolution:
    return resolve_portal(filters_of(request), assumptions, connection_to(portal))


def assert_same_project(one: Project, other: Project) -> None:
    for a, b in zip(one.tilt_series, other.tilt_series, strict=True):
        assert a.image_stack.uris == b.image_stack.uris
        assert a.image_stack.sections.tolist() == b.image_stack.sections.tolist()
        for name, value in vars(a).items():
            if name != "image_stack":
                assert np.array_equal(value, getattr(b, name)), name
    for name, value in vars(one.particles).items():
        assert np.array_equal(value, getattr(other.particles, name)) or value is None, name


def sections_of(tilts: StringTable) -> list[str]:
    return [value.split("@")[0] for value in tilts["rlnMicrographName"]]


@pytest.mark.parametrize("number", range(len(CASES["resolutions"])))
def test_a_request_finds_the_files(portal: EmbeddedPortal, number: int) -> None:
    case = CASES["resolutions"][number]
    report = resolve(portal, **case["request"]).report
    assert list(report.file_ids) == case["files"]
    assert list(report.ineligible_run_ids) == case.get("ineligible_runs", [])


@pytest.mark.parametrize("case", CASES["refusals"], ids=lambda case: case["name"])
def test_a_refusal_names_its_cause_in_one_sentence(portal: EmbeddedPortal, case: dict[str, Any]) -> None:
    kind, words = REFUSAL_WORDS[case["name"]]
    with pytest.raises(PortalExtractError) as caught:
        resolve(portal, **case["request"])
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("case", CASES["cases"], ids=lambda case: case["name"])
def test_tables_are_those_of_relion(portal: EmbeddedPortal, case: dict[str, Any]) -> None:
    tables = resolve(portal, **case["request"]).project.tables
    name = case["name"]
    particles = read_star(DATA / "relion" / f"particles_{name}.star")
    tomograms = read_star(DATA / "relion" / f"tomograms_{name}.star").block("global").table()
    pairs = [
        (tables.particles, particles.block("particles").table()),
        (tables.optics, particles.block("optics").table()),
        (tables.tomograms, tomograms.without(["rlnTomoTiltSeriesStarFile"])),
    ]
    for tomogram, tilts in tables.tilts.items():
        reference = read_star(DATA / "relion" / "tilt_series" / f"{tomogram}.star").block(tomogram).table()
        assert sections_of(tilts) == sections_of(reference)
        pairs.append((tilts, reference.without(["rlnMicrographName"])))
    for ours, reference in pairs:
        assert set(reference.labels) <= set(ours.labels)
        for label in reference.labels:
            if any(character.isalpha() for character in reference[label][0]):
                assert ours[label] == reference[label]
            else:
                # RELION writes negative numbers with five decimals
                a, b = np.array(ours[label], dtype=float), np.array(reference[label], dtype=float)
                np.testing.assert_allclose(a, b, rtol=0, atol=1.1e-5, err_msg=label)
    assert list(tables.tomograms["rlnTomoName"]) == list(case["tomograms"])
    counts = Counter(tables.particles["rlnTomoName"])
    assert counts == {tomogram: known["picks"] for tomogram, known in case["tomograms"].items()}


def test_a_project_read_back_from_its_files_is_the_same(portal: EmbeddedPortal, tmp_path: Path) -> None:
    project = resolve(portal, run_ids=[17841, 17842]).project
    write_project_tables(tmp_path, project.tables, f"{tmp_path}/")
    particles = read_star(tmp_path / "particles.star")
    stacks = {series.name: series.image_stack for series in project.tilt_series}
    tables = ProjectTables(
        particles.block("particles").table(),
        particles.block("optics").table(),
        read_star(tmp_path / "tomograms.star").block("global").table(),
        {name: read_star(tmp_path / f"tilt_series/{name}.star").block(name).table() for name in stacks},
    )
    assert_same_project(project, build_project(tables, lambda tomogram: stacks[tomogram.name]))


def test_images_are_named_by_address_and_section(portal: EmbeddedPortal) -> None:
    request = {"run_names": ["lamella 07"], "annotation_names": ["cytosolic ribosome"]}
    (series,) = resolve(portal, **request).project.tilt_series
    stack = series.image_stack
    assert set(stack.uris) == {
        "s3://cryoet-data-portal-public/10493/lamella 07/TiltSeries/100/lamella 07.zarr"
    }
    assert stack.sections.tolist() == list(range(7))
    assert stack.size_px == (1500, 1400)
    assert dict(stack.storage) == {"endpoint_url": portal.s3_endpoint_url, "anon": True}


def test_sections_without_alignment_are_gaps(portal: EmbeddedPortal) -> None:
    (series,) = resolve(portal, run_ids=[17841], ground_truth=True).project.tilt_series
    assert series.image_stack.sections.tolist() == [z for z in range(17) if z not in (0, 9)]


def test_an_alignment_chosen_settles_picks_without_one(portal: EmbeddedPortal) -> None:
    request = {"run_ids": [17844], "annotation_names": ["ferritin complex"]}
    for choice in ({"alignment_ids": [17459]}, {"tomogram_ids": [30617]}):
        resolution = resolve(portal, **request, **choice)
        (series,) = resolution.project.tilt_series
        assert series.name == "run_17844_tiltseries_17210_alignment_17459_spacing_21315"
        assert series.tomogram_size_px == (400, 420, 140)
        assert resolution.report.n_picks == 4
    with pytest.raises(IneligibleError, match="--alignment-ids"):
        resolve(portal, **request, tilt_series_ids=[17210])


def test_a_choice_that_leaves_the_picks_out_is_told(portal: EmbeddedPortal) -> None:
    with pytest.raises(IneligibleError, match=r"alignment 17459 .*leaves out .--alignment-ids 17458"):
        resolve(portal, run_ids=[17844], annotation_names=["cytosolic ribosome"], alignment_ids=[17458])


def test_without_orientations_all_angles_are_zero(portal: EmbeddedPortal) -> None:
    plain = resolve(portal, run_ids=[17841], annotation_names=["cytosolic ribosome"], no_orientations=True)
    oriented = resolve(portal, run_ids=[17841], annotation_names=["cytosolic ribosome"])
    assert not plain.project.particles.angles_deg.any()
    assert oriented.project.particles.angles_deg.any()
    assert plain.report.file_ids == (63109,)
    np.testing.assert_array_equal(
        plain.project.particles.coordinates_angst, oriented.project.particles.coordinates_angst
    )


def test_filters_restrict_together(portal: EmbeddedPortal) -> None:
    found = resolve(portal, dataset_ids=[10493], automated_only=True, annotation_names=["cytosolic ribosome"])
    assert found.report.file_ids == (63113, 63116, 63118)
    yeast = {"organism_names": ["cerevisiae"], "inexact": True}
    found = resolve(portal, **yeast, object_ids=["GO:0022626"], ground_truth=True)
    assert found.report.file_ids == (63107, 63113, 63116)
    found = resolve(portal, deposition_names=["Community"], inexact=True)
    assert found.report.file_ids == (63111, 63118)
    found = resolve(portal, tilt_series_ids=[17207], annotation_ids=[41202])
    assert found.report.file_ids == (63111,)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"run_ids": [17841, 99998, 99999]}, "no runs 99998, 99999"),
        ({"run_names": ["TS_02"]}, "no run named 'TS_02'.*--inexact-match"),
        ({"dataset_ids": [1]}, "no dataset 1"),
        ({"deposition_ids": [7]}, "no deposition 7"),
        ({"alignment_ids": [5]}, "no alignment 5"),
        ({"tomogram_ids": [5]}, "no tomogram 5"),
        ({"tilt_series_ids": [5]}, "no tilt series 5"),
        ({"annotation_ids": [41201, 6]}, "no annotation 6"),
        ({"organism_names": ["Homo sapiens"]}, "no organism named 'Homo sapiens'"),
        ({"run_ids": [17841], "alignment_ids": [17456]}, "no run .*--run-ids 17841 --alignment-ids 17456"),
        ({"annotation_names": ["nothing like this"]}, "nothing on the portal"),
    ],
)
def test_what_does_not_exist_is_named(portal: EmbeddedPortal, request_: dict[str, Any], words: str) -> None:
    with pytest.raises(NotFoundError, match=words):
        resolve(portal, **request_)


def test_wildcards_in_a_name_are_ordinary_characters(portal: EmbeddedPortal) -> None:
    for name in ("cyto%", "cytosolic_ribosome", "\\"):
        with pytest.raises(NotFoundError, match="no annotation with a name like"):
            resolve(portal, run_ids=[17841], annotation_names=[name], inexact=True)


def test_missing_ctf_is_let_through_only_without_ctf(portal: EmbeddedPortal) -> None:
    resolution = resolve(portal, PortalAssumptions(on_missing_ctf="no-ctf"), run_ids=[17843])
    (series,) = resolution.project.tilt_series
    assert not series.defocus_u_angst.any()
    assert series.dose_e_per_a2.any()
    assert "defocus is written as 0" in resolution.report.rows[0].warnings[0]
    resolution.check_options(ExtractOptions(32, ctf=False))
    with pytest.raises(UsageError, match="--no-ctf"):
        resolution.check_options(ExtractOptions(32))
    with pytest.raises(IneligibleError, match="all values are null"):
        resolve(portal, PortalAssumptions(on_missing_ctf="skip"), run_ids=[17843])


def test_assumptions_are_used_and_named(portal: EmbeddedPortal) -> None:
    assumptions = PortalAssumptions(handedness=1.0, amplitude_contrast=0.1, pixel_size_angst=6.9)
    resolution = resolve(portal, assumptions, run_ids=[17841], ground_truth=True)
    (series,) = resolution.project.tilt_series
    assert (series.handedness, series.amplitude_contrast, series.pixel_size_angst) == (1.0, 0.1, 6.9)
    # 241 x 249 x 75 voxels of 13.6 A in pixels of 6.9 A: 475.01, 490.8, 147.8
    assert series.tomogram_size_px == (474, 490, 148)
    said = " ".join(resolution.report.assumptions)
    assert "handedness 1" in said
    assert "contrast 0.1" in said
    assert "6.9 A" in said
    plain = resolution.to_dict()
    assert json.loads(json.dumps(plain))["assumptions"]["pixel_size_angst"] == 6.9
    # shifts are pixels and follow the pixel size: the images move by the same number of pixels
    (before,) = resolve(portal, run_ids=[17841], ground_truth=True).project.tilt_series
    centre = np.append(np.array(series.tomogram_size_px) // 2, 1.0)
    old_centre = np.append(np.array(before.tomogram_size_px) // 2, 1.0)
    np.testing.assert_allclose(series.projections @ centre, before.projections @ old_centre, atol=1e-5)


def test_the_report_renders_and_serialises(portal: EmbeddedPortal) -> None:
    from rich.console import Console

    report = resolve(portal, dataset_ids=[10493]).report
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(report_table(report))
    text = console.export_text()
    for word in (
        "will be extracted",
        "ambiguous",
        "ineligible",
        "Assumed: handedness -1",
        "17459",
        "segmentation",
    ):
        assert word in text
    plain = json.loads(json.dumps(report.to_dict()))
    assert {row["status"] for row in plain["rows"]} == {"extract", "ambiguous", "ineligible"}
    assert plain["n_picks"] == 9 + 6 + 11 + 6


def test_an_ineligible_request_carries_its_report(portal: EmbeddedPortal) -> None:
    with pytest.raises(IneligibleError) as caught:
        resolve(portal, run_ids=[17843, 17844], annotation_ids=[41205, 41207])
    assert [row.status for row in caught.value.report.rows] == ["ineligible", "ambiguous"]
    assert "2 reasons" in str(caught.value)


def test_a_name_that_matches_nothing_beside_others_is_a_warning(portal: EmbeddedPortal) -> None:
    report = resolve(portal, run_ids=[17841], annotation_names=["cytosolic ribosome", "ribosom"]).report
    assert report.n_picks == 9
    assert report.warnings == ("no annotation that meets the request is named 'ribosom': check the spelling",)
