"""Every data set of the table keeps the contract. A new row of the table needs a row here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from picture_trees import ham_tree, images_tree, isic_tree, medmnist_tree
from trees import ixi_tree, kits_tree, prostate_tree

from wardround.datasets import DATASETS
from wardround.datasets.contract import Case, Dataset, ImageDataset, Pool, ReadVolume, Volume, has_classes
from wardround.datasets.fed_isic2019 import FedIsic2019
from wardround.datasets.fed_ixi import FedIxi
from wardround.datasets.fed_kits19 import FedKits19
from wardround.datasets.ham10000 import Ham10000
from wardround.datasets.image_folder import ImageFolder
from wardround.datasets.image_phantom import ImagePhantom
from wardround.datasets.layouts import LAYOUTS
from wardround.datasets.medmnist import MedMnist
from wardround.datasets.msd import Msd
from wardround.datasets.phantom import Phantom
from wardround.datasets.prostate import Prostate
from wardround.datasets.synapse import Synapse
from wardround.datasets.testing import check_dataset, check_image_dataset
from wardround.datasets.volumes import Volumes

SMALL = Phantom(hospitals=2, train_cases=3, test_cases=1, size=16, slices=3)
LESIONS = ImagePhantom(hospitals=2, train_images=5, test_images=3, size=16, classes=3)
SOME_KITS = ["case_00021", "case_00038", "case_00000"]
SOME_IXI = ["IXI002-Guys-0828", "IXI012-HH-1211"]
SOME_PROSTATES = {"BMC": ["Case00", "Case03"], "HK": ["Case38"]}
SOME_IMAGES = ["north/a/1.png", "north/b/1.jpg", "south/a/1.tif"]
SOME_LESIONS = [("HAM_1", "ISIC_1", "nv", "rosendahl"), ("HAM_1", "ISIC_2", "nv", "vidir_modern")]
SOME_ISIC = {"ISIC_0053454": "NV", "ISIC_0053456": "MEL"}

EXAMPLES: dict[str, Callable[[Path], tuple[Dataset | ImageDataset, Path]]] = {
    "phantom": lambda cache: (SMALL, cache),
    "msd": lambda cache: (Msd(), SMALL.locate(cache)),
    "fed_kits19": lambda cache: (FedKits19(missing="skip"), kits_tree(cache / "kits", SOME_KITS)),
    "fed_ixi": lambda cache: (FedIxi(missing="skip"), ixi_tree(cache / "ixi", SOME_IXI)),
    "prostate": lambda cache: (Prostate(missing="skip"), prostate_tree(cache / "prostate", SOME_PROSTATES)),
    "synapse": lambda cache: (Synapse(), synapse_tree(cache / "synapse")),
    "volumes": lambda cache: (Volumes(classes=("edema", "core")), volumes_tree(cache / "volumes", SMALL.locate(cache))),
    "image_phantom": lambda cache: (LESIONS, cache),
    "images": lambda cache: (ImageFolder(), images_tree(cache / "images", SOME_IMAGES)),
    "medmnist": lambda cache: (MedMnist(flag="bloodmnist"), medmnist_tree(cache / "medmnist")),
    "ham10000": lambda cache: (Ham10000(), ham_tree(cache / "ham10000", SOME_LESIONS)),
    "fed_isic2019": lambda cache: (FedIsic2019(missing="skip"), isic_tree(cache / "isic", SOME_ISIC)),
}


def synapse_tree(root: Path) -> Path:
    """Two training volumes of two slices, and a test volume."""
    (root / "train_npz").mkdir(parents=True)
    (root / "test_vol_h5").mkdir()
    for case in ("case0005", "case0006"):
        for number in range(2):
            image = np.full((8, 8), number, np.float32)
            np.savez(root / "train_npz" / f"{case}_slice{number:03d}.npz", image=image + 1, label=image)
    with h5py.File(root / "test_vol_h5" / "case0001.npy.h5", "w") as file:
        file["image"], file["label"] = np.ones((3, 8, 8), np.float32), np.eye(8, dtype=np.float32)[None].repeat(3, 0)
    return root


def volumes_tree(root: Path, phantoms: Path) -> Path:
    """A list of the phantoms' files."""
    root.mkdir()
    rows = [
        f"north,{image},{phantoms / 'labelsTr' / image.name},train"
        for image in sorted((phantoms / "imagesTr").iterdir())
    ]
    (root / "volumes.csv").write_text("\n".join(["hospital,image,label,split", *rows]))
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_contract(name: str, cache: Path) -> None:
    dataset, root = EXAMPLES[name](cache)
    assert isinstance(dataset, DATASETS[name])
    pool = check_image_dataset(dataset, root) if has_classes(dataset) else check_dataset(dataset, root)
    assert len(pool.cases) >= 2


@dataclass(frozen=True, kw_only=True)
class Broken(Phantom):
    """A data set that breaks the rule that ``change`` breaks."""

    change: Callable[[Pool], Pool]

    def locate(self, root: Path | None) -> Path:
        return SMALL.locate(root)

    def pool(self, root: Path) -> Pool:
        return self.change(super().pool(root))


def first(**fields: object) -> Callable[[Pool], Pool]:
    """A pool whose first case (which trains) has other fields."""
    return lambda pool: replace(pool, cases=(replace(pool.cases[0], **fields), *pool.cases[1:]))


def without_sides(pool: Pool) -> Pool:
    return replace(pool, cases=tuple(replace(case, side=None) for case in pool.cases))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pool: replace(pool, cases=()), "at least one case"),
        (lambda pool: replace(pool, cases=pool.cases[::-1]), "sorted by name"),
        (lambda pool: replace(pool, cases=(pool.cases[0], *pool.cases)), "every name may appear once"),
        (lambda pool: first(image=pool.cases[1].image)(pool), "every image may appear once"),
        (first(parts=(Path("nowhere.npz"),)), "missing: .'nowhere.npz'"),
        (first(side=None), "either every case has a side or none"),
        (
            lambda pool: first(patient=pool.cases[-1].patient, site=pool.cases[-1].site)(pool),
            "a patient must have one side",
        ),
        (
            lambda pool: without_sides(first(patient=pool.cases[-1].patient)(pool)),
            "a patient must have one site",
        ),
        (lambda pool: replace(pool, problems=("a file is missing",)), "without problems, got .'a file is missing'"),
        (lambda pool: replace(pool, classes=("edema",)), "expected labels up to 1, got 2"),
        (lambda pool: replace(pool, classes=("edema", "edema")), "a name of its own per class"),
    ],
)
def test_the_suite_finds_what_is_broken(cache: Path, change: Callable[[Pool], Pool], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_dataset(Broken(**vars(SMALL), change=change), cache, volumes_per_site=9)


@dataclass(frozen=True, kw_only=True)
class ReadOtherwise(Phantom):
    """Reads an image without its mask as ``reader`` does."""

    reader: Msd = field(default_factory=lambda: LAYOUTS["msd"].loader)

    def open_image(self, path: Path, *, site: str | None = None) -> ReadVolume:
        return self.reader.open_image(path, site=site)


@pytest.mark.parametrize("reader", [Msd(slice_axis=1), Msd(clip_percentiles=(5.0, 80.0))])
def test_the_suite_finds_an_image_that_is_read_in_another_way(cache: Path, reader: Msd) -> None:
    check_dataset(ReadOtherwise(**vars(SMALL)), cache)
    with pytest.raises(AssertionError, match="opened without its mask: expected the image of the case"):
        check_dataset(ReadOtherwise(**vars(SMALL), reader=reader), cache)


@dataclass(frozen=True, kw_only=True)
class UpsideDown(ImagePhantom):
    """Reads a picture anywhere in another way than that of a case."""

    def picture(self, path: Path) -> np.ndarray:
        return super().picture(path)[::-1]


def test_the_suite_finds_a_picture_that_is_read_in_another_way(cache: Path) -> None:
    with pytest.raises(AssertionError, match="expected the image of its case as a picture"):
        check_image_dataset(UpsideDown(**vars(LESIONS)), cache)


def test_the_suite_finds_a_pool_that_depends_on_the_moment(cache: Path) -> None:
    calls = iter(range(10))

    @dataclass(frozen=True, kw_only=True)
    class Moody(Phantom):
        def pool(self, root: Path) -> Pool:
            pool = super().pool(root)
            return replace(pool, classes=(*pool.classes[:1], f"core-{next(calls)}"))

    with pytest.raises(AssertionError, match="the same folder must give the same pool"):
        check_dataset(Moody(**vars(SMALL)), cache)


def test_the_suite_finds_a_bad_volume(cache: Path) -> None:
    class Doubled(Phantom):
        def volume(self, case: Case) -> Volume:
            volume = super().volume(case)
            return replace(volume, image=volume.image.astype("float64"))

    with pytest.raises(AssertionError, match="expected a float32 image, got float64"):
        check_dataset(Doubled(**vars(SMALL)), cache)
