"""The page of a data check, made from volumes that this file has in memory."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from outline import Outline

from wardround.datasets.check import Finding, check
from wardround.datasets.contract import Case, Cases, Federation, Pool, Volume
from wardround.datasets.facts import Facts, describe
from wardround.simulator.reports.data import (
    STEPS,
    Group,
    common_axis,
    largest_slice,
    median_case,
    shares_on,
    write_data_report,
)

CLASSES = ("kidney", "tumour")


@dataclass(frozen=True, kw_only=True)
class Ward:
    """Two sites whose images differ in their intensities.

    Args:
        cases: Per site.
        brighter: What one site's intensities are multiplied with from the one before.
    """

    cases: int = 3
    sites: int = 2
    brighter: float = 2.0

    def locate(self, root: Path | None) -> Path:
        return root or Path()

    def pool(self, root: Path) -> Pool:
        found = []
        for site in range(self.sites):
            for number in range(self.cases):
                name = f"secret_{site:02d}_{number}"
                paths = {"image": root / f"{name}.nii", "label": root / f"{name}-mask.nii"}
                found.append(Case(name=name, patient=name, site=f"ward-{site:02d}", **paths))
        return Pool(cases=tuple(found), classes=CLASSES)

    def volume(self, case: Case) -> Volume:
        """A ball in noise that grows with the number of the case; its image is flat outside of the body."""
        _, site, number = case.name.split("_")
        draw = np.random.default_rng([int(site), int(number)])
        place = np.mgrid[:5, :16, :12] - np.array([3, 8, 6]).reshape(3, 1, 1, 1)
        distance = np.sqrt((place.astype(float) ** 2).sum(axis=0))
        label = (distance < 3 + int(number)).astype(np.uint8) + (distance < 2)
        image = (10 + label + draw.random(label.shape)) * (distance < 7) * self.brighter ** int(site)
        return Volume(
            case=case,
            image=image.astype(np.float32),
            label=label.astype(np.uint8),
            spacing_mm=(5.0, 1.0, 1.5),
            slice_axis=0,
        )


def by_site(pool: Pool) -> Federation:
    hospitals: dict[str, Cases] = {}
    for name in sorted({str(case.site) for case in pool.cases}):
        cases = tuple(case for case in pool.cases if case.site == name)
        hospitals[name] = Cases(train=cases[:-1], validation=(), test=cases[-1:])
    return Federation(hospitals=hospitals, classes=pool.classes)


def made(folder: Path, ward: Ward, *, images: bool = True, **changes: tuple[str, ...]) -> str:
    finding = replace(check(ward, folder), **changes)  # type: ignore[arg-type]  # lines only
    path = folder / "public" / "page.html"
    assert write_data_report(path, ward, finding, by_site(finding.pool), images=images) == path
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    return made(tmp_path_factory.mktemp("data"), Ward())


def test_the_page_is_well_formed_and_fetches_nothing(html: str) -> None:
    outline = Outline(html)
    assert not {name for name, _ in outline.elements} & {"script", "link", "iframe", "object", "base", "form"}
    assert all(str(image["src"]).startswith("data:image/png;base64,") for image in outline.all("img"))
    assert not re.search(r"url\((?!#)", html)
    assert "@import" not in html
    ids = [str(attributes["id"]) for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_all_parts_are_there_with_text_alternatives(html: str) -> None:
    assert re.findall(r"<h2>([^<]*)</h2>", html) == [
        "Who has what", "Slices", "Intensities", "Settings of the data set",
    ]  # fmt: skip
    outline = Outline(html)
    assert [image["alt"] for image in outline.all("img")] == [
        "Slice with the outlines of its mask, ward-00: secret_00_1, slice 3 of 5",
        "Slice with the outlines of its mask, ward-01: secret_01_1, slice 3 of 5",
    ]
    drawings = outline.all("svg")
    assert len(drawings) == 1 + 2  # who got what, two histograms
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in drawings)
    assert '<dd class="note">all of them were read</dd>' in html
    assert ">kidney</li>" in html.replace("</span> ", ">")
    assert "<dt>brighter</dt><dd>2.0</dd>" in html


def test_one_more_volume_is_read_per_hospital(tmp_path: Path) -> None:
    read: Counter[str] = Counter()

    class Counted(Ward):
        def volume(self, case: Case) -> Volume:
            read[case.name] += 1
            return super().volume(case)

    made(tmp_path, Counted())
    assert sorted(read.values()) == [1, 1, 1, 1, 2, 2]


def test_without_images_no_slice_and_no_case_is_on_the_page(tmp_path: Path) -> None:
    text = made(tmp_path, Ward(), images=False)
    assert "data:image" not in text
    assert "secret" not in text
    assert "were left out of this page on request" in text
    Outline(text)


def test_the_same_data_give_the_same_bytes(tmp_path: Path, html: str) -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": "other"}):
        assert made(tmp_path, Ward()) == html


def test_problems_and_remarks_are_listed_and_escaped(tmp_path: Path, html: str) -> None:
    text = made(tmp_path, Ward(), problems=("a<b>: bad", "c: worse"), remarks=("d: odd",))
    assert re.findall(r"<li style[^>]*>([^<]*)</li>", text) == ["a&lt;b&gt;: bad", "c: worse", "d: odd"]
    assert "cannot be trained on" in text
    assert "cannot be trained on" not in html
    Outline(text)


def test_cases_without_facts_are_left_out(tmp_path: Path) -> None:
    ward = Ward()
    finding = check(ward, tmp_path)
    some = {name: facts for name, facts in finding.facts.items() if not name.startswith("secret_01")}
    del some["secret_00_0"]
    path = tmp_path / "page.html"
    write_data_report(path, ward, replace(finding, facts=some), by_site(finding.pool))
    text = path.read_text(encoding="utf-8")
    assert "4 of them without facts" in text
    assert [image["alt"] for image in Outline(text).all("img")] == [
        "Slice with the outlines of its mask, ward-00: secret_00_1, slice 3 of 5"
    ]
    write_data_report(path, ward, replace(finding, facts={}), by_site(finding.pool))
    assert not {"img", "svg"} & {name for name, _ in Outline(path.read_text(encoding="utf-8")).elements}


def test_common_cases_and_sites_that_do_not_train(tmp_path: Path) -> None:
    ward = Ward(sites=3)
    finding = check(ward, tmp_path)
    federation = by_site(finding.pool)
    hospitals = dict(federation.hospitals)
    common, unseen = hospitals.pop("ward-01"), hospitals.pop("ward-02")
    federation = replace(
        federation, hospitals=hospitals, common=common.train + common.test, unseen={"ward-02": unseen.test}
    )
    path = write_data_report(tmp_path / "page.html", ward, finding, federation)
    text = path.read_text(encoding="utf-8")
    assert "1 more do not train, 3 common test cases" in text
    shown = [re.sub(", slice .*", "", str(image["alt"])) for image in Outline(text).all("img")]
    assert [alt.removeprefix("Slice with the outlines of its mask, ") for alt in shown] == [
        "ward-00: secret_00_1",
        "ward-02 (unseen): secret_02_2",
        "common test set: secret_01_1",
    ]


def test_many_hospitals(tmp_path: Path) -> None:
    text = made(tmp_path, Ward(sites=10, cases=2, brighter=1.0))
    assert "2 more slices" in text
    assert "2 more histograms" in text
    assert len(text) < 1_500_000
    Outline(text)


def some_facts(values: NDArray[np.float32], label: NDArray[np.uint8] | None = None) -> Facts:
    case = Case(name="a", patient="a", image=Path("a"), label=Path("a"))
    label = np.zeros(values.shape, np.uint8) if label is None else label
    return describe(Volume(case=case, image=values, label=label, spacing_mm=(1.0, 1.0, 1.0), slice_axis=0), 2)


def grey(low: float, high: float, zeros: int = 0) -> Facts:
    """Values evenly spread from low to high, and so many percent zeros."""
    values = np.linspace(low, high, 20_000)
    values[: 200 * zeros] = 0
    return some_facts(values.reshape(20, 100, 10).astype(np.float32))


def test_the_case_in_the_middle() -> None:
    """Labels of 3, 1 and 2 voxels; of two cases the smaller."""
    named, label = {}, np.zeros((1, 2, 2), np.uint8)
    for number, voxels in enumerate((3, 1, 2)):
        label.flat[:voxels], label.flat[voxels:] = 1, 0
        named[f"c{number}"] = some_facts(np.ones(label.shape, np.float32), label)
    cases = tuple(Case(name=name, patient="p", image=Path(name), label=Path(name)) for name in named)
    assert median_case(Group(name="X", cases=cases, facts=named)) == cases[2]
    assert median_case(Group(name="X", cases=cases[:2], facts=named)) == cases[1]


def test_the_slice_with_the_largest_area() -> None:
    label = np.zeros((5, 4, 4), np.uint8)
    case = Case(name="a", patient="a", image=Path("a"), label=Path("a"))
    volume = Volume(case=case, image=np.zeros((5, 4, 4), np.float32), label=label, spacing_mm=(1, 1, 1), slice_axis=0)
    assert largest_slice(volume) == 2
    label[1, :2], label[3, :3], label[4, :3] = 1, 2, 1
    assert largest_slice(volume) == 3


def test_alike_conventions_share_a_linear_axis() -> None:
    axis = common_axis([grey(0, 100), grey(-50, 1900)])
    assert axis.linear_width is None
    assert (axis.edges[0], axis.edges[-1]) == pytest.approx((-50 + 0.005 * 1950, 1900 - 0.005 * 1950), rel=1e-3)
    assert np.ptp(np.diff(axis.edges)) < 1e-9


def test_other_conventions_share_a_logarithmic_axis() -> None:
    """99.5 and 99.5e3: from 100 on, ten times the intensity is as far as from 1000 on."""
    axis = common_axis([grey(0, 100), grey(0, 100_000)])
    assert axis.linear_width == pytest.approx(99.5 / 50, rel=1e-3)
    place = np.interp([1e2, 1e3, 1e4], axis.edges, np.arange(STEPS + 1))
    assert place[1] - place[0] == pytest.approx(place[2] - place[1], rel=0.02)


def test_shares_on_the_common_axis() -> None:
    """Evenly spread from 0 to 50 on an axis from about 0 to 100: the lower half of the bins share all, equally.

    The first bin also holds the 1 % or less that lie below the axis.
    """
    half = grey(0, 50)
    axis = common_axis([half, grey(0, 100)])
    shares = shares_on(axis, half)
    assert shares.sum() == pytest.approx(1)
    assert shares[1:47] == pytest.approx(2 / STEPS, rel=0.1)
    assert shares[50:] == pytest.approx(0, abs=1e-9)
    beyond = shares_on(common_axis([half]), grey(0, 100))
    assert beyond.sum() == pytest.approx(1)
    assert beyond[-1] == pytest.approx(0.5, abs=0.02)


def test_a_background_stays_where_it_is() -> None:
    """60 % zeros in an image up to 1e5, whose bins are 1562 wide: on the logarithmic axis they are at zero."""
    bright = grey(0, 100_000, zeros=60)
    shares = shares_on(common_axis([grey(0, 100), bright]), bright)
    assert shares[0] == pytest.approx(0.6, abs=0.01)
    assert shares[1:40] == pytest.approx(0, abs=1e-9)


def test_one_value_everywhere_can_be_drawn(tmp_path: Path) -> None:
    class Flat(Ward):
        def volume(self, case: Case) -> Volume:
            volume = super().volume(case)
            return replace(volume, image=np.zeros_like(volume.image))

    ward = Flat(sites=1)
    finding = check(ward, tmp_path)
    assert isinstance(finding, Finding)
    assert len(finding.remarks) == 3
    path = write_data_report(tmp_path / "page.html", ward, finding, by_site(finding.pool))
    assert "Data check: Flat" in path.read_text(encoding="utf-8")
