"""The prepared cache: the same as prepared in memory, whole or not there, noticed when anything changes."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from wardround.datasets import cache, fingerprints, writing
from wardround.datasets.cache import Preparation
from wardround.datasets.contract import Case, DataError, Volume
from wardround.datasets.facts import describe
from wardround.datasets.fingerprints import cache_folder, code_hash, file_hash
from wardround.datasets.msd import Msd
from wardround.datasets.windows import HospitalWindows, PreparedVolume, Windows, prepare

CASES = 5
READS: list[str] = []
"""Names of the cases that were read in this process."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arrays:
    """Volumes in .npy files."""

    gain: float = 1.0

    def volume(self, case: Case) -> Volume:
        READS.append(case.name)
        image = self.gain * np.load(case.image)
        return Volume(case=case, image=image, label=np.load(case.label), spacing_mm=(3.0, 2.0, 0.1), slice_axis=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restless(Arrays):
    """Somebody writes the files while they are read."""

    def volume(self, case: Case) -> Volume:
        volume = super().volume(case)
        write_case(case, seed=99)
        return volume


@dataclasses.dataclass(frozen=True, kw_only=True)
class Broken(Arrays):
    """Cannot read its second case."""

    def volume(self, case: Case) -> Volume:
        if case.name == "case-1":
            raise DataError(case.image, ["no voxel is white"])
        return super().volume(case)


def write_case(case: Case, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (18 + seed % 3, 11, 13)
    np.save(case.image, rng.normal(100, 20, shape).astype(np.float32))
    np.save(case.label, rng.integers(0, 3, shape, dtype=np.uint8))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; files are remembered from the moment they are written."""
    monkeypatch.setenv("WARDROUND_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprints, "SETTLED_NS", -(10**9))
    READS.clear()
    return tmp_path / "cache"


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    folder = tmp_path / "data"
    folder.mkdir()
    found = []
    for number in range(CASES):
        files = (folder / f"{number}_{kind}.npy" for kind in ("image", "label"))
        found.append(
            Case(name=f"case-{number}", patient=f"p{number}", **dict(zip(("image", "label"), files, strict=True)))
        )
        write_case(found[-1], seed=number)
    return found


def preparation(dataset: Arrays | None = None, *, size: int = 8, windows: Windows | None = None) -> Preparation:
    return Preparation(dataset=dataset or Arrays(), num_classes=2, image_size=size, windows=windows or Windows(depth=3))


def direct(how: Preparation, case: Case) -> PreparedVolume:
    return prepare(how.dataset.volume(case), how.image_size, how.windows)


def same(left: PreparedVolume, right: PreparedVolume) -> bool:
    return (
        torch.equal(left.images, right.images)
        and torch.equal(left.labels, right.labels)
        and torch.equal(left.truth, right.truth)
        and (left.images.dtype, left.labels.dtype) == (right.images.dtype, right.labels.dtype)
        and (left.case, left.truth.dtype, left.spacing_mm) == (right.case, right.truth.dtype, right.spacing_mm)
    )


def entries(home: Path) -> list[Path]:
    return sorted(home.glob("prepared/??/[!.]*"))


def unfinished(home: Path) -> list[Path]:
    return sorted(home.glob("prepared/??/.*"))


def in_child(action: Callable[[], object]) -> int:
    """Starts a copy of this process that does one thing; ends with 0 unless that raises. Returns its number."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def ended(child: int) -> int:
    """Exit code of a child, negative: the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# The same as in memory


@pytest.mark.parametrize("normalise", ["volume", "window"])
@pytest.mark.parametrize("grid", [None, (20, 6, 7)])
def test_cached_is_prepared_in_memory(cases: list[Case], normalise: str, grid: tuple[int, int, int] | None) -> None:
    how = preparation(windows=Windows(normalise=normalise, grid=grid))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):  # made, then found
            assert all(same(how.load(case), direct(how, case)) for case in cases[:2])


@pytest.mark.parametrize("windows", [Windows(), Windows(depth=3, normalise="window")])
def test_training_windows_from_the_cache_are_those_from_memory(cases: list[Case], windows: Windows) -> None:
    how = preparation(windows=windows)
    mapped = HospitalWindows([how.load(case) for case in cases], windows)
    in_memory = HospitalWindows([direct(how, case) for case in cases], windows)
    assert len(mapped) == len(in_memory)
    for index in torch.randperm(len(mapped), generator=torch.Generator().manual_seed(0)).split(7):
        expected = in_memory.gather(index)
        assert all(torch.equal(a, b) for a, b in zip(mapped.gather(index), expected, strict=True))


def test_the_key_of_a_volume_is_its_entrys(cases: list[Case], home: Path) -> None:
    keys = [preparation().load(case).key for case in cases]
    assert sorted(keys) == sorted(entry.name for entry in entries(home))


def test_the_truth_lies_as_it_was_whatever_the_order_of_its_axes(cases: list[Case]) -> None:
    """A reader may hand over a view with its axes exchanged; slices are written one by one."""
    exchanged = np.asfortranarray(np.load(cases[0].label))
    np.save(cases[0].label, exchanged)
    assert not np.load(cases[0].label).flags.c_contiguous
    for _ in range(2):  # made, then found
        assert np.array_equal(preparation(size=4).load(cases[0]).truth.numpy(), exchanged)


def test_what_is_written_to_a_loaded_volume_does_not_reach_the_file(cases: list[Case]) -> None:
    how = preparation()
    how.load(cases[0]).images.zero_()
    assert same(how.load(cases[0]), direct(how, cases[0]))


def test_volumes_are_prepared_once_and_counted(cases: list[Case], home: Path) -> None:
    told: list[tuple[int, int]] = []
    how = preparation()
    assert how.prepare_all(cases[:3], lambda done, total: told.append((done, total))) == 3
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert how.prepare_all(cases) == 2
    assert [case.name for case in cases] == READS
    assert (len(entries(home)), unfinished(home), how.folder) == (5, [], home)


def test_a_bad_case_stops_and_what_is_done_stays(cases: list[Case], home: Path) -> None:
    with pytest.raises(DataError, match="no voxel is white"):
        preparation(Broken()).prepare_all(cases)
    assert (len(entries(home)), unfinished(home)) == (1, [])


# Facts


def test_facts_are_measured_once_whatever_the_size(cases: list[Case], home: Path) -> None:
    how = preparation()
    expected = describe(Arrays().volume(cases[0]), 2)
    READS.clear()
    assert how.facts(cases[0]) == how.facts(cases[0]) == preparation(size=16).facts(cases[0]) == expected
    assert READS == ["case-0"]
    how.load(cases[1])
    how.facts(cases[1])
    assert READS == ["case-0", "case-1"]
    assert how.facts(cases[1]) == describe(Arrays().volume(cases[1]), 2)


@pytest.mark.parametrize("damage", ["", "[1]", '{"shape": [1, 2, 3]}'])
def test_damaged_facts_are_measured_again(cases: list[Case], home: Path, damage: str) -> None:
    expected = preparation().facts(cases[0])
    (file,) = home.glob("facts/*/*.json")
    file.write_text(damage)
    assert preparation().facts(cases[0]) == expected
    assert READS == ["case-0"] * 2


# Changes are noticed


def test_an_unchanged_file_is_not_read_again(cases: list[Case], monkeypatch: pytest.MonkeyPatch) -> None:
    first = file_hash(cases[0].image)
    monkeypatch.setattr(fingerprints, "_digest", lambda path: pytest.fail(f"read {path}"))
    assert file_hash(cases[0].image) == first


def test_a_file_of_the_last_seconds_is_not_remembered(cases: list[Case], home: Path, monkeypatch) -> None:
    """It may change again within the resolution of its times."""
    monkeypatch.setattr(fingerprints, "SETTLED_NS", 60 * 10**9)
    file_hash(cases[0].image)
    assert not list(home.glob("hashes/*/*"))


def test_a_file_that_changed_in_place_is_noticed_with_its_old_size_and_time(cases: list[Case]) -> None:
    how, case = preparation(), cases[0]
    before, old = case.image.stat(), how.load(case).images.clone()
    time.sleep(0.02)  # a tick of the file system's clock
    content = bytearray(case.image.read_bytes())
    content[-300:] = content[-600:-300]
    case.image.write_bytes(content)
    os.utime(case.image, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = case.image.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    assert same(how.load(case), direct(how, case))
    assert not torch.equal(how.load(case).images, old)


def test_settings_have_entries_of_their_own(cases: list[Case], home: Path) -> None:
    case = cases[0]
    different = [
        preparation(),
        preparation(Arrays(gain=2.0), windows=Windows(normalise="window")),
        preparation(size=9),
        preparation(windows=Windows(normalise="window")),
        preparation(windows=Windows(grid=(4, 4, 4))),
    ]
    assert all(same(how.load(case), direct(how, case)) for how in different)
    assert len(entries(home)) == len(different)
    elsewhere = dataclasses.replace(case, site="north")
    assert same(different[0].load(elsewhere), direct(different[0], elsewhere))
    assert len(entries(home)) == len(different) + 1


def test_depth_and_place_share_an_entry(cases: list[Case], home: Path, tmp_path: Path) -> None:
    preparation().load(cases[0])
    moved = dataclasses.replace(cases[0], image=cases[0].image.rename(tmp_path / "moved.npy"))
    assert preparation(windows=Windows(depth=5)).load(moved).case == moved
    assert len(entries(home)) == 1


@pytest.fixture
def edit(monkeypatch: pytest.MonkeyPatch):
    """Acts as if the source code of one module had been changed."""
    original = fingerprints._source

    def change(module: str) -> None:
        def source(found: types.ModuleType) -> str:
            return original(found) + " " * found.__name__.endswith(f".{module}")

        monkeypatch.setattr(fingerprints, "_source", source)
        code_hash.cache_clear()

    yield change
    code_hash.cache_clear()


def test_code_that_reads_volumes_is_noticed(edit: Callable[[str], None]) -> None:
    """``nifti`` because msd takes something from it, ``voxels`` because nifti does; nobody needs ``scanner``."""
    before = code_hash(Msd)
    for module, counts in (("msd", True), ("nifti", True), ("voxels", True), ("scanner", False)):
        edit(module)
        assert (code_hash(Msd) != before) == counts, module


@pytest.mark.parametrize("library", [torch, np, nib], ids=lambda library: library.__name__)
def test_another_version_of_a_library_is_noticed(
    cases: list[Case], monkeypatch: pytest.MonkeyPatch, library: types.ModuleType
) -> None:
    before = code_hash(Msd)
    preparation().load(cases[0])
    monkeypatch.setattr(library, "__version__", f"{library.__version__}.1")
    code_hash.cache_clear()
    try:
        assert code_hash(Msd) != before
        assert preparation().prepare_all(cases[:1]) == 1
    finally:
        code_hash.cache_clear()


@pytest.mark.parametrize("module", ["windows", "facts", "cache", "writing"])
def test_code_that_prepares_is_noticed(cases: list[Case], edit: Callable[[str], None], module: str) -> None:
    """Also with a data set that takes nothing from these modules itself, as this file does."""
    foreign = dataclasses.replace(preparation(), dataset=Msd())
    before = foreign._source(cases[0])
    preparation().load(cases[0])
    edit(module)
    assert preparation().prepare_all(cases[:1]) == 1
    assert foreign._source(cases[0]) != before


def test_a_class_without_source_code_is_refused(cases: list[Case], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "typed", types.ModuleType("typed"))
    typed = dataclasses.make_dataclass("Typed", [], bases=(Arrays,), frozen=True)
    typed.__module__ = "typed"
    with pytest.raises(ValueError, match=r"typed: expected a module with source code.*\.py file"):
        preparation(typed()).load(cases[0])


def test_files_that_change_while_they_are_read_are_refused(cases: list[Case], home: Path) -> None:
    with pytest.raises(ValueError, match="stay as they are while they are read"):
        preparation(Restless()).load(cases[0])
    assert not entries(home)
    assert not list(home.glob("facts/*/*"))


# Kills, damage, two at once, no room


def kill_in_the_middle(number: int) -> None:
    """From now on, this process dies when the first slices of the given volume are written."""
    chunks = cache.prepared_chunks

    def deadly(volume: Volume, *settings: object):
        first, *others = chunks(volume, *settings)
        yield first
        if volume.case.name == f"case-{number}":
            os.kill(os.getpid(), signal.SIGKILL)
        yield from others

    cache.prepared_chunks = deadly


def test_a_killed_preparation_continues(cases: list[Case], home: Path) -> None:
    def work() -> None:
        kill_in_the_middle(2)
        preparation().prepare_all(cases)

    assert ended(in_child(work)) == -signal.SIGKILL
    assert len(entries(home)) == 2
    (half,) = unfinished(home)
    assert (half / "images.npy").exists()
    how = preparation()
    assert how.prepare_all(cases) == 3
    assert all(same(how.load(case), direct(how, case)) for case in cases)
    assert unfinished(home) == [half], "it may belong to somebody who is still writing"
    os.utime(half, (time.time() - 2 * 86400,) * 2)
    assert how.prepare_all(cases) == 0
    assert not unfinished(home)


@pytest.mark.parametrize("place", ["prepared/ab", "facts/ab", "hashes/ab", "features/ab", "."])
def test_what_a_kill_left_anywhere_is_removed_when_it_is_old(home: Path, place: str) -> None:
    """Phantoms are built in the cache itself."""
    (home / place).mkdir(parents=True, exist_ok=True)
    folder, file, new = (writing.beside(home / place / name) for name in ("folder", "file", "new"))
    folder.mkdir()
    (folder / "part").touch()
    file.touch()
    new.touch()
    (home / "phantom").mkdir()
    for path in (folder, file, home / "phantom"):
        os.utime(path, (time.time() - 2 * 86400,) * 2)
    preparation().prepare_all([])
    assert [folder.exists(), file.exists(), new.exists(), (home / "phantom").exists()] == [False, False, True, True]


def test_two_processes_at_once(cases: list[Case], home: Path) -> None:
    """Both have finished the first volume before either puts it in its place."""
    barrier = multiprocessing.get_context("fork").Barrier(2)
    put = writing._put

    def meet(half: Path, entry: Path) -> None:
        writing._put = put
        barrier.wait(60)
        put(half, entry)

    def work() -> None:
        writing._put = meet
        how = preparation()
        assert how.prepare_all(cases) >= 1
        assert all(same(how.load(case), direct(how, case)) for case in cases)

    children = [in_child(work) for _ in range(2)]
    assert [ended(child) for child in children] == [0, 0]
    assert (len(entries(home)), unfinished(home)) == (CASES, [])
    assert preparation().prepare_all(cases) == 0


def damage_meta(entry: Path) -> None:
    (entry / "meta.json").write_text('{"case": "case-0"')


def damage_length(entry: Path) -> None:
    os.truncate(entry / "images.npy", (entry / "images.npy").stat().st_size - 1)


def damage_shape(entry: Path) -> None:
    np.save(entry / "labels.npy", np.zeros((18, 8, 7), np.uint8))


def damage_type(entry: Path) -> None:
    np.save(entry / "images.npy", np.zeros((18, 8, 8)))


def damage_empty(entry: Path) -> None:
    (entry / "labels.npy").write_bytes(b"")


def damage_missing(entry: Path) -> None:
    (entry / "labels.npy").unlink()


def damage_truth(entry: Path) -> None:
    os.truncate(entry / "truth.npy", (entry / "truth.npy").stat().st_size - 1)


def damage_no_truth(entry: Path) -> None:
    (entry / "truth.npy").unlink()


@pytest.mark.parametrize(
    "damage",
    [
        damage_meta,
        damage_length,
        damage_shape,
        damage_type,
        damage_empty,
        damage_missing,
        damage_truth,
        damage_no_truth,
    ],
)
def test_a_damaged_entry_is_made_again(cases: list[Case], home: Path, damage: Callable[[Path], None]) -> None:
    how = preparation()
    how.prepare_all(cases[:2])
    damage(next(entry for entry in entries(home) if '"case-0"' in (entry / "meta.json").read_text()))
    assert how.prepare_all(cases[:2]) == 1
    assert same(how.load(cases[0]), direct(how, cases[0]))
    assert unfinished(home) == []


def test_a_damaged_memory_of_a_hash_is_made_again(cases: list[Case], home: Path) -> None:
    expected = file_hash(cases[0].image)
    (file,) = home.glob("hashes/*/*.json")
    for damage in (
        "",
        "[]",
        "{}",
        file.read_text().replace(str(cases[0].image), "/elsewhere").replace(expected, "0" * 64),
    ):
        file.write_text(damage)
        assert file_hash(cases[0].image) == expected


def test_a_cache_that_cannot_be_written_says_what_to_do(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("WARDROUND_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ValueError, match=r"file/cache: expected a cache folder .* WARDROUND_CACHE"):
        preparation().prepare_all(cases)


def test_no_room_leaves_nothing_behind(cases: list[Case], home: Path) -> None:
    """No file may grow beyond 2 KB: the hashes can be written, the slices cannot."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))
    try:
        with pytest.raises(
            ValueError, match=r"File too large.* WARDROUND_CACHE to a folder that is yours and has room"
        ):
            preparation().prepare_all(cases)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (entries(home), unfinished(home)) == ([], [])
    assert preparation().prepare_all(cases) == CASES


def test_a_missing_file_is_named(cases: list[Case]) -> None:
    cases[1].label.unlink()
    with pytest.raises(ValueError, match=r"1_label\.npy: expected a readable file"):
        preparation().prepare_all(cases)


def test_the_cache_is_where_the_environment_says(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == home
    monkeypatch.delenv("WARDROUND_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "wardround"


# Memory

READER = """
from dataclasses import dataclass
from wardround.datasets.nifti import read_case

@dataclass(frozen=True, kw_only=True)
class Nifti:
    def volume(self, case):
        return read_case(case, slice_axis=0, num_classes=2)
"""

MEASURE = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from reader import Nifti
from wardround.datasets.cache import Preparation
from wardround.datasets.contract import Case
from wardround.datasets.windows import Windows

torch.set_num_threads(1)

def peak_kib():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

def case(name):
    return Case(name=name, patient=name, image=Path(name + "_i.nii.gz"), label=Path(name + "_l.nii.gz"))

how = Preparation(dataset=Nifti(), num_classes=2, image_size=int(sys.argv[2]), windows=Windows())
how.load(case("small"))  # imports and first calls
before = peak_kib()
how.load(case("large"))
print((peak_kib() - before) * 1024)
"""
"""VmHWM and not ru_maxrss: that one keeps, over fork and exec, the peak of the process that started this one."""


def write_nifti(path: Path, array: np.ndarray) -> None:
    nib.Nifti1Image(array, np.diag([0.5, 0.8, 0.8, 1])).to_filename(path)


def peak_bytes(folder: Path, shape: tuple[int, int, int], size: int) -> int:
    """Peak of memory while a volume of this shape is prepared, beyond what a tiny volume takes."""
    ramp = np.add.outer(np.arange(shape[1]), np.arange(shape[2])).astype(np.int16)
    for name, slices in (("small", 2), ("large", shape[0])):
        image = ramp + np.arange(slices, dtype=np.int16)[:, None, None]
        write_nifti(folder / f"{name}_i.nii.gz", image)
        write_nifti(folder / f"{name}_l.nii.gz", (image % 3).astype(np.uint8))
    (folder / "reader.py").write_text(READER)
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), str(size)], cwd=folder, capture_output=True, text=True, check=True
    )
    return int(result.stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize(
    ("shape", "size"),
    [((200, 160, 160), 64), pytest.param((600, 512, 512), 224, marks=pytest.mark.slow)],
    ids=["small", "full"],
)
def test_memory_is_bounded_by_a_volume(tmp_path: Path, shape: tuple[int, int, int], size: int) -> None:
    """Image and mask are 1.25 float32 volumes, their percentiles need another one, the prepared slices none."""
    volume_bytes = 4 * shape[0] * shape[1] * shape[2]
    assert peak_bytes(tmp_path, shape, size) <= 2.5 * volume_bytes
