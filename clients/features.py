"""Kept features: what the frozen start of the encoder makes of windows, made once and read from then on.

Where the first trained layer comes late (``decoder``, ``partial_decoder``, LoRA in the last blocks) and windows have
fixed forms, the first ``prefix`` stages of the encoder give the same in every round, at every hospital that has the
case, and in every evaluation. :class:`Features` is the :class:`~wardround.clients.batches.Kept` of a run.

* What is kept together is the windows of one volume in one form, a *part*. Its key is a hash of content: the slices and
  labels, how windows are cut and relabelled, and the parameters of the form. Hospitals, training and evaluation that
  have a part in common share it; a file on disk is shared by runs as well.
* What a window gives must not depend on who asked first, or a run that was killed and continued would end with other
  bits: features are made of :data:`CHUNK` consecutive windows of a part at a time, never of the batch that asked.
* What is kept is decided once, before the first round, and nothing is ever dropped: the sources of a run, in the order
  they are given, each whole or not at all, as long as there is room.

Room in memory is counted exactly. With P the bytes of a slice's hidden state in the compute dtype and H x W pixels, a
source of N windows of D slices in M forms takes ``M N D (P + H W)`` bytes, of which ``H W`` are its labels; a part that
is there already takes none. On disk all files of the cache's folder ``features`` count, those of other runs too, and no
file is written that would not fit. Files are removed by hand, whenever one likes.

Legend: N windows of a source, M forms of a window, b windows of a batch, D slices of a window, H, W pixels. A row is a
slice of a window.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib import metadata
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..datasets.augment import AugmentParameters
from ..datasets.fingerprints import cache_folder, place_of, text_hash, using_cache
from ..datasets.windows import put
from ..datasets.writing import write_whole
from .batches import Batch, Draw, Source, cut
from .replica import Replica

WORTH_KEEPING = 0.5
"""Least share of the encoder's stages that must be frozen. At one half a training step spends about a quarter of its
time on them, as what trains also runs backwards, at twice the cost; for less the memory is better spent on batches."""

CHUNK = 16
"""Windows that go through the frozen start at once; fewer at the end of a volume."""

MB = 10**6

_COMPUTE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


@dataclass(frozen=True, kw_only=True)
class Use:
    """What a run kept, and what it was good for.

    Args:
        sources: How many of the sources that were offered are kept.
        offered: How many were offered.
        mb: Memory that takes, in MB.
        made: Windows that went through the frozen start for it.
        read: Windows that were read from disk instead.
        found: Windows of all batches that were served.
    """

    sources: int = 0
    offered: int = 0
    mb: float = 0.0
    made: int = 0
    read: int = 0
    found: int = 0


def worth_keeping(replica: Replica) -> bool:
    """Whether enough of the encoder is frozen (:data:`WORTH_KEEPING`)."""
    return replica.prefix >= WORTH_KEEPING * replica.model.num_stages


class Features:
    """What is kept for the sources of a run, on the device of its replica.

    Where the frozen start is too short to be worth it, nothing is kept. In bf16 features are rounded to bf16 once, and
    handed out in the dtype that :meth:`.Replica.begin` gives.

    Args:
        replica: Whose frozen start it is; it may be at any weights of what trains.
        sources: What batches will be cut from, in an order that is always the same. Sources that are not among them,
            but made of the same parts, are served too.
        memory_mb: Room on the device, in MB.
        disk_mb: Room in the cache's folder ``features``, in MB; 0: no files are read or written.
    """

    def __init__(self, replica: Replica, sources: Iterable[Source], *, memory_mb: int, disk_mb: int = 0) -> None:
        wanted = worth_keeping(replica) and memory_mb > 0
        offered = [source for source in sources if source.variants] if wanted else []
        self._rows: dict[str, range] = {}
        self._num_rows = self._kept = self._made = self._read = self._found = 0
        self._offered = len(offered)
        self._known: WeakKeyDictionary[Source, _Places] = WeakKeyDictionary()
        if offered:
            self._hash = replica.prefix_hash
            self._files = _Files(disk_mb * MB)
            self._allocate(replica, offered, memory_mb * MB)

    def _allocate(self, replica: Replica, sources: list[Source], budget: int) -> None:
        """Decides which sources are kept, and makes room for them."""
        images, labels = cut(_drawn(sources[0], 0, range(1), replica.width(CHUNK)), replica.device)
        sample = replica.begin(images)
        dtype = _COMPUTE[replica.precision]
        self._row_bytes = sample[0].numel() * dtype.itemsize + labels[0, 0].numel()
        for source in sources:
            self._kept += self._reserve(source, budget // self._row_bytes)
        self._given = sample.dtype
        self._hidden = sample.new_empty((self._num_rows, *sample.shape[1:]), dtype=dtype)
        self._labels = labels.new_empty((self._num_rows, *labels.shape[2:]))
        self._filled = torch.zeros(self._num_rows, dtype=torch.bool)
        self._looked: set[str] = set()

    def _reserve(self, source: Source, room: int) -> bool:
        """Rows for all parts of a source that have none yet; False where there is no room for every one of them."""
        new = {part.key: len(part) for part in _parts(source) if part.key not in self._rows}
        if self._num_rows + sum(new.values()) > room:
            return False
        for key, rows in new.items():
            self._rows[key] = range(self._num_rows, self._num_rows + rows)
            self._num_rows += rows
        return True

    def __bool__(self) -> bool:
        """Whether anything is kept."""
        return self._num_rows > 0

    @property
    def use(self) -> Use:
        """What is kept, and what it was good for so far."""
        return Use(
            sources=self._kept,
            offered=self._offered,
            mb=self._num_rows * self._row_bytes / MB if self else 0.0,
            made=self._made,
            read=self._read,
            found=self._found,
        )

    def find(self, replica: Replica, draw: Draw) -> Batch | None:
        """The batch of a draw, out of what is kept; what of it was not asked for before is made now.

        Returns:
            Hidden (b * D, ...) and labels (b, D, H, W); None where one of the windows is not kept, or has fresh forms.
        """
        if draw.variants is None or not self:
            return None
        self._follow(replica)
        places = self._places_of(draw.source)
        first = places.first[draw.variants, draw.index]  # (b,)
        if bool((first < 0).any()):
            return None
        for at in (~self._filled[first]).nonzero().flatten().tolist():
            if not self._filled[first[at]]:  # not in the chunk of one before it
                self._fill(replica, draw.source, places, int(draw.variants[at]), int(draw.index[at]))
        self._found += draw.size
        depth = draw.source.windows.depth
        rows = put((first[:, None] + torch.arange(depth)).flatten(), replica.device)  # (b * D,)
        hidden, labels = self._hidden.index_select(0, rows), self._labels.index_select(0, rows)
        return Batch(hidden=hidden.to(self._given), labels=labels.unflatten(0, (-1, depth)))

    def _follow(self, replica: Replica) -> None:
        """Forgets everything when the frozen weights are no longer those it was made with."""
        if replica.prefix_hash != self._hash:
            self._hash = replica.prefix_hash
            self._filled.zero_()
            self._looked.clear()

    def _places_of(self, source: Source) -> _Places:
        if source not in self._known:
            places = _Places(parts=[*_parts(source)], first=torch.full((len(source.variants), len(source.windows)), -1))
            for part in places.parts:
                rows = self._rows.get(part.key)
                if rows is not None:
                    places.first[part.variant, part.span.start : part.span.stop] = torch.tensor(rows)[:: part.depth]
            self._known[source] = places
        return self._known[source]

    def _fill(self, replica: Replica, source: Source, places: _Places, variant: int, window: int) -> None:
        """From disk the whole part of a window in a form, or else its chunk through the frozen start."""
        part = next(part for part in places.parts if part.variant == variant and window in part.span)
        if self._load(replica, part):
            return
        chunk = part.chunk(window)
        images, labels = cut(_drawn(source, variant, chunk, replica.width(CHUNK)), replica.device)
        first = int(places.first[variant, chunk[0]])
        rows = slice(first, first + len(chunk) * part.depth)
        self._hidden[rows] = replica.begin(images)[: len(chunk) * part.depth]
        self._labels[rows] = labels[: len(chunk)].flatten(0, 1)
        self._filled[rows] = True
        self._made += len(chunk)
        self._save(replica, part)

    def _load(self, replica: Replica, part: _Part) -> bool:
        """Whether a part is on disk, where it is looked for once; then it is whole in memory."""
        if part.key in self._looked or not self._files:
            return False
        self._looked.add(part.key)
        found = self._files.load(_file_key(replica, part))
        if found is None:
            return False
        rows = self._slice(part)
        self._hidden[rows], self._labels[rows] = found["hidden"], found["labels"]
        self._filled[rows] = True
        self._read += len(part.span)
        return True

    def _save(self, replica: Replica, part: _Part) -> None:
        """Writes a part once all of it is there."""
        rows = self._slice(part)
        if self._files and bool(self._filled[rows].all()):
            self._files.save(
                _file_key(replica, part), {"hidden": self._hidden[rows].cpu(), "labels": self._labels[rows].cpu()}
            )

    def _slice(self, part: _Part) -> slice:
        rows = self._rows[part.key]
        return slice(rows.start, rows.stop)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The windows of one volume in one form.

    Args:
        key: SHA-256 of all that decides what goes into the model.
        variant: The number of the form.
        span: The numbers of the windows within their source.
        depth: D.
    """

    key: str
    variant: int
    span: range
    depth: int

    def __len__(self) -> int:
        """Its rows."""
        return len(self.span) * self.depth

    def chunk(self, window: int) -> range:
        """The windows that go through the model together with this one."""
        first = window - (window - self.span.start) % CHUNK
        return range(first, min(first + CHUNK, self.span.stop))


@dataclass(frozen=True, kw_only=True)
class _Places:
    """Where a source is kept.

    Args:
        parts: What it is made of.
        first: (M, N) the first row of every window in every form, -1 where it is not kept.
    """

    parts: list[_Part]
    first: Tensor


def _drawn(source: Source, variant: int, chunk: range, width: int | None) -> Draw:
    """Windows in a form, filled up to ``width`` where a compiled model asks for it."""
    index = torch.tensor(chunk)
    draw = Draw(
        source=source,
        index=index,
        parameters=source.variants[variant].select(index),
        variants=torch.full_like(index, variant),
        size=len(index),
    )
    return draw if width is None else draw.filled(width)


def _parts(source: Source) -> Iterator[_Part]:
    """What a source is made of: every volume in every form."""
    windows = source.windows
    for variant, parameters in enumerate(source.variants):
        rows = _bytes_of(parameters).numpy()
        for key, span in zip(windows.volume_keys(), windows.spans, strict=True):
            form = hashlib.sha256(rows[span.start : span.stop].data).hexdigest()
            yield _Part(key=text_hash(key, form), variant=variant, span=span, depth=windows.depth)


def _bytes_of(parameters: AugmentParameters) -> Tensor:
    """(n, bytes) uint8, a row per window."""
    values = [getattr(parameters, field.name) for field in fields(parameters)]
    return torch.cat([value.reshape(len(value), -1).contiguous().view(torch.uint8) for value in values], dim=1)


def _file_key(replica: Replica, part: _Part) -> str:
    """What a file is called: the part, the frozen start, and all that the last bits of the result depend on."""
    start = (replica.prefix, replica.prefix_hash, replica.precision, replica.compiled)
    return text_hash(part.key, *start, *_machine(replica.device), _code())


def _machine(device: torch.device) -> list[object]:
    if device.type == "cuda":
        exact = [torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32]
        return [torch.cuda.get_device_name(device), torch.backends.cudnn.deterministic, *exact]
    return [device.type, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]


@cache
def _code() -> str:
    """SHA-256 of the code that cuts, forms and encodes a window, and of the libraries that it runs with."""
    package = Path(__file__).parent.parent
    files = [path for folder in ("clients", "datasets") for path in sorted((package / folder).glob("*.py"))]
    sources = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return text_hash(sources, [metadata.version(name) for name in ("torch", "transformers", "numpy")])


class _Files:
    """Parts on disk: ``<cache>/features/<2 digits>/<key>.safetensors``.

    Args:
        budget: Bytes that all files together may have.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget

    def __bool__(self) -> bool:
        return self.budget > 0

    def load(self, key: str) -> Mapping[str, Tensor] | None:
        """The tensors of a file, memory-mapped; None where there is none. A damaged one is removed."""
        path = _path(key)
        with using_cache():
            if not path.exists():
                return None
            try:
                return _checked(path)
            except (SafetensorError, FileNotFoundError, KeyError):
                path.unlink(missing_ok=True)
                return None

    def save(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Writes a file, whole, where there is room for it."""
        data = save(dict(tensors), {"sha256": _digest(tensors)})
        with using_cache():
            files = (cache_folder() / "features").glob("*/*.safetensors")
            if sum(file.stat().st_size for file in files) + len(data) <= self.budget:
                write_whole(_path(key), data, sync=False)  # what a crash damages is seen when it is read


def _path(key: str) -> Path:
    return place_of("features", key, ".safetensors")


def _checked(path: Path) -> dict[str, Tensor]:
    """What a file holds. Raises KeyError where it is not what was written."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in ("hidden", "labels")}
        if (file.metadata() or {}).get("sha256") != _digest(tensors):
            raise KeyError("sha256")
    return tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
