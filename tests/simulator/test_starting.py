"""Runs that start from another run or from an adapter of PEFT: what they compute, refuse and record."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from wardround.clients.merged import merged_state, plain_state
from wardround.datasets.ham10000 import Ham10000
from wardround.simulator import run as run_module
from wardround.simulator import starting
from wardround.simulator.assembly import assemble, build_replica, locate
from wardround.simulator.config import Experiment, identity, load_experiment, load_resolved
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.exports import export
from wardround.simulator.exports.origin import FILE, KEYS, origin
from wardround.simulator.exports.peft import write_peft
from wardround.simulator.files import read_json, read_lines, write_json
from wardround.simulator.resident import Resident
from wardround.simulator.run import run
from wardround.simulator.seen_cases import UNKNOWN, check_unseen, read_seen, trained_on
from wardround.simulator.starting import donor_hash
from wardround.simulator.sweeps.plan import make_plan
from wardround.simulator.trained import load_trained
from wardround.simulator.verify import verify

Make = Callable[..., Path]
CPU = torch.device("cpu")
FAST = ("runtime.device=cpu", "instruments.every=0", "evaluation.predictions=false")


@pytest.fixture(scope="module", autouse=True)
def pages() -> Iterator[None]:
    """Pages are tested elsewhere: only their files are there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "write_report", lambda folder, **_: (folder / "report.html").write_text(""))
        yield


def of(*settings: str, name: str = "tiny") -> Experiment:
    return load_experiment(name, open_file(PACKAGED), [*FAST, *settings])


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Runs an experiment with settings; the same settings once."""
    out = tmp_path_factory.mktemp("starting")

    def ran(*settings: str, name: str = "tiny") -> Path:
        return run(of(*settings, name=name), out=out, quiet=True, images=False).path

    return ran


def scores(path: Path, number: int) -> dict[tuple[str, str, str], Any]:
    rows = [row for row in read_lines(path / "metrics.jsonl") if row["round"] == number and row["split"] == "test"]
    return {(row["hospital"], row["split"], row["metric"]): row["value"] for row in rows}


def copied(path: Path, folder: Path) -> Path:
    return Path(shutil.copytree(path, folder / path.name))


# ---- from a run ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("tiny", ("seed=1", "method.lora.rank=3")),
        ("tiny", ("method=decoder",)),
        ("vit-tiny", ("seed=1", "method.lora.rank=3")),
        ("vit-tiny", ("method={name: adapter, width: 4}",)),
    ],
)
def test_round_0_scores_what_the_donor_scored_last(make: Make, name: str, settings: tuple[str, ...]) -> None:
    donor = make(name=name)
    path = make(f"start_from={donor}", "rounds=0", *settings, name=name)
    last, first = scores(donor, 2), scores(path, 0)
    assert last
    assert first.keys() == last.keys()
    for key in last:
        assert first[key] == pytest.approx(last[key], abs=1e-4, nan_ok=True), key


def test_adapters_that_a_hospital_of_a_lower_rank_cannot_hold_are_merged(make: Make) -> None:
    """The first rows of a donor's adapters are another model; merged, round 0 scores what the donor scored."""
    donor = make()
    ranks = [f"ranks.hospital-{number}={rank}" for number, rank in ((1, 1), (2, 2), (3, 2))]
    started = make("aggregator=padded_fedavg", *ranks, "rounds=1", "evaluation.every=1", f"start_from={donor}")
    first, last = scores(started, 0), scores(donor, 2)
    assert {key: value for key, value in first.items() if key[2] == "dice"} == {
        key: pytest.approx(value, abs=1e-6) for key, value in last.items() if key[2] == "dice"
    }
    said = read_json(started / "manifest.json", ("started_from",))["started_from"]
    assert said["merged"]
    assert not said["taken"]


def test_a_chain_of_runs_is_read_back_and_verified(make: Make) -> None:
    first = make()
    second = make(f"start_from={first}", "aggregator=fedex_lora", "rounds=1")
    third = make(f"start_from={second}", "method=lora", "seed=2", "rounds=1")
    assert verify(third).identical
    manifest = read_json(third / "manifest.json")
    said = manifest["started_from"]
    assert (said["path"], said["run"], said["round"]) == (str(second), f"tiny/{second.name}", 1)
    assert (len(said["taken"]), said["merged"], said["anew"]) == (18, [], [])
    trained, donor = load_trained(third, round_number=0, device="cpu"), load_trained(second, device="cpu")
    asked = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = trained.load().model(asked), donor.load().model(asked)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert (third / "trained_on.txt").read_text() == (first / "trained_on.txt").read_text()


def test_an_interrupted_run_goes_on_and_ends_bit_identical(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = of(f"start_from={make()}", "seed=1")
    whole = make(f"start_from={make()}", "seed=1")
    real, calls = run_module.run_round, iter((True, False))

    def once(*args: Any) -> Any:
        if next(calls):
            return real(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "run_round", once)
    with pytest.raises(KeyboardInterrupt):
        run(experiment, out=tmp_path, quiet=True, images=False)
    monkeypatch.setattr(run_module, "run_round", real)
    cut = run(experiment, out=tmp_path, quiet=True, images=False).path
    assert len(read_json(cut / "manifest.json")["continued"]) == 1
    for name in ("metrics.jsonl", "ledger.jsonl", "trained_on.txt", "checkpoint/round-0002/server.safetensors"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name


def test_runs_that_share_weights_do_not_change_them(make: Make, tmp_path: Path) -> None:
    """The second run begins with what the first one left in memory, whose decoder it has trained."""
    experiment, shared = of(f"start_from={make()}", "method=decoder", "rounds=1"), Resident()
    states = []
    for out in (tmp_path / "first", tmp_path / "second"):
        path = run(experiment, out=out, quiet=True, images=False, resident=shared).path
        states.append((path / "checkpoint/round-0001/server.safetensors").read_bytes())
    assert states[0] == states[1]


def test_a_donor_is_planned_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, planned = of(f"start_from={make()}"), list[object]()
    real = starting.plan
    monkeypatch.setattr(starting, "plan", lambda *given: planned.append(given) or real(*given))
    assemble(experiment, locate(experiment, None), CPU)
    assert len(planned) == 1


def test_ids_say_what_is_started_from_and_not_where_it_lies(make: Make, tmp_path: Path) -> None:
    donor = make()
    assert "start_from" not in identity(of())
    assert identity(of(f"start_from={donor}")) == identity(of())
    moved = copied(donor, tmp_path)
    plain, here, there = (locate(of(*one), None) for one in ((), (f"start_from={donor}",), (f"start_from={moved}",)))
    assert plain.weights_hash == "random"
    assert here.weights_hash == there.weights_hash != plain.weights_hash
    assert donor_hash(donor) != donor_hash(make("seed=1"))


def test_a_sweep_over_starts(make: Make, tmp_path: Path) -> None:
    text = f"""
warm:
  purpose: With and without a start.
  sweep: {{base: tiny, grid: {{start_from: [null, {make()}]}}, seeds: [0], references: []}}
"""
    file = tmp_path / "experiments.yaml"
    tiny = PACKAGED.read_text().split("\ntiny:")[1].split("\n\n")[0]
    file.write_text(f"tiny:{tiny}\n{text}")
    plan = make_plan("warm", open_file(file), [])
    assert [cell.experiment.start_from for cell in plan.cells] == [None, make()]
    hashes = {locate(cell.experiment, None).weights_hash for cell in plan.cells}
    assert len(hashes) == 2


# ---- what it has seen ------------------------------------------------------------------------------------------------


def test_a_line_per_training_case_by_hand(make: Make) -> None:
    """2 cases at each of 3 hospitals: SHA-256 over the image's SHA-256 and row 0."""
    lines = (make() / "trained_on.txt").read_text().split()
    located = locate(of(), None)
    train = [case for cases in located.federation.hospitals.values() for case in cases.train]
    files = [hashlib.sha256(case.image.read_bytes()).hexdigest() for case in train]
    assert lines == sorted(hashlib.sha256(f"{file}/0".encode()).hexdigest() for file in files)
    assert len(set(lines)) == 6


def test_lines_of_the_donor_are_inherited(make: Make) -> None:
    other = make("data.seed=5")
    experiment = of(f"start_from={other}")
    own, before = ((path / "trained_on.txt").read_text().split() for path in (make(), other))
    assert trained_on(experiment, locate(experiment, None)) == sorted({*own, *before})
    assert len({*own, *before}) == 12


def test_images_of_one_file_are_told_apart(make: Make) -> None:
    assert len(set((make(name="vit-tiny") / "trained_on.txt").read_text().split())) == 3 * 24


@pytest.mark.parametrize(
    ("side", "settings"),
    [
        ("test", ("split.test_fraction=0.34",)),
        ("validation", ("split.validation_fraction=0.5",)),
        ("unseen", ("split.leave_out=[hospital-1]", "split.test_fraction=0.5")),
        ("common", ("split.test=common", "split.test_fraction=0.5")),
    ],
)
def test_cases_that_the_donor_was_trained_on_are_not_scored(make: Make, side: str, settings: tuple[str, ...]) -> None:
    found = refusals(f"start_from={make()}", *settings)
    assert any(f" {side} case" in message for message in found)  # of some split of so few cases
    assert all("expected a model that has not seen the cases it is scored on" in message for message in found)


def test_a_site_that_the_donor_was_trained_on_is_not_one_never_seen(make: Make) -> None:
    """Its training cases are in the donor's list; those that are scored are not."""
    experiment = of(f"start_from={make()}", "split.leave_out=[hospital-1]")
    with pytest.raises(ValueError, match=r"it was trained on \d+ left-out site hospital-1's cases?: "):
        check_unseen(experiment, locate(experiment, None))


def test_an_empty_list_is_a_damaged_one(make: Make, tmp_path: Path) -> None:
    donor = copied(make(), tmp_path)
    (donor / "trained_on.txt").write_text("")
    with pytest.raises(ValueError, match="expected a line per training case, got none"):
        read_seen(donor)


def test_a_relative_donor_is_found_from_another_folder(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    donor = make()
    monkeypatch.chdir(donor.parent)
    started = run(of(f"start_from={donor.name}", "seed=8", "rounds=1"), out=tmp_path, quiet=True, images=False).path
    monkeypatch.chdir(tmp_path)
    assert verify(started).identical


def test_privacy_promises_nothing_of_what_was_before(make: Make) -> None:
    private = ("aggregator=fedavg", "weights=uniform", "rounds=1")
    private += ("stages.privacy={noise_multiplier: 1.0, clip_norm: 1.0, delta: 0.01}",)
    alone, started = make(*private), make(*private, f"start_from={make()}")
    said = [read_json(path / "summary.json", ("privacy",))["privacy"] for path in (alone, started)]
    assert said[1].startswith(said[0])
    assert "of the rounds of this run alone" in said[1]


def refusals(*settings: str) -> list[str]:
    """What is said of three splits."""
    found = []
    for seed in range(3):
        try:
            locate(of(*settings, f"split_seed={seed}"), None)
        except ValueError as error:
            found.append(str(error))
    return found


def test_other_collections_with_the_same_images_are_refused(make: Make, tmp_path: Path) -> None:
    """A base that has seen the data set, named by the donor's config alone."""
    donor = copied(make(name="vit-tiny"), tmp_path)
    config = (donor / "config.yaml").read_text()
    (donor / "config.yaml").write_text(config.replace("pretrained_on: []", "pretrained_on: [isic2019]"))
    assert load_resolved(donor / "config.yaml").model.pretrained_on == ("isic2019",)
    experiment = of(f"start_from={donor}", name="vit-tiny")
    located = locate(experiment, None)
    check_unseen(experiment, located)
    again = replace(experiment, data=Ham10000())
    with pytest.raises(ValueError, match="isic2019 has images of HAM10000, which ham10000 has too"):
        check_unseen(again, located)


def test_collections_of_a_donor_s_donor_are_not_forgotten(make: Make, tmp_path: Path) -> None:
    """A run of HAM10000 by its config, a run of phantoms that started from it, and its export."""
    first = copied(make(name="vit-tiny"), tmp_path / "first")
    experiment = of(f"start_from={first}", "rounds=1", name="vit-tiny")
    second = run(experiment, out=tmp_path, quiet=True, images=False).path
    trained = load_trained(second, device="cpu")
    config = first / "config.yaml"
    config.write_text(config.read_text().replace("pretrained_on: []", "pretrained_on: [isic2019]"))
    folder = tmp_path / "export"
    folder.mkdir()
    write_json(folder / "wardround.json", origin(trained))
    for path in (second, folder):
        assert read_seen(path).pretrained_on == ("isic2019",)
    ours = replace(of(name="vit-tiny"), data=Ham10000(), start_from=folder)
    with pytest.raises(ValueError, match="isic2019 has images of HAM10000"):
        check_unseen(ours, locate(of(name="vit-tiny"), None))


def test_a_data_set_is_seen_case_by_case_where_there_is_a_list(tmp_path: Path) -> None:
    """The collection itself is no overlap then; without a list it is, whatever the user says."""
    said = {"collections": {"pretrained_on": [], "data": ["ham10000"]}, "trained_on": ["aa"]}
    file = tmp_path / "wardround.json"
    file.write_text(json.dumps({**dict.fromkeys(KEYS), **said}))
    located = locate(of(name="vit-tiny"), None)
    told = of("model.pretrained_on=['other: skin']", name="vit-tiny")
    ours = replace(told, data=Ham10000(), start_from=tmp_path)
    check_unseen(ours, located)
    file.write_text(json.dumps({**dict.fromkeys(KEYS), **said, "trained_on": None}))
    with pytest.raises(ValueError, match="ham10000 has images of HAM10000"):
        check_unseen(ours, located)


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("model.image_size=64", "data.size=64"), "model.image_size: expected 32, got 64"),
        (("model.size=mini",), "model.size: expected 'tiny', got 'mini'"),
        (("model.upscaler=sam",), "model.upscaler: expected 'full', got 'sam'"),
    ],
)
def test_another_model_is_refused(make: Make, settings: tuple[str, ...], message: str) -> None:
    experiment = of(f"start_from={make('data.seed=5')}", *settings)
    with pytest.raises(ValueError, match=f"expected the same model as there.*{message}"):
        build_replica(experiment, 2, CPU)


def test_another_base_is_refused(make: Make, tmp_path: Path) -> None:
    """Of the same size: its frozen weights would be ignored."""
    donor, weights = make(), tmp_path / "other.safetensors"
    save_file(plain_state(load_trained(donor, device="cpu").replica.model), weights)
    other = of(f"start_from={donor}", f"model.weights={weights}")
    with pytest.raises(ValueError, match="expected the base that it was trained on, 'random'"):
        build_replica(other, 2, CPU)


def test_a_model_of_another_kind_is_refused(make: Make, tmp_path: Path) -> None:
    """From a run and from an export; the settings of the two have nothing to do with each other."""
    donor = make(name="vit-tiny")
    for path in (donor, exported(donor, tmp_path / "peft", base=True)):
        with pytest.raises(ValueError, match=r"the same model as there; model: expected 'vit', got 'sam'$"):
            build_replica(of(f"start_from={path}"), 2, CPU)


def test_a_run_without_a_model_of_all_is_refused(make: Make) -> None:
    with pytest.raises(ValueError, match=r"start_from: .*expected a run with a model of all, .* --hospital NAME"):
        build_replica(of(f"start_from={make('aggregator=local')}"), 2, CPU)


def test_a_donor_that_is_gone_cleaned_or_changed_is_said(make: Make, tmp_path: Path) -> None:
    donor = copied(make(), tmp_path)
    path = run(of(f"start_from={donor}", "rounds=1"), out=tmp_path, quiet=True, images=False).path
    pointer = donor / "checkpoint" / "latest.json"
    write_json(pointer, {"round": 1})
    with pytest.raises(ValueError, match=r"or what it started from, '.*', are other ones now"):
        load_trained(path, device="cpu")
    with pytest.raises(ValueError, match=r"not the config \(or base weights\) that the run is named after"):
        verify(path)
    pointer.unlink()
    with pytest.raises(ValueError, match="expected a run with a checkpoint, got one without"):
        load_trained(path, device="cpu")
    shutil.rmtree(donor)
    with pytest.raises(ValueError, match="got nothing; it was moved or removed"):
        verify(path)


def test_what_is_no_donor_is_said(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got another folder"):
        locate(of(f"start_from={tmp_path}"), None)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"got the weights of a whole model; give them as a base instead: model: \{w"):
        donor_hash(tmp_path)
    old = copied(make(), tmp_path)
    (old / "trained_on.txt").unlink()
    with pytest.raises(ValueError, match=r"expected trained_on\.txt"):
        locate(of(f"start_from={old}"), None)


# ---- from an adapter of PEFT -----------------------------------------------------------------------------------------


def exported(path: Path, folder: Path, *, base: bool) -> Path:
    trained = load_trained(path, device="cpu")
    trained.load()
    folder.mkdir()
    write_peft(trained, folder, base=base)
    (folder / FILE).write_text(json.dumps(origin(trained)))
    return folder


@pytest.mark.parametrize("name", ["tiny", "vit-tiny"])
@pytest.mark.parametrize("base", [True, False])
def test_an_export_starts_a_run_with_equal_logits(make: Make, tmp_path: Path, name: str, base: bool) -> None:
    donor = make(name=name)
    folder = exported(donor, tmp_path / "peft", base=base)
    trained = load_trained(donor, device="cpu")
    experiment = of(f"start_from={folder}", f"seed={int(base)}", name=name)
    assert locate(experiment, None).weights_hash not in ("random", donor_hash(donor))
    replica = build_replica(experiment, len(trained.classes), CPU, classes=trained.classes)
    asked = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(replica.model(asked), trained.load().model(asked), rtol=1e-5, atol=1e-6)


def test_a_random_base_of_another_seed_is_refused(make: Make, tmp_path: Path) -> None:
    folder = exported(make(), tmp_path / "peft", base=False)
    with pytest.raises(ValueError, match="expected seed 0, as the random base of this adapter follows from it, got 1"):
        build_replica(of(f"start_from={folder}", "seed=1"), 2, CPU, classes=("edema", "core"))


def test_an_export_says_what_it_has_seen(make: Make, tmp_path: Path) -> None:
    donor = make()
    folder = exported(donor, tmp_path / "peft", base=True)
    experiment = of(f"start_from={folder}", "data.seed=5")
    assert set((donor / "trained_on.txt").read_text().split()) < set(trained_on(experiment, locate(experiment, None)))
    with pytest.raises(ValueError, match=r"it was trained on . validation case"):
        locate(of(f"start_from={folder}", "split.validation_fraction=0.5"), None)


@pytest.mark.parametrize("settings", [(), ("stages.privacy={noise_multiplier: 1.0, clip_norm: 1.0, delta: 0.001}",)])
def test_a_donor_that_does_not_say_what_it_has_seen(make: Make, tmp_path: Path, settings: tuple[str, ...]) -> None:
    """Refused until the user says it, and so is whatever starts from a run that began with it."""
    donor = make(*(("aggregator=fedavg", "weights=uniform", *settings) if settings else ()))
    folder = exported(donor, tmp_path / "peft", base=True)
    said = read_json(folder / "wardround.json")
    assert (said["trained_on"] is None) == bool(settings)
    write_json(folder / "wardround.json", {**said, "trained_on": None})
    with pytest.raises(ValueError, match=r"got one that does not, .* say what it has seen in model\.pretrained_on"):
        locate(of(f"start_from={folder}"), None)
    told = of(f"start_from={folder}", "model.pretrained_on=['other: phantoms']", "rounds=1")
    second = run(told, out=tmp_path, quiet=True, images=False).path
    assert (second / "trained_on.txt").read_text().split()[-1] == UNKNOWN
    with pytest.raises(ValueError, match="or that began with one that does not"):
        locate(of(f"start_from={second}"), None)
    again = exported(second, tmp_path / "again", base=True)
    with pytest.raises(ValueError, match="or that began with one that does not"):
        locate(of(f"start_from={again}"), None)


def test_an_adapter_of_somebody_else_does_not_say_what_it_has_seen(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"say what it has seen in model\.pretrained_on"):
        locate(of(f"start_from={tmp_path}"), None)


def test_an_export_of_a_run_that_started_from_another_starts_a_run(make: Make, tmp_path: Path) -> None:
    """With its base, which holds what the first one had learned; without it there is no such base."""
    first = make("method=lora_decoder")
    second = make(f"start_from={first}", "method=lora", "seed=3", "rounds=1")
    trained = load_trained(second, device="cpu")
    folder = exported(second, tmp_path / "peft", base=True)
    replica = build_replica(of(f"start_from={folder}", "seed=5"), 2, CPU, classes=trained.classes)
    asked = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(replica.model(asked), trained.load().model(asked), rtol=1e-5, atol=1e-6)
    shutil.rmtree(folder / "base")
    with pytest.raises(ValueError, match="expected an export with its base, as its run started from another one"):
        build_replica(of(f"start_from={folder}", "seed=3"), 2, CPU, classes=trained.classes)


def test_an_adapter_that_peft_has_trained_starts_a_run(tmp_path: Path) -> None:
    """PEFT on plain transformers, saved by itself; the base is named as weights. Our logits are those of PEFT."""
    from peft import LoraConfig, get_peft_model
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=3)
    ViTForImageClassification(config).save_pretrained(tmp_path / "base-model")
    base = ViTForImageClassification.from_pretrained(tmp_path / "base-model")
    lora = LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
    network = get_peft_model(base, lora)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    network.eval().save_pretrained(tmp_path / "adapter")
    settings = (f"model.weights={tmp_path / 'base-model'}", f"start_from={tmp_path / 'adapter'}")
    replica = build_replica(of(*settings, "method.lora.rank=3", name="vit-tiny"), 3, CPU, classes=("a", "b", "c"))
    asked = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = network((asked - 0.5) / 0.5).logits
        torch.testing.assert_close(replica.model(asked), theirs, rtol=1e-5, atol=1e-5)


def test_an_exported_base_says_what_it_has_seen(make: Make, tmp_path: Path) -> None:
    """As an adapter does: its cases are not scored, and what is trained on it inherits the list."""
    donor = make("model.upscaler=sam")
    folder = export(donor, "hf", tmp_path / "hf")
    settings = ("model.upscaler=sam", f"model.weights={folder}", "model.heads=checkpoint")
    experiment = of(*settings)
    assert set(trained_on(experiment, locate(experiment, None))) >= read_seen(donor).cases
    other = of(*settings, "split.test_fraction=0.5", "split_seed=5")
    with pytest.raises(ValueError, match=r"model\.weights: .* it was trained on \d+ test cases?"):
        locate(other, None)


def test_an_exported_model_is_a_base(make: Make, tmp_path: Path) -> None:
    """``model.weights`` and ``heads: checkpoint``: the merged model of ``upscaler: sam`` in a directory."""
    trained = load_trained(make("model.upscaler=sam", "rounds=1"), device="cpu")
    network = trained.load().model
    save_file(merged_state(network), tmp_path / "model.safetensors")
    chosen = f"model={{name: sam, size: tiny, image_size: 32, upscaler: sam, weights: {tmp_path}, heads: checkpoint}}"
    replica = build_replica(of(chosen, "seed=4"), 2, CPU)
    asked = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(replica.model(asked), network(asked), rtol=1e-5, atol=1e-6)
