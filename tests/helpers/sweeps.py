"""A made-up sweep: records in memory with plausible numbers, and the same on disk."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from wardround.simulator.results import POOLED, UNSEEN, AcrossRow, CaseRow, LedgerRow, MetricRow, RunRecords, TimingRow
from wardround.simulator.sweeps.records import CellRecord, State, SweepRecords, VariantRecord

CLASSES = ("kidney", "tumour")
LEVELS = {"local": 0.58, "pooled": 0.74, "zero_shot": 0.05}
"""Dice of the references; a variant has 0.70 and its effect."""


@dataclass(frozen=True, kw_only=True)
class MadeUp:
    """What is made up.

    Args:
        variants: By name, how much better than the first one each is; the first one is the baseline.
        sites: Their names.
        volumes: Test volumes per site.
        seeds: The seeds.
        rounds: Rounds, each of which is scored.
        references: Their roles; variants that leave out the same sites share them.
        leave_out: Sites that a variant leaves out, by variant.
        select: Learning rates that every variant is tried with (none: nothing is selected). The second one is best.
        states: Runs that are not finished: state by key, as ``flap_sam, seed 1`` (with ``choice=`` where selected).
        noise: Standard deviation of a score around what variant, site and case make of it.
        code: Hash of the code, by variant, where it is not that of the others.
        parameters: Numbers that a hospital sends in a round.
        sends: The same of variants that send another number.
        task: What the runs do. Images of a classification are right (1) or wrong (0), after the last round alone.
    """

    variants: Mapping[str, float] = field(default_factory=lambda: {"fedavg": 0.0, "flap_sam": 0.04, "fedprox": 0.001})
    sites: Sequence[str] = ("Basel", "Graz", "Ulm")
    volumes: int = 4
    seeds: Sequence[int] = (0, 1, 2)
    rounds: int = 3
    references: Sequence[str] = ("local", "pooled", "zero_shot", "best_site")
    leave_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    select: Sequence[float] = ()
    states: Mapping[str, State] = field(default_factory=dict)
    noise: float = 0.01
    code: Mapping[str, str] = field(default_factory=dict)
    parameters: int = 10_000
    sends: Mapping[str, int] = field(default_factory=dict)
    task: str = "segmentation"


def make_sweep(folder: Path, made: MadeUp | None = None) -> SweepRecords:
    """A sweep in memory; its paths are below ``folder``, where nothing is written."""
    made = made or MadeUp()
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in made.variants:
        groups.setdefault(tuple(made.leave_out.get(name, ())), []).append(name)
    references: dict[str, dict[str, str]] = {name: {} for name in made.variants}
    others = []
    for role in (role for role in made.references if role != "best_site"):
        for left_out, members in groups.items():
            name = role if len(groups) == 1 else f"{role} of {members[0]}"
            others.append(VariantRecord(name=name, role=role, cells=tuple(_cells(folder, made, name, role, left_out))))
            for member in members:
                references[member][role] = name
    variants = [
        VariantRecord(
            name=name,
            role="variant",
            settings={"split": {"leave_out": list(left_out)}} if left_out else {},
            references=references[name],
            cells=tuple(_cells(folder, made, name, "variant", left_out)),
        )
        for name, left_out in ((name, tuple(made.leave_out.get(name, ()))) for name in made.variants)
    ]
    everything = (*variants, *others)
    return SweepRecords(path=folder / "made-up", plan=_plan(folder, made, everything), variants=everything)


def write_sweep(records: SweepRecords) -> Path:
    """Writes the folders of a sweep and of its runs as `wardround sweep` leaves them, but pictures and checkpoints."""
    for cell in records.cells:
        if cell.records is not None:
            _write_run(cell.records)
    records.path.mkdir(parents=True, exist_ok=True)
    (records.path / "plan.json").write_text(json.dumps(records.plan))
    return records.path


def _plan(folder: Path, made: MadeUp, variants: Sequence[VariantRecord]) -> dict[str, Any]:
    keys = ("name", "role", "settings", "references")
    definition = {
        "base": "prostate-small",
        "settings": {},
        "variants": {v.name: dict(v.settings) for v in variants if v.role == "variant"},
        "grid": {},
        "seeds": list(made.seeds),
        "baseline": None,
        "references": list(made.references),
        "select": {"over": "lr", "values": list(made.select), "on": "validation"} if made.select else None,
    }
    return {
        "sweep": "made-up",
        "purpose": "Numbers that nobody measured.",
        "baseline": next(iter(made.variants)),
        "definition": definition,
        "experiments_file": "the packaged experiments.yaml",
        "variants": [{key: getattr(variant, key) for key in keys} for variant in variants],
        "cells": [
            {
                "key": cell.key,
                "variant": cell.variant,
                "seed": cell.seed,
                "choice": cell.choice,
                "path": cell.path.relative_to(folder).as_posix(),
            }
            for variant in variants
            for cell in variant.cells
        ],
    }


def _cells(folder: Path, made: MadeUp, name: str, role: str, left_out: Sequence[str]) -> Iterator[CellRecord]:
    choices = made.select if made.select and role != "zero_shot" else (None,)
    for seed in made.seeds:
        for choice in choices:
            chosen = [] if choice is None else [f"choice={choice}"]
            key = ", ".join([name, *chosen, f"seed {seed}"])
            held = choice is not None and choice != made.select[1]
            state: State = made.states.get(key, "held" if held else "finished")
            path = folder / "prostate-small" / key.replace(", ", "_").replace(" ", "_").replace("=", "_")
            records = (
                None if state == "missing" else _Run(made, path, name, role, left_out, seed, choice, state).records()
            )
            error = "ValueError: loss is not finite" if state == "failed" else None
            yield CellRecord(
                key=key, variant=name, seed=seed, choice=choice, path=path, state=state, error=error, records=records
            )


@dataclass(frozen=True)
class _Run:
    """One run: its rows."""

    made: MadeUp
    path: Path
    name: str
    role: str
    left_out: Sequence[str]
    seed: int
    choice: float | None
    state: State

    def records(self) -> RunRecords:
        tables = self._tables()
        seconds = {f"{stage}_s": 0.5 for stage in ("broadcast", "train", "aggregate", "evaluate", "checkpoint")}
        summary = {"rounds": self._rounds, "seconds": 2.5 * self._rounds} if self.state == "finished" else None
        return RunRecords(
            path=self.path,
            config=self._config(),
            manifest=self._manifest(),
            summary=summary,
            metrics=tables.metrics,
            cases=tables.cases,
            ledger=tables.ledger,
            across=tables.across,
            timing=[TimingRow(round=number, **seconds) for number in range(1, self._done + 1)],
        )

    @property
    def _rounds(self) -> int:
        return 0 if self.role == "zero_shot" else self.made.rounds

    @property
    def _done(self) -> int:
        """Rounds that it made: one that is not finished made one less than all."""
        return self._rounds if self.state in ("finished", "held") else max(self._rounds - 1, 0)

    def _config(self) -> dict[str, Any]:
        rate = 0.0008 if self.choice is None else self.choice
        return {
            "name": "prostate-small",
            "seed": self.seed,
            "rounds": self._rounds,
            "aggregator": {"name": "local" if self.role == "local" else "fedavg"},
            "split": {"test": "each", "leave_out": list(self.left_out)},
            "training": {"precision": "fp32", "optimizer": {"name": "adamw", "lr": rate}},
            "evaluation": {"every": 1, "test": "due" if self.choice is None else "last"},
        }

    def _manifest(self) -> dict[str, Any]:
        environment = {"code_hash": self.made.code.get(self.name, "63af3102f234"), "device": "cpu", "torch": "2.13.0"}
        return {
            "experiment": "prostate-small",
            "id": f"{abs(sum(map(ord, self.path.name))):012x}",
            "environment": {**environment, "cpu": "a processor", "threads": 1},
            "state": self.state,
            "error": "ValueError: loss is not finite" if self.state == "failed" else None,
            "started": "2026-01-01T00:00:00+00:00",
            "finished": "2026-01-01T00:01:00+00:00" if self.state == "finished" else None,
            "seed": self.seed,
            "precision": "fp32",
            "data_hash": "05d0",
            "command": "wardround sweep made-up",
            **({"task": self.made.task} if self.made.task != "segmentation" else {}),
        }

    def _tables(self) -> _Tables:
        tables = _Tables()
        scored = range(self._done + 1) if self.choice is None else [self._rounds]
        for number in scored:
            if self.state != "held":
                self._score_test(tables, number)
            if self.choice is not None:
                self._score_validation(tables, number)
        for number in range(1, self._done + 1):
            self._train(tables, number)
        if self.role == "local" and self.state == "finished":
            self._score_across(tables)
        return tables

    def _score_test(self, tables: _Tables, number: int) -> None:
        if self.made.task == "classification":
            self._score_images(tables, number)
            return
        for place, site in enumerate(self.made.sites):
            split = self._split(place)
            values = []
            for case in range(self.made.volumes):
                value = self._dice(number, place, case)
                values.append(value)
                tables.volume(number, site, split, f"{site}_{case:02d}", value)
            tables.site(number, site, split, float(np.mean(values)))

    def _score_images(self, tables: _Tables, number: int) -> None:
        """An image is right where a number that is the same for all runs is below the score of its site."""
        heap: list[float] = []
        for place, site in enumerate(self.made.sites):
            level, drawn = self._dice(number, place, 0), np.random.default_rng(place).random(self.made.volumes)
            right = (drawn < level).astype(float).tolist()
            heap += right
            tables.whole(number, site, self._split(place), "", float(np.mean(right)))
            for image, value in enumerate(right if number == self._rounds else ()):
                row = {"hospital": site, "split": self._split(place), "case": f"{site}_{image:05d}"}
                tables.cases.append(CaseRow(round=number, **row, metric="accuracy", value=value))
        tables.whole(number, None, "test", "pooled/", float(np.mean(heap)))

    def _split(self, place: int) -> str:
        return UNSEEN if self.made.sites[place] in self.left_out else "test"

    def _score_validation(self, tables: _Tables, number: int) -> None:
        scored = tables.site if self.made.task == "segmentation" else partial(tables.whole, prefix="")
        for place, site in enumerate(self.made.sites):
            if site not in self.left_out:
                scored(number, site, "validation", value=self._dice(number, place, 99))

    def _score_across(self, tables: _Tables) -> None:
        """Another hospital's model does worse by 0.05 and 0.01 per place it comes later."""
        members = [place for place, site in enumerate(self.made.sites) if site not in self.left_out]
        for other, site in itertools.product(members, range(len(self.made.sites))):
            if other == site:
                continue
            for case in range(self.made.volumes):
                tables.across.append(
                    AcrossRow(
                        round=self._rounds,
                        trained_at=self.made.sites[other],
                        hospital=self.made.sites[site],
                        split=self._split(site),
                        case=f"{self.made.sites[site]}_{case:02d}",
                        metric="dice" if self.made.task == "segmentation" else "accuracy",
                        value=max(self._dice(self._rounds, site, case) - 0.05 - 0.01 * other, 0.0),
                    )
                )

    def _dice(self, number: int, place: int, case: int) -> float:
        """Rises with the round; how hard site and case are is the same for all runs."""
        level = LEVELS.get(self.role) or 0.70 + self.made.variants[self.name]
        hard = 0.06 * place + 0.05 * np.random.default_rng([place, case]).standard_normal()
        words = sum(map(ord, self.name)), self.seed, number, place, case
        chance = self.made.noise * np.random.default_rng(words).standard_normal()
        unseen = 0.15 if self.made.sites[place] in self.left_out else 0.0
        tuned = 0.0 if self.choice is None or self.choice == self.made.select[1] else 0.05
        grown = 1.0 if self.role == "zero_shot" else 1.0 - 0.8 ** (4.0 * number / max(self._rounds, 1) + 1.0)
        return float(np.clip((level - hard - unseen - tuned) * grown + chance, 0.0, 1.0))

    def _train(self, tables: _Tables, number: int) -> None:
        members = [site for site in self.made.sites if site not in self.left_out]
        size = 0 if self.role == "local" else 4 * self.made.sends.get(self.name, self.made.parameters)
        for name in [POOLED] if self.role == "pooled" else members:
            tables.metrics.append(
                MetricRow(round=number, hospital=name, split="train", metric="loss", value=1.0 / number)
            )
            tables.ledger.append(
                LedgerRow(
                    round=number,
                    hospital=name,
                    status="ok",
                    bytes_down=size,
                    bytes_up=size,
                    examples=40,
                    steps=5 * len(members) if self.role == "pooled" else 5,
                )
            )


@dataclass
class _Tables:
    """The rows of a run."""

    metrics: list[MetricRow] = field(default_factory=list)
    cases: list[CaseRow] = field(default_factory=list)
    ledger: list[LedgerRow] = field(default_factory=list)
    across: list[AcrossRow] = field(default_factory=list)

    def volume(self, number: int, site: str, split: str, case: str, value: float) -> None:
        for metric, score in _with_classes(value):
            self.cases.append(CaseRow(round=number, hospital=site, split=split, case=case, metric=metric, value=score))

    def site(self, number: int, site: str, split: str, value: float) -> None:
        for metric, score in _with_classes(value):
            self.metrics.append(MetricRow(round=number, hospital=site, split=split, metric=metric, value=score))

    def whole(self, number: int, site: str | None, split: str, prefix: str, value: float) -> None:
        """The scores of a classification: recall of one class above, of the other below."""
        scores = {"accuracy": value, "balanced_accuracy": 0.9 * value, "macro_f1": 0.8 * value, "auroc": 0.95}
        scores |= {"recall/kidney": min(value + 0.1, 1.0), "recall/tumour": max(value - 0.1, 0.0)}
        for metric, score in scores.items():
            row = MetricRow(round=number, hospital=site, split=split, metric=f"{prefix}{metric}", value=score)
            self.metrics.append(row)


def _with_classes(value: float) -> Iterable[tuple[str, float]]:
    yield "dice", value
    yield from ((f"dice/{name}", value) for name in CLASSES)


def _write_run(records: RunRecords) -> None:
    folder = records.path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(records.config), sort_keys=False))
    (folder / "manifest.json").write_text(json.dumps(records.manifest))
    if records.summary is not None:
        (folder / "summary.json").write_text(json.dumps(records.summary))
    for name in ("metrics", "cases", "ledger", "timing", "across"):
        rows = [asdict(row) for row in getattr(records, name)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
