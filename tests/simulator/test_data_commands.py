"""``wardround data``: what it prints, what it writes, and how it ends."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from wardround.simulator.cli import main


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three hospitals in the Decathlon's layout, read only."""
    folder = tmp_path_factory.mktemp("made") / "phantoms"
    assert main(_phantom("msd", folder)) == 0
    return folder


def _phantom(layout: str, folder: Path, *more: str) -> list[str]:
    sizes = ["--hospitals", "3", "--train-cases", "2", "--test-cases", "1", "--size", "24", "--slices", "4"]
    return ["data", "phantom", layout, "--out", str(folder), *sizes, *more]


@pytest.mark.parametrize("layout", ["msd", "fed_kits19", "fed_ixi", "prostate"])
def test_phantoms_of_every_layout_pass_the_check_of_their_loader(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_phantom(layout, tmp_path / "made")) == 0
    assert f"wardround data check {layout} --root" in capsys.readouterr().out
    settings = ["--set", "data.clip=common"] if layout == "fed_kits19" else []
    assert main(["data", "check", layout, "--root", str(tmp_path / "made"), *settings]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert next(row[1:3] for row in rows if row[:1] == ["all"]) == ["6", "3"]  # train, test


def test_phantom_images_pass_the_check_of_their_loader(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "made"
    sizes = ["--hospitals", "3", "--train-images", "6", "--test-images", "3", "--size", "16", "--classes", "3"]
    assert main(["data", "phantom", "images", "--out", str(made), *sizes, "--skew", "0"]) == 0
    assert f"wardround data check images --root {made}" in capsys.readouterr().out
    assert main(["data", "check", "images", "--root", str(made)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert next(row[1:3] for row in rows if row[:1] == ["all"]) == ["18", "9"]  # train, test


def test_phantom_images_have_no_slices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "phantom", "images", "--out", str(tmp_path / "made"), "--slices", "4"]) == 2
    assert "slices" in capsys.readouterr().err


def test_phantoms_are_not_written_over(phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_phantom("msd", phantoms)) == 2
    assert str(phantoms) in capsys.readouterr().err


def test_check_shows_who_has_what_and_writes_a_page(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main(["data", "check", "msd", "--root", str(phantoms), "--report", str(page)]) == 0
    printed = capsys.readouterr().out
    assert all(f"hospital-{number}" in printed for number in (1, 2, 3))
    assert printed.endswith(f"report: {page}\n")
    assert page.read_text().count("data:image/png") >= 3
    assert "max_train_cases" in page.read_text()  # how the hospitals were made
    assert main(["data", "check", "msd", "--root", str(phantoms), "--report", str(page), "--no-images"]) == 0
    assert "data:image/png" not in page.read_text()


def test_check_takes_an_experiment_and_shows_its_partition(phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--set", "data=msd", "--set", "split={partition: {name: iid, hospitals: 2}, test: common}"]
    assert main(["data", "check", "quickstart", "--root", str(phantoms), *words]) == 0
    printed = capsys.readouterr().out
    assert "hospital-2" in printed
    assert "hospital-3" not in printed
    assert "common test set" in printed


def test_check_of_data_without_sites_shows_them_as_one(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = _copy(phantoms, tmp_path / "copy")
    (copy / "sites.csv").unlink()
    assert main(["data", "check", "msd", "--root", str(copy)]) == 0
    printed = capsys.readouterr().out
    assert "hospital-1" not in printed
    assert "remark: the data set has no sites" in printed


def _copy(folder: Path, to: Path) -> Path:
    for path in folder.rglob("*"):
        if path.is_file():
            (to / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (to / path.relative_to(folder)).write_bytes(path.read_bytes())
    return to


def test_check_lists_every_planted_fault_and_ends_with_two(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eight faults in eight of nine cases."""
    root = _copy(phantoms, tmp_path / "broken")
    images, labels = sorted((root / "imagesTr").iterdir()), sorted((root / "labelsTr").iterdir())
    names = [path.name.removesuffix(".nii.gz") for path in images]
    labels[0].unlink()  # a missing mask
    _change(labels[1], lambda array: array[:, :-1])  # another shape
    _change(labels[2], lambda array: array + 7)  # a label outside the map
    images[3].write_bytes(images[3].read_bytes()[:-100])  # a truncated file
    images[5].write_bytes(images[4].read_bytes())  # one image twice ...
    labels[5].write_bytes(labels[4].read_bytes())
    images[6].write_bytes(labels[6].read_bytes())  # a mask as image
    _change(images[7], lambda array: np.where(array > array.mean(), np.nan, array.astype("f4")))  # no numbers
    patients = {name: name for name in names} | {names[7]: "Ada", names[8]: "Ada"}  # in training and test
    sides = {name: "test" if name == names[8] else "train" for name in names}
    _table(root / "patients.csv", "patient", patients)
    _table(root / "split.csv", "split", sides)
    assert main(["data", "check", "msd", "--root", str(root)]) == 2
    told = capsys.readouterr().err
    assert "8 problems" in told.splitlines()[0]
    for path in (labels[0], labels[1], labels[2], images[3], images[5], labels[6], images[7]):
        assert any(line.strip().startswith(f"{path.parent.name}/{path.name}: ") for line in told.splitlines()), path
    assert "patient Ada" in told


def _change(path: Path, change) -> None:
    file = nib.load(path)
    nib.save(nib.Nifti1Image(change(np.asarray(file.dataobj)), file.affine), path)


def _table(path: Path, column: str, values: dict[str, str]) -> None:
    path.write_text("\n".join([f"case,{column}", *(f"{case},{value}" for case, value in values.items())]))


def test_prepare_does_what_is_left_to_do(phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = _copy(phantoms, tmp_path / "copy")
    words = ["data", "prepare", "msd", "--root", str(root), "--set", "image_size=24"]
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("9 volumes prepared, 0 were there already")
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("0 volumes prepared, 9 were there already")
    image = sorted((root / "imagesTr").iterdir())[0]
    _change(image, lambda array: array[::-1].copy())
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("1 volumes prepared, 8 were there already")
    assert main([*words, "--set", "windows.normalise=window"]) == 0
    assert capsys.readouterr().out.startswith("9 volumes prepared")


def test_prepare_stops_at_a_bad_case_and_says_what_lists_all(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = _copy(phantoms, tmp_path / "copy")
    label = sorted((root / "labelsTr").iterdir())[3]
    _change(label, lambda array: array + 9)
    assert main(["data", "prepare", "msd", "--root", str(root), "--set", "image_size=24"]) == 2
    told = capsys.readouterr().err
    assert label.name in told
    assert "`wardround data check` lists the problems of all cases" in told


def test_slices_that_do_not_fit_into_memory_are_one_message(phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "prepare", "msd", "--root", str(phantoms), "--set", "image_size=10000000"]
    assert main(words) == 2
    assert "expected slices that fit into memory, got image_size 10000000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check", "fed_kits"], "no data set and no experiment 'fed_kits', did you mean 'fed_kits19'?"),
        (["check", "msd", "--root", "/nowhere"], "/nowhere: expected a folder that holds a Decathlon task"),
        (["check", "msd", "--set", "data.chanel=1"], "data.chanel: unknown key, did you mean 'channel'?"),
        (["prepare", "msd", "--set", "image_size=0"], "image_size: expected at least 1 pixel, got 0"),
        (["check", "msd", "--set", "split_seed=-1"], "split_seed: expected a number of at least 0, got -1"),
        (["check", "msd", "--root", "FOLDER", "--report", "."], ".: expected a file to write"),
    ],
)
def test_mistakes_are_one_message(
    words: list[str], message: str, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", *(str(phantoms) if word == "FOLDER" else word for word in words)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["check", "prepare", "phantom"])
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", command, "--help"])
    assert f"Example: wardround data {command}" in " ".join(capsys.readouterr().out.split())
