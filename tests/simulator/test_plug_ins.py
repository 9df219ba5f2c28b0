"""Classes from outside the package: found, refused with one clear message, and known to the run by their source."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

import wardround
from wardround.aggregators import FedAvg
from wardround.aggregators.checks import AggregationError
from wardround.clients.testing import check_loss
from wardround.clients.vit import Vit
from wardround.datasets import fingerprints
from wardround.datasets.fingerprints import code_hash, foreign_sources
from wardround.datasets.testing import check_image_dataset
from wardround.simulator.builder import _hints, _lacking, _plain, _table
from wardround.simulator.cli import MISTAKE, main
from wardround.simulator.compare import _by_other_code
from wardround.simulator.config import ConfigError, Experiment, load_experiment
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.plug_ins import classes_in, import_class
from wardround.simulator.reports.run import _setting_text
from wardround.simulator.run import run
from wardround.simulator.rundir import check_environment, environment
from wardround.simulator.sweeps.plan import label
from wardround.simulator.table import TableSetting, rows
from wardround.simulator.verify import verify

HEAD = """
from __future__ import annotations
from dataclasses import dataclass
from typing import ClassVar
from wardround.aggregators import FedAvg
from wardround.clients.methods import LinearProbe
from wardround.clients.sam import Sam
"""

MODULES = {
    "__init__": "",
    "helper": "FACTOR = 1.0\n",
    "mine": HEAD
    + """
from . import helper

@dataclass(frozen=True, kw_only=True)
class Mean(FedAvg):
    mu: float = 0.1

    def __post_init__(self):
        if self.mu < 0:
            raise ValueError(f"mu: expected at least 0, got {self.mu!r}")
        if self.mu > 1:
            raise KeyError("mu is large")

@dataclass(frozen=True, kw_only=True)
class Probe(LinearProbe):
    models: ClassVar[tuple[str, ...]] = ("vit",)

@dataclass(frozen=True, kw_only=True)
class OwnSam(Sam):
    pass

@dataclass(frozen=True, kw_only=True)
class Empty:
    pass

@dataclass(frozen=True, kw_only=True)
class Odd(FedAvg):
    tensor: bytes = b""

@dataclass(frozen=True, kw_only=True)
class Few(FedAvg):
    def broadcast(self, server):
        return None

@dataclass(frozen=True, kw_only=True)
class Free(FedAvg):
    def broadcast(self, *args, **kwargs):
        return super().broadcast(*args, **kwargs)

@dataclass(frozen=True, kw_only=True)
class Forgetful(FedAvg):
    def aggregate(self, server, updates, rng):
        pass

@dataclass(frozen=True, kw_only=True)
class Careless(FedAvg):
    def aggregate(self, server, updates, rng):
        return {}["mean"]

@dataclass(kw_only=True)
class Thawed:
    pass

class Undecorated(FedAvg):
    nu: float = 0.1
    kind: ClassVar[str] = "u"

class Plain:
    pass
""",
    "hinted": HEAD
    + """
@dataclass(frozen=True, kw_only=True)
class Hinted(FedAvg):
    kind: ClassVar[str] = "h"
    b: int = 0
    a: "Nope" = 1
""",
    "whole": """
from __future__ import annotations
from dataclasses import dataclass, replace
from typing import ClassVar
import numpy as np
import torch
from wardround.datasets.augment import AugmentParameters
from wardround.datasets.contract import Case, Pool

CALLED = set()

@dataclass(frozen=True, kw_only=True)
class Squares:
    task: ClassVar[str] = "classification"

    def locate(self, root):
        return root

    def pool(self, root):
        files = sorted(root.glob("*.npy"))
        return Pool(cases=tuple(map(self._case, files)), classes=("dark", "light"), problems=())

    def _case(self, file):
        site, _, name = file.stem.split("_")
        return Case(name=file.stem, patient=file.stem, image=file, label=file, site=site, target=int(name == "light"))

    def images(self, cases):
        CALLED.add("images")
        for case in cases:
            yield np.load(case.image)

    def picture(self, path):
        return np.load(path)

@dataclass(frozen=True, kw_only=True)
class Brier:
    task: ClassVar[str] = "classification"

    def __call__(self, logits, labels):
        CALLED.add("loss")
        wanted = torch.nn.functional.one_hot(labels.long(), logits.shape[-1])
        return (logits.softmax(-1) - wanted).square().sum(-1).mean()

    def at(self, labels, logits):
        return labels

    def fitted(self, counts):
        return self

@dataclass(frozen=True, kw_only=True)
class Brighter:
    gamma: float = 0.5

    @property
    def variants(self):
        return 0

    def sample(self, n_windows, rng):
        CALLED.add("sample")
        return replace(AugmentParameters.neutral(n_windows), gamma=torch.full((n_windows,), self.gamma))

@dataclass(frozen=True, kw_only=True)
class First:
    def check(self, hospitals, cohort_size=None):
        CALLED.add("check")

    def reweigh(self, server, updates):
        return [1.0] + [0.0] * (len(updates) - 1)
""",
    "broken": "import math\n\nmath.sqrt(-1)\n",
    "torn": "x = 1\ndef f(:\n",
    "leaving": "import sys\nsys.exit(3)\n",
    "needy": "import math\nimport no_such_library\n",
}


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package ``elsewhere`` on the path."""
    folder = tmp_path / "site" / "elsewhere"
    folder.mkdir(parents=True)
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(folder.parent)
    yield folder
    _forget()


def _forget() -> None:
    """As in another process."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "elsewhere"]:
        del sys.modules[name]
    fingerprints._foreign_hash.cache_clear()
    code_hash.cache_clear()


def tiny(*settings: str, base: str = "tiny") -> Experiment:
    return load_experiment(base, open_file(PACKAGED), settings)


# ---- what may be wrong -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (
            "elsewhere.mine.Mean",
            r"expected 'package.module:Class', got 'elsewhere.mine.Mean', did you mean '.*mine:Mean'",
        ),
        ("elsewhere/mine.py:Mean", r"as an import does, with dots and without .py"),
        ("mine.py:Mean", r"as an import does, with dots and without .py"),
        (".mine:Mean", r"write the whole name of the module"),
        ("elsewhere.mine:", r"expected 'package.module:Class'"),
        (7, r"expected 'package.module:Class', got 7"),
        (
            "not_there.mine:Mean",
            r"No module named 'not_there'; Python looked in .*site.*: set PYTHONPATH=?.*pip install -e",
        ),
        (
            "elsewhere.nothing:Mean",
            r"No module named 'elsewhere.nothing'; there is a 'elsewhere', in .*without that module",
        ),
        ("elsewhere.needy:Mean", r"needy.py, line 2\): ModuleNotFoundError: .*it needs 'no_such_library'"),
        ("elsewhere.broken:Mean", r"cannot import 'elsewhere.broken': ValueError: .*broken.py, line 3\)"),
        ("elsewhere.torn:Mean", r"SyntaxError: .*torn.py, line 2\)"),
        ("elsewhere.leaving:Mean", r"SystemExit: 3 \(.*leaving.py, line 2\)"),
        (
            "elsewhere.mine:Meen",
            r"no class 'Meen' in 'elsewhere.mine', did you mean 'Mean'\? \(known: Careless, Empty, ",
        ),
        (
            "elsewhere.mine:Plain",
            r"expected a dataclass, got <class .*Plain'>: put @dataclass\(frozen=True, kw_only=True\)",
        ),
        ("elsewhere.mine:HEAD", r"no class 'HEAD'"),
        ("elsewhere.mine:helper", r"expected a dataclass, got <module"),
        ("elsewhere.mine:Thawed", r"expected a frozen dataclass, got <class .*Thawed'>: put @dataclass"),
        (
            "elsewhere.hinted:Hinted",
            r"^a of Hinted: its type hint .*Nope.* cannot be read: NameError: name 'Nope' .*hinted.py\)$",
        ),
        ("elsewhere.mine:Undecorated", r"^nu of Undecorated can be no settings, .*put @dataclass"),
        ("__main__:Mine", r"defined in a script or a notebook"),
    ],
)
def test_what_is_wrong_with_a_class_is_told(name: object, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        import_class(name)


def test_a_module_in_the_current_folder_is_pointed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lying_here.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    with pytest.raises(ValueError, match=r"it lies in the current folder, .*PYTHONPATH=. wardround"):
        import_class("lying_here:Mine")


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ('aggregator={class: "elsewhere.mine:Mean", um: 1}', r"aggregator.um: unknown key .known: mu."),
        ('aggregator={class: "elsewhere.mine:Mean", mu: x}', r"aggregator.mu: expected a finite number, got 'x'"),
        ('aggregator={class: "elsewhere.mine:Mean", mu: -1}', r"aggregator.mu: expected at least 0, got -1.0"),
        (
            'aggregator={class: "elsewhere.mine:Mean", mu: 2}',
            r"elsewhere.mine:Mean cannot be built: KeyError: 'mu is large' \(.*mine.py, line 19\)",
        ),
        (
            'aggregator={class: "elsewhere.mine:Odd", tensor: x}',
            r"elsewhere.mine:Odd cannot be built: TypeError: .*<class 'bytes'> is no type that can be read from a file",
        ),
        (
            'aggregator={class: "elsewhere.mine:Empty"}',
            r"aggregator: Empty is no Aggregator: it has no aggregate, .*rule",
        ),
        (
            'aggregator={class: "elsewhere.mine:Few"}',
            r"aggregator: Few is no Aggregator: expected broadcast\(self, server, hospital\), "
            r"got broadcast\(self, server\)$",
        ),
        (
            'method={class: "elsewhere.mine:Mean"}',
            r"method: Mean is no Method: it has no attach, initialise, models; it suits aggregator",
        ),
        (
            'data={class: "elsewhere.mine:Mean"}',
            r"data: Mean is no Dataset: .*and no ImageDataset: .*; it suits aggregator",
        ),
        (
            'model={class: "elsewhere.mine:OwnSam", size: tiny, image_size: 30}',
            r"model.image_size: expected a positive",
        ),
    ],
)
def test_a_class_that_does_not_fit_an_experiment_is_told(setting: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        tiny(setting)


@pytest.mark.usefixtures("outside")
def test_other_arguments_are_no_reason_to_refuse_a_class() -> None:
    """Stars take what the contract says, and every class of the tables keeps its own contract."""
    assert type(tiny('aggregator={class: "elsewhere.mine:Free"}').aggregator).__name__ == "Free"
    hints = {name: hint for name, hint in _hints(Experiment).items() if _table(hint)}
    assert {"aggregator", "data", "method", "model", "loss", "augment", "weights"} <= hints.keys()
    for hint in hints.values():
        assert [
            _lacking(_plain(hint), cls) for cls in (_table(hint) or {}).values() if _lacking(_plain(hint), cls)
        ] == []


@pytest.mark.usefixtures("outside")
def test_a_hint_that_cannot_be_read_is_told_of_an_object_too() -> None:
    hinted = importlib.import_module("elsewhere.hinted").Hinted()
    with pytest.raises(ConfigError, match=r"^aggregator: a of Hinted: its type hint .*NameError.*hinted.py\)$"):
        wardround.load_experiment(tiny(), aggregator=hinted)
    with pytest.raises(ConfigError, match=r"^a of Hinted: its type hint"):
        repr(replace(tiny(), aggregator=hinted))


@pytest.mark.usefixtures("outside")
def test_what_goes_wrong_in_a_round_is_told_with_the_round(tmp_path: Path) -> None:
    with pytest.raises(
        AggregationError, match=r"^round 1: expected Aggregated\(server=...\) from Forgetful.aggregate, got None$"
    ):
        run(tiny('aggregator={class: "elsewhere.mine:Forgetful"}'), out=tmp_path, quiet=True, images=False)
    with pytest.raises(KeyError) as caught:
        run(tiny('aggregator={class: "elsewhere.mine:Careless"}'), out=tmp_path, quiet=True, images=False)
    assert caught.value.__notes__ == ["in round 1 of Careless"]
    assert caught.traceback[-1].name == "aggregate"


# ---- they train ------------------------------------------------------------------------------------------------------


def called() -> set[str]:
    return cast(set[str], importlib.import_module("elsewhere.whole").CALLED)


@pytest.mark.usefixtures("outside")
def test_images_a_loss_and_an_augmentation_from_outside_train(tmp_path: Path) -> None:
    whole = importlib.import_module("elsewhere.whole")
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for site, number in product(("north", "south"), range(10)):
        level, word = ((60, "dark"), (190, "light"))[number % 2]
        image = rng.integers(level - 40, level + 40, (16, 16, 3)).astype(np.uint8)
        np.save(tmp_path / "images" / f"{site}_{number:02d}_{word}.npy", image)
    check_image_dataset(whole.Squares(), tmp_path / "images")
    check_loss(whole.Brier())
    called().clear()
    experiment = tiny(
        'data={class: "elsewhere.whole:Squares"}',
        'loss={class: "elsewhere.whole:Brier"}',
        'augment={class: "elsewhere.whole:Brighter", gamma: 0.7}',
        "rounds=1",
        base="vit-tiny",
    )
    path = run(experiment, data=tmp_path / "images", out=tmp_path / "runs", quiet=True, images=False).path
    assert called() == {"images", "loss", "sample"}
    done = wardround.Run(path)
    losses = [row["value"] for row in done.metrics if (row["split"], row["metric"]) == ("train", "loss")]
    assert len(losses) == 2
    assert all(0 < loss < 2 for loss in losses)  # Brier's score; cross-entropy knows no upper end
    assert (done.hospitals, done.classes) == (("north", "south"), ("dark", "light"))
    assert list(done.manifest["environment"]["plug_ins"]) == ["elsewhere"]


@pytest.mark.usefixtures("outside")
def test_robust_weights_from_outside_train(tmp_path: Path) -> None:
    experiment = tiny('weights={name: robust, rule: {class: "elsewhere.whole:First"}}', "rounds=1")
    path = run(experiment, out=tmp_path, quiet=True, images=False).path
    assert called() == {"check"}
    told = {row["metric"]: row["value"] for row in wardround.Run(path).metrics if row["hospital"] is None}
    assert told["aggregate/robust_rejected"] == 2


@pytest.mark.usefixtures("outside")
def test_a_model_from_outside_is_of_the_family_it_builds_on() -> None:
    with pytest.raises(ConfigError, match=r"method: expected one for the model 'sam', got one for vit"):
        tiny('model={class: "elsewhere.mine:OwnSam", size: tiny, image_size: 32}', "method=linear")


@pytest.mark.usefixtures("outside")
def test_the_command_ends_with_one_message(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    setting = 'aggregator={class: "elsewhere.broken:Mean"}'
    assert main(["run", "tiny", "--quiet", "--out", str(tmp_path / "runs"), "--set", setting]) == MISTAKE
    told = capsys.readouterr().err
    assert told.startswith("wardround: error: --set aggregator.class: cannot import 'elsewhere.broken': ValueError")
    assert "Traceback" not in told


# ---- what they are called --------------------------------------------------------------------------------------------


def test_a_class_from_outside_is_called_by_its_name() -> None:
    written = {"class": "elsewhere.mine:Mean", "mu": 0.1}
    assert label("aggregator", written) == "Mean (mu=0.1)"
    assert _setting_text(written) == "Mean (mu 0.1)"
    assert _setting_text({"class": "elsewhere.mine:Mean"}) == "Mean"


@pytest.mark.usefixtures("outside")
def test_a_method_from_outside_has_a_row_in_the_table() -> None:
    method = tiny('method={class: "elsewhere.mine:Probe"}', base="vit-tiny").method
    made = rows(TableSetting(model=Vit(size="tiny", image_size=32), classes=2, method=method))
    (own,) = (row for row in made if row.method == "Probe")
    (ours,) = (row for row in made if row.method == "linear")
    assert own.trained_parameters == ours.trained_parameters


# ---- their source code -----------------------------------------------------------------------------------------------


def test_classes_are_found_at_any_depth() -> None:
    experiment = tiny()
    kinds = {kind.__name__ for kind in classes_in(experiment)}
    assert {"Experiment", "Phantom", "FlapSam", "LoRA", "AdamW"} <= kinds


def test_a_run_without_plug_ins_has_the_environment_it_always_had() -> None:
    assert foreign_sources(classes_in(tiny())) == {}
    assert environment(torch.device("cpu"), tiny()) == environment(torch.device("cpu"))
    assert "plug_ins" not in environment(torch.device("cpu"), tiny())


@pytest.mark.parametrize("changed", ["mine", "helper"])
def test_changed_source_is_another_environment(outside: Path, changed: str) -> None:
    def here() -> dict[str, Any]:
        return environment(torch.device("cpu"), tiny('aggregator={class: "elsewhere.mine:Mean"}'))

    before = here()
    assert list(before["plug_ins"]) == ["elsewhere"]
    _forget()
    assert here() == before
    file = outside / f"{changed}.py"
    file.write_text(file.read_text() + "# changed\n")
    _forget()
    with pytest.raises(ValueError, match=r"another environment .*\(plug_ins: {'elsewhere': '\w{12}'} then, "):
        check_environment(before, here())


def test_a_class_of_a_notebook_is_known_by_its_functions() -> None:
    def typed(result: str) -> bytes:
        names: dict[str, Any] = {"__name__": "__main__", "FedAvg": FedAvg, "dataclass": dataclass}
        exec(f"@dataclass(frozen=True)\nclass Typed(FedAvg):\n    def twice(self, x): return {result}\n", names)
        return fingerprints._functions(names["Typed"])

    assert typed("x + x") == typed("x + x") != typed("x * x")


def test_the_cache_of_volumes_notices_every_file_of_the_package(outside: Path) -> None:
    before = code_hash(import_class("elsewhere.mine:Empty"))
    _forget()
    assert code_hash(import_class("elsewhere.mine:Empty")) == before
    (outside / "helper.py").write_text("FACTOR = 2.0\n")
    _forget()
    assert code_hash(import_class("elsewhere.mine:Empty")) != before


def test_a_run_is_not_continued_or_verified_with_other_source(outside: Path, tmp_path: Path) -> None:
    def load() -> Experiment:
        _forget()
        return tiny('aggregator={class: "elsewhere.mine:Mean"}', "rounds=1")

    path = run(load(), out=tmp_path / "runs", quiet=True, images=False).path
    manifest = json.loads((path / "manifest.json").read_text())
    assert list(manifest["environment"]["plug_ins"]) == ["elsewhere"]
    assert verify(path).identical
    (outside / "helper.py").write_text("FACTOR = 2.0\n")
    assert "plug_ins: {'elsewhere'" in run(load(), out=tmp_path / "runs", quiet=True, images=False).note
    with pytest.raises(ValueError, match=r"plug_ins: {.elsewhere."):
        verify(path)
    assert verify(path, allow_changed_environment=True).identical
    (path / "manifest.json").write_text(json.dumps({**manifest, "state": "interrupted"}))
    with pytest.raises(ValueError, match=r"plug_ins: {'elsewhere'.*--allow-changed-environment"):
        run(load(), out=tmp_path / "runs", quiet=True, images=False)


@pytest.mark.parametrize(
    ("left", "right", "other"),
    [
        ({"code_hash": "a"}, {"code_hash": "a", "plug_ins": {"p": "1"}}, False),
        ({"code_hash": "a", "plug_ins": {"p": "1"}}, {"code_hash": "a", "plug_ins": {"p": "2"}}, True),
        ({"code_hash": "a", "plug_ins": {"p": "1"}}, {"code_hash": "a", "plug_ins": {"q": "2", "p": "1"}}, False),
        ({"code_hash": "a"}, {"code_hash": "b"}, True),
    ],
)
def test_a_comparison_warns_of_code_that_changed(left: dict[str, Any], right: dict[str, Any], other: bool) -> None:
    assert _by_other_code(left, right) is other
