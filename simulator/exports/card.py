"""The model card of an export: README.md with a header for model hubs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...clients import MODELS
from ...datasets import DATASETS
from .. import yaml12
from ..builder import called, differing
from ..privacy import Account
from ..results import UNSEEN, FinalScores, RunRecords
from ..seen_cases import UNKNOWN
from ..trained import Trained
from .contract import Recipe
from .licences import Licence
from .origin import listed_cases, started_from

PHANTOMS = ("phantom", "image_phantom")
"""Data sets that are drawn by the program."""

SETTINGS = ("method", "aggregator", "weights", "stages", "cohort", "ranks", "pooled")
"""Settings that say what was trained and how it was put together."""

TASKS = {"segmentation": "image-segmentation", "classification": "image-classification"}
"""The words of model hubs for our tasks."""


def card(trained: Trained, recipe: Recipe, licence: Licence, hospital: str | None = None) -> str:
    """The text of README.md.

    Args:
        trained: The run.
        recipe: How the files are used.
        licence: Of the base.
        hospital: Whose model it is; None: that of a site never seen.
    """
    records = RunRecords.load(trained.path)
    sections = (
        _what(trained, hospital),
        _section("How to use it", _use(recipe)),
        _section("Data", _data(trained)),
        _section("Method and aggregator", _settings(trained)),
        _section("Training", _training(trained, records)),
        _section("Results", _results(trained, records)),
        *([_section("Privacy", privacy)] if (privacy := _privacy(trained)) else []),
        _section("Limits", _limits(trained)),
        _section("Licence", _licence(trained, licence)),
    )
    return "\n\n".join([_header(recipe, licence, records), *sections]) + "\n"


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}"


# ---- the header ------------------------------------------------------------------------------------------------------


def _header(recipe: Recipe, licence: Licence, records: RunRecords) -> str:
    """What model hubs read."""
    values: dict[str, Any] = {
        "library_name": recipe.library,
        "pipeline_tag": TASKS[records.task],
        "tags": ["wardround", "federated-learning", "medical", *recipe.tags],
        **({"base_license": licence.header} if licence.header else {}),  # of the whole, its owner has to say
    }
    return f"---\n{yaml12.dump(values)}---"


# ---- the sections ----------------------------------------------------------------------------------------------------


def _what(trained: Trained, hospital: str | None) -> str:
    experiment = trained.experiment
    whose = "the model for a site that did not train" if hospital is None else f"the model of hospital {hospital}"
    lines = [
        f"# {experiment.name}, round {trained.round}",
        f"{_sentence(experiment.purpose)}This is {whose}, after round {trained.round} of {experiment.rounds} of the run"
        f" `{trained.path.resolve().name}` of the experiment `{experiment.name}`: federated fine-tuning of the"
        f" model `{_name(experiment, 'model')}` of size {experiment.model.size} at {experiment.model.image_size} px,"
        " simulated on one machine with Wardround. The same facts for programs are in `wardround.json`.",
        *_started(trained),
        f"Classes: {_listed(trained)}.",
    ]
    return "\n\n".join(lines)


def _started(trained: Trained) -> list[str]:
    """What the run began with, where that is another model."""
    said = started_from(trained)
    if said is None:
        return []
    if not said.get("run"):
        return ["The run started from an adapter that somebody else has trained, which does not say where it is from."]
    return [f"The run started from another run, `{said['run']}` after round {said['round']}."]


def _sentence(purpose: str) -> str:
    text = " ".join(purpose.split())
    return f"{text.rstrip('.')}. " if text else ""


def _listed(trained: Trained) -> str:
    """The classes with their numbers; of a segmentation 0 is background."""
    first = 0 if trained.experiment.model.task == "classification" else 1
    named = [f"{number} {name}" for number, name in enumerate(trained.classes, start=first)]
    return ", ".join(["0 background", *named] if first else named)


def _use(recipe: Recipe) -> str:
    notes = "\n".join(f"- {note}" for note in recipe.notes)
    code = f"In this folder:\n\n```python\n{recipe.code.rstrip()}\n```"
    return f"{code}\n\n{notes}" if notes else code


def _data(trained: Trained) -> str:
    name = _name(trained.experiment, "data")
    rows = [(name, str(info.num_examples)) for name, info in trained.hospitals.items()]
    total = sum(info.num_examples for info in trained.hospitals.values())
    examples = "images" if trained.experiment.model.task == "classification" else "windows"
    if name in PHANTOMS:
        terms = "The data are phantoms, drawn by the program: no patients, and no terms of others."
    else:
        terms = (
            "The data are of people. Their licence and terms of use may bind whoever passes on a model that was"
            " trained on them: read them first."
        )
    return "\n\n".join(
        [
            f"Data set `{name}`; where it comes from, its licence and what is known of it: the data card of Wardround,"
            f" docs/data, for this name. {terms}",
            f"Trained by {len(rows)} hospitals on {total} {examples}:",
            _table(("hospital", f"training {examples}"), rows),
            _listed_cases(trained),
        ]
    )


def _listed_cases(trained: Trained) -> str:
    """What `trained_on` is, or why it is null."""
    lines = listed_cases(trained)
    if lines is None:
        private = trained.experiment.stages.privacy is not None
        why = "the run promises differential privacy" if private else "the run kept none"
        return (
            f"`wardround.json` has no list of the training cases, as {why}: `trained_on` is null. Who starts a run from"
            " this model says in `model.pretrained_on` what it has seen."
        )
    more = " A model that it began with says nothing of its own cases, so the list is not whole."
    return (
        "The list `trained_on` in `wardround.json` is a hash per training case: it keeps these cases out of the tests"
        " of models that begin here. Whoever has a case can see from it whether the case was among them; where"
        f" nobody may, set the list to null.{more if UNKNOWN in lines else ''}"
    )


def _settings(trained: Trained) -> str:
    """Method, aggregator and what stands between them, as one writes them in an experiments.yaml."""
    written = differing(trained.experiment)
    kept = {key: value for key, value in written.items() if key in SETTINGS}
    return f"Settings that are not named have their defaults.\n\n{_yaml(kept)}"


def _training(trained: Trained, records: RunRecords) -> str:
    experiment, environment = trained.experiment, records.manifest["environment"]
    steps = sum(row.steps for row in records.ledger if row.round <= trained.round)
    sent = [row for row in records.ledger if row.round <= trained.round]
    rows = [
        ("rounds", f"{trained.round} of {experiment.rounds}"),
        ("optimizer steps, all hospitals", f"{steps}"),
        ("bytes sent to the hospitals", f"{sum(row.bytes_down for row in sent)}"),
        ("bytes sent by the hospitals", f"{sum(row.bytes_up for row in sent)}"),
        ("seed, seed of the split", f"{experiment.seed}, {experiment.split_seed}"),
        ("computed on", f"{environment.get('device', 'not recorded')}, in {experiment.training.precision}"),
        ("Wardround, torch, transformers", ", ".join(_versions(records.manifest))),
    ]
    return f"{_table(('', ''), rows)}\n\nAt a hospital:\n\n{_yaml(differing(experiment.training))}"


def _versions(manifest: Mapping[str, Any]) -> list[str]:
    environment = manifest["environment"]
    found = (manifest.get("wardround"), environment.get("torch"), environment.get("transformers"))
    return [str(version or "not recorded") for version in found]


def _results(trained: Trained, records: RunRecords) -> str:
    last = records.last_evaluation("test")
    if last is None:
        return "The run has no scores of test cases."
    word = records.headline.cases
    state = "" if records.finished else " The run is not finished."
    other = "" if last == trained.round else f" The files here hold the model after round {trained.round}, another one."
    lines = [
        f"Test {word} after round {last}, each under the model that the aggregator deploys at its site;"
        f" a dash: not defined.{state}{other}",
        _scores(records, records.final("test")),
    ]
    if records.unseen:
        lines += ["Sites that did not train:", _scores(records, records.final(UNSEEN))]
    return "\n\n".join(lines)


def _scores(records: RunRecords, scores: Iterable[FinalScores]) -> str:
    headline = records.headline
    head = ("site", headline.cases, headline.word, *(other.word for other in headline.others))
    rows = [
        (
            each.hospital,
            str(each.cases),
            _number(each.score, 3),
            *(_number(each.others[other.key], other.digits) for other in headline.others),
        )
        for each in scores
    ]
    return _table(head, rows)


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _privacy(trained: Trained) -> str | None:
    """The guarantee after the round, None where the run has none."""
    experiment = trained.experiment
    privacy = experiment.stages.privacy
    if privacy is None:
        return None
    account = Account(privacy=privacy, cohort=experiment.cohort, num_hospitals=len(trained.hospitals))
    return (
        f"{account.statement(trained.round)}. Noise and cohorts follow from the seed of the run: the guarantee is that"
        " of the mechanism with a secret seed."
    )


def _limits(trained: Trained) -> str:
    lines = [
        "This is no medical device. It is for research and teaching; do not use it to decide about anybody's care.",
        "It was trained in a simulation: the hospitals were folders on one machine.",
        "The scores hold for the test cases above, prepared as said, and promise nothing for other scanners or people.",
    ]
    if _name(trained.experiment, "data") in PHANTOMS:
        lines.append("Phantoms are phantoms: what it learned of them says nothing about images of people.")
    return "\n".join(f"- {line}" for line in lines)


def _licence(trained: Trained, licence: Licence) -> str:
    donor = "" if started_from(trained) is None else " The terms of the model that it started from bind too."
    return f"{licence.sentence}{donor} The terms of the training data may bind too."


# ---- small things ----------------------------------------------------------------------------------------------------


def _name(experiment: Any, part: str) -> str:
    """The name of a plug-in: its row in the table, or its class."""
    return called({"data": DATASETS, "model": MODELS}[part], type(getattr(experiment, part)))


def _yaml(values: Mapping[str, Any]) -> str:
    """Settings as one writes them in a file."""
    return f"```yaml\n{yaml12.dump(values)}```" if values else "All settings have their defaults."


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
