"""The model card: what it says of a run, its header, and the licence of the base."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wardround.datasets.msd import Msd
from wardround.simulator import yaml12
from wardround.simulator.config import load_experiment
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.exports.card import card
from wardround.simulator.exports.contract import Recipe
from wardround.simulator.exports.licences import Licence, base_licence
from wardround.simulator.exports.preparation import _read
from wardround.simulator.results import RunRecords
from wardround.simulator.run import run
from wardround.simulator.trained import load_trained

PRIVATE = (
    *("aggregator=fedavg", "weights=uniform", "evaluation.every=2"),
    "stages.privacy={noise_multiplier: 1.0, clip_norm: 1.0, delta: 0.001}",
)
NONE = Licence(header=None, sentence="No licence.")
RECIPE = Recipe(library="transformers", code="print(1)\n", notes=("Mind this.",), tags=("more",))

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    out = tmp_path_factory.mktemp("card")

    def ran(*settings: str) -> Path:
        return run(load_experiment("tiny", open_file(PACKAGED), settings), out=out, quiet=True, images=False).path

    return ran


def of(path: Path, **options: Any) -> str:
    trained = load_trained(path, round_number=options.pop("round_number", None), device="cpu")
    return card(trained, RECIPE, options.pop("licence", NONE), **options)


def header_of(text: str) -> dict[str, Any]:
    before, header, _ = text.split("---\n", 2)
    assert before == ""
    return yaml12.loads(header)


def test_the_header_is_that_of_a_model_hub(make: Make) -> None:
    header = header_of(of(make(), licence=Licence(header="mit", sentence="")))
    assert header["library_name"] == "transformers"
    assert header["base_license"] == "mit"
    assert header["tags"][-1] == "more"
    assert header["pipeline_tag"] == "image-segmentation"
    assert "license" not in header
    assert "base_license" not in header_of(of(make()))
    assert "base_model" not in header  # random weights


def test_scores_are_those_of_the_run(make: Make) -> None:
    path = make()
    text = of(path)
    for site in RunRecords.load(path).final():
        others = " | ".join((f"{site.others['hd95_mm']:.2f}", f"{site.others['surface_dice']:.3f}"))
        assert f"| {site.hospital} | {site.cases} | {site.score:.3f} | {others} |" in text
    assert "Test volumes after round 2" in text
    assert "another one" not in text


def test_the_facts_are_there(make: Make) -> None:
    text = of(make(), hospital="hospital-2")
    assert "This is the model of hospital hospital-2, after round 2 of 2" in text
    assert "Classes: 0 background, 1 edema, 2 core." in text
    assert "| hospital-1 | 12 |" in text
    assert "```python\nprint(1)\n```\n\n- Mind this." in text
    assert "aggregator: flap_sam" in text
    assert "no medical device" in text
    assert "Phantoms are phantoms" in text
    assert "Privacy" not in text


def test_another_round_than_that_of_the_scores_is_said(make: Make) -> None:
    text = of(make(*PRIVATE), round_number=1)
    assert "after round 1 of 2" in text
    assert "The files here hold the model after round 1, another one." in text


def test_the_list_of_cases_is_spoken_of_where_it_is(make: Make, tmp_path: Path) -> None:
    whole, private = of(make()), of(make(*PRIVATE))
    assert "The list `trained_on` in `wardround.json` is a hash per training case" in whole
    assert "not whole" not in whole
    assert "no list of the training cases, as the run promises differential privacy" in private
    assert "hash per training case" not in private
    copy = Path(shutil.copytree(make(), tmp_path / "run"))
    with (copy / "trained_on.txt").open("a") as file:
        file.write("unknown\n")
    assert "so the list is not whole" in of(copy)
    (copy / "trained_on.txt").unlink()
    assert "no list of the training cases, as the run kept none" in of(copy)


def test_an_unfinished_run_without_scores_says_so(make: Make, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(make(), tmp_path / "run"))
    (copy / "summary.json").unlink()
    manifest = (copy / "manifest.json").read_text().replace('"state": "finished"', '"state": "running"')
    (copy / "manifest.json").write_text(manifest)
    assert "The run is not finished." in of(copy)
    (copy / "metrics.jsonl").write_text("")
    (copy / "cases.jsonl").write_text("")
    assert "The run has no scores of test cases." in of(copy)


def test_the_guarantee_is_that_after_the_round(make: Make) -> None:
    path = make(*PRIVATE)
    first, second = (of(path, round_number=number) for number in (1, 2))
    assert RunRecords.load(path).summary["privacy"] in second
    assert "## Privacy\n\n(" in first
    assert RunRecords.load(path).summary["privacy"] not in first


# ---- the licence of the base -----------------------------------------------------------------------------------------


def model(weights: str) -> Any:
    settings = [f"model.weights={weights}", "model.size=mini", "model.image_size=64"]
    return load_experiment("tiny", open_file(PACKAGED), settings).model


def test_random_and_packaged_bases() -> None:
    assert base_licence(model("random")).header is None
    assert "random weights" in base_licence(model("random")).sentence
    given = base_licence(model("random"), "mit")
    assert given.header == "mit"
    assert given.sentence.endswith("which nobody licenses; it is mit, as the one who exported it says.")
    assert base_licence(model("sam-mini")).header == "apache-2.0"
    with pytest.raises(
        ValueError, match=r"expected 'apache-2\.0', which the base 'sam-mini' says of itself, got 'mit'"
    ):
        base_licence(model("sam-mini"), "mit")


def test_a_directory_says_it_in_its_card(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    assert base_licence(model(str(folder))).sentence == "Base `base`: not stated: find out before you pass this on."
    assert base_licence(model(str(folder)), "mit").header == "mit"
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\ntags: [x]\n---\n\n# A model\n---\n")
    assert base_licence(model(str(folder))).header == "cc-by-4.0"
    assert base_licence(model(str(folder)), "CC-BY-4.0").header == "cc-by-4.0"
    (folder / "README.md").write_text("# A model\n\n---\nlicense: mit\n---\n")
    assert base_licence(model(str(folder))).header is None


def test_a_header_may_hold_anything(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: 1.0\n---\n")
    with pytest.raises(ValueError, match=r"expected '1\.0', which the base .* got 'mit'"):
        base_licence(model(str(tmp_path)), "mit")
    (tmp_path / "README.md").write_text("---\nlicense: [mit, 2]\n---\n")
    assert base_licence(model(str(tmp_path))).header == "mit, 2"
    (tmp_path / "README.md").write_text("---\nlicense: [mit\n---\n")
    assert base_licence(model(str(tmp_path)), "mit").header == "mit"
    with pytest.raises(ValueError, match=r"expected a header that can be read, or the licence of the base: .*README"):
        base_licence(model(str(tmp_path)))


@pytest.mark.parametrize("given", [" ", "mit\nlibrary_name: x"])
def test_a_licence_is_a_name_in_one_line(given: str) -> None:
    with pytest.raises(ValueError, match="licence: expected its name in one line"):
        base_licence(model("random"), given)


def test_the_card_says_how_a_volume_is_read() -> None:
    """Whoever reads files without the data set's class has to know its axis and its clipping."""
    assert _read(Msd(clip_percentiles=(1.0, 99.0), channel=2)) == (
        "Of the fourth axis number 2 is taken, counted from 0. Slices lie along array axis 2 of the file, counted from "
        "0, and are not turned. First every volume is clipped to its own percentiles 1 and 99."
    )
    assert _read(object()) == "How a volume is read and clipped first: object.open_image."
