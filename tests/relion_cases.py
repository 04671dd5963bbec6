"""The reference cases: where they are, and how RELION's arguments become ours."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
SHARED = HERE.parents[1] / "shared" / "testdata"

# RELION's option: ours, and whether a value follows
OPTIONS = {
    "--i": ("--optimisation-set", True),
    "--p": ("--particles-starfile", True),
    "--t": ("--tomograms-starfile", True),
    "--mot": ("--trajectories-starfile", True),
    "--b": ("--box-size", True),
    "--crop": ("--crop-size", True),
    "--bin": ("--bin", True),
    "--max_dose": ("--max-dose", True),
    "--min_frames": ("--min-frames", True),
    "--float16": ("--float16", False),
    "--no_ctf": ("--no-ctf", False),
    "--no_circle_crop": ("--no-circle-crop", False),
    "--circle_precrop": ("--circle-precrop", False),
    "--no_ic": ("--no-ic", False),
    "--whiten": ("--whiten", False),
    "--grid_precorr": ("--grid-precorr", False),
    "--dont_apply_offsets": ("--dont-apply-offsets", False),
    "--apply_orientations": ("--apply-orientations", False),
    "--multi": ("--write-multiplicity", False),
    "--ctf": ("--write-ctf", False),
    "--nrm": ("--write-normalised", False),
    "--div": ("--write-divided", False),
    "--no_comb": ("--no-combined", False),
    "--SNR": ("--snr", True),
    "--taper": ("--taper", True),
    "--no_center": ("--no-center", False),
    "--cone_weight": ("--cone-weight", False),
    "--cone_angle": ("--cone-angle", True),
    "--cone_sig0": ("--cone-sig0", True),
    "--cutoff_fract": ("--cutoff-fract", True),
    "--sum": ("--sum", False),
    "--no_writing": ("--no-writing", False),
    "--sym": ("--sym", True),
    "--nr_helical_asu": ("--helical-nr-asu", True),
    "--helical_rise": ("--helical-rise", True),
    "--helical_twist": ("--helical-twist", True),
}


@dataclass(frozen=True)
class Case:
    """One case of a reference project."""

    project: Path
    name: str
    program: str
    args: tuple[str, ...]

    @property
    def expected(self) -> Path:
        return self.project / "expected" / self.name

    def __str__(self) -> str:
        return f"{self.project.name}-{self.name}"


def cases(root: Path, prefix: str) -> list[Case]:
    """All cases below a folder of reference projects whose name starts with a prefix."""
    recorded = [
        (path.parent, case)
        for path in sorted(root.glob("*/cases.json"))
        for case in json.loads(path.read_text())["cases"]
    ]
    return [
        Case(folder, case["name"], case["program"], tuple(case["args"]))
        for folder, case in recorded
        if case["name"].startswith(prefix) and (folder / "expected" / case["name"]).is_dir()
    ]


def our_arguments(relion_args: tuple[str, ...], program: str = "relion_tomo_subtomo") -> list[str]:
    """Translate RELION's arguments; an option that has no translation is an error."""
    ours, rest = [], [name for name in relion_args if name != "--stack2d"]
    if "--stack2d" not in relion_args and "reconstruct" not in program:
        ours += ["--output-mode", "volume3d"]
    while rest:
        name = rest.pop(0)
        option, has_value = OPTIONS[name]
        ours.append(option)
        if has_value:
            ours.append(rest.pop(0))
    return ours


def tool(name: str) -> ModuleType:
    """Import one of the comparison tools."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, HERE / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def differences(case: Case, out: Path, ignored: tuple[str, ...] = ()) -> list[str]:
    """What a comparison at the recorded tolerances finds wrong with an output folder."""
    compare = tool("compare_relion")
    record = next(
        c for c in json.loads((case.project / "cases.json").read_text())["cases"] if c["name"] == case.name
    )
    floor = record["noise_floor"]
    extra = {
        kind: {key: floor[key] + 4 * value[key] for key in ("max", "rms")}
        for kind, value in record["rounding"].items()
    }
    results = compare.compare_folders(out, case.expected, extra=extra, ignored=["report*", *ignored])
    assert any(Path(r.name).suffix in compare.MRC_SUFFIXES for r in results), "no image was compared"
    return [f"{r.name}: {e}" for r in results for e in r.errors]
