"""``wardround data`` for images with a class each: what it prints, what it writes, and how it ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wardround.datasets.contract import Case, Cases, Federation
from wardround.simulator.cli import main
from wardround.simulator.reports.image_data import histograms, holdings, image_rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two sites with 5 nevi and 3 melanomas each, one picture per patient."""
    noise = np.random.default_rng(0)
    for site in ("north", "south"):
        for kind, number in (("nevus", 5), ("melanoma", 3)):
            (tmp_path / "images" / site / kind).mkdir(parents=True)
            for place in range(number):
                picture = Image.fromarray(noise.integers(0, 256, (12, 16, 3), dtype=np.uint8))
                picture.save(tmp_path / "images" / site / kind / f"{site}{place}.png")
    return tmp_path / "images"


def command(verb: str, folder: Path, *settings: str) -> list[str]:
    return ["data", verb, "images", "--root", str(folder), "--quiet", *(w for s in settings for w in ("--set", s))]


def rows(printed: str) -> list[list[str]]:
    return [line.split() for line in printed.splitlines()]


def test_check_prints_the_classes_of_every_hospital_and_draws_them(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main([*command("check", folder), "--report", str(page)]) == 0
    printed = rows(capsys.readouterr().out)
    assert ["hospital", "train", "test", "patients", "rows", "columns"] in printed
    assert printed.count(["north", "6", "2", "8", "12", "16"]) == 1
    assert ["all", "6", "10", "16"] in printed  # melanoma, nevus
    html = page.read_text()
    assert html.count("data:image/png") == 2  # a sheet of pictures per hospital
    assert 'aria-label="Images per class and hospital, train: 12 in all.' in html
    assert 'aria-label="Images per class and hospital, test: 4 in all.' in html
    assert main([*command("check", folder), "--report", str(page), "--no-images"]) == 0
    assert "data:image/png" not in page.read_text()


def test_check_shows_a_skew_set_by_hand(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 6 melanomas 5 at a; of 10 nevi 5 at each."""
    skew = "split.partition={name: skew, shares: {a: {melanoma: 0.8}, b: {}}}"
    assert main(command("check", folder, skew, "split.test=common", "split.test_fraction=0.01")) == 0
    printed = rows(capsys.readouterr().out)
    a, b = (next(row for row in printed if row[:2] == [f"{name},", "train"]) for name in "ab")
    assert int(a[2]) >= 4
    assert int(b[2]) == 1
    assert main(command("check", folder, skew.replace("melanoma", "melanom"))) == 2
    assert "expected some of the classes ['melanoma', 'nevus'], got ['melanom'] too" in capsys.readouterr().err


def test_check_lists_every_planted_fault_and_ends_with_two(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "north" / "nevus" / "north0.png").write_bytes(b"no picture")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(folder / "south" / "nevus" / "south1.png")
    assert main(command("check", folder)) == 2
    told = capsys.readouterr().err
    assert "2 problems, 16 cases looked at" in told
    assert "north/nevus/north0.png: expected a picture" in told
    assert "south/nevus/south1.png: expected 8 bits per channel" in told


def test_a_picture_in_train_and_test_is_a_problem(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every picture of the south comes again in the north: some of them are on the other side."""
    for path in sorted((folder / "south").rglob("*.png")):
        (folder / "north" / path.parent.name / f"again-{path.name}").write_bytes(path.read_bytes())
    assert main(command("check", folder, "split.test_fraction=0.5")) == 2
    told = capsys.readouterr().err
    assert "expected a test image of its own, got the pixels of" in told
    assert "remark: images with the pixels of another one: 8" in told


def test_prepare_does_what_is_left_to_do(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command("prepare", folder, "image_size=8")) == 0
    assert capsys.readouterr().out.startswith("16 images prepared, 0 were there already")
    assert main(command("prepare", folder, "image_size=8", "split.partition={name: iid, hospitals: 3}")) == 0
    assert capsys.readouterr().out.startswith("0 images prepared, 16 were there already")
    assert main(command("prepare", folder, "image_size=9")) == 0
    assert capsys.readouterr().out.startswith("16 images prepared")
    (folder / "north" / "nevus" / "north0.png").write_bytes(b"no picture")
    assert main(command("prepare", folder, "image_size=8")) == 2
    assert "`wardround data check` lists the problems of all cases" in capsys.readouterr().err


def test_tables_by_hand() -> None:
    """One hospital with all sides, an unseen one, and a common test set; of the second image nothing is known."""

    def case(name: str, target: int) -> Case:
        return Case(name=name, patient=name[0], image=Path(name), label=Path(name), target=target)

    own = Cases(train=(case("a1", 0), case("a2", 1)), validation=(case("b1", 1),), test=(case("c1", 0),))
    federation = Federation(
        hospitals={"x": own}, classes=("k", "l"), common=(case("d1", 1),), unseen={"y": (case("e1", 1),)}
    )
    made = image_rows(federation, {"a1": (3, 4), "b1": (5, 4), "c1": (3, 4), "d1": (3, 4), "e1": (3, 4)})
    assert holdings(made).header == ("hospital", "train", "validation", "test", "unseen", "patients", "rows", "columns")
    assert holdings(made).rows == (
        ("x", "2", "1", "1", "0", "3", "3-5", "4"),
        ("y", "0", "0", "0", "1", "1", "3", "4"),
        ("common test set", "0", "0", "1", "0", "1", "3", "4"),
    )
    assert holdings(made).footer == (("all", "2", "1", "2", "1", "5", "3-5", "4"),)
    assert "1 image could not be read" in holdings(made).note
    assert histograms(made, ("k", "l")).rows[0] == ("x, train", "1", "1", "2")
    assert histograms(made, ("k", "l")).footer == (("all", "2", "4", "6"),)
