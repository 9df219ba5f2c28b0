"""The classes of a run on its page: histograms, confusion matrices, pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import write_lines

from wardround.simulator.reports.classification import (
    MANY_HOSPITALS,
    MOST_MAPS,
    class_section,
    classifies,
    confusion_counts,
    confusion_section,
    no_pictures,
    pictures_section,
)
from wardround.simulator.reports.run import write_report
from wardround.simulator.results import RunRecords

CLASSES = ("nevus", "melanoma")
COUNTS = {
    "clinic-a": {"train": {"nevus": 9, "melanoma": 1}, "test": {"nevus": 4, "melanoma": 2}},
    "clinic-b": {"train": {"nevus": 0, "melanoma": 5}, "test": {"nevus": 0, "melanoma": 3}},
}
CONFUSION = {
    ("clinic-a", "test"): {("nevus", "nevus"): 3, ("nevus", "melanoma"): 1, ("melanoma", "melanoma"): 2},
    ("clinic-b", "test"): {("melanoma", "melanoma"): 1, ("melanoma", "nevus"): 2},
    (None, "test"): {
        ("nevus", "nevus"): 3, ("nevus", "melanoma"): 1, ("melanoma", "melanoma"): 3, ("melanoma", "nevus"): 2,
    },
}  # fmt: skip


def write_run(folder: Path, *, confusion: Any = None, counts: Any = COUNTS, done: int = 3) -> Path:
    """A run of two clinics with made-up images: 5 of 6 and 1 of 3 test images right."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0\nrounds: 3\nevaluation: {every: 1}\n")
    manifest = {
        "experiment": "vit-quickstart", "id": "0123456789ab", "task": "classification", "state": "finished",
        "environment": {"device": "cpu"}, "command": ["wardround", "run", "vit-quickstart"],
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest | ({"class_counts": counts} if counts else {})))
    (folder / "summary.json").write_text(json.dumps({"accuracy": {"mean": 0.583}, "rounds": 3, "seconds": 2.0}))
    confusion = CONFUSION if confusion is None else confusion
    where = [{"round": done, "hospital": name, "split": split} for name, split in confusion]
    rows = [
        {**at, "target": true, "predicted": said, "count": count}
        for at, pairs in zip(where, confusion.values(), strict=True)
        for (true, said), count in pairs.items()
    ]
    write_lines(folder / "confusion.jsonl", rows)
    scores = {"accuracy": 5 / 6, "balanced_accuracy": 0.875, "macro_f1": 0.8, "auroc": None, "recall/nevus": 0.75,
              "recall/melanoma": 1.0}  # fmt: skip
    metrics = [
        {**at, "metric": metric if at["hospital"] else f"pooled/{metric}", "value": value}
        for at in where or [{"round": done, "hospital": "clinic-a", "split": "test"}]
        for metric, value in scores.items()
    ]
    write_lines(folder / "metrics.jsonl", metrics)
    for name in ("clinic-a", "clinic-b"):
        write_pictures(folder / "overlays" / f"{name}.npz", name)
    return folder


def write_pictures(path: Path, name: str, **changes: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    arrays = {
        "image": np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8),
        "case": np.array([f"secret-{name}-0", f"secret-{name}-1"]),
        "truth": np.array(["melanoma", "nevus"]),
        "prediction": np.array(["nevus", "nevus"]),
        "probability": np.array([0.98, 0.7]),
        "right": np.array([False, True]),
    }
    np.savez(path, **{**arrays, **changes})


@pytest.fixture
def records(tmp_path: Path) -> RunRecords:
    return RunRecords.load(write_run(tmp_path / "run"))


# ---- who has which classes -------------------------------------------------------------------------------------------


def test_images_per_class_are_counted_per_hospital_and_split(records: RunRecords) -> None:
    section = class_section(records)
    assert section is not None
    assert list(section.drawings) == ["classes-train", "classes-test"]
    assert section.tables["classes"].header == ("hospital", "split", "nevus", "melanoma", "all")
    assert section.tables["classes"].rows == (
        ("clinic-a", "train", "9", "1", "10"),
        ("clinic-a", "test", "4", "2", "6"),
        ("clinic-b", "train", "0", "5", "5"),
        ("clinic-b", "test", "0", "3", "3"),
    )
    drawn = section.drawings["classes-train"]
    assert all(f">{text}</text>" in drawn for text in ("9", "1", "0", "5", "clinic-a", "melanoma"))


def test_a_run_with_masks_has_no_such_sections(tmp_path: Path) -> None:
    from made_runs import write_run as segmentation

    records = RunRecords.load(segmentation(tmp_path / "run", overlays=False))
    assert not classifies(records)
    assert (class_section(records), confusion_section(records)) == (None, None)


# ---- what was taken for what -----------------------------------------------------------------------------------------


def test_confusion_of_all_together_and_of_each(records: RunRecords) -> None:
    section = confusion_section(records)
    assert section is not None
    assert list(section.drawings) == ["confusion-test", "confusion-test-clinic-a", "confusion-test-clinic-b"]
    assert "all hospitals: 6 of 9 images right" in section.body
    assert "clinic-b: 1 of 3 images right" in section.body
    table = section.tables["confusion"]
    assert table.header == ("hospital", "split", "true class", "nevus", "melanoma")
    assert ("clinic-b", "test", "nevus", "0", "0") in table.rows
    assert ("all hospitals", "test", "melanoma", "2", "3") in table.rows


def test_cells_have_counts_and_the_colour_of_shares(records: RunRecords) -> None:
    """Of clinic-b, melanoma: 2 of 3 taken for nevus; nevus does not occur and has no colour and no number."""
    from matplotlib import colormaps

    section = confusion_section(records)
    assert section is not None
    drawn = section.drawings["confusion-test-clinic-b"]
    assert drawn.count(">–</text>") == 2
    assert all(f">{text}</text>" in drawn for text in ("2", "1"))
    for share in (1 / 3, 2 / 3):
        red, green, blue, _ = colormaps["cividis"](share)
        assert f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}" in drawn


def test_only_the_last_round_counts(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with (run / "confusion.jsonl").open("a") as file:
        row = {"round": 2, "hospital": None, "split": "test", "target": "nevus", "predicted": "nevus", "count": 99}
        file.write(json.dumps(row) + "\n")
    assert confusion_counts(RunRecords.load(run)) == CONFUSION


def test_validation_is_shown_while_test_images_wait(tmp_path: Path) -> None:
    pairs = {(name, "validation"): {("nevus", "nevus"): 2} for name in ("clinic-a", None)}
    section = confusion_section(RunRecords.load(write_run(tmp_path / "run", confusion=pairs)))
    assert section is not None
    assert "all hospitals (validation): 2 of 2 images right" in section.body


def test_one_hospital_is_all_hospitals(tmp_path: Path) -> None:
    pairs = {(name, "test"): {("nevus", "nevus"): 2} for name in ("common", None)}
    section = confusion_section(RunRecords.load(write_run(tmp_path / "run", confusion=pairs)))
    assert section is not None
    assert list(section.drawings) == ["confusion-test"]


@pytest.mark.parametrize(("hospitals", "folded", "drawn"), [
    (MANY_HOSPITALS, False, MANY_HOSPITALS), (MANY_HOSPITALS + 1, True, MANY_HOSPITALS + 1), (MOST_MAPS + 1, False, 0),
])  # fmt: skip
def test_many_hospitals_fold_their_maps_and_very_many_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hospitals: int, folded: bool, drawn: int
) -> None:
    monkeypatch.setattr("wardround.simulator.reports.figures.heat_map", lambda *args, **settings: "<svg ></svg>")
    pairs = {(name, "test"): {("nevus", "nevus"): 1} for name in [*(f"c{n}" for n in range(hospitals)), None]}
    section = confusion_section(RunRecords.load(write_run(tmp_path / "run", confusion=pairs)))
    assert section is not None
    assert len(section.drawings) == 1 + drawn
    assert ("<summary>Each hospital</summary>" in section.body) == folded


def test_without_counts_there_is_no_section(tmp_path: Path) -> None:
    assert confusion_section(RunRecords.load(write_run(tmp_path / "run", confusion={}, counts=None))) is None
    assert class_section(RunRecords.load(tmp_path / "run")) is None


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_pictures_say_what_was_taken_for_what(records: RunRecords) -> None:
    body = pictures_section(records).body
    assert body.count("data:image/png") == 4
    assert "Wrong: melanoma, taken for nevus (0.98), secret-clinic-a-0" in body
    assert "Right: nevus (0.70), secret-clinic-b-1" in body


def test_no_pictures(records: RunRecords) -> None:
    for file in (records.path / "overlays").iterdir():
        file.unlink()
    assert "No images are stored" in pictures_section(records).body
    assert "left out of this page" in no_pictures().body


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((2, 8, 8), np.uint8)}, r"expected images \(M, S, S, 3\) of uint8"),
        ({"case": np.array(["one"])}, "expected images .* with M names each"),
        ({"truth": np.array([None, None])}, "expected the arrays image, case"),
    ],
)
def test_a_damaged_file_of_pictures_is_named(records: RunRecords, changes: dict[str, Any], message: str) -> None:
    write_pictures(records.path / "overlays" / "clinic-b.npz", "clinic-b", **changes)
    with pytest.raises(ValueError, match=rf"clinic-b.npz: {message}"):
        pictures_section(records)


# ---- the page --------------------------------------------------------------------------------------------------------


def test_the_page_has_them_and_without_images_no_name_of_a_patient(records: RunRecords, tmp_path: Path) -> None:
    text = write_report(records.path, export_to=tmp_path / "export").read_text()
    assert all(f"<h2>{title}</h2>" in text for title in ("Confusion of classes", "Classes", "Images"))
    assert "<h2>Slices</h2>" not in text
    assert "secret" in text
    files = {path.name for path in (tmp_path / "export").rglob("*")}
    assert {"confusion.csv", "classes.csv", "confusion-test.svg", "classes-train.svg"} <= files
    bare = write_report(records.path, images=False).read_text()
    assert "data:image/png" not in bare
    assert "secret" not in bare
