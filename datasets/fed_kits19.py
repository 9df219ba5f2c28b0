"""Fed-KiTS19: kidneys and their tumours in CT, six hospitals, 96 of the 210 labelled cases of the KiTS19 challenge.

Layout::

    <root>/data/case_00000/imaging.nii.gz        or <root>/case_00000/..., or .nii
    <root>/data/case_00000/segmentation.nii.gz   0 background, 1 kidney, 2 tumour
    <root>/thresholded_sites.csv                 case_ids,site_ids,train_test_split: your own federation (optional)

Slices lie along the first axis of the array. Who has which case, and what for, is FLamby's split; its 96 rows are in
``fed_kits19.csv`` beside this file. A table in the root replaces them.

Data card: docs/data/fed_kits19.md. Source: Heller et al., The KiTS19 Challenge Data, arXiv 1904.00445; Ogier du Terrail
et al., FLamby, NeurIPS 2022.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from .contract import Case, DataError, Pool, ReadVolume, Volume
from .folders import Missing, find_folder, make_pool, missing_problems, nifti_files, pair_problems
from .nifti import open_image, read_case, reading_text
from .tables import Row, packaged, read_rows, side_of, table_problems

COLUMNS = ("case_ids", "site_ids", "train_test_split")

SITE_WINDOWS: Mapping[str, tuple[float, float]] = {
    "site-0": (-66.0, 208.0),
    "site-1": (-77.0, 341.0),
    "site-2": (-89.0, 325.0),
    "site-3": (-64.0, 202.0),
    "site-4": (-64.0, 236.0),
    "site-5": (-82.0, 288.0),
}
"""0.5 and 99.5 percentiles of a site's intensities in HU, as FLAP-SAM's released code has them (its sites A to F)."""

COMMON_WINDOW = (-79.0, 304.0)
"""One window for all sites, in HU."""

OWN_PERCENTILES = (0.5, 99.5)
"""Of a volume's own voxels, in percent."""


@dataclass(frozen=True, kw_only=True)
class FedKits19:
    """The KiTS19 images, dealt to FLamby's hospitals ``site-0`` to ``site-5``.

    FLAP-SAM's code also subtracts a mean and divides by a standard deviation of the site. The min-max that ends every
    preprocessing here undoes both, so they are not computed.

    Args:
        clip: Window of intensities. ``site``: the percentiles of the case's site; ``common``: [-79, 304] HU for all;
            ``own``: the 0.5 and 99.5 percentiles of the volume.
        missing: What to do about a listed case whose files are not there: ``refuse``, or ``skip`` the case.
    """

    classes: ClassVar[tuple[str, ...]] = ("kidney", "tumour")

    clip: Literal["site", "common", "own"] = "site"
    missing: Missing = "refuse"

    def __post_init__(self) -> None:
        problems = missing_problems(self.missing)
        if self.clip not in ("site", "common", "own"):
            problems.insert(0, f"clip: expected site, common or own, got {self.clip!r}")
        if problems:
            raise ValueError("; ".join(problems))

    def locate(self, root: Path | None) -> Path:
        """The folder with the cases or with ``data/``: ``root`` or the environment's WARDROUND_DATA, or one in it.

        Raises:
            ValueError: there is none.
        """
        return find_folder(
            root,
            holds=lambda folder: (folder / "thresholded_sites.csv").is_file() or _holds_cases(folder),
            names=("kits19", "fed_kits19", "fed_kits"),
            expected="KiTS19's data/case_00000/imaging.nii.gz and segmentation.nii.gz",
            source="the images come with https://github.com/neheller/kits19 (docs/data/fed_kits19.md)",
        )

    def pool(self, root: Path) -> Pool:
        """The cases of the table; other cases of KiTS19 take no part.

        Raises:
            ValueError: the table cannot be read, or none of its cases is here.
        """
        own = root / "thresholded_sites.csv"
        table = own if own.is_file() else packaged("fed_kits19.csv")
        rows = read_rows(table, COLUMNS)
        problems = [*table_problems(table, rows, ("case_ids",)), *self._row_problems(table, rows)]
        sites = _site_names(rows)
        cases = []
        for name, row in {row["case_ids"]: row for row in rows if row["case_ids"]}.items():
            image, label = _find(root, name, "imaging"), _find(root, name, "segmentation")
            folder = (root / "data" if (root / "data").is_dir() else root) / name
            expected = (folder / "imaging.nii.gz", folder / "segmentation.nii.gz")
            problems += pair_problems(image, label, expected, f"a case of {table.name}", self.missing)
            if len(image) == len(label) == 1:
                cases.append(_case(row, sites.get(row["site_ids"]), image[0], label[0]))
        return make_pool(root, cases, self.classes, problems)

    def _row_problems(self, table: Path, rows: Sequence[Row]) -> list[str]:
        """Cases without a site or a side; sites without a window."""
        problems = [
            f"{table}: case {row['case_ids']}: expected a site, got none" for row in rows if not row["site_ids"]
        ]
        problems += [
            f"{table}: case {row['case_ids']}: expected train_test_split train or test, got {row['train_test_split']!r}"
            for row in rows
            if side_of(row["train_test_split"]) is None
        ]
        if self.clip == "site":
            problems += [
                f"{table}: {no_window(site)}" for site in _site_names(rows).values() if site not in SITE_WINDOWS
            ]
        return problems

    def volume(self, case: Case) -> Volume:
        """Reads one case, clips it and checks it; slices are in front already.

        Raises:
            DataError: what is wrong with the files; ``clip`` is ``site`` and the site has no window.
        """
        if self.clip == "site" and case.site not in SITE_WINDOWS:
            raise DataError(case.image, [f"{case.name}: {no_window(case.site)}"])
        percentiles, window = self._clipping(case.site)
        return read_case(
            case, slice_axis=0, num_classes=len(self.classes), clip_percentiles=percentiles, clip_range=window
        )

    @property
    def reading(self) -> str:
        """How a file is read, for people who use a model elsewhere."""
        if self.clip == "site":
            windows = "; ".join(f"{site} {low:g} to {high:g}" for site, (low, high) in SITE_WINDOWS.items())
            return f"{reading_text(0)} First every volume is clipped to the window of its site: {windows}."
        return reading_text(0, *self._clipping(None))

    def open_image(self, path: Path, *, site: str | None = None) -> ReadVolume:
        """Checks the header of an image without a mask; what comes back reads it and clips it.

        Raises:
            DataError: what is wrong with the file; ``clip`` is ``site`` and the site has no window.
        """
        if self.clip == "site" and site not in SITE_WINDOWS:
            raise DataError(path, [f"{path}: {which_window(site)}"])
        percentiles, window = self._clipping(site)
        return open_image(path, slice_axis=0, clip_percentiles=percentiles, clip_range=window)

    def _clipping(self, site: str | None) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
        """Percentiles and window that images of a site are clipped to."""
        windows = {"site": SITE_WINDOWS.get(site or ""), "common": COMMON_WINDOW, "own": None}
        return (OWN_PERCENTILES if self.clip == "own" else None), windows[self.clip]


def no_window(site: str | None) -> str:
    """Why a site cannot be clipped to its own window."""
    return (
        f"expected one of the sites {', '.join(SITE_WINDOWS)}, whose percentiles are known, got {site!r}; "
        f"set data.clip to common or own"
    )


def which_window(site: str | None) -> str:
    """Why an image of a site cannot be read by a run that clips every site to its own window."""
    return (
        f"expected an image of one of the sites {', '.join(SITE_WINDOWS)}, to whose percentiles this run clips "
        f"(data.clip: site), got {site!r}; name the hospital that it is of (--hospital)"
    )


def _holds_cases(folder: Path) -> bool:
    return any(path.is_dir() for place in (folder / "data", folder) for path in place.glob("case_*"))


def _find(root: Path, case: str, kind: str) -> list[Path]:
    return [path for folder in (root / "data", root) for path in nifti_files(folder / case, kind)]


def _site_names(rows: Sequence[Row]) -> dict[str, str]:
    """``site-0`` for the number 0, zero-padded so that they sort by number; names stay as they are."""
    sites = {row["site_ids"] for row in rows} - {""}
    width = max((len(site) for site in sites if site.isdecimal()), default=1)
    return {site: f"site-{site.zfill(width)}" if site.isdecimal() else site for site in sorted(sites)}


def _case(row: Row, site: str | None, image: Path, label: Path) -> Case:
    name, side = row["case_ids"], side_of(row["train_test_split"])
    return Case(name=name, patient=name, image=image, label=label, site=site, side=side)
