from pathlib import Path

import pytest

from wardround.simulator.rundir import RunDirectory
from wardround.simulator.summary import summarise_run


def row(number: int, hospital: str, metric: str, value: float, split: str = "test") -> dict:
    return {"round": number, "hospital": hospital, "split": split, "metric": metric, "value": value}


def test_a_run_in_a_few_numbers(tmp_path: Path) -> None:
    """Two hospitals: means over hospitals of the last round's test rows; bytes and steps summed over everything."""
    directory = RunDirectory(tmp_path)
    metrics = [row(2, h, m, v) for h, m, v in [("a", "dice", 0.5), ("b", "dice", 0.7)]]
    metrics += [row(2, "a", "dice/organ", 0.4), row(2, "b", "dice/organ", 0.8), row(2, "a", "dice", 0.9, "validation")]
    metrics += [row(1, "a", "dice", 0.1), row(2, "a", "loss", 9.0, "train")]
    sent = {"bytes_up": 3, "bytes_down": 5, "steps": 2, "status": "ok", "examples": 1}
    ledger = [{"round": number, "hospital": h, **sent} for number in (1, 2) for h in ("a", "b")]
    timing = [{"round": number, "train_s": 1.25, "evaluate_s": 0.25} for number in (1, 2)]
    metrics += [row(2, "far", "dice", 0.3, "unseen"), row(2, "far", "dice/organ", 0.3, "unseen")]
    metrics += [
        row(2, "a", "dice_region/whole", 0.6),
        row(2, "b", "dice_region/whole", 0.7),
        row(2, "a", "dice_regions", 9),
    ]
    directory.append({"metrics": metrics, "ledger": ledger, "timing": timing})
    summary = summarise_run(directory, ("organ",))
    assert summary["dice"]["mean"] == pytest.approx(0.6)
    assert summary["dice"]["worst"] == 0.5
    assert summary["dice"]["per_hospital"] == {"a": 0.5, "b": 0.7}
    assert summary["dice"]["per_class"] == {"organ": pytest.approx(0.6)}
    assert summary["dice"]["per_region"] == {"whole": pytest.approx(0.65)}
    assert summary["dice"]["unseen"] == {"far": 0.3}  # and in no mean
    assert (summary["rounds"], summary["seconds"]) == (2, 3.0)
    assert (summary["bytes_up"], summary["bytes_down"], summary["steps"]) == (12, 20, 8)
