"""What the data commands need of an experiment: the data, who has which of them, and how they are prepared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from ..datasets import DATASETS
from ..datasets.contract import Dataset, ImageDataset
from ..datasets.split import Split
from ..datasets.windows import Windows
from .builder import build, expand, merge, unknown
from .config import load_experiment, nested
from .experiments import ExperimentsFile


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The part of an experiment that concerns its data.

    Args:
        data: Where the cases come from.
        split: Which hospital has which cases, and what for.
        windows: How volumes become training windows; images have none.
        image_size: Pixels to which slices or images are resized, >= 1.
        split_seed: Of everything random in ``split``, >= 0.
    """

    data: Annotated[Dataset | ImageDataset, DATASETS]
    split: Split = field(default_factory=Split)
    windows: Windows = field(default_factory=Windows)
    image_size: int = 224
    split_seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        if self.image_size < 1:
            problems.append(f"image_size: expected at least 1 pixel, got {self.image_size!r}")
        if self.split_seed < 0:
            problems.append(f"split_seed: expected a number of at least 0, got {self.split_seed!r}")
        if problems:
            raise ValueError("; ".join(problems))


def load_data_settings(name: str, file: ExperimentsFile, overrides: Sequence[str] = ()) -> DataSettings:
    """The data settings of an experiment, or of a data set with its defaults.

    Args:
        name: An entry of the file, or else a name of the table of data sets.
        file: The experiments.
        overrides: ``path=value``, as for :func:`~wardround.simulator.config.load_experiment`; for a data set the paths
            of :class:`DataSettings`.

    Raises:
        ConfigError: with every problem.
        ValueError: there is no such experiment and no such data set.
    """
    if name in file.entries:
        experiment = load_experiment(name, file, overrides)
        return DataSettings(
            data=experiment.data,
            split=experiment.split,
            windows=experiment.windows,
            image_size=experiment.model.image_size,
            split_seed=experiment.split_seed,
        )
    if name not in DATASETS:
        raise ValueError(unknown(f"no data set and no experiment {name!r}", name, {*DATASETS, *file.entries}))
    settings = expand(DataSettings, {"data": name})
    for text in overrides:
        settings = merge(settings, expand(DataSettings, nested(text)))
    return build(DataSettings, settings)
