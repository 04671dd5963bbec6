"""The small files of the portal's S3 layout: metadata JSON, picks, and what alignment programs wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from portal_extract.demo.phantom import phantom
from portal_extract.demo.records import (
    AUTHORS_DEPOSITION,
    COMMUNITY_DEPOSITION,
    DATASET_ID,
    DATES,
    AlignmentRecord,
    AnnotationRecord,
    RunRecord,
    TomogramRecord,
    deposition_id,
    parent,
)

AUTHORS = [{"name": "Ada Example", "primary_author_status": True, "corresponding_author_status": True}]
IDENTITY = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
TITLE = "Simulated ribosomes, ferritin and proteasomes in vitreous ice"


def dataset_documents() -> Iterator[tuple[str, str]]:
    """Keys and texts of the files of the data set and of its depositions."""
    dataset = {
        "dataset_identifier": DATASET_ID,
        "dataset_title": TITLE,
        "dataset_description": TITLE,
        "authors": AUTHORS,
        "organism": {"name": "Saccharomyces cerevisiae", "taxonomy_id": 4932},
        "sample_type": "in_silico",
        "deposition_id": AUTHORS_DEPOSITION,
        "dates": DATES,
    }
    yield f"{DATASET_ID}/dataset_metadata.json", _json(dataset)
    for number in (AUTHORS_DEPOSITION, COMMUNITY_DEPOSITION):
        deposition = {
            "deposition_identifier": number,
            "deposition_title": TITLE,
            "deposition_description": TITLE,
            "authors": AUTHORS,
            "dates": DATES,
        }
        yield f"depositions_metadata/{number}/deposition_metadata.json", _json(deposition)


def run_documents(run: RunRecord) -> Iterator[tuple[str, str]]:
    """Keys and texts of all small files of a run."""
    yield (
        f"{run.folder}/run_metadata.json",
        _json({"run_name": run.scene.name, "deposition_id": AUTHORS_DEPOSITION}),
    )
    yield from _tilt_series_documents(run)
    yield from _frame_documents(run)
    for alignment in run.alignments:
        yield from _alignment_documents(run, alignment)
    for tomogram in run.tomograms:
        yield f"{tomogram.folder}/tomogram_metadata.json", _json(_tomogram_metadata(run, tomogram))
    for annotation in run.annotations:
        yield from _annotation_documents(run, annotation)


def picks_text(annotation: AnnotationRecord, shape: str) -> str:
    """Write picks as the portal's ndjson, one object per line.

    Parameters
    ----------
    annotation
        The picks.
    shape
        ``OrientedPoint`` or ``Point``.
    """
    lines = []
    for location, rotation in zip(annotation.locations_voxels(), annotation.particles.rotations, strict=True):
        record: dict[str, Any] = {
            "type": "orientedPoint" if shape == "OrientedPoint" else "point",
            "location": dict(zip("xyz", map(float, location), strict=True)),
        }
        if shape == "OrientedPoint":
            record["xyz_rotation_matrix"] = rotation.tolist()
        lines.append(json.dumps(record))
    return "".join(f"{line}\n" for line in lines)


def _tilt_series_documents(run: RunRecord) -> Iterator[tuple[str, str]]:
    scene, plan = run.scene, run.scene.plan
    width, height = plan.image_size_px
    sections = [
        {
            "z_index": z,
            "frame_acquisition_order": int(scene.acquisition[z]),
            "raw_angle": float(scene.raw_tilt_deg[z]),
            "major_defocus": float(scene.defocus_u_angst[z]) if plan.has_ctf else None,
            "minor_defocus": float(scene.defocus_v_angst[z]) if plan.has_ctf else None,
            "astigmatic_angle": float(scene.defocus_angle_deg[z]) if plan.has_ctf else None,
            "phase_shift": float(np.deg2rad(scene.phase_shift_deg[z])) if plan.has_ctf else 0.0,
            "max_resolution": 12.0 if plan.has_ctf else None,
            "cross_correlation": 0.1 if plan.has_ctf else None,
        }
        for z in range(scene.n_tilts)
    ]
    metadata = {
        "run_name": scene.name,
        "acceleration_voltage": 300000,
        "spherical_aberration_constant": 2.7,
        "pixel_spacing": plan.pixel_size_angst,
        "is_aligned": False,
        "tilt_axis": plan.tilt_axis_deg,
        "tilt_step": plan.tilt_step_deg,
        "tilt_range": {"min": float(scene.raw_tilt_deg[0]), "max": float(scene.raw_tilt_deg[-1])},
        "total_flux": scene.exposure_e_per_a2 * len(scene.acquired_tilt_deg),
        "size": {"z": scene.n_tilts, "y": height, "x": width},
        "omezarr_dir": f"{run.tilt_series_stem}.zarr",
        "mrc_file": f"{run.tilt_series_stem}.mrc",
        "frames_count": len(scene.acquired_tilt_deg),
        "per_section_parameter": sections,
    }
    yield f"{parent(run.tilt_series_stem)}/tiltseries_metadata.json", _json(metadata)
    yield f"{run.tilt_series_stem}.rawtlt", _lines(f"{angle:.2f}" for angle in scene.raw_tilt_deg)
    if plan.has_ctf:
        yield f"{run.tilt_series_stem}_ctffind4_ctf.txt", _ctffind_text(run)


def _ctffind_text(run: RunRecord) -> str:
    scene = run.scene
    rows = (
        f"{z + 1} {scene.defocus_u_angst[z]:.6f} {scene.defocus_v_angst[z]:.6f} "
        f"{scene.defocus_angle_deg[z]:.6f} {np.deg2rad(scene.phase_shift_deg[z]):.9f} 0.100000 12.000000"
        for z in range(scene.n_tilts)
    )
    head = (
        "# Columns: #1 - micrograph number; #2 - defocus 1 [Angstroms]; #3 - defocus 2; "
        "#4 - azimuth of astigmatism; #5 - additional phase shift [radians]; #6 - cross correlation; "
        "#7 - spacing (in Angstroms)"
    )
    return _lines([head, *rows])


def _frame_documents(run: RunRecord) -> Iterator[tuple[str, str]]:
    scene, exposure = run.scene, run.scene.exposure_e_per_a2
    mdoc = f"{run.folder}/Frames/{scene.name}.mdoc"
    frames = [
        {
            "acquisition_order": order,
            "accumulated_dose": order * exposure,
            "exposure_dose": exposure,
            "is_gain_corrected": True,
            "path": None,
        }
        for order in range(len(scene.acquired_tilt_deg))
    ]
    yield (
        f"{run.folder}/Frames/frames_metadata.json",
        _json({"frames_acquisition_file": mdoc, "frames": frames}),
    )
    lines = [
        f"PixelSpacing = {scene.plan.pixel_size_angst}",
        "Voltage = 300",
        f"ImageFile = {scene.name}.mrc",
        "",
    ]
    lines.append(f"[T = Tilt axis angle = {scene.plan.tilt_axis_deg}, binning = 1]")
    for order, angle in enumerate(scene.acquired_tilt_deg):
        lines += ["", f"[ZValue = {order}]", f"TiltAngle = {angle:.4f}", f"ExposureDose = {exposure}"]
    yield mdoc, _lines(lines)


def _alignment_documents(run: RunRecord, alignment: AlignmentRecord) -> Iterator[tuple[str, str]]:
    texts = _imod_texts(run, alignment) if alignment.from_imod else _aretomo_texts(run, alignment)
    files = {f"{alignment.folder}/{name}": text for name, text in texts.items()}
    sections = [
        {
            "z_index": int(z),
            "tilt_angle": float(alignment.tilt_deg[row]),
            "volume_x_rotation": float(alignment.x_tilt_deg[row]),
            "in_plane_rotation": alignment.in_plane_rotation(row),
            "x_offset": float(alignment.shift_px[row, 0]),
            "y_offset": float(alignment.shift_px[row, 1]),
        }
        for row, z in enumerate(alignment.z_index)
    ]
    metadata = {
        "alignment_type": "GLOBAL",
        "method_type": "fiducial_based" if alignment.from_imod else "projection_matching",
        "format": "IMOD" if alignment.from_imod else "ARETOMO3",
        "is_portal_standard": False,
        "deposition_id": deposition_id(alignment.by_community),
        "affine_transformation_matrix": IDENTITY,
        "tilt_offset": 0,
        "x_rotation_offset": 0,
        "volume_dimension": dict(zip("xyz", alignment.volume_angst, strict=True)),
        "volume_offset": {"x": 0, "y": 0, "z": 0},
        "alignment_path": next(iter(files)),
        "tiltseries_path": f"{parent(run.tilt_series_stem)}/tiltseries_metadata.json",
        "files": list(files),
        "per_section_alignment_parameters": sections,
    }
    yield from files.items()
    yield f"{alignment.folder}/alignment_metadata.json", _json(metadata)


def _aretomo_texts(run: RunRecord, alignment: AlignmentRecord) -> dict[str, str]:
    width, height = run.scene.plan.image_size_px
    lines = ["# AreTomo Alignment / Priims bprmMn", f"# RawSize = {width} {height} {run.scene.n_tilts}"]
    lines.append("# NumPatches = 0")
    dark = sorted(set(range(run.scene.n_tilts)) - set(alignment.z_index.tolist()))
    lines += [f"# DarkFrame = {z:5d} {z + 1:5d} {run.scene.raw_tilt_deg[z]:9.2f}" for z in dark]
    lines += ["# AlphaOffset =     0.00", "# BetaOffset =     0.00"]
    lines.append(
        "# SEC     ROT         GMAG       TX          TY      SMEAN     SFIT    SCALE     BASE     TILT"
    )
    for row in range(len(alignment.z_index)):
        x, y = alignment.shift_px[row]
        lines.append(
            f"{row:5d} {alignment.axis_deg[row]:12.6f} {1:10.5f} {x:12.6f} {y:12.6f} "
            f"{1:8.2f} {1:8.2f} {1:8.2f} {0:8.2f} {alignment.tilt_deg[row]:11.6f}"
        )
    return {f"{run.scene.name}.aln": _lines(lines)}


def _imod_texts(run: RunRecord, alignment: AlignmentRecord) -> dict[str, str]:
    """IMOD maps the raw image to the aligned one, and has a row for every section, used or not."""
    scene, name = run.scene, run.scene.name
    row_of = {int(z): row for row, z in enumerate(alignment.z_index)}
    xf = []
    for z in range(scene.n_tilts):
        row = row_of.get(z, 0)
        inverse = np.array(alignment.in_plane_rotation(row)).T
        values = [*inverse.ravel(), *(-inverse @ alignment.shift_px[row])]
        xf.append("".join(f"{value:15.9f}" for value in values))
    tilts = [
        alignment.tilt_deg[row_of[z]] if z in row_of else scene.raw_tilt_deg[z] for z in range(scene.n_tilts)
    ]
    excluded = ",".join(str(z + 1) for z in range(scene.n_tilts) if z not in row_of)
    command = [
        "$tilt -StandardInput",
        f"TILTFILE {name}.tlt",
        f"XTILTFILE {name}.xtilt",
        f"FULLIMAGE {scene.plan.image_size_px[0]} {scene.plan.image_size_px[1]}",
        "OFFSET 0.0",
        "XAXISTILT 0.0",
        "SHIFT 0.0 0.0",
        *([f"EXCLUDELIST2 {excluded}"] if excluded else []),
    ]
    return {
        f"{name}.xf": _lines(xf),
        f"{name}.tlt": _lines(f"{tilt:12.6f}" for tilt in tilts),
        f"{name}.xtilt": _lines(f"{tilt:12.6f}" for tilt in scene.x_tilt_deg),
        f"{name}_tilt.com": _lines(command),
    }


def _tomogram_metadata(run: RunRecord, tomogram: TomogramRecord) -> dict[str, Any]:
    return {
        "run_name": run.scene.name,
        "voxel_spacing": run.scene.voxel_spacing_angst(tomogram.voxel_binning),
        "size": dict(zip("xyz", tomogram.size, strict=True)),
        "offset": {"x": 0, "y": 0, "z": 0},
        "processing": tomogram.processing,
        "reconstruction_method": "WBP",
        "reconstruction_software": "simulated",
        "affine_transformation_matrix": IDENTITY,
        "omezarr_dir": f"{tomogram.folder}/{run.scene.name}.zarr",
        "alignment_metadata_path": f"{run.alignments[tomogram.alignment].folder}/alignment_metadata.json",
    }


def _annotation_documents(run: RunRecord, annotation: AnnotationRecord) -> Iterator[tuple[str, str]]:
    plan = annotation.particles.plan
    metadata = {
        "annotation_object": {
            "id": phantom(plan.object_name).object_id,
            "name": plan.object_name,
            "description": None,
            "state": None,
        },
        "annotation_method": "simulated picks",
        "method_type": "simulated",
        "authors": AUTHORS,
        "dates": DATES,
        "ground_truth_status": plan.ground_truth,
        "object_count": len(annotation.particles.centres_angst),
        "deposition_id": deposition_id(plan.by_community),
        "alignment_metadata_path": f"{run.alignments[run.true_alignment].folder}/alignment_metadata.json",
        "files": [
            {"format": "ndjson", "path": annotation.path(shape), "shape": shape} for shape in plan.shapes
        ],
        "version": "1.0",
    }
    yield f"{annotation.stem}.json", _json(metadata)
    for shape in plan.shapes:
        yield annotation.path(shape), picks_text(annotation, shape)


def _json(content: Any) -> str:
    return json.dumps(content, indent=2) + "\n"


def _lines(lines: Any) -> str:
    return "".join(f"{line}\n" for line in lines)
