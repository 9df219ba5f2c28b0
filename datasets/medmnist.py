"""MedMNIST: small medical images of many kinds, one file for each collection, with a split and without sites.

Layout::

    <root>/pathmnist.npz            28 x 28 pixels; pathmnist_64.npz, pathmnist_128.npz, pathmnist_224.npz: larger

with the arrays ``train_images`` (N, S, S) or (N, S, S, 3) uint8, ``train_labels`` (N, 1), and the same for ``val`` and
``test``. The twelfth collection, chestmnist, has several findings per image and is no classification into classes.

Data card: docs/data/medmnist.md. Source: Yang et al., MedMNIST v2, Scientific Data 10:41, 2023 (arXiv 2110.14795);
names of classes: ``info.py`` of the package medmnist 3.0.2.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import IO, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .contract import Case, DataError, Pool, Side, Task
from .folders import find_folder, make_pool
from .pictures import Picture, read_picture

Flag = Literal[
    "pathmnist",
    "dermamnist",
    "octmnist",
    "pneumoniamnist",
    "retinamnist",
    "breastmnist",
    "bloodmnist",
    "tissuemnist",
    "organamnist",
    "organcmnist",
    "organsmnist",
]
Size = Literal[28, 64, 128, 224]

SIDES: Mapping[Side, str] = {"train": "train", "validation": "val", "test": "test"}
"""What the arrays of a side are called, in the order in which ``Case.row`` counts their images."""

_ORGANS = (
    *("bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver", "lung-left"),
    *("lung-right", "pancreas", "spleen"),
)

CLASSES: Mapping[str, tuple[str, ...]] = {
    "pathmnist": (
        *("adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa"),
        *("cancer-associated stroma", "colorectal adenocarcinoma epithelium"),
    ),
    "dermamnist": (
        *("actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma", "benign keratosis-like lesions"),
        *("dermatofibroma", "melanoma", "melanocytic nevi", "vascular lesions"),
    ),
    "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    "pneumoniamnist": ("normal", "pneumonia"),
    "retinamnist": ("grade 0", "grade 1", "grade 2", "grade 3", "grade 4"),
    "breastmnist": ("malignant", "normal or benign"),
    "bloodmnist": (
        *("basophil", "eosinophil", "erythroblast", "immature granulocytes", "lymphocyte", "monocyte", "neutrophil"),
        "platelet",
    ),
    "tissuemnist": (
        *("collecting duct and connecting tubule", "distal convoluted tubule", "glomerular endothelial cells"),
        *("interstitial endothelial cells", "leukocytes", "podocytes", "proximal tubule segments"),
        "thick ascending limb",
    ),
    "organamnist": _ORGANS,
    "organcmnist": _ORGANS,
    "organsmnist": _ORGANS,
}
"""Names of the labels 0, 1, ... of each collection, without capitals, commas and brackets; grades are numbers there."""


@dataclass(frozen=True, kw_only=True)
class MedMnist:
    """One collection of MedMNIST. Every image counts as a patient: the files do not say who is who.

    Args:
        flag: The collection, as the package medmnist calls it.
        size: Pixels along an edge.
    """

    task: ClassVar[Task] = "classification"

    flag: Flag
    size: Size = 28

    def __post_init__(self) -> None:
        problems = []
        if str(self.flag) == "chestmnist":
            problems.append(
                "flag: expected a collection with one class per image, got 'chestmnist', which has up to 14 findings; "
                f"choose one of {', '.join(get_args(Flag))}"
            )
        elif self.flag not in get_args(Flag):
            problems.append(f"flag: expected one of {', '.join(get_args(Flag))}, got {self.flag!r}")
        if self.size not in get_args(Size):
            problems.append(f"size: expected one of {', '.join(map(str, get_args(Size)))}, got {self.size!r}")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the C classes of the collection."""
        return CLASSES[self.flag]

    @property
    def file(self) -> str:
        """``pathmnist.npz`` or, for other sizes than 28, ``pathmnist_64.npz``."""
        return f"{self.flag}.npz" if self.size == 28 else f"{self.flag}_{self.size}.npz"

    def locate(self, root: Path | None) -> Path:
        """The folder with the file: ``root`` or the environment's WARDROUND_DATA, or ``medmnist`` inside it.

        Raises:
            ValueError: there is none.
        """
        return find_folder(
            root,
            holds=lambda folder: (folder / self.file).is_file(),
            names=("medmnist", ".medmnist"),
            expected=f"the file {self.file}",
            source="the files are at https://zenodo.org/records/10519652 (docs/data/medmnist.md)",
        )

    def pool(self, root: Path) -> Pool:
        """The images of the file, named ``train-000123`` by their side and their number there.

        Reads the labels, and of the images only what the file says about their shape.

        Raises:
            ValueError: the file cannot be read or lacks an array.
        """
        path, classes = root / self.file, self.classes
        cases: list[Case] = []
        problems: list[str] = []
        start = 0
        for side, (labels, shape) in self._labels(path).items():
            problems += _label_problems(path, SIDES[side], labels, shape, classes)
            cases += [_case(path, side, number, start, target) for number, target in enumerate(labels.ravel().tolist())]
            start += shape[0]
        sound = [case for case in cases if case.target is not None and 0 <= case.target < len(classes)]
        return make_pool(path, sound, classes, problems)

    def _labels(self, path: Path) -> dict[Side, tuple[NDArray[np.int64], tuple[int, ...]]]:
        """The labels (N,) of each side and the shape of its images."""
        try:
            with zipfile.ZipFile(path) as archive:
                _check_members(archive)
                return {
                    side: (_read_labels(archive, f"{name}_labels"), _member(archive, f"{name}_images", self.size).shape)
                    for side, name in SIDES.items()
                }
        except (*DAMAGES, KeyError, ValueError) as error:
            line = f"{path.name}: expected a file of MedMNIST, got {_reason(error)}"
            raise DataError(path.parent, [line]) from error

    def images(self, cases: Sequence[Case]) -> Iterator[Picture]:
        """The image (S, S, 3) of every case; grey becomes three equal channels.

        The file is unpacked as it is read, one image in memory at a time. That is one pass where the cases of a side
        come in the order of their rows; each step back begins the pass anew.

        Raises:
            DataError: the file cannot be read.
        """
        with ExitStack() as stack:
            opened: dict[Path, _Archive] = {}
            for case in cases:
                try:
                    if case.image not in opened:
                        opened[case.image] = stack.enter_context(_Archive(case.image, self.size))
                    image = opened[case.image].row(case.row)
                except (*DAMAGES, KeyError, ValueError, IndexError) as error:
                    raise DataError(case.image, [f"{case.name}: {case.image}: {_reason(error)}"]) from error
                yield _three_channels(image)

    def picture(self, path: Path) -> Picture:
        """The image (H, W, 3) of a picture file, which may have any size; grey becomes three equal channels.

        The collection lies in one file; a picture to be asked about lies in a file of its own.
        """
        return read_picture(path)


DAMAGES = (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)
"""What reading a damaged archive raises."""


@dataclass(frozen=True, kw_only=True)
class _Member:
    """Where the images of a side are.

    Args:
        name: Of the file in the archive.
        shape: (N, S, S) or (N, S, S, 3).
        begin: Where the first image begins in the unpacked file.
    """

    name: str
    shape: tuple[int, ...]
    begin: int


def _check_members(archive: zipfile.ZipFile) -> None:
    """Raises ValueError with the names of all arrays that are not there."""
    wanted = [f"{name}_{kind}" for name in SIDES.values() for kind in ("images", "labels")]
    lacking = [name for name in wanted if f"{name}.npy" not in archive.namelist()]
    if lacking:
        raise ValueError(f"one without {', '.join(lacking)}")


def _member(archive: zipfile.ZipFile, name: str, size: int) -> _Member:
    """What the file says about an array of images. Raises ValueError where it is something else."""
    with archive.open(f"{name}.npy") as stream:
        shape, by_columns, dtype = _header(stream)
        if dtype != np.uint8 or by_columns or shape[1:3] != (size, size) or shape[3:] not in ((), (3,)):
            raise ValueError(
                f"{name}: expected uint8 (N, {size}, {size}) or (N, {size}, {size}, 3), got {dtype} {shape}"
                f"{' by columns' if by_columns else ''}"
            )
        return _Member(name=f"{name}.npy", shape=shape, begin=stream.tell())


class _Archive:
    """The images of an open file, by their row; a context."""

    def __init__(self, path: Path, size: int) -> None:
        self.archive = zipfile.ZipFile(path)
        self.members = [_member(self.archive, f"{name}_images", size) for name in SIDES.values()]
        self.ends = list(accumulate(member.shape[0] for member in self.members))
        self.streams: dict[str, IO[bytes]] = {}

    def __enter__(self) -> _Archive:
        return self

    def __exit__(self, *error: object) -> None:
        for stream in self.streams.values():
            stream.close()
        self.archive.close()

    def row(self, row: int) -> Picture:
        """Image (S, S) or (S, S, 3). Raises IndexError where there is none."""
        place = next((i for i, end in enumerate(self.ends) if 0 <= row < end), None)
        if place is None:
            raise IndexError(f"expected a row below {self.ends[-1]}, got {row}")
        member = self.members[place]
        if member.name not in self.streams:
            self.streams[member.name] = self.archive.open(member.name)
        stream, size = self.streams[member.name], prod(member.shape[1:])
        stream.seek(member.begin + (row - self.ends[place] + member.shape[0]) * size)
        data = stream.read(size)
        if len(data) < size:
            raise EOFError(f"{member.name} ends before row {row}")
        return np.frombuffer(data, np.uint8).reshape(member.shape[1:])


def _three_channels(image: Picture) -> Picture:
    return image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)


def _case(path: Path, side: Side, number: int, start: int, target: int) -> Case:
    name = f"{side}-{number:06d}"
    return Case(name=name, patient=name, image=path, label=path, side=side, target=target, row=start + number)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and type of an array; the stream is then at its first value."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    return np.lib.format.read_array_header_2_0(stream)


def _read_labels(archive: zipfile.ZipFile, name: str) -> NDArray[np.int64]:
    """Labels (N,)."""
    with archive.open(f"{name}.npy") as stream:
        labels = np.lib.format.read_array(stream, allow_pickle=False)
    if labels.dtype.kind not in "iu" or labels.ndim not in (1, 2) or labels.shape[1:] not in ((), (1,)):
        raise ValueError(f"{name}: expected whole numbers (N, 1), got {labels.dtype} {labels.shape}")
    return labels.reshape(-1).astype(np.int64)


def _label_problems(
    path: Path, name: str, labels: NDArray[np.int64], shape: tuple[int, ...], classes: Sequence[str]
) -> list[str]:
    problems = []
    if len(labels) != shape[0]:
        problems.append(f"{path}: {name}: expected a label for each of {shape[0]} images, got {len(labels)} labels")
    outside = sorted({int(label) for label in labels if not 0 <= label < len(classes)})
    if outside:
        shown = f"{', '.join(map(str, outside[:5]))}{' and others' if len(outside) > 5 else ''}"
        problems.append(f"{path}: {name}_labels: expected labels of 0 to {len(classes) - 1} alone, got {shown}")
    return problems


def _reason(error: Exception) -> str:
    return str(error).strip("'\"") if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
