"""Writes docs/reference/ from the docstrings and tables of the package: `make docs`.

tests/test_docs.py compares the committed pages with what this script writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import io
import json
import os
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import wardround
from wardround.aggregators import AGGREGATORS, contract, instruments
from wardround.aggregators.testing import Claims, check_aggregator
from wardround.clients import LOSSES, METHODS, MODELS, sam, sam_weights, vit, vit_weights
from wardround.clients import evaluation as client_evaluation
from wardround.clients.lora import LoRA, initialise_adapters
from wardround.clients.losses import segmentation_loss
from wardround.clients.optimizers import OPTIMIZERS, Schedule
from wardround.clients.testing import check_method
from wardround.clients.training import Training
from wardround.datasets import AUGMENTS, DATASETS, PARTITIONS, windows
from wardround.datasets import contract as data_contract
from wardround.datasets.split import Split, split_patients
from wardround.datasets.testing import check_dataset
from wardround.simulator import results
from wardround.simulator.attacks import ATTACKS
from wardround.simulator.cli import main as command_line
from wardround.simulator.compression import COMPRESSIONS
from wardround.simulator.config import Experiment, load_experiment
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.privacy import AdaptiveClip, Privacy
from wardround.simulator.recording import Instruments
from wardround.simulator.replay import Replayed, replay
from wardround.simulator.run_state import State
from wardround.simulator.runtime import Runtime
from wardround.simulator.sampling import Cohort
from wardround.simulator.secure_sum import SecureSum
from wardround.simulator.stages import Stages
from wardround.simulator.verify import verify
from wardround.simulator.weights import WEIGHTINGS

FOLDER = Path(__file__).resolve().parent / "reference"
WRITTEN = "<!-- Written by docs/make_reference.py from the code; change the docstrings there and run `make docs`. -->"
COMMANDS = (
    "",
    "run",
    "sweep",
    "report",
    "runs",
    "compare",
    "clean",
    "verify",
    "replay",
    "predict",
    "export",
    "table",
    "list",
    "bench",
    "data",
    "data check",
    "data prepare",
    "data phantom",
)


def pages() -> dict[str, str]:
    """The text of every page by file name."""
    made = {
        "aggregators.md": aggregators_page,
        "contract.md": contract_page,
        "methods.md": methods_page,
        "models.md": models_page,
        "datasets.md": datasets_page,
        "training.md": training_page,
        "experiment.md": experiment_page,
        "experiments.md": experiments_page,
        "command-line.md": command_line_page,
        "run-directory.md": run_directory_page,
        "python.md": python_page,
    }
    return {name: _page(*make()) for name, make in made.items()}


def main() -> None:
    """Writes the pages and removes those that are no longer made."""
    made = pages()
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.glob("*.md"):
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    print(f"wrote {len(made)} pages to {FOLDER.parent.name}/{FOLDER.name}")


# ---- the pages -------------------------------------------------------------------------------------------------------


def aggregators_page() -> list[str]:
    """What the server can do with the updates."""
    return [
        "# Aggregators",
        "What the server does with the updates, and what travels. Setting `aggregator` of an experiment. Families, "
        "worked examples and a table of all: [aggregators](../aggregators/README.md); how to write your own: "
        "[add an aggregator](../how-to/add-an-aggregator.md); the types: [the contract](contract.md).",
        *_plugins(AGGREGATORS),
    ]


def contract_page() -> list[str]:
    """What an aggregator is made of."""
    values = (
        contract.Pair,
        contract.Layout,
        contract.HospitalInfo,
        contract.Setting,
        contract.ServerState,
        contract.Download,
        contract.Phase,
        contract.Fit,
        contract.LocalResult,
        contract.ClientUpdate,
        contract.Aggregated,
    )
    return [
        "# The contract between server and hospital",
        "The types of `wardround.aggregators.contract`. `Tensors` is a mapping of names to tensors, `Shape` a tuple of "
        "whole numbers, `Streams` a function of keys that gives a fresh seeded `torch.Generator`. All classes are "
        "frozen and take keywords only.",
        *_protocol(contract.Aggregator),
        *_protocol(contract.LocalRule),
        *(part for cls in values for part in _dataclass(cls, cls.__name__, python=True)),
        *_function(check_aggregator, "wardround.aggregators.testing"),
        *_dataclass(Claims, "Claims", python=True),
    ]


def methods_page() -> list[str]:
    """Which tensors may train."""
    return [
        "# Methods",
        "Which tensors of the model may train, and hence travel. Setting `method` of an experiment. What each of them "
        "costs: [choose what trains](../how-to/choose-what-trains.md).",
        *_plugins(METHODS),
        *_dataclass(LoRA, "Settings of LoRA"),
        "### Initial values",
        *_text(initialise_adapters),
    ]


def models_page() -> list[str]:
    """The base model."""
    return [
        "# Models",
        "The base that all hospitals share. Setting `model` of an experiment. How to use SAM's own weights: "
        "[use SAM weights](../how-to/use-sam-weights.md); those of a ViT: "
        "[classify images](../how-to/classify-images.md).",
        *_plugins(MODELS),
        "## Sizes of SAM",
        _sizes(sam.SIZES),
        "## Sizes of ViT",
        _sizes(vit.SIZES),
        *(part for name in sam_weights.PACKAGED for part in _packaged(name, "clients/pretraining.py")),
        *(part for name in vit_weights.PACKAGED for part in _packaged(name, "clients/vit_pretraining.py")),
    ]


def _sizes(sizes: Mapping[str, Any]) -> str:
    """A row per size of a model."""
    header = [field.name.replace("_", " ") for field in dataclasses.fields(next(iter(sizes.values())))]
    rows = [[f"`{name}`", *(_yaml(value) for value in dataclasses.astuple(size))] for name, size in sizes.items()]
    return _table(["size", *header], rows)


def datasets_page() -> list[str]:
    """Where cases come from and how they become windows."""
    return [
        "# Data: federations, windows, augmentation",
        "Settings `data`, `split`, `windows`, `augment` of an experiment. Data cards: [phantoms](../data/phantom.md), "
        "[Fed-KiTS19](../data/fed_kits19.md), [Fed-IXI](../data/fed_ixi.md), [prostate](../data/prostate.md), "
        "[Decathlon](../data/msd.md), [Synapse](../data/synapse.md), [volumes](../data/volumes.md); images "
        "with a class: [phantoms](../data/image_phantom.md), [a folder](../data/images.md), "
        "[MedMNIST](../data/medmnist.md), [HAM10000](../data/ham10000.md), [Fed-ISIC2019](../data/fed_isic2019.md).",
        "## Where cases come from: `data`",
        *_plugins(DATASETS, level=3),
        *_dataclass(Split, "Who gets them: `split`"),
        "### How sides are drawn",
        *_text(split_patients),
        "### Partitions: `split.partition`",
        *_plugins(PARTITIONS, level=4),
        *_dataclass(windows.Windows, "Windows: `windows`"),
        "### From a volume to slices of one size",
        *_text(windows.prepare),
        "## Augmentation: `augment`",
        *_plugins(AUGMENTS, level=3),
        "## The contract of a data set",
        *_protocol(data_contract.Dataset, level=3),
        *_protocol(data_contract.ImageDataset, level=3),
        *(
            part
            for cls in (data_contract.Pool, data_contract.Case, data_contract.Volume, data_contract.Federation)
            for part in _dataclass(cls, cls.__name__, python=True, level=3)
        ),
        *_function(check_dataset, "wardround.datasets.testing"),
    ]


def training_page() -> list[str]:
    """How a hospital trains."""
    return [
        "# Local training",
        "Settings `training` and `loss` of an experiment.",
        *_dataclass(Training, "Settings of `training`"),
        *_plugins(OPTIMIZERS),
        *_dataclass(Schedule, "Settings of `training.schedule`"),
        "## The loss: `loss`",
        "Null, the default, is the loss of the task: `segmentation` where there are masks, `cross_entropy` where "
        "there are classes.",
        *_plugins(LOSSES, level=3),
        "### Of FLAP-SAM",
        *_text(segmentation_loss),
    ]


def experiment_page() -> list[str]:
    """All settings of an experiment."""
    return [
        "# Settings of an experiment",
        "An entry of `experiments.yaml` holds what differs from the defaults below; the `config.yaml` of a run shows "
        "every setting. Unknown keys and wrong types are errors, all of them reported at once with their path.",
        _bullets(
            "`extends: other` starts from another entry: mappings are merged, everything else is replaced, and a "
            "plug-in of another name replaces the old one with its settings.",
            "`--set path=value` changes one setting of one run, with the paths of this page.",
            "A plug-in is a name (`fedavg`), a mapping (`{name: flap_sam, split: left}`), or a class of yours "
            '(`{class: "mypackage.mine:MyAggregator"}`).',
            "Numbers and words follow YAML 1.2: `8e-4` is a number, `NO` is a text.",
            "`purpose`, `paper`, `expected_time` and `expected_score` describe an entry and change nothing.",
        ),
        "## All settings",
        _fields_table(Experiment),
        "`data`, `split`, `windows`, `augment`: [data](datasets.md). `model`: [models](models.md). `method`: "
        "[methods](methods.md). `training`: [local training](training.md). `aggregator`: "
        "[aggregators](aggregators.md). The others follow.",
        *_dataclass(Cohort, "`cohort`"),
        "## `weights`",
        *_plugins(WEIGHTINGS, level=3),
        *_dataclass(Stages, "`stages`"),
        "### `stages.attack`",
        *_plugins(ATTACKS, level=4),
        "### `stages.compression`",
        *_plugins(COMPRESSIONS, level=4),
        *_dataclass(SecureSum, "`stages.secure_sum`", level=3),
        *_dataclass(Privacy, "`stages.privacy`", level=3),
        *_dataclass(AdaptiveClip, "`stages.privacy.adaptive`", level=4),
        *_dataclass(client_evaluation.Evaluation, "`evaluation`"),
        *_dataclass(Instruments, "`instruments`"),
        *_dataclass(Runtime, "`runtime`"),
    ]


def experiments_page() -> list[str]:
    """The packaged experiments."""
    file = open_file(PACKAGED)
    return [
        "# Experiments",
        "The entries of the packaged `experiments.yaml`. A file `experiments.yaml` in the folder where you are takes "
        "its place; `--experiments FILE` names another one. What the settings mean: "
        "[settings of an experiment](experiment.md).",
        *(part for name in file.entries for part in _experiment(name, file.entries[name])),
    ]


def command_line_page() -> list[str]:
    """What every command says of itself."""
    return [
        "# Command line",
        "Exit codes: 0 fine; 1 `verify` found a difference; 2 a mistake in the input or bad data, with a message that "
        "says what to do; 130 interrupted.",
        *(
            part
            for command in COMMANDS
            for part in (f"## `{f'wardround {command}'.strip()}`", _fence(_help(command), "text"))
        ),
    ]


def run_directory_page() -> list[str]:
    """The files of a run."""
    rows = (results.MetricRow, results.CaseRow, results.LedgerRow, results.InstrumentRow, results.TimingRow)
    files = ("metrics.jsonl", "cases.jsonl", "ledger.jsonl", "instruments.jsonl", "timing.jsonl")
    return [
        "# Files of a run",
        "A run lives in `runs/<experiment>/<id>/`. The id is the first 12 hex digits of a SHA-256 over the resolved "
        "config (without words, device, threads and paths), the data and the base weights. What the numbers mean: "
        "[numbers](../concepts/numbers.md).",
        _table(["file", "content"], [[f"`{name}`", text] for name, text in FILES.items()]),
        "The `.jsonl` files hold one JSON object per line; on resume, lines of rounds that were not finished are cut.",
        *(
            part
            for name, row in zip(files, rows, strict=True)
            for part in (f"## Rows of `{name}`", *_text(row), _columns(row))
        ),
        "## Metrics",
        _table(["metric", "split", "meaning"], [[f"`{name}`", *row] for name, row in METRICS.items()]),
        "## `manifest.json`",
        _table(["key", "meaning"], [[f"`{name}`", text] for name, text in MANIFEST.items()]),
        "## `summary.json`",
        _table(["key", "meaning"], [[f"`{name}`", text] for name, text in SUMMARY.items()]),
    ]


def python_page() -> list[str]:
    """The functions that the documentation uses."""
    return [
        "# From Python",
        "The command line is a thin layer over these functions.",
        *_function(wardround.run, "wardround"),
        *_function(wardround.load_experiment, "wardround"),
        *_function(wardround.runs, "wardround"),
        *_class(wardround.Run, "wardround"),
        *_dataclass(State, "State", python=True),
        *_function(wardround.base_network, "wardround"),
        *_function(open_file, "wardround.simulator.experiments"),
        *_function(load_experiment, "wardround.simulator.config"),
        *_function(verify, "wardround.simulator.verify"),
        *_function(replay, "wardround.simulator.replay"),
        *_dataclass(Replayed, "Replayed", python=True),
        *_function(instruments.measure, "wardround.aggregators.instruments"),
        *_function(instruments.overall, "wardround.aggregators.instruments"),
        *_dataclass(instruments.Layer, "Layer", python=True),
        *_function(results.RunRecords.load, "wardround.simulator.results"),
        *_dataclass(results.RunRecords, "RunRecords", python=True),
        *_function(check_method, "wardround.clients.testing"),
        "`check_aggregator` is on the page of [the contract](contract.md), `check_dataset` on that of "
        "[data](datasets.md).",
    ]


# ---- tables that no docstring holds ----------------------------------------------------------------------------------

FILES = {
    "config.yaml": "The resolved experiment, every default written out. `wardround verify` reads it back.",
    "manifest.json": "What ran, where, with which versions, and how it ended; see below.",
    "metrics.jsonl": "Losses and scores per round, hospital and split. Means over hospitals are left to the reader.",
    "cases.jsonl": "The scores of every volume at every evaluation; of a classification whether each image was told "
    "right (1) or wrong (0) in the last round.",
    "confusion.jsonl": "Of a classification: how many images of each class were taken for each, per hospital and split "
    "and over all hospitals, in the last round.",
    "ledger.jsonl": "Who took part in a round, what it received, sent and computed.",
    "instruments.jsonl": "The instruments of every measured round, a row per layer.",
    "updates/setting.safetensors": "With `--record-updates`: the initial tensors, and what they are.",
    "updates/round-NNNN.safetensors": "The server's state before the round and every update, for `wardround replay`.",
    "replay/replay.<kind>": "What `wardround replay` wrote: page, CSV and rows.",
    "timing.jsonl": "Seconds per stage of a round: the only rows that are not reproducible.",
    "checkpoint/latest.json": "The one pointer to the last finished round, replaced last.",
    "checkpoint/round-NNNN/server.safetensors": "The server's tensors after that round; the last two rounds are kept.",
    "checkpoint/round-NNNN/state.json": "Steps that every hospital has taken, and the name of its memory file.",
    "checkpoint/memory/HOSPITAL-NNNN.safetensors": "What a hospital remembers, if anything: personal tensors, kept "
    "optimizer moments. Written only in rounds it took part in.",
    "predictions/HOSPITAL/CASE.nii.gz": "Label maps of the test volumes after the last round, on the grid of the "
    "image (unless `evaluation.predictions` is false).",
    "predictions/HOSPITAL.csv": "Of a classification, a row per test image after the last round: `image`, `target` "
    "and `predicted` as names of classes, and `probability/CLASS` of every class.",
    "overlays/HOSPITAL.npz": "For the report: the largest slice of the best, the median and the worst test volume, "
    "with truth and prediction. Holds image data; absent with `--no-images`.",
    "trained_on.txt": "A hash per training case, of its image and its row; those of models that it began with too. "
    "`unknown`: and others, which nobody names.",
    "export/<format>": "What `wardround export` wrote, with a model card.",
    "summary.json": "The scores of the last round and the sums of the ledger; there when the run is finished.",
    "report.html": "One self-contained page: curves, table, traffic, overlays, settings.",
    ".lock": "Keeps a second process out while one works on the run.",
}
"""Files of a run by pattern: NNNN a round, HOSPITAL and CASE names."""

SCORED = "validation, test, unseen"
"""Splits with scores; ``unseen``: a site that was left out of the training."""

METRICS = {
    "loss": ("train", "Mean training loss of the hospital's steps in the round (last phase that took a step)."),
    "dice": (SCORED, "Mean over classes of `dice/<class>`."),
    "dice/<class>": (SCORED, "Mean over volumes of the volumetric Dice of the class."),
    "dice_regions": (SCORED, "Mean over regions of `dice_region/<region>`; where `evaluation.regions` names some."),
    "dice_region/<region>": (SCORED, "Mean over volumes of the volumetric Dice of a union of classes."),
    "hd95_mm/<class>": (SCORED, "Mean over volumes of HD95 in mm; last round only."),
    "surface_dice/<class>": (SCORED, "Mean over volumes of the surface Dice; last round only."),
    "undefined/<metric>/<class>": (SCORED, "Volumes that the mean above leaves out."),
    "accuracy": (SCORED, "Share of the images told right. With this row and below: of a classification."),
    "balanced_accuracy": (SCORED, "Mean over classes of `recall/<class>`."),
    "macro_f1": (SCORED, "Mean over classes of their F1."),
    "auroc": (SCORED, "Mean over classes of the area under the ROC curve, each class against the others."),
    "recall/<class>": (SCORED, "Share of the images of a class that were told right; null where there is none."),
    "pooled/<metric>": (
        SCORED,
        "The same over the images of all hospitals in one heap: hospitals with many count more. Hospital is null.",
    ),
    "loss_before": ("train", "Mean loss over the hospital's windows before it trained (`qfedavg`)."),
    "a_norm": ("train", "Norm of the hospital's accumulated steps (`fednova`)."),
    "rank": ("train", "Rank that the hospital goes on with (`hetlora`)."),
    "privacy/<what>": (
        "null",
        "`stages.privacy` after the round: `epsilon` spent so far at `delta`, `clip_norm`, the share of hospitals "
        "that was `clipped`, `noise_std` of a coordinate of the mean.",
    ),
    "secure_sum/cut": ("null", "Share of all coordinates that `stages.secure_sum` cut to its range."),
    "aggregate/<what>": ("null", "What the aggregator has to say about the round; hospital and split are null."),
    "instrument/<name>": (
        "null",
        "An instrument of the server's step, for the whole model; see "
        "[compare aggregators](../how-to/compare-aggregators.md).",
    ),
}
"""Names in metrics.jsonl: split and meaning."""

MANIFEST = {
    "experiment": "Name of the experiment.",
    "id": "Name of the folder.",
    "wardround": "Version of the program.",
    "environment": "What bit-identity depends on beside the config: `code_hash` over the package's Python files, "
    "`device`, `cpu`, `threads`, and the versions of Python and of the libraries that compute. A run goes on only "
    "where all of it is the same. `plug_ins`, where there are any: a hash of the source of every package outside "
    "ours.",
    "continued": "One entry per time the run went on: `after_round`, `at`, and the `environment` then.",
    "cleaned": "What `wardround clean` removed.",
    "rows": "Rows of every file when the run ended or was held; null before. A run that lost some is not trusted.",
    "command": "The command line; empty where Python began the run.",
    "cell": "Which sweep made the run, for which `variant`, `seed` and `choice`; null when none did.",
    "state": "`running`, `finished`, `failed` or `interrupted`; `held`: only the test volumes wait, until a sweep has "
    "selected a setting.",
    "error": "What stopped the run, null when nothing did.",
    "task": "`classification`, or `segmentation`; a run without it segments.",
    "classes": "Names of the classes; of a segmentation, of the foreground (label 1 first).",
    "hospitals": "Per hospital that trains: `num_examples` and `rank`. With `classes` all that `wardround predict` and "
    "`export` need to know of the data.",
    "intensities": "Of a segmentation: smallest and largest 0.5 percentile (`low`) and 99.5 percentile (`high`) of the "
    "training volumes before clipping, by which `wardround predict` tells CT.",
    "started_from": "Where the run has `start_from`: path, run and round of the donor, and what was taken over, merged "
    "into weights, and begun anew.",
    "class_counts": "Of a classification: images of every class, by hospital and split.",
    "started": "When the run began, UTC.",
    "finished": "When it ended or was stopped, UTC.",
    "record_updates": "True when the run was asked to keep the updates of its rounds.",
    "seed": "The experiment's seed.",
    "cohort_mode": "`sequential`: hospitals take turns on one replica; `stacked`: several share every step.",
    "stack": "Most hospitals that share a step, 1 where they take turns.",
    "cohort_why": "Why so: what was asked for, what does not allow it, or the times that were taken.",
    "compile": "Whether the model was compiled.",
    "features_mb": "`runtime.features_mb` as the run began with it; it keeps to that budget.",
    "features": "What was kept of the frozen start of the model, in a finished run: sources kept and offered, MB, "
    "windows made, read from disk, and served.",
    "precision": "`training.precision`.",
    "deterministic": "`runtime.deterministic`.",
    "data_hash": "SHA-256 over who has which case in which split and the bytes of every file.",
    "weights_hash": "SHA-256 of the base weights, or `random`; with `start_from`, of these and of what it started "
    "from.",
    "experiments_file": "Where the experiment was defined; `Python` for settings given there.",
    "common_numbers": "Hashes of what the run draws: runs of one seed can be shown to have drawn the same.",
}
"""Keys of manifest.json."""

SUMMARY = {
    "dice.mean": "Mean over hospitals of the test Dice after the last round.",
    "dice.worst": "The lowest hospital.",
    "dice.per_hospital": "Dice by hospital.",
    "dice.per_class": "Mean over hospitals by class.",
    "dice.per_region": "Mean over hospitals by region, where there are some.",
    "dice.unseen": "Dice by site that was left out, where there is one; it enters no mean.",
    "accuracy.mean": "Of a classification, in place of `dice`: mean over hospitals of the test accuracy.",
    "accuracy.worst": "The lowest hospital.",
    "accuracy.pooled": "Accuracy over the test images of all hospitals in one heap.",
    "accuracy.per_hospital": "Accuracy by hospital.",
    "accuracy.per_class": "Mean over hospitals of the recall by class.",
    "accuracy.unseen": "Accuracy by site that was left out, where there is one; it enters no mean.",
    "balanced_accuracy": "Of a classification: `mean` over hospitals, and `pooled`.",
    "macro_f1": "Of a classification: `mean` and `pooled`.",
    "auroc": "Of a classification: `mean` and `pooled`.",
    "rounds": "Rounds of the run.",
    "seconds": "Wall-clock seconds of all rounds, the sum of `timing.jsonl`.",
    "bytes_up": "Bytes from hospitals to server, all hospitals and rounds.",
    "bytes_down": "Bytes from server to hospitals.",
    "steps": "Optimizer steps of all hospitals.",
    "privacy": "With `stages.privacy`: the guarantee in words, with its epsilon, delta, sampling and neighbours.",
}
"""Keys of summary.json, those of its mappings `dice` and `accuracy` with a dot."""


# ---- parts of a page -------------------------------------------------------------------------------------------------


class Docstring(NamedTuple):
    """A docstring in the style of Google: its text, and its sections by name."""

    text: str
    sections: Mapping[str, str]

    @property
    def arguments(self) -> dict[str, str]:
        """The meaning of every argument, on one line."""
        entries = re.split(r"\n(?=\S)", self.sections.get("Args", ""))
        pairs = (entry.partition(":") for entry in entries if entry)
        return {name.strip(): " ".join(meaning.split()) for name, _, meaning in pairs}


SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Example")


def docstring(thing: object) -> Docstring:
    """The parsed docstring of a class or a function; of a class only its own, never one it inherits."""
    raw = thing.__dict__.get("__doc__") if isinstance(thing, type) else thing.__doc__
    text = inspect.cleandoc(raw or "")
    if isinstance(thing, type) and text.startswith(f"{thing.__name__}("):  # what dataclasses write where there is none
        text = ""
    parts = re.split(rf"^({'|'.join(SECTIONS)}):\n", text, flags=re.MULTILINE)
    sections, rest = {}, [parts[0]]
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        inside, after = _indented(body)
        sections[name] = inside
        rest.append(after)
    return Docstring("\n\n".join(filter(None, (part.strip() for part in rest))), sections)


def _indented(body: str) -> tuple[str, str]:
    """The indented lines at the beginning, and the rest."""
    lines = body.splitlines()
    end = next((n for n, line in enumerate(lines) if line and not line.startswith(" ")), len(lines))
    return textwrap.dedent("\n".join(lines[:end])).strip(), "\n".join(lines[end:])


def _page(*parts: str) -> str:
    return "\n\n".join([WRITTEN, *parts]) + "\n"


def _plugins(table: Mapping[str, type], level: int = 2) -> list[str]:
    """A section per class of a table, under all its names."""
    names: dict[type, list[str]] = {}
    for name, cls in table.items():
        names.setdefault(cls, []).append(f"`{name}`")
    return [part for cls, those in names.items() for part in _dataclass(cls, ", ".join(those), level=level)]


def _dataclass(cls: type, title: str, *, python: bool = False, level: int = 2) -> list[str]:
    """Docstring and fields of a class; the types as in Python, or in words for a YAML file."""
    doc = docstring(cls)
    fields = _fields_table(cls, python=python)
    return [f"{'#' * level} {title}", *_paragraphs(doc.text), *([fields] if fields else []), *_example(doc)]


def _text(thing: object) -> list[str]:
    """The docstring without its arguments."""
    doc = docstring(thing)
    return [*_paragraphs(doc.text), *_example(doc)]


def _function(function: Callable[..., Any], module: str) -> list[str]:
    """Name, signature, docstring."""
    doc = docstring(function)
    arguments = [[f"`{name}`", _inline(meaning)] for name, meaning in doc.arguments.items()]
    others = [f"{name}: {_inline(doc.sections[name])}" for name in ("Returns", "Raises") if name in doc.sections]
    return [
        f"## `{module}.{function.__qualname__}`",
        _fence(_signature(function), "python"),
        *_paragraphs(doc.text),
        *([_table(["argument", "meaning"], arguments)] if arguments else []),
        *others,
        *_example(doc),
    ]


def _protocol(cls: type, level: int = 2) -> list[str]:
    """A Protocol: its attributes and methods."""
    rows = [
        [f"`{name}{_signature_of_member(member)}`", _inline(_line(member))]
        for name, member in vars(cls).items()
        if not name.startswith("_") and (callable(member) or isinstance(member, property))
    ]
    title = f"{'#' * level} {cls.__name__}"
    return [title, *_paragraphs(docstring(cls).text), _table(["member", "meaning"], rows)]


def _class(cls: type, module: str) -> list[str]:
    """A class that is used, not written: how it is made, its properties and methods in a line each."""
    doc = docstring(cls)
    members = {name: getattr(member, "func", None) or member for name, member in vars(cls).items()}  # cached properties
    rows = [
        [f"`{name}{'' if _is_property(vars(cls)[name]) else _signature_of_member(member)}`", _first_line(member)]
        for name, member in members.items()
        if not name.startswith("_") and (callable(member) or isinstance(member, property))
    ]
    arguments = [[f"`{name}`", _inline(meaning)] for name, meaning in doc.arguments.items()]
    title = f"## `{module}.{cls.__name__}`"
    return [
        title,
        *_paragraphs(doc.text),
        _table(["argument", "meaning"], arguments),
        _table(["member", "meaning"], rows),
    ]


def _is_property(member: object) -> bool:
    return isinstance(member, property | functools.cached_property)


def _first_line(member: object) -> str:
    return _inline(inspect.cleandoc(member.__doc__ or "").split("\n\n")[0])


def _signature_of_member(member: object) -> str:
    if isinstance(member, property):
        return f": {inspect.signature(typing.cast(Any, member.fget)).return_annotation}"
    return re.sub(r"\(self(, )?", "(", str(inspect.signature(typing.cast(Any, member)))).replace("'", "")


def _line(member: object) -> str:
    return " ".join(inspect.cleandoc(member.__doc__ or "").split())


def _signature(function: Callable[..., Any]) -> str:
    """The call, one argument per line where it is long."""
    signature = inspect.signature(function)
    plain = re.sub(r"PosixPath\(([^)]*)\)", r'Path("\1")', str(signature).replace("'", ""))
    if len(function.__name__ + plain) <= 100:
        return function.__name__ + plain
    inside, _, returned = plain.removeprefix("(").rpartition(") -> ")
    lines = "".join(f"    {argument},\n" for argument in inside.split(", "))
    return f"{function.__name__}(\n{lines}) -> {returned}"


def _columns(row: type) -> str:
    hints = typing.get_type_hints(row)
    return _table(["column", "type"], [[f"`{field.name}`", _type(hints[field.name])] for field in _fields(row)])


def _experiment(name: str, entry: Mapping[str, Any]) -> list[str]:
    words = {"paper": "Paper", "expected_time": "Expected time", "expected_score": "Expected score"}
    facts = [f"{word}: {entry[key]}" for key, word in words.items() if key in entry]
    comment, settings = _entry_source(name)
    return [
        f"## `{name}`",
        entry.get("purpose", ""),
        *([_bullets(*facts)] if facts else []),
        *([_fence(comment, "text")] if comment else []),
        _fence(settings, "yaml"),
    ]


def _entry_source(name: str) -> tuple[str, str]:
    """The command in the comment above an entry, and its settings as they stand in the file."""
    lines = PACKAGED.read_text(encoding="utf-8").splitlines()
    start = lines.index(f"{name}:")
    above = next((n for n in range(start, 0, -1) if not lines[n - 1].startswith("#")), 0)
    end = next((n for n in range(start + 1, len(lines)) if lines[n] and not lines[n].startswith(" ")), len(lines))
    commands = [line.lstrip("# ") for line in lines[above:start] if line.startswith("#   ")]
    documented = ("purpose", "paper", "expected_time", "expected_score")
    kept = [line for line in lines[start:end] if not line.strip().startswith(documented)]
    return "\n".join(commands), "\n".join(kept).rstrip()


def _packaged(name: str, tool: str) -> list[str]:
    """What the packaged weights say of themselves."""
    path = Path(sam_weights.__file__).parent / "assets" / f"{name}.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    rows = [[key, _yaml(value)] for key, value in facts.items() if key != "recipe"]
    rows += [[f"recipe: {key}", _yaml(value)] for key, value in facts.get("recipe", {}).items()]
    return [
        f"## Packaged weights `{name}`",
        f"Pre-trained by `{tool}`, which says on what. The settings:",
        _table(["", ""], rows),
    ]


def _help(command: str) -> str:
    """What ``wardround COMMAND --help`` prints, at a fixed width."""
    before, out = dict(os.environ), io.StringIO()
    os.environ |= {"COLUMNS": "100", "NO_COLOR": "1"}
    try:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            command_line([*command.split(), "--help"])
    finally:
        os.environ.clear()
        os.environ |= before
    return out.getvalue().strip()


# ---- fields ----------------------------------------------------------------------------------------------------------


def _fields(cls: type) -> tuple[dataclasses.Field[Any], ...]:
    every = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    return tuple(field for field in every if field.init)


def _fields_table(cls: type, *, python: bool = False) -> str:
    """Name, type, default and meaning of every field."""
    hints = typing.get_type_hints(cls, include_extras=True)
    meanings: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        meanings |= docstring(base).arguments
    header = ["field" if python else "setting", "type", "default", *(["meaning"] if meanings else [])]
    rows = [
        [
            f"`{field.name}`",
            f"`{field.type}`" if python else _type(hints[field.name]),
            _default(field, hints[field.name], repr if python else _yaml),
            _inline(meanings.get(field.name, "")),
        ][: len(header)]
        for field in _fields(cls)
    ]
    return _table(header, rows) if rows else ""


def _type(hint: Any) -> str:
    """A type in words."""
    table = _plugin_names(hint)
    if table:
        return "one of " + ", ".join(f"`{name}`" for name in table)
    if get_origin(hint) is Annotated:
        return _type(get_args(hint)[0])
    words = {int: "whole number", float: "number", str: "text", bool: "true or false", types.NoneType: "null"}
    if isinstance(hint, type) and hint in words:
        return words[hint]
    if dataclasses.is_dataclass(hint):
        return "settings"
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(argument) for argument in arguments)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        return _list_of(arguments[0]) if arguments[-1] is Ellipsis else f"{len(arguments)} numbers"
    if origin is not None and issubclass(origin, Mapping):
        return f"{_type(arguments[1])} by name"
    return f"`{hint}`"


def _list_of(hint: Any) -> str:
    """``list of texts``; of plug-ins their names."""
    words = _type(hint)
    return f"list, each {words}" if _plugin_names(hint) else f"list of {words}s"


def _plugin_names(hint: Any) -> list[str]:
    """The names that a plug-in field takes: of the table in its annotation, or of a union of dataclasses."""
    if get_origin(hint) is Annotated:
        return [name for extra in hint.__metadata__ if isinstance(extra, Mapping) for name in extra]
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else ()
    if members and all(dataclasses.is_dataclass(member) for member in members):
        return [member.__name__.lower() for member in members]
    return []


def _default(field: dataclasses.Field[Any], hint: Any, show: Callable[[object], str]) -> str:
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if value is dataclasses.MISSING:
        return "required"
    if dataclasses.is_dataclass(value):
        return _default_name(value, hint)
    return f"`{show(value)}`" if value != "" else ""


def _default_name(value: object, hint: Any) -> str:
    """The name of a default plug-in; other settings have their own table."""
    tables = [extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Mapping)]
    names = [name for table in tables for name, cls in table.items() if cls is type(value)]
    names += [name for name in _plugin_names(hint) if name == type(value).__name__.lower()]
    return f"`{names[0]}`" if names else "its defaults"


def _yaml(value: object) -> str:
    """A value as a YAML file has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in value.items()) + "}"
    return str(value)


# ---- markdown --------------------------------------------------------------------------------------------------------


def _paragraphs(text: str) -> list[str]:
    """Docstring text as Markdown: literal blocks become fences, roles and double backticks code."""
    result: list[str] = []
    literal = False
    for block in re.split(r"\n{2,}", text):
        if literal and block.startswith(" "):
            result.append(_fence(textwrap.dedent(block), "text"))
            continue
        literal = block.endswith("::")
        words = block.removesuffix("::").rstrip() + (":" if literal and block != "::" else "")
        if words:
            result.append(_list(words) if words.startswith("* ") else _inline(words))
    return result


def _list(block: str) -> str:
    """The items of a list, one per line."""
    return _bullets(*(_inline(item) for item in re.split(r"^\* ", block, flags=re.MULTILINE)[1:]))


def _inline(text: str) -> str:
    """Docstring text on one line, with roles and double backticks as code."""
    text = re.sub(r":\w+:`~?([^`]+)`", lambda match: f"`{match[1].rpartition('.')[2]}`", " ".join(text.split()))
    return text.replace("``", "`")


def _example(doc: Docstring) -> list[str]:
    return ["Example:", _fence(doc.sections["Example"], "pycon")] if "Example" in doc.sections else []


def _fence(text: str, language: str) -> str:
    return f"```{language}\n{text}\n```"


def _bullets(*items: str) -> str:
    return "\n".join(f"* {item}" for item in items)


def _table(header: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
