from pathlib import Path

import numpy as np

from wardround.clients.evaluation import Scored
from wardround.datasets.contract import Case, Volume
from wardround.simulator.assessment import Keepsakes, Overlay, _best_median_worst, _overlay


def scored(name: str, dice: float, rows: int = 5) -> Scored:
    case = Case(name=name, patient=name, image=Path("none"), label=Path("none"))
    label = np.zeros((3, rows, 4), dtype=np.uint8)
    label[0, 0, 0], label[2, :2, :2] = 1, 2
    image = np.arange(label.size, dtype=np.float32).reshape(label.shape) - 7
    volume = Volume(case=case, image=image, label=label, spacing_mm=(3.0, 2.0, 1.0), slice_axis=2)
    return Scored(volume=volume, prediction=label, scores={"dice": dice})


def test_the_slice_with_the_largest_truth_is_shown_in_zero_to_one() -> None:
    overlay = _overlay(scored("case", 0.5))
    assert overlay.slice == 2
    assert overlay.spacing_mm == (2.0, 1.0)
    assert overlay.image.max() == 1.0
    assert 0 < overlay.image.min() < 1


def test_best_median_and_worst_are_chosen() -> None:
    def chosen(*values: float) -> list[float]:
        return [o.dice for o in _best_median_worst([_overlay(scored(f"c{v}", v)) for v in values])]

    assert chosen(0.1, 0.9, 0.5, 0.3, 0.7) == [0.9, 0.5, 0.1]
    assert chosen(0.4) == [0.4]
    assert chosen(0.4, 0.6) == [0.6, 0.4]


def test_overlays_of_different_size_go_into_one_file(tmp_path: Path) -> None:
    keepsakes = Keepsakes(folder=tmp_path, predictions=False, overlays=True)
    overlays: list[Overlay] = [_overlay(scored("a", 0.9)), _overlay(scored("b", 0.2, rows=7))]
    keepsakes.keep_overlays("north/east", overlays)
    file = next((tmp_path / "overlays").iterdir())
    assert file.name.startswith("north_east-")
    with np.load(file, allow_pickle=False) as kept:
        assert set(kept) == {"image", "truth", "prediction", "case", "slice", "dice", "spacing_mm"}
        assert kept["image"].shape == (2, 7, 4)
        assert not kept["truth"][0, 5:].any()
        assert kept["case"].tolist() == ["a", "b"]


def test_without_overlays_nothing_is_written(tmp_path: Path) -> None:
    Keepsakes(folder=tmp_path, predictions=False, overlays=False).keep_overlays("a", [])
    assert not list(tmp_path.iterdir())
