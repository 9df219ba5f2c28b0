"""Which collections of images share images: a base that was pre-trained on test images makes their scores worthless.

A collection is a set of parts, each with the images of one source. Two collections overlap where they have a part in
common; that a collection has only some of a part's images does not count, as nobody can tell which.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from .medmnist import MedMnist

OTHER = "other:"
"""What a collection begins with that this table does not know."""

_MEDMNIST = "Yang et al., MedMNIST v2, Scientific Data 10:41, 2023"
_HAM = "Tschandl et al., Scientific Data 5:180161, 2018"
_ISIC = "ISIC 2019 challenge: BCN_20000, HAM10000 and MSK, https://challenge.isic-archive.com/landing/2019"
_SAML = "Liu et al., SAML, MICCAI 2020: six sites from NCI-ISBI 2013, I2CVB and PROMISE12"


@dataclass(frozen=True, kw_only=True)
class Collection:
    """What a collection of images is made of.

    Args:
        parts: Names of its sources.
        source: Who says so.
    """

    parts: frozenset[str]
    source: str


def _of(source: str, *parts: str) -> Collection:
    return Collection(parts=frozenset(parts), source=source)


_MEDMNIST_PARTS: Mapping[str, tuple[str, ...]] = {
    "pathmnist": ("NCT-CRC-HE-100K", "CRC-VAL-HE-7K"),
    "dermamnist": ("HAM10000",),
    "octmnist": ("OCT of Kermany et al.",),
    "pneumoniamnist": ("chest X-ray of Kermany et al.",),
    "retinamnist": ("DeepDRiD",),
    "breastmnist": ("breast ultrasound of Al-Dhabyani et al.",),
    "bloodmnist": ("blood cells of Acevedo et al.",),
    "tissuemnist": ("BBBC051",),
    "organamnist": ("LiTS",),
    "organcmnist": ("LiTS",),
    "organsmnist": ("LiTS",),
    "chestmnist": ("ChestX-ray14",),
    "organmnist3d": ("LiTS",),
}

COLLECTIONS: Mapping[str, Collection] = {
    "ham10000": _of(_HAM, "HAM10000"),
    "isic2018": _of("ISIC 2018 challenge, task 3: Codella et al., arXiv 1902.03368", "HAM10000"),
    "isic2019": _of(_ISIC, "HAM10000", "BCN20000", "MSK"),
    "fed_isic2019": _of(f"FLamby, NeurIPS 2022, after the {_ISIC}", "HAM10000", "BCN20000", "MSK"),
    "bcn20000": _of("Combalia et al., arXiv 1908.02288", "BCN20000"),
    "isic_archive": _of("https://www.isic-archive.com", "HAM10000", "BCN20000", "MSK"),
    **{flag: _of(_MEDMNIST, *parts) for flag, parts in _MEDMNIST_PARTS.items()},
    "medmnist": _of(_MEDMNIST, *(part for parts in _MEDMNIST_PARTS.values() for part in parts)),
    "nct_crc_he_100k": _of("Kather et al., https://doi.org/10.5281/zenodo.1214456", "NCT-CRC-HE-100K"),
    "crc_val_he_7k": _of("Kather et al., https://doi.org/10.5281/zenodo.1214456", "CRC-VAL-HE-7K"),
    "kermany2018": _of("Kermany et al., Cell 172(5), 2018", "OCT of Kermany et al.", "chest X-ray of Kermany et al."),
    "deepdrid": _of("Liu et al., DeepDRiD, Patterns 3(6), 2022", "DeepDRiD"),
    "chestxray14": _of("Wang et al., ChestX-ray8, CVPR 2017", "ChestX-ray14"),
    "lits": _of("Bilic et al., arXiv 1901.04056", "LiTS"),
    "msd_liver": _of("Antonelli et al., Nature Communications 13:4128, 2022: task 3 is LiTS", "LiTS"),
    "kits19": _of("Heller et al., arXiv 1904.00445", "KiTS19"),
    "kits21": _of("Heller et al., arXiv 2307.01984", "KiTS19", "KiTS21"),
    "fed_kits19": _of("FLamby, NeurIPS 2022", "KiTS19"),
    "ixi": _of("https://brain-development.org/ixi-dataset", "IXI"),
    "fed_ixi": _of("FLamby, NeurIPS 2022", "IXI"),
    "prostate": _of(_SAML, "NCI-ISBI 2013", "I2CVB", "PROMISE12"),
    "nci_isbi_2013": _of(_SAML, "NCI-ISBI 2013"),
    "i2cvb": _of(_SAML, "I2CVB"),
    "promise12": _of("Litjens et al., Medical Image Analysis 18(2), 2014", "PROMISE12"),
    "btcv": _of("https://doi.org/10.7303/syn3193805", "BTCV"),
    "synapse": _of("Chen et al., TransUNet, arXiv 2102.04306", "BTCV"),
    "imagenet": _of("Russakovsky et al., arXiv 1409.0575", "ImageNet"),
    "imagenet1k": _of("Russakovsky et al., arXiv 1409.0575", "ImageNet"),
    "imagenet21k": _of("Deng et al., CVPR 2009", "ImageNet"),
    "sa1b": _of("Kirillov et al., arXiv 2304.02643", "SA-1B"),
    "coco": _of("Lin et al., arXiv 1405.0312", "COCO"),
}
"""What is known, by the name of a row of :data:`~wardround.datasets.DATASETS`, by a flag of MedMNIST, or by the usual
name; capitals, blanks and punctuation do not count."""


def overlapping(data: str | object, pretrained_on: Sequence[str]) -> list[str]:
    """A line for each collection that shares images with a data set.

    Args:
        data: The data set (an object, whose ``flag`` says which collection of MedMNIST it reads) or its name. Own data
            and phantoms share nothing with anybody, as far as this table knows.
        pretrained_on: What a base was pre-trained on: names of :data:`COLLECTIONS`, or ``other: ...`` for what is not
            there.

    Raises:
        ValueError: a name is unknown, with the names that are like it.

    Example:
        >>> overlapping("ham10000", ["imagenet", "ISIC 2019"])[0].partition(" (")[0]
        'ISIC 2019 has images of HAM10000, which ham10000 has too'
    """
    unknown = [name for name in pretrained_on if not name.startswith(OTHER) and _plain(name) not in _KNOWN]
    if unknown:
        raise ValueError("; ".join(map(_unknown, unknown)))
    name = data if isinstance(data, str) else name_of(data)
    own = _KNOWN.get(_plain(name))
    if own is None:
        return []
    others = {other: _KNOWN[_plain(other)] for other in pretrained_on if not other.startswith(OTHER)}
    return [
        f"{other} has images of {' and '.join(sorted(shared))}, which {name} has too ({_sources(found, own)})"
        for other, found in others.items()
        if (shared := found.parts & own.parts)
    ]


def name_of(dataset: object) -> str:
    """The name of a data set in :data:`COLLECTIONS`; its class, in snake case, where it has none there.

    Example:
        >>> name_of(MedMnist(flag="dermamnist"))
        'dermamnist'
    """
    if isinstance(dataset, MedMnist):
        return dataset.flag
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(dataset).__name__).lower()


def _sources(*collections: Collection) -> str:
    return "; ".join(dict.fromkeys(collection.source for collection in collections))


def _unknown(name: str) -> str:
    near = [_KNOWN_NAMES[key] for key in get_close_matches(_plain(name), _KNOWN, cutoff=0.7)]
    hint = f"did you mean {' or '.join(near)}? " if near else f"known are {', '.join(COLLECTIONS)}; "
    return (
        f"model.pretrained_on: expected collections of images whose sources are known, got {name!r}; {hint}"
        f"Where it is none of these, write '{OTHER} {name}'"
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


_KNOWN = {_plain(name): collection for name, collection in COLLECTIONS.items()}
_KNOWN_NAMES = {_plain(name): name for name in COLLECTIONS}
