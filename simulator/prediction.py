"""``wardround predict``: what the model of a run says of images that have no mask or class.

Files are read in the very way in which the run read its own, one volume in memory at a time, and nothing is written to
the cache. All headers are checked before the first image is predicted. A file whose voxels turn out to be bad does not
stop the others; in the end one error names all of them.

Legend: S slices, H rows, W columns of a volume, C foreground classes, or C classes of images.
"""

from __future__ import annotations

import csv
import io
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..clients.class_metrics import Probabilities
from ..clients.classification import classify, image_source
from ..clients.evaluation import class_probabilities, label_map, probability_slices
from ..clients.metrics import LabelMap
from ..clients.replica import Replica
from ..datasets.contract import Case, DataError, ImageDataset, ReadVolume, Volume, has_classes, with_masks
from ..datasets.images import RUN, HospitalImages, PreparedImages, image_problems, resized
from ..datasets.nifti import write_prediction, write_probabilities
from ..datasets.pictures import check_picture
from ..datasets.windows import PreparedVolume, prepare
from ..datasets.writing import write_whole
from .config import load_resolved
from .files import file_stem, write_text
from .modality import foreign
from .out_of_memory import memory_errors
from .prediction_inputs import Asked, expect_own_folder, picture_files, volume_files, volume_name
from .prediction_overlay import overlay
from .progress import counting
from .reports.page import count_text
from .rundir import RunDirectory
from .runtime import prepare_device
from .trained import Trained, load_trained

CSV = "predictions.csv"


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What a prediction wrote.

    Args:
        out: The folder.
        images: The images, in the order of the predictions.
        files: Label maps, one of each image, or the one CSV file; overlays and probabilities lie beside them.
    """

    out: Path
    images: tuple[Path, ...]
    files: tuple[Path, ...]

    @property
    def text(self) -> str:
        """One line."""
        if [path.name for path in self.files] == [CSV]:
            return f"{count_text(len(self.images), 'image')} classified: {self.files[0]}"
        return f"{count_text(len(self.images), 'label map')}: {self.out}"


def predict(
    run: Path,
    images: Sequence[Path],
    out: Path,
    *,
    hospital: str | None = None,
    round_number: int | None = None,
    probabilities: bool = False,
    overlays: bool = False,
    any_intensities: bool = False,
    device: str = "auto",
    quiet: bool = False,
) -> Predicted:
    """Asks the model of a run about images.

    Of a volume ``scan.nii.gz`` the label map is ``out/scan.nii.gz``, on its grid and with its header. Pictures are
    classified into ``out/predictions.csv``. What is there from an earlier call is written again.

    Args:
        run: The run directory.
        images: Files and folders: of volumes those directly in them, of pictures those at any depth.
        out: Where predictions go.
        hospital: Whose model, of those that trained; None: that of a site never seen. Also whose image it is, where
            the data set reads sites in different ways.
        round_number: Which round; None: the last that was saved.
        probabilities: Also write ``out/probabilities/<name>/<label>-<class>.nii.gz``, float32, 0 is the background.
        overlays: Also write ``out/<name>.png``: a slice with the classes in colour.
        any_intensities: Go on where intensities say that an image is of another kind than those of the training.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        quiet: No progress bar.

    Raises:
        DataError: every problem of the files, before anything is predicted.
        ValueError: there is no run, round or hospital; the folder is the run's own; images that could not be read, when
            all others are done.
        OSError: the disk is full or not writable.
    """
    expect_own_folder(run, out)
    _prepare_device(run, device)
    trained = load_trained(run, round_number=round_number, device=device)
    replica, dataset = trained.load(hospital), trained.experiment.data
    with memory_errors(trained.experiment, replica.device):
        if has_classes(dataset):
            _check_options(probabilities=probabilities, overlays=overlays)
            return _classify_all(trained, replica, dataset, picture_files(images, out / CSV), out, quiet)
        segmenter = _Segmenter(
            trained=trained,
            replica=replica,
            out=out,
            seen={} if any_intensities else (RunDirectory(run).manifest or {}).get("intensities", {}),
            extras=[kind for kind, wanted in ((_PROBABILITIES, probabilities), (_OVERLAY, overlays)) if wanted],
        )
        asked = volume_files(images, out, segmenter.planned)
        opened = asked.opened(lambda path: with_masks(dataset).open_image(path, site=hospital))
        return segmenter.all(asked.files, opened, quiet)


def _prepare_device(run: Path, device: str) -> None:
    """Threads and determinism are those of the run, so that its predictions are, too."""
    here: dict[str, Any] = {"device": device}
    if (run / "config.yaml").is_file():  # else the run is no run, as load_trained says
        prepare_device(replace(load_resolved(run / "config.yaml").runtime, **here))


def _check_options(**options: bool) -> None:
    wrong = [f"--{name}" for name, given in options.items() if given]
    if wrong:
        raise ValueError(
            f"{' and '.join(wrong)}: expected a run that segments volumes, this one classifies images; "
            f"{CSV} has the probabilities of all classes"
        )


# ---- volumes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A volume with what the model said of it.

    Args:
        volume: As it was read.
        prepared: As the model saw it.
        probabilities: (S', C+1, h, w) of every prepared slice.
        labels: (S, H, W).
    """

    volume: Volume
    prepared: PreparedVolume
    probabilities: torch.Tensor
    labels: LabelMap


@dataclass(frozen=True, kw_only=True)
class _Extra:
    """What else is written of a volume.

    Args:
        places: The files, from the segmenter and the name of a volume.
        write: Writes them.
    """

    places: Callable[[_Segmenter, str], Sequence[Path]]
    write: Callable[[_Segmenter, str, _Found], None]


@dataclass(frozen=True, kw_only=True)
class _Segmenter:
    """Predicts volumes, one after the other.

    Args:
        trained: The run's model, loaded.
        replica: Its network.
        out: Where label maps go.
        seen: Intensities of the training volumes; empty: any will do.
        extras: What else to write of a volume.
    """

    trained: Trained
    replica: Replica
    out: Path
    seen: Mapping[str, Sequence[float]]
    extras: Sequence[_Extra]

    @property
    def batch_size(self) -> int:
        """Slices at once."""
        return self.trained.experiment.evaluation.batch_size

    def planned(self, name: str) -> list[Path]:
        """Every file that is written for a volume of this name, the label map first."""
        extras = [place for extra in self.extras for place in extra.places(self, name)]
        return [self.out / f"{name}.nii.gz", *extras]

    def all(self, files: Sequence[Path], opened: Sequence[ReadVolume], quiet: bool) -> Predicted:
        """Every volume whose voxels can be read. Raises ValueError in the end where there are others."""
        written, failed = [], list[str]()
        with counting("predicting", quiet=quiet) as announce:
            announce(0, len(files))
            for done, (path, read) in enumerate(zip(files, opened, strict=True), start=1):
                try:
                    written.append(self.one(path, read))
                except DataError as error:
                    failed += error.problems
                announce(done, len(files))
        _expect_all(failed, len(files), self.out)
        return Predicted(out=self.out, images=tuple(files), files=tuple(written))

    def one(self, path: Path, read: ReadVolume) -> Path:
        """The label map of one volume, and whatever else is wanted of it."""
        found = self._ask(path, read())
        name = volume_name(path)
        place, *_ = self.planned(name)
        write_prediction(place, found.labels, found.volume)
        for extra in self.extras:
            extra.write(self, name, found)
        return place

    def _ask(self, path: Path, volume: Volume) -> _Found:
        if problem := foreign(volume, self.seen):
            raise DataError(path, [f"{path}: {problem}"])
        experiment = self.trained.experiment
        prepared = prepare(volume, experiment.model.image_size, experiment.windows)
        said = class_probabilities(self.replica, prepared, experiment.windows, self.batch_size)
        return _Found(
            volume=volume, prepared=prepared, probabilities=said, labels=label_map(prepared, said, self.batch_size)
        )


def _probability_places(segmenter: _Segmenter, name: str) -> list[Path]:
    """A file of every label."""
    names = ["background", *segmenter.trained.classes]
    folder = segmenter.out / "probabilities" / name
    return [folder / f"{label}-{file_stem(called)}.nii.gz" for label, called in enumerate(names)]


def _write_probabilities(segmenter: _Segmenter, name: str, found: _Found) -> None:
    """They are made slices at a time, of all labels, and wait in a temporary file of one label after the other.

    It is written plainly, not through a memory map: on a full disk that would end the process.
    """
    places = _probability_places(segmenter, name)
    places[0].parent.mkdir(parents=True, exist_ok=True)
    slices, *plane = found.labels.shape
    plane_bytes = 4 * math.prod(plane)
    with tempfile.TemporaryFile(dir=places[0].parent) as file:
        for where, part in probability_slices(found.prepared, found.probabilities, segmenter.batch_size):
            for label in range(len(places)):
                file.seek((label * slices + where.start) * plane_bytes)
                file.write(part[:, label].tobytes())
        file.seek(0)
        for place in places:
            content = file.read(slices * plane_bytes)
            values = np.frombuffer(content, np.float32).reshape(found.labels.shape)
            write_probabilities(place, values, found.volume)


def _overlay_places(segmenter: _Segmenter, name: str) -> list[Path]:
    """A picture of one slice."""
    return [segmenter.out / f"{name}.png"]


def _write_overlay(segmenter: _Segmenter, name: str, found: _Found) -> None:
    (place,) = _overlay_places(segmenter, name)
    write_whole(place, overlay(found.volume, found.labels, segmenter.trained.classes))


_PROBABILITIES = _Extra(places=_probability_places, write=_write_probabilities)
_OVERLAY = _Extra(places=_overlay_places, write=_write_overlay)


# ---- images with a class each ----------------------------------------------------------------------------------------


def _classify_all(
    trained: Trained, replica: Replica, dataset: ImageDataset, asked: Asked, out: Path, quiet: bool
) -> Predicted:
    """Writes the CSV file of all pictures that can be read. Raises ValueError in the end where there are others."""
    asked.opened(_check_picture)
    files = asked.files
    rows, failed = list[tuple[Path, Probabilities]](), list[str]()
    experiment = trained.experiment
    with counting("predicting", quiet=quiet) as announce:
        announce(0, len(files))
        for start in range(0, len(files), RUN):
            part = files[start : start + RUN]
            pixels = dict(_read(dataset, part, experiment.model.image_size, failed))
            rows += _classified(replica, pixels, experiment.evaluation.batch_size)
            announce(start + len(part), len(files))
    if rows:
        write_text(out / CSV, _csv(rows, trained.classes))
    _expect_all(failed, len(files), out)
    return Predicted(out=out, images=files, files=(out / CSV,))


def _check_picture(path: Path) -> None:
    """Raises DataError where its header is that of no picture that can be read."""
    try:
        check_picture(path)
    except ValueError as error:
        raise DataError(path, [str(error)]) from error


def _read(
    dataset: ImageDataset, files: Sequence[Path], size: int, failed: list[str]
) -> Iterator[tuple[Path, torch.Tensor]]:
    """The pictures (3, size, size) uint8 that can be read; why others cannot goes to ``failed``."""
    for path in files:
        try:
            image = dataset.picture(path)
        except ValueError as error:
            failed.append(str(error))
            continue
        if wrong := image_problems(image):
            raise ValueError(f"{path}: {wrong}")
        yield path, resized(image[None], size)[0]


def _classified(
    replica: Replica, pixels: Mapping[Path, torch.Tensor], batch_size: int
) -> list[tuple[Path, Probabilities]]:
    """The pictures with their probabilities (C,)."""
    if not pixels:
        return []
    cases = tuple(Case(name=str(path), patient=str(path), image=path, label=path, target=0) for path in pixels)
    images = HospitalImages(PreparedImages(cases=cases, pixels=torch.stack([*pixels.values()])), cases)
    (found,) = classify(replica, [image_source(images)], batch_size)
    return list(zip(pixels, found, strict=True))


def _csv(rows: Sequence[tuple[Path, Probabilities]], classes: Sequence[str]) -> str:
    """A line per picture, in the form of a run's own ``predictions/<hospital>.csv`` but for the true class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "predicted", *(f"probability/{name}" for name in classes)])
    for path, row in rows:
        writer.writerow([path, classes[int(row.argmax())], *(f"{value:.9g}" for value in row)])
    return text.getvalue()


def _expect_all(failed: Sequence[str], total: int, out: Path) -> None:
    """Raises ValueError where some images could not be predicted."""
    if failed and total == 1:
        raise ValueError("\n".join(failed))
    if failed:
        done = f"those of all others are in {out}" if len(failed) < total else "there are no others"
        raise ValueError("\n  ".join([f"expected predictions of {total} images; {done}:", *failed]))
