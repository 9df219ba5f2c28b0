"""What a check of images finds, and what it says about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from made_images import MadeImages, make_files

from wardround.datasets.contract import Case, Cases, DataError, Federation, Pool
from wardround.datasets.image_check import ImageFinding, check_images, leaks, repeated, sides_of

NAMES = ("north-a-0", "north-b-0", "south-a-0", "south-b-0", "south-c-0")


def find(folder: Path, dataset: MadeImages | None = None) -> ImageFinding:
    return check_images(dataset or MadeImages(), folder)


def a_case(name: str, target: int = 0) -> Case:
    return Case(name=name, patient=name, image=Path(name), label=Path(name), target=target)


def test_a_sound_folder_has_sizes_and_no_problems(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    make_files(tmp_path, NAMES)
    make_files(tmp_path, NAMES[:1], (7, 9))
    finding = check_images(MadeImages(), tmp_path, lambda *count: seen.append(count))
    assert (finding.problems, finding.remarks, finding.same) == ((), (), ())
    assert finding.sizes == {"north-a-0": (7, 9)} | dict.fromkeys(NAMES[1:], (10, 12))
    assert seen == [(number, 5) for number in range(6)]


def test_every_planted_fault_is_found_and_reading_goes_on(tmp_path: Path) -> None:
    make_files(tmp_path, NAMES)
    (tmp_path / "north-b-0.npy").write_bytes(b"no array")
    np.save(tmp_path / "south-a-0.npy", np.zeros((4, 5), np.uint8))  # no colours
    np.save(tmp_path / "south-b-0.npy", np.full((4, 5, 3), 9, np.uint8))  # one colour

    class Odd(MadeImages):
        def pool(self, root: Path) -> Pool:
            pool = super().pool(root)
            first, *others = pool.cases
            last = replace(others.pop(), target=4, patient=first.patient, side="test")
            return replace(pool, cases=(replace(first, side="train"), *others, last), problems=(f"{root}/x: missing",))

    finding = find(tmp_path, Odd())
    assert [line.partition(": ")[::2] for line in finding.problems] == [
        ("north-b-0", finding.problems[0].partition(": ")[2]),
        ("south-a-0", "expected an image (H, W, 3) of uint8, got (4, 5) of uint8"),
        ("south-c-0", "expected a class from 0 (a) to 2 (c), got 4"),
        ("south-c-0", "expected patient north-a-0 at one site, got south here and north for north-a-0"),
        ("south-c-0", "expected patient north-a-0 on one side of the split, got test here and train for north-a-0"),
        ("x", "missing"),
    ]
    assert finding.remarks == ("south-b-0: every pixel is (9, 9, 9)",)
    assert sorted(finding.sizes) == ["north-a-0", "south-b-0", "south-c-0"]


def test_a_class_without_an_image_is_a_remark_where_nothing_is_wrong(tmp_path: Path) -> None:
    """Else its images may be what is wrong: a file that is missing, a class that was written otherwise."""
    make_files(tmp_path, NAMES[:4])
    assert find(tmp_path).remarks == ("class c: no image has it",)

    class Wrong(MadeImages):
        def pool(self, root: Path) -> Pool:
            return replace(super().pool(root), problems=(f"{root}/south-c-0.npy: missing",))

    assert find(tmp_path, Wrong()).remarks == ()


def test_of_many_images_of_one_colour_three_are_named(tmp_path: Path) -> None:
    make_files(tmp_path, NAMES)
    for name in NAMES:
        np.save(tmp_path / f"{name}.npy", np.full((4, 5, 3), 9, np.uint8))
    assert find(tmp_path).remarks == (
        "images of one colour: 2 more, 5 in all",
        *(f"{name}: every pixel is (9, 9, 9)" for name in NAMES[:3]),
    )


def test_every_line_of_a_data_error_is_kept(tmp_path: Path) -> None:
    class Strict(MadeImages):
        def images(self, cases):
            for case in cases:
                if case.name == "north-b-0":
                    raise DataError(case.image, [f"{case.image}: too dark", "too small"])
                yield from super().images([case])

    finding = find(make_files(tmp_path, NAMES), Strict())
    assert finding.problems == ("north-b-0.npy: too dark", "north-b-0: too small")
    assert len(finding.sizes) == 4


def test_one_broken_file_of_many_images_is_said_twice_at_most(tmp_path: Path) -> None:
    asked: list[int] = []

    class OneFile(MadeImages):
        def pool(self, root: Path) -> Pool:
            cases = [a_case(f"x-{row:03d}") for row in range(100)]
            return Pool(
                cases=tuple(replace(case, image=root / "all", row=row) for row, case in enumerate(cases)), classes="a"
            )

        def images(self, cases):
            asked.append(len(cases))
            raise ValueError("all: broken")

    finding = find(tmp_path, OneFile())
    assert finding.problems == ("x-000: all: broken", "x-001: all: broken")
    assert asked == [100, 99]


def test_equal_pixels_on_two_sides_leak(tmp_path: Path) -> None:
    make_files(tmp_path, NAMES)
    for copy in ("south-a-1", "south-b-1"):
        (tmp_path / f"{copy}.npy").write_bytes((tmp_path / "north-a-0.npy").read_bytes())
    finding = find(tmp_path)
    assert [[case.name for case in cases] for cases in finding.same] == [["north-a-0", "south-a-1", "south-b-1"]]
    assert finding.problems == ()
    sides = {"south-a-1": "train", "north-a-0": "test", "south-b-1": "validation"}
    assert leaks(finding.same, sides) == [
        "south-b-1: expected a validation image of its own, got the pixels of south-a-1, which is for train",
        "north-a-0: expected a test image of its own, got the pixels of south-a-1, which is for train",
    ]
    assert leaks(finding.same, dict.fromkeys(sides, "train")) == []
    assert leaks(finding.same, {"south-a-1": "train"}) == []
    assert repeated(finding.same, ("a", "b", "c")) == [
        "images with the pixels of another one: 2, for example south-a-1 those of north-a-0",
        "pictures that come under several classes: 1, for example north-a-0 (a) and south-a-1 (a) and south-b-1 (b)",
    ]
    assert repeated((), ("a",)) == []


def test_unseen_and_common_cases_are_for_testing() -> None:
    a, b, c, d, e = map(a_case, "abcde")
    federation = Federation(
        hospitals={"x": Cases(train=(a,), validation=(b,), test=(c,))}, classes=("k",), common=(d,), unseen={"y": (e,)}
    )
    assert sides_of(federation) == {"a": "train", "b": "validation", "c": "test", "d": "test", "e": "test"}
