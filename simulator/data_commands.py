"""``wardround data``: check a folder, prepare it, or make phantoms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..datasets.cache import Preparation
from ..datasets.check import Finding, check
from ..datasets.contract import Case, DataError, Federation, Pool, has_classes, with_masks
from ..datasets.facts import Facts, no_facts
from ..datasets.image_check import ImageFinding, check_images, leaks, repeated, sides_of
from ..datasets.image_phantom import ImagePhantom, write_image_phantom
from ..datasets.images import ImagePreparation
from ..datasets.partition import Natural
from ..datasets.phantom import Phantom, write_phantom
from ..datasets.split import Split, cases_by_side
from .builder import build, resolve
from .data_settings import DataSettings
from .progress import counting
from .randomness import streams
from .reports.data import write_data_report
from .reports.data_tables import federation_rows, text
from .reports.image_data import image_rows, write_image_report
from .reports.image_data import text as image_text

NO_SITES = "all"
"""What the one hospital is called that has the cases of a data set without sites, until a partition is chosen."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What a check has to say, and whether something is wrong."""

    text: str
    problems: bool


def check_data(settings: DataSettings, root: Path | None, *, report: Path | None, images: bool, quiet: bool) -> Checked:
    """Reads every case and says everything that is wrong, or who has what.

    Args:
        settings: The data and its split.
        root: The folder; None: as the data set finds it.
        report: Page to write; None: none.
        images: Whether the page may hold slices or images.
        quiet: No progress bar.

    Raises:
        ValueError: there is no such folder, or nothing in it.
    """
    folder = settings.data.locate(root)
    if report is not None:
        _check_target(report)
    check_it = _check_images if has_classes(settings.data) else _check_volumes
    return check_it(settings, folder, report, images, quiet)


def _check_volumes(settings: DataSettings, folder: Path, report: Path | None, images: bool, quiet: bool) -> Checked:
    dataset = with_masks(settings.data)
    with counting("reading", quiet=quiet) as announce:
        finding = check(dataset, folder, announce, _kept(settings.split))
    federation, torn = _federation(settings, folder, finding, lambda case: finding.facts[case.name])
    finding = replace(finding, problems=(*finding.problems, *torn))
    if report is not None:
        write_data_report(report, dataset, finding, federation, images=images, split=_made_by(settings))
    table = text(federation_rows(federation, finding.facts), finding.pool.classes)
    return _checked(settings, folder, finding, table, report)


def _check_images(settings: DataSettings, folder: Path, report: Path | None, images: bool, quiet: bool) -> Checked:
    assert has_classes(settings.data)
    with counting("reading", quiet=quiet) as announce:
        finding = check_images(settings.data, folder, announce, _kept(settings.split))
    federation, torn = _federation(settings, folder, finding, no_facts)
    leaking = leaks(finding.same, sides_of(federation))
    remarks = (*finding.remarks, *repeated(finding.same, finding.pool.classes))
    finding = replace(finding, problems=(*finding.problems, *torn, *leaking), remarks=remarks)
    if report is not None:
        write_image_report(report, settings.data, finding, federation, images=images, split=_made_by(settings))
    table = image_text(image_rows(federation, finding.sizes), finding.pool.classes)
    return _checked(settings, folder, finding, table, report)


def _checked(
    settings: DataSettings, folder: Path, finding: Finding | ImageFinding, table: str, report: Path | None
) -> Checked:
    """What is printed: the problems, or else the table, then the remarks."""
    told = _problems_told(folder, finding) or table
    remarks = [f"remark: {remark}" for remark in [*finding.remarks, *_without_sites(settings, finding.pool)]]
    written = [] if report is None else ["", f"report: {report}"]
    return Checked(text="\n".join([told, *remarks, *written]), problems=bool(finding.problems))


def _made_by(settings: DataSettings) -> dict[str, object]:
    """The settings that made the hospitals."""
    return {**resolve(settings.split), "split_seed": settings.split_seed}


def _check_target(report: Path) -> None:
    """Before an hour of reading: a page can be written there."""
    if report.is_dir() or not report.resolve().parent.is_dir():
        raise ValueError(f"{report}: expected a file to write in a folder that is there")


def _kept(split: Split) -> list[Literal["side", "site"]]:
    """What a split takes over from the data set."""
    sides: list[Literal["side", "site"]] = ["side"] if split.test_fraction is None else []
    return [*sides, "site"] if isinstance(split.partition, Natural) else sides


def _problems_told(folder: Path, finding: Finding | ImageFinding) -> str:
    """Every problem in a line of its own, below their number; empty where there are none."""
    if not finding.problems:
        return ""
    number = len(finding.problems)
    looked_at = len(finding.pool.cases)
    head = f"{folder}: {number} problem{'s' * (number > 1)}, {looked_at} case{'s' * (looked_at != 1)} looked at"
    return "\n  ".join([head, *finding.problems])


def _federation(
    settings: DataSettings, folder: Path, finding: Finding | ImageFinding, facts: Callable[[Case], Facts]
) -> tuple[Federation, list[str]]:
    """Who gets what; for a pool with problems, or without sites, one hospital per site."""
    pool = finding.pool
    by_site = _by_site(pool)
    if finding.problems:
        return by_site, []
    if _without_sites(settings, pool):
        return by_site, []
    try:
        rng = streams(settings.split_seed, "split")
        return settings.split.federation(pool, folder, rng, facts), []
    except DataError as error:
        return by_site, list(error.problems)


def _without_sites(settings: DataSettings, pool: Pool) -> list[str]:
    """A line where nobody says which hospital has which case."""
    if not isinstance(settings.split.partition, Natural) or any(case.site is not None for case in pool.cases):
        return []
    return ["the data set has no sites: to run, make hospitals with split.partition={name: iid, hospitals: 3}"]


def _by_site(pool: Pool) -> Federation:
    """One hospital per site, all cases in training that the data set does not use otherwise."""
    sites: dict[str, list[Case]] = {}
    for case in pool.cases:
        sites.setdefault(case.site or NO_SITES, []).append(case)
    hospitals = {
        name: cases_by_side(cases, {case.name: case.side or "train" for case in cases})
        for name, cases in sorted(sites.items())
    }
    return Federation(hospitals=hospitals, classes=pool.classes)


def prepare_data(settings: DataSettings, root: Path | None, *, quiet: bool) -> str:
    """Writes the prepared volumes or images of all hospitals into the cache, those that are not there yet.

    Returns:
        What was done, in a line.
    """
    folder = settings.data.locate(root)
    pool = settings.data.pool(folder)
    if pool.problems:
        raise DataError(folder, pool.problems)
    preparation = _preparation(settings, len(pool.classes))
    with counting("preparing", quiet=quiet) as announce:
        try:
            made = preparation.prepare_all(pool.cases, announce)
        except DataError as error:
            raise ValueError(f"{error}\n`wardround data check` lists the problems of all cases") from error
    there = len(pool.cases) - made
    things = "images" if has_classes(settings.data) else "volumes"
    return f"{made} {things} prepared, {there} were there already; cache: {preparation.folder}"


def _preparation(settings: DataSettings, num_classes: int) -> Preparation | ImagePreparation:
    """How the volumes or images of a data set are prepared."""
    if has_classes(settings.data):
        return ImagePreparation(dataset=settings.data, image_size=settings.image_size)
    return Preparation(
        dataset=with_masks(settings.data),
        num_classes=num_classes,
        image_size=settings.image_size,
        windows=settings.windows,
    )


def make_phantom(layout: str, out: Path, settings: Mapping[str, Any], *, quiet: bool) -> str:
    """Writes a phantom federation: of images, or of volumes in a layout.

    Returns:
        What was made and how to use it.
    """
    phantom: ImagePhantom | Phantom
    with counting("writing", quiet=quiet) as announce:
        if layout == "images":
            phantom = build(ImagePhantom, settings)
            write_image_phantom(phantom, out, announce)
        else:
            phantom = build(Phantom, {"layout": layout, **settings})
            write_phantom(phantom, out, announce)
    clip = " --set data.clip=common" if layout == "fed_kits19" else ""
    return f"{out}: {phantom.hospitals} hospitals; look at them with `wardround data check {layout} --root {out}{clip}`"
