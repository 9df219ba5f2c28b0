"""Every hospital's model at every other hospital."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rounds import advance

from wardround.clients.evaluation import evaluate, source_of
from wardround.simulator.assembly import assemble, locate
from wardround.simulator.config import Experiment, load_experiment
from wardround.simulator.cross_site import assess_across
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.results import RunRecords
from wardround.simulator.run import run
from wardround.simulator.sweeps.best_site import best_single_site

SMALL = ("data.size=16", "data.slices=3", "model.image_size=16", "aggregator=local", "training.optimizer.lr=0.01")


def small(*settings: str) -> Experiment:
    return load_experiment("tiny", open_file(PACKAGED), [*SMALL, *settings])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunRecords:
    """A finished local-only run with validation volumes and a site left out."""
    experiment = small("evaluation.cross_site=true", "split.validation_fraction=0.3", "evaluation.every=null")
    done = run(experiment, data=folder, out=tmp_path_factory.mktemp("runs"), quiet=True, images=False)
    return RunRecords.load(done.path)


def test_every_local_model_is_scored_at_every_site(finished: RunRecords) -> None:
    """K x K; the diagonal is what the run says of its hospitals."""
    matrix = finished.cross_site()
    assert tuple(matrix) == finished.hospitals
    assert all(tuple(row) == finished.hospitals for row in matrix.values())
    assert {name: row[name] for name, row in matrix.items()} == {
        score.hospital: pytest.approx(score.score, abs=1e-12) for score in finished.final()
    }
    assert len({value for row in matrix.values() for value in row.values()}) == 9


def test_the_best_site_is_chosen_on_validation_volumes_scored_everywhere(finished: RunRecords) -> None:
    assert {row.split for row in finished.across} == {"validation", "test"}
    best = best_single_site(finished)
    assert best.chosen_on == "validation"
    assert {site for site, _ in best.per_case} == set(finished.hospitals)


def test_the_model_that_is_scored_is_the_other_hospitals(folder: Path) -> None:
    """Loaded by hand: hospital 2's local model, on hospital 1's test volume and at the site that was left out."""
    experiment = small("split.leave_out=[hospital-3]")
    made = assemble(experiment, locate(experiment, folder), torch.device("cpu"))
    checkpoint = advance(made.federated, made.initial).checkpoint
    rows = assess_across(made.federated, made.assessor, checkpoint)["across"]
    assert {(row["trained_at"], row["hospital"], row["split"]) for row in rows} == {
        ("hospital-1", "hospital-2", "test"),
        ("hospital-2", "hospital-1", "test"),
        ("hospital-1", "hospital-3", "unseen"),
        ("hospital-2", "hospital-3", "unseen"),
    }
    place = made.federated.workplace
    place.replica.load(checkpoint.memories["hospital-2"].tensors)
    volumes = [*made.federated.hospitals["hospital-1"].test, *made.federated.outsiders[0].cases]
    sources = [source_of(volumes, experiment.windows, place.replica)]
    scored = evaluate(place, sources, made.assessor.classes, experiment.evaluation, surfaces=False)
    expected = {one.volume.case.name: one.scores["dice"] for one in scored}
    assert {row["case"]: row["value"] for row in rows if row["trained_at"] == "hospital-2"} == expected


def test_a_run_that_was_killed_while_it_scored_ends_with_every_row_once(folder: Path, tmp_path: Path) -> None:
    """Test volumes wait for the end there; half of what was written before the kill is dropped, validation rows too."""
    experiment = small("evaluation.cross_site=true", "split.validation_fraction=0.3", "evaluation.test=last")
    held = run(experiment, data=folder, out=tmp_path, quiet=True, images=False, hold_test=True)
    assert not (held.path / "across.jsonl").exists()
    whole = run(experiment, data=folder, out=tmp_path, quiet=True, images=False)
    across = (whole.path / "across.jsonl").read_text()
    lines = across.splitlines(keepends=True)
    manifest = whole.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"state": "finished"', '"state": "running"'))
    (whole.path / "across.jsonl").write_text("".join(lines[:3]) + lines[3][:20])
    run(experiment, data=folder, out=tmp_path, quiet=True, images=False)
    assert (whole.path / "across.jsonl").read_text() == across
    assert '"split": "validation"' in across
