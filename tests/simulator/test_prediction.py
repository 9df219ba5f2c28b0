"""What a run's model says of files: what its own evaluation said, on their grid; every mistake in one message."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from wardround.datasets.contract import Case, Volume
from wardround.datasets.phantom import Phantom
from wardround.simulator import cli
from wardround.simulator.config import load_resolved
from wardround.simulator.files import read_json
from wardround.simulator.modality import foreign, seen_intensities
from wardround.simulator.prediction import predict
from wardround.simulator.prediction_overlay import legend_texts, shown_slice

Make = Callable[..., Path]

REAL = Path(os.environ.get("WARDROUND_DATA", "")) / "Task04_Hippocampus"

HOSPITALS = ("hospital-1", "hospital-2", "hospital-3")


@pytest.fixture(scope="module")
def make(trained_run: Make) -> Make:
    """Runs an experiment of one round with settings; the same settings once."""

    def ran(*settings: str, name: str = "tiny") -> Path:
        return trained_run("rounds=1", "evaluation.every=null", *settings, name=name)

    return ran


@pytest.fixture(scope="module")
def phantoms() -> Path:
    """The volumes of ``tiny``."""
    return Phantom(hospitals=3, train_cases=2, test_cases=1, size=32, slices=6).locate(None) / "imagesTr"


@pytest.fixture
def one(phantoms: Path, tmp_path: Path) -> Path:
    """A copy of one volume, in a folder of its own."""
    (tmp_path / "in").mkdir()
    return Path(shutil.copy(phantoms / "brain_mr_1_test_01.nii.gz", tmp_path / "in" / "scan.nii.gz"))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def asked(path: Path, images: list[Path], out: Path, **options: object) -> None:
    predict(path, images, out, device="cpu", quiet=True, **options)


# ---- volumes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        ("aggregator=fedper",),
        ("windows.depth=3", "windows.normalise=window", "windows.grid=[4, 24, 20]", "aggregator=fedavg"),
    ],
)
def test_label_maps_are_those_of_the_run(make: Make, phantoms: Path, tmp_path: Path, settings: tuple[str, ...]) -> None:
    """Byte for byte, of the model that each hospital has. FedPer leaves the heads at the hospitals."""
    path = make(*settings)
    own = sorted((path / "predictions").glob("*/*.nii.gz"))
    assert [file.parent.name for file in own] == list(HOSPITALS)
    for file in own:
        asked(path, [phantoms / file.name], tmp_path / file.parent.name, hospital=file.parent.name)
        assert (tmp_path / file.parent.name / file.name).read_bytes() == file.read_bytes()


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not REAL.is_dir(), reason="WARDROUND_DATA does not name a folder with Task04_Hippocampus")
def test_label_maps_of_real_volumes_are_those_of_the_run(make: Make, tmp_path: Path) -> None:
    """Byte for byte, of the test volumes of three sites; after fewer rounds the model finds nothing in them."""
    path = make("rounds=4", name="hippocampus")
    own = sorted((path / "predictions").glob("*/*.nii.gz"))
    assert len({file.parent for file in own}) == 3
    foreground = 0
    for file in own:
        asked(path, [REAL / "imagesTr" / file.name], tmp_path / file.parent.name, hospital=file.parent.name)
        assert (tmp_path / file.parent.name / file.name).read_bytes() == file.read_bytes()
        foreground += np.count_nonzero(nib.load(file).get_fdata())
    assert foreground > 0


def test_a_personal_model_is_not_that_of_a_site_never_seen(make: Make, phantoms: Path, tmp_path: Path) -> None:
    path, name = make("aggregator=fedper"), "brain_mr_2_test_01.nii.gz"
    for where in ("hospital-2", None):
        asked(path, [phantoms / name], tmp_path / str(where), hospital=where, probabilities=True)
    one, other = (
        nib.load(tmp_path / where / "probabilities" / "brain_mr_2_test_01" / "1-edema.nii.gz").get_fdata()
        for where in ("hospital-2", "None")
    )
    assert not np.array_equal(one, other)


def test_a_folder_is_all_its_volumes_and_the_cache_gets_nothing(
    make: Make, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = make("aggregator=fedper"), tmp_path / "in"
    shutil.copytree(phantoms, folder)
    (folder / "._brain_mr_1_test_01.nii.gz").write_bytes(b"a resource fork")
    (folder / "notes.txt").write_text("no volume")
    cache = Path(os.environ["WARDROUND_CACHE"])
    before = {file: file.stat().st_mtime_ns for file in cache.rglob("*")}
    command = ["predict", str(path), str(folder), "--out", str(tmp_path / "out"), "--device", "cpu", "--quiet"]
    assert cli.main(command) == 0
    assert capsys.readouterr().out == f"9 label maps: {tmp_path / 'out'}\n"
    assert names_in(tmp_path / "out") == names_in(phantoms)
    assert {file: file.stat().st_mtime_ns for file in cache.rglob("*")} == before
    assert cli.main(command) == 0, "what is there from an earlier call is written again"


def test_probabilities_are_those_of_the_label_map(make: Make, one: Path, tmp_path: Path) -> None:
    asked(make("aggregator=fedper"), [one], tmp_path / "out", probabilities=True)
    folder = tmp_path / "out" / "probabilities" / "scan"
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == ["0-background.nii.gz", "1-edema.nii.gz", "2-core.nii.gz"]
    maps = [nib.load(file) for file in files]
    values = np.stack([np.asarray(one.dataobj) for one in maps])
    assert values.dtype == np.float32
    assert values.min() >= 0
    assert values.max() <= 1
    np.testing.assert_allclose(values.sum(0), 1, atol=1e-6)
    labels = nib.load(tmp_path / "out" / "scan.nii.gz")
    np.testing.assert_array_equal(values.argmax(0), np.asarray(labels.dataobj))
    for image in (*maps, labels):
        np.testing.assert_array_equal(image.affine, nib.load(one).affine)


def test_an_overlay_is_a_picture_of_the_slice_with_the_largest_area(make: Make, one: Path, tmp_path: Path) -> None:
    """Voxels of 2 x 5 x 10 mm are 0.1 ml; 3 and 1 of them in slice 1, 2 in slice 2."""
    labels = np.zeros((4, 3, 3), np.uint8)
    labels[1, 0], labels[1, 1, 0], labels[2, 0, :2] = 1, 2, 2
    case = Case(name="scan", patient="scan", image=one, label=one)
    volume = Volume(case=case, image=labels.astype(np.float32), label=labels, spacing_mm=(2.0, 5.0, 10.0), slice_axis=2)
    assert shown_slice(labels) == 1
    assert shown_slice(np.zeros_like(labels)) == 2
    assert legend_texts(volume, labels, ["edema", "core", "none"]) == ["edema 0.3 ml", "core 0.3 ml", "none 0 ml"]
    asked(make("aggregator=fedper"), [one], tmp_path / "out", overlays=True)
    with Image.open(tmp_path / "out" / "scan.png") as picture:
        assert picture.width > picture.height > 300
        colours = np.asarray(picture.convert("RGB")).astype(int)
    assert (np.ptp(colours, axis=2) > 60).any(), "the classes are in colour"


def test_all_headers_are_checked_before_the_first_volume(make: Make, one: Path, tmp_path: Path) -> None:
    channels = one.with_name("channels.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((4, 4, 3, 2), np.float32), np.eye(4)), channels)
    text = one.with_name("text.nii")
    text.write_text("no volume")
    nowhere = one.with_name("nowhere.nii")
    with pytest.raises(ValueError, match=r"3 problems") as caught:
        asked(make("aggregator=fedper"), [one, channels, text, nowhere], tmp_path / "out")
    assert f"{nowhere}: expected a file or a folder, found none there" in str(caught.value)
    assert f"{channels}: expected a volume of 3 dimensions (a 4th of length 1 is dropped), got shape" in str(
        caught.value
    )
    assert "choose one of 2 with the setting 'channel'" in str(caught.value)
    assert f"{text}: expected a readable NIfTI file" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_bad_voxels_do_not_stop_the_others(
    make: Make, one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    holes = one.with_name("a_holes.nii.gz")
    nib.save(nib.Nifti1Image(np.full((8, 8, 3), np.nan, np.float32), np.eye(4)), holes)
    short = one.with_name("b_short.nii")
    nib.save(nib.Nifti1Image(np.ones((8, 8, 3), np.float32), np.eye(4)), short)
    short.write_bytes(short.read_bytes()[:-9])
    command = ["predict", str(make("aggregator=fedper")), str(one.parent), "--out", str(tmp_path / "out"), "--quiet"]
    assert cli.main(command) == cli.MISTAKE
    said = capsys.readouterr().err
    assert f"expected predictions of 3 images; those of all others are in {tmp_path / 'out'}:" in said
    assert f"{holes}: expected finite voxels, got 192 that are not" in said
    assert f"{short}: expected (8, 8, 3) voxels, the file is damaged" in said
    assert names_in(tmp_path / "out") == ["scan.nii.gz"]


def test_an_image_is_never_replaced_by_its_prediction(make: Make, one: Path, tmp_path: Path) -> None:
    """A link to a file in the folder of the predictions, where any of its files would be written."""
    out = tmp_path / "out"
    for place in ("scan.nii.gz", "scan.png", "probabilities/scan/2-core.nii.gz"):
        (out / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(one, out / place)
        one.symlink_to(out / place)
        before = (out / place).read_bytes()
        with pytest.raises(ValueError, match=r"scan.nii.gz: expected an image that lies elsewhere, it is .*out/"):
            asked(make("aggregator=fedper"), [one], out, probabilities=True, overlays=True)
        assert (out / place).read_bytes() == before
        one.unlink()
        shutil.move(out / place, one)


@pytest.mark.parametrize("name", ["sp ace.nii.gz", "Scan.Nii", "x" * 240 + ".nii.gz"])
def test_a_label_map_is_called_after_its_volume(make: Make, one: Path, tmp_path: Path, name: str) -> None:
    path = one.with_name(name)
    path.write_bytes(one.read_bytes() if name.endswith(".gz") else gzip.decompress(one.read_bytes()))
    asked(make("aggregator=fedper"), [path], tmp_path / "out", overlays=True)
    stem = name.split(".")[0]
    assert names_in(tmp_path / "out") == [f"{stem}.nii.gz", f"{stem}.png"]


class FullDisk(io.FileIO):
    """A file with room for a byte: as long as one likes, but with holes, as a memory map wants it."""

    def write(self, data: bytes) -> int:  # type: ignore[override]  # bytes are all that is written
        if len(data) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_a_full_disk_is_one_message(
    make: Make, one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A memory map of a file with holes would end the process by a signal."""
    command = ["predict", str(make("aggregator=fedper")), str(one), "--out", str(tmp_path / "out"), "--quiet"]
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: FullDisk(tmp_path / "temporary", "w+"))
    assert cli.main([*command, "--probabilities"]) == cli.MISTAKE
    assert capsys.readouterr().err == "wardround: error: No space left on device\n"


def test_what_cannot_be_asked_is_said(make: Make, one: Path, tmp_path: Path) -> None:
    path, out = make("aggregator=fedper"), tmp_path / "out"
    twin = tmp_path / "twin" / "scan.nii"
    nib.save(nib.load(one), (twin.parent.mkdir(), twin)[1])
    link, capitals, long = tmp_path / "link.nii.gz", tmp_path / "scan.NII", tmp_path / ("x" * 249 + ".nii")
    link.symlink_to(one)
    shutil.copy(twin, capitals)
    shutil.copy(twin, long)
    (tmp_path / "empty").mkdir()
    picture = tmp_path / "a.png"
    Image.new("L", (4, 4)).save(picture)
    for images, message in (
        ([one, one.parent], r"scan.nii.gz: expected every image once, got it 2 times: .*scan.nii.gz and .*scan.nii.gz"),
        ([link, one], r"link.nii.gz: expected every image once, got it 2 times: .*link.nii.gz and .*scan.nii.gz"),
        ([capitals, one], r"scan: expected a name of its own for every volume, got .*scan.NII and .*scan.nii.gz;"),
        ([long], r"expected a name of at most 248 bytes, to which .nii.gz is added, got 249"),
        ([one, twin], r"scan: expected a name of its own for every volume, got .*scan.nii.gz and .*scan.nii;"),
        ([tmp_path / "empty"], r"empty: 1 problem:\s+.*empty: expected volumes \(.nii, .nii.gz\) in this folder,"),
        ([tmp_path / "nowhere"], r"nowhere: expected a file or a folder, found none there"),
        ([picture], r"a.png: expected a volume, as this run segments volumes, got a picture"),
        ([], r"expected at least one of volumes"),
    ):
        with pytest.raises(ValueError, match=message):
            asked(path, images, out)
    with pytest.raises(ValueError, match=r"expected another folder for the label maps than that of the volumes"):
        asked(path, [one], one.parent)
    for own in (path, path / "predictions", path / "predictions" / "hospital-1"):
        with pytest.raises(ValueError, match=r"expected a folder of its own for predictions, .* such as .*predicted"):
            asked(path, [one], own)
    with pytest.raises(ValueError, match=r"expected one of the hospitals hospital-1, .* got 'nowhere'"):
        asked(path, [one], out, hospital="nowhere")
    with pytest.raises(ValueError, match=r"expected a run directory with manifest\.json"):
        asked(tmp_path, [one], out)
    assert not out.exists()


# ---- modality --------------------------------------------------------------------------------------------------------


def volume_of(darkest: float) -> Volume:
    array = np.zeros((1, 2, 2), np.float32)
    case = Case(name="x", patient="x", image=Path("x"), label=Path("x"))
    return Volume(
        case=case, image=array, label=array.astype(np.uint8), spacing_mm=(1, 1, 1), slice_axis=0,
        intensities=(darkest, 900.0),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("seen", "darkest", "refused"),
    [
        ((-1024, -990), 0.0, "expected CT in Hounsfield units"),
        ((-1024, -990), -250.0, "expected CT in Hounsfield units"),  # MR with an offset
        ((-1024, -990), -1024.0, None),
        ((-1024, -990), -500.0, None),  # between
        ((0, 12), -1000.0, "expected an image without the air of CT"),
        ((-200, 700), 0.0, None),  # MR of another scanner
        ((-200, 700), -390.0, None),
        ((-1024, 0), 0.0, None),  # a federation that saw both
        ((-1024, 0), -1024.0, None),
    ],
)
def test_only_air_in_hounsfield_units_tells(seen: tuple[float, float], darkest: float, refused: str | None) -> None:
    said = foreign(volume_of(darkest), {"low": seen, "high": (900, 900)})
    assert said is None if refused is None else said is not None and said.startswith(refused)


def test_what_a_data_set_does_not_say_is_not_judged() -> None:
    assert foreign(volume_of(0.0), {}) is None
    assert seen_intensities([]) == {}


def test_a_ct_run_refuses_mr_and_clips_as_it_was_trained(make: Make, one: Path, tmp_path: Path) -> None:
    settings = (
        "data={name: phantom, layout: fed_kits19, hospitals: 2, train_cases: 1, test_cases: 1, size: 32, slices: 4}",
    )
    path = make(*settings)
    assert read_json(path / "manifest.json")["intensities"]["low"][1] < -900
    scan = nib.load(one)
    (own, *_) = sorted((path / "predictions").glob("*/*.nii.gz"))
    with pytest.raises(ValueError, match=r"scan.nii.gz: expected CT in Hounsfield units, .*--any-intensities"):
        asked(path, [one], tmp_path / "out", hospital=own.parent.name)
    assert not (tmp_path / "out").exists()
    asked(path, [one], tmp_path / "out", hospital=own.parent.name, any_intensities=True)
    assert nib.load(tmp_path / "out" / "scan.nii.gz").shape == scan.shape
    folder = load_resolved(path / "config.yaml").data.locate(None)
    (source,) = folder.glob(f"**/{own.name.split('.')[0]}/imaging*")
    asked(path, [source], tmp_path / "out", hospital=own.parent.name)
    assert (tmp_path / "out" / source.name).read_bytes() == own.read_bytes()


def test_an_mr_run_refuses_ct(make: Make, one: Path, tmp_path: Path) -> None:
    scan = nib.load(one)
    nib.save(nib.Nifti1Image(np.full(scan.shape, -1000, np.int16), scan.affine), one)
    with pytest.raises(ValueError, match=r"expected an image without the air of CT in Hounsfield units"):
        asked(make("aggregator=fedper"), [one], tmp_path / "out")


# ---- images with a class each ----------------------------------------------------------------------------------------


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def classified(make: Make) -> tuple[Path, Path]:
    """A run of ``vit-tiny`` and the folder of its pictures."""
    path = make(name="vit-tiny")
    return path, load_resolved(path / "config.yaml").data.locate(None)


def test_probabilities_of_pictures_are_those_of_the_run(classified: tuple[Path, Path], tmp_path: Path) -> None:
    """At each hospital, of each test image."""
    path, folder = classified
    for hospital in HOSPITALS:
        own = {row.pop("image"): row for row in rows_of(path / "predictions" / f"{hospital}.csv")}
        files = sorted((folder / hospital).glob("test-*.png"))
        asked(path, files, tmp_path, hospital=hospital)
        found = rows_of(tmp_path / "predictions.csv")
        assert len(found) == len(own) > 0
        for row in found:
            name = "_".join(Path(row["image"]).relative_to(folder).with_suffix("").parts)
            assert row["predicted"] == own[name]["predicted"]
            for key in (key for key in row if key.startswith("probability/")):
                assert float(row[key]) == pytest.approx(float(own[name][key]), rel=1e-6, abs=1e-9)


def test_what_is_no_picture_is_said(
    classified: tuple[Path, Path], one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = classified[0], tmp_path / "out"
    with pytest.raises(
        ValueError, match=r"scan.nii.gz: expected a picture .* as this run classifies images, got a vol"
    ):
        asked(path, [one], out)
    with pytest.raises(ValueError, match=r"--overlays: expected a run that segments volumes"):
        asked(path, [one], out, overlays=True)
    deep, broken = tmp_path / "pictures" / "deep.png", tmp_path / "pictures" / "broken.png"
    good = deep.with_name("good.png")
    (tmp_path / "pictures").mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(deep)
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(good)
    with pytest.raises(ValueError, match=r"deep.png: expected 8 bits per channel"):
        asked(path, [tmp_path / "pictures"], out)
    assert not out.exists()
    table = out / "predictions.csv"
    out.mkdir()
    shutil.copy(good, table)
    (tmp_path / "link.png").symlink_to(table)
    with pytest.raises(ValueError, match=r"link.png: expected an image that lies elsewhere, it is .*predictions.csv"):
        asked(path, [tmp_path / "link.png"], out)
    deep.unlink()
    broken.write_bytes(good.read_bytes()[:400])
    assert cli.main(["predict", str(path), str(tmp_path / "pictures"), "--out", str(out), "--quiet"]) == cli.MISTAKE
    assert f"{broken}: expected a picture, got OSError" in capsys.readouterr().err
    assert [row["image"] for row in rows_of(out / "predictions.csv")] == [str(good)]
