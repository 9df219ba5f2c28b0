"""Classification from beginning to end on the experiment ``vit-tiny``: every method, killing, going on, verifying."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rounds import advance

from wardround.clients import METHODS
from wardround.simulator.assembly import assemble, locate
from wardround.simulator.assessment import assess
from wardround.simulator.checkpoint import Checkpoints, state_hash
from wardround.simulator.config import ConfigError, Experiment, load_experiment
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.progress import Progress
from wardround.simulator.results import RunRecords
from wardround.simulator.run import run
from wardround.simulator.verify import verify

UNION = ("method={name: union, of: [{name: lora, lora: {rank: 2}}, {name: vpt_deep, prompts: 2}]}",)
NAMES = [name for name, cls in METHODS.items() if "vit" in cls.models]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory):
    """Phantoms of this module go into a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARDROUND_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def vit(*settings: str) -> Experiment:
    return load_experiment("vit-tiny", open_file(PACKAGED), settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run, its test images pooled and per site."""
    return run(vit("evaluation.cross_site=true"), out=tmp_path_factory.mktemp("runs"), quiet=True).path


def rows(path: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (path / f"{name}.jsonl").read_text().splitlines()]


def assert_close(found: list[dict], expected: list[dict], tolerance: float) -> None:
    """The same rows; what is undefined in one is so in the other."""
    for one, other in zip(found, expected, strict=True):
        if None in (one["value"], other["value"]):
            assert one == other
        else:
            assert one["value"] == pytest.approx(other["value"], rel=tolerance, abs=tolerance), one


def test_the_scores_of_a_run_follow_from_its_predictions(finished: Path) -> None:
    """Accuracy per site, the mean over sites and the pooled one, recomputed with numpy from the CSV files."""
    federation = locate(vit(), None).federation
    targets = {case.name: case.target for sides in federation.hospitals.values() for case in sides.test}
    right = {}
    for name in federation.hospitals:
        [file] = (finished / "predictions").glob(f"{name}*.csv")
        with file.open(newline="") as lines:
            header, *found = csv.reader(lines)
        assert header == ["image", "target", "predicted", *(f"probability/{name}" for name in federation.classes)]
        probabilities = np.array([line[3:] for line in found], dtype=float)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-4)
        right[name] = probabilities.argmax(axis=1) == [targets[line[0]] for line in found]
        assert right[name].tolist() == [line[1] == line[2] for line in found]
    last = {
        (row["hospital"], row["metric"]): row["value"]
        for row in rows(finished, "metrics")
        if row["round"] == 2 and row["split"] == "test"
    }
    for name, mine in right.items():
        assert last[name, "accuracy"] == pytest.approx(mine.mean())
    assert last[None, "pooled/accuracy"] == pytest.approx(np.concatenate(list(right.values())).mean())
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["accuracy"]["mean"] == pytest.approx(np.mean([mine.mean() for mine in right.values()]))


def test_every_image_has_a_row_and_confusion_adds_up(finished: Path) -> None:
    cases = rows(finished, "cases")
    assert {row["round"] for row in cases} == {2}
    assert {row["metric"] for row in cases} == {"accuracy"}
    confusion = rows(finished, "confusion")
    for name in {row["hospital"] for row in cases}:
        mine = [row for row in confusion if row["hospital"] == name]
        diagonal = sum(row["count"] for row in mine if row["target"] == row["predicted"])
        assert diagonal == sum(row["value"] for row in cases if row["hospital"] == name)
        assert sum(row["count"] for row in mine) == 12
    across = rows(finished, "across")
    assert {row["metric"] for row in across} == {"accuracy"}
    assert len(across) == 3 * 2 * 12


def test_the_manifest_says_the_task_and_who_has_which_classes(finished: Path) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["task"] == "classification"
    assert {name: sum(sides["train"].values()) for name, sides in manifest["class_counts"].items()} == dict.fromkeys(
        ("hospital-1", "hospital-2", "hospital-3"), 24
    )
    assert RunRecords.load(finished).headline.key == "accuracy"


def test_verify_repeats_the_last_round(finished: Path) -> None:
    assert verify(finished) is not None


@pytest.mark.parametrize("aggregator", ["fedavg", "flap_sam"])
@pytest.mark.parametrize("name", NAMES)
def test_every_method_trains_under_two_aggregators_and_repeats_a_round(
    name: str, aggregator: str, tmp_path: Path
) -> None:
    """Two rounds, scores, and the second round again from a checkpoint, bit for bit."""
    settings = UNION if name == "union" else (f"method={name}",)
    lacks_pairs = aggregator == "flap_sam" and name == "sba"
    experiment = vit(*settings, f"aggregator={'fedprox' if lacks_pairs else aggregator}")
    assembled = assemble(experiment, locate(experiment, None), torch.device("cpu"))
    first = advance(assembled.federated, assembled.initial)
    last = advance(assembled.federated, first.checkpoint)
    losses = [row["value"] for row in last.rows["metrics"] if row["metric"] == "loss"]
    assert len(losses) == 3
    assert all(0 < loss < 10 for loss in losses)
    with Progress(rounds=2, quiet=True) as progress:
        scores = assess(assembled.federated, assembled.assessor, last.checkpoint, progress, final=False)
    assert len([row for row in scores["metrics"] if row["metric"] == "accuracy"]) == 3
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(first.checkpoint, changed=list(first.checkpoint.memories))
    resumed = advance(assembled.federated, checkpoints.load(1, assembled.initial.server.setting))
    assert state_hash(resumed.checkpoint) == state_hash(last.checkpoint)
    assert resumed.rows == last.rows


@pytest.mark.parametrize("draw", ["shared", "per_client"])
def test_sba_sends_one_block_a_round_and_goes_on_after_a_kill(draw: str, tmp_path: Path) -> None:
    """Killed in round 3 of 4, with hospitals that are absent now and then: the same files as without the kill."""
    settings = (
        f"method={{name: sba, draw: {draw}}}",
        "aggregator=fedavg",
        "rounds=4",
        "cohort={sampling: fixed, size: 2}",
    )
    whole = run(vit(*settings), out=tmp_path / "whole", quiet=True).path
    killed_in_round(3, vit(*settings), tmp_path / "killed")
    again = run(vit(*settings), out=tmp_path / "killed", quiet=True).path
    for name in ("metrics", "cases", "ledger", "confusion"):
        assert rows(again, name) == rows(whole, name)
    state = [path / "checkpoint" / "round-0004" / "server.safetensors" for path in (whole, again)]
    assert state[0].read_bytes() == state[1].read_bytes()
    block, head = 4 * (32 * 32 + 32), 32 * 5 + 5
    assert {row["bytes_up"] for row in rows(whole, "ledger")} == {4 * (block + head)}


class Killed(BaseException):
    """Stands for a kill: nothing of the program handles it."""


def killed_in_round(number: int, experiment: Experiment, out: Path) -> None:
    """Runs until the hospitals of this round would begin to train."""

    class Bars(Progress):
        def round(self, now: int, *, hospitals: int | None = None) -> None:
            if now == number:
                raise Killed
            super().round(now, hospitals=hospitals)

    with pytest.raises(Killed):
        run(experiment, out=out, quiet=True, progress=Bars)


def test_what_does_not_go_together_is_refused_with_every_path() -> None:
    with pytest.raises(ConfigError) as found:
        vit("data=phantom", "method=flap_sam", "loss=segmentation")
    text = str(found.value)
    assert "data: expected images with a class each, as the model is for classification" in text
    assert "method: expected one for the model 'vit', got one for sam" in text
    assert "loss: expected one for classification, got one for segmentation" in text
    with pytest.raises(ConfigError, match="method: expected one for the model 'sam', got one for vit"):
        load_experiment("tiny", open_file(PACKAGED), ["method=linear"])


@pytest.mark.parametrize(
    "setting", ["windows.depth=5", "evaluation.surface_tolerance_mm=3", "evaluation.regions={x: [globular]}"]
)
def test_settings_of_volumes_are_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match="expected none, as it is a setting of volumes, got one"):
        vit(setting)


def test_a_base_that_has_seen_the_test_images_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.pretrained_on: expected weights that have not seen"):
        load_experiment("ham10000", open_file(PACKAGED), ["model.pretrained_on=[fed_isic2019]"])
    assert vit("model.pretrained_on=[ham10000]").model.pretrained_on == ("ham10000",)
    derm = ("model={size: mini, image_size: 64, weights: vit-mini-derm}", "data.size=64")
    with pytest.raises(ConfigError, match=r"vit-mini-derm was trained on image phantoms of data\.seed=9001"):
        vit(*derm, "data.seed=9001")
    assert vit(*derm, "data.seed=9002").model.weights == "vit-mini-derm"


def test_hospitals_of_one_class_and_of_few_images_train(tmp_path: Path) -> None:
    """Dirichlet(0.05) over 72 training images: some hospitals see one class alone."""
    split = "split={test: common, partition: {name: dirichlet, hospitals: 6, alpha: 0.05}}"
    path = run(vit(split, "loss={name: focal, class_weights: balanced}"), out=tmp_path, quiet=True).path
    records = RunRecords.load(path)
    assert records.finished
    assert len(records.members) == 6
    assert {row.hospital for row in records.cases} == {"common"}


def test_stacked_hospitals_end_where_hospitals_in_turn_end(tmp_path: Path) -> None:
    settings = ("training.precision=fp64", "method={name: lora_vpt, lora: {rank: 2}, prompts: 3}")
    alone = run(vit(*settings, "runtime.cohort=sequential"), out=tmp_path / "a", quiet=True).path
    stacked = run(vit(*settings, "runtime.cohort=stacked"), out=tmp_path / "b", quiet=True).path
    assert_close(rows(alone, "metrics"), rows(stacked, "metrics"), 1e-9)


def test_kept_features_change_nothing(tmp_path: Path) -> None:
    plain = run(vit("method=linear", "aggregator=fedavg"), out=tmp_path / "a", quiet=True).path
    kept = run(vit("method=linear", "aggregator=fedavg", "runtime.features_mb=64"), out=tmp_path / "b", quiet=True).path
    assert json.loads((kept / "manifest.json").read_text())["features"]["found"] > 0
    assert_close(rows(plain, "metrics"), rows(kept, "metrics"), 1e-4)


def test_a_refused_aggregator_is_named_not_the_schedule_around_it() -> None:
    experiment = vit("method=sba", "aggregator={name: krum, byzantine: 0}")
    with pytest.raises(ValueError, match=r"^aggregator Krum: .*cannot work with a schedule"):
        assemble(experiment, locate(experiment, None), torch.device("cpu"))
