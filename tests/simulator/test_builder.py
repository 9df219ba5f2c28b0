"""The strict builder: what a mapping may hold, what is wrong with it and where, plug-ins, resolve, merge."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import pytest

from wardround.simulator.builder import ConfigError, build, expand, merge, resolve


class Shape(Protocol):
    sides: int

    def area(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Square:
    edge: float = 1.0
    sides: int = 4

    def __post_init__(self) -> None:
        if not self.edge > 0:
            raise ValueError(f"edge: expected a number above 0, got {self.edge!r}")

    def area(self) -> float:
        return self.edge**2


@dataclass(frozen=True, kw_only=True)
class Circle:
    radius: float
    sides: int = 1

    def area(self) -> float:
        return 3.0 * self.radius**2


SHAPES = {"square": Square, "circle": Circle, "box": Square}


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    steps: int = 1
    kind: Literal["soft", "hard"] = "soft"

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.rate <= 1:
            problems.append(f"rate: expected a number in [0, 1], got {self.rate!r}; sorry")
        if self.steps < 1:
            problems.append(f"steps: expected at least 1, got {self.steps!r}")
        if problems:
            raise ValueError("; ".join(problems))


@dataclass(frozen=True, kw_only=True)
class Outer:
    count: int
    label: str = ""
    flag: bool = True
    folder: Path | None = None
    limit: float | None = None
    betas: tuple[float, float] = (0.9, 0.99)
    sizes: tuple[int, ...] = ()
    ranks: Mapping[str, int] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)
    parts: Mapping[str, Inner] = field(default_factory=dict)
    shape: Annotated[Shape, SHAPES] = field(default_factory=Square)
    other: Annotated[Shape | None, SHAPES] = None
    either: Square | Circle = field(default_factory=lambda: Circle(radius=1.0))
    many: int | tuple[int, ...] = 1
    words: Literal["none", "balanced"] | tuple[float, ...] | None = "none"
    level: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count: expected at least 1, got {self.count!r}")


def problems_of(value: object, path: str = "") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        build(Outer, value, path)
    return [str(problem) for problem in caught.value.problems]


def test_defaults_fill_what_is_not_given() -> None:
    assert build(Outer, {"count": 2}) == Outer(count=2)


def test_every_kind_of_field_is_built() -> None:
    built = build(
        Outer,
        {
            "count": 2,
            "label": "a",
            "flag": False,
            "folder": "x/y",
            "limit": 3,
            "betas": [0, 1],
            "sizes": [1, 2, 3],
            "ranks": {"a": 4},
            "inner": {"rate": 1, "kind": "hard"},
            "parts": {"p": {"steps": 2}},
            "shape": {"name": "circle", "radius": 2},
            "other": "square",
            "either": {"name": "circle", "radius": 3},
            "many": [1, 2],
            "level": 2,
        },
    )
    assert built == Outer(
        count=2,
        label="a",
        flag=False,
        folder=Path("x/y"),
        limit=3.0,
        betas=(0.0, 1.0),
        sizes=(1, 2, 3),
        ranks={"a": 4},
        inner=Inner(rate=1.0, kind="hard"),
        parts={"p": Inner(steps=2)},
        shape=Circle(radius=2.0),
        other=Square(),
        either=Circle(radius=3.0),
        many=(1, 2),
        level=2,
    )
    assert type(built.limit) is float


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"count": True}, "count: expected a whole number, got True"),
        ({"count": 1.0}, "count: expected a whole number, got 1.0"),
        ({"count": "3"}, "count: expected a whole number, got '3': leave out the quotes"),
        ({"count": None}, "count: expected a whole number, got nothing"),
        ({"flag": 1}, "flag: expected true or false, got 1"),
        ({"flag": "true"}, "flag: expected true or false, got 'true': leave out the quotes"),
        ({"label": 10}, "label: expected a text, got 10: put it in quotes"),
        ({"label": False}, "label: expected a text, got False: put it in quotes"),
        ({"limit": True}, "limit: expected a finite number, got True"),
        ({"limit": float("inf")}, "limit: expected a finite number, got inf"),
        ({"limit": "8e-4"}, "limit: expected a finite number, got '8e-4': leave out the quotes"),
        ({"folder": 3}, "folder: expected a path, got 3"),
        ({"betas": [1]}, "betas: expected a list of 2, got 1: [1]"),
        ({"betas": [1, "x"]}, "betas[1]: expected a finite number, got 'x'"),
        ({"betas": "ab"}, "betas: expected a list, got 'ab'"),
        ({"sizes": [1, 2.5]}, "sizes[1]: expected a whole number, got 2.5"),
        ({"ranks": {"a": "b"}}, "ranks.a: expected a whole number, got 'b'"),
        ({"ranks": {1: 2}}, "ranks.1: expected a text as key, got 1: put it in quotes"),
        ({"ranks": [1]}, "ranks: expected a mapping, got [1]"),
        ({"parts": {"p": {"steps": 0}}}, "parts.p.steps: expected at least 1, got 0"),
        ({"inner": None}, "inner: expected a mapping with keys of rate, steps, kind; got nothing"),
        (
            {"inner": {"kind": "sofd"}},
            "inner.kind: expected one of the known words, got 'sofd', did you mean 'soft'? (known: hard, soft)",
        ),
        ({"inner": {"stepps": 1}}, "inner.stepps: unknown key, did you mean 'steps'? (known: kind, rate, steps)"),
        ({"inner": {"zzz": 1}}, "inner.zzz: unknown key (known: kind, rate, steps)"),
        ({"shape": "circel"}, "shape: unknown name 'circel', did you mean 'circle'? (known: box, circle, square)"),
        ({"shape": {"name": "circle"}}, "shape.radius: missing"),
        ({"shape": {"name": ["x"]}}, "shape.name: expected a text, got ['x'] (known: box, circle, square)"),
        ({"shape": 3}, "shape: expected a name or a mapping, got 3 (known: box, circle, square)"),
        ({"shape": {"name": "square", "edge": -1}}, "shape.edge: expected a number above 0, got -1.0"),
        ({"other": {"edge": 1}}, "other.name: missing (known: box, circle, square)"),
        ({"level": True}, "level: expected one of the known words, got True (known: 1, 2)"),
        ({"many": "x"}, "many: expected a whole number or a list, got 'x'"),
        ({"words": "balancd"}, "words: expected none, balanced or a list, got 'balancd'"),
        ({"many": [1, "x"]}, "many[1]: expected a whole number, got 'x'"),
        ({"either": "triangle"}, "either: unknown name 'triangle' (known: circle, square)"),
    ],
)
def test_a_wrong_value_is_told_with_its_path(change: dict[str, Any], problem: str) -> None:
    assert problems_of({"count": 1, **change}) == [problem]


def test_a_missing_key_is_told() -> None:
    assert problems_of({}) == ["count: missing"]


def test_the_value_itself_must_be_a_mapping() -> None:
    assert problems_of([1], "f.yaml: x")[0].startswith("f.yaml: x: expected a mapping with keys of count, label")


def test_all_problems_come_at_once() -> None:
    """Unknown, ill-typed and out-of-range keys, in the entry, in a nested dataclass and in a plug-in."""
    found = problems_of(
        {
            "count": 0,
            "labl": "x",
            "flag": "no",
            "inner": {"rate": 2, "steps": 0},
            "shape": {"name": "square", "edge": -1, "egde": 2},
        },
        "entry",
    )
    assert found == [
        "entry.labl: unknown key, did you mean 'label'? "
        "(known: betas, count, either, flag, folder, inner, label, level, limit, many, other, parts, ranks, shape, "
        "sizes, words)",
        "entry.flag: expected true or false, got 'no'",
        "entry.inner.rate: expected a number in [0, 1], got 2.0; sorry",
        "entry.inner.steps: expected at least 1, got 0",
        "entry.shape.egde: unknown key, did you mean 'edge'? (known: edge, sides)",
        "entry.shape.edge: expected a number above 0, got -1.0",
        "entry.count: expected at least 1, got 0",
    ]
    with pytest.raises(ConfigError, match=r"^2 problems:\n  inner.rate: .*\n  inner.steps: .*$"):
        build(Outer, {"count": 1, "inner": {"rate": 2, "steps": 0}})


def test_a_check_across_fields_stays_silent_where_a_field_is_missing() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Span:
        low: int
        high: int

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError(f"low: expected at most high, got {self.low!r}")

    with pytest.raises(ConfigError) as caught:
        build(Span, {"low": 3, "high": "x"})
    assert [str(problem) for problem in caught.value.problems] == ["high: expected a whole number, got 'x'"]


def test_a_message_without_field_stands_at_the_whole_value() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Odd:
        number: int = 1

        def __post_init__(self) -> None:
            raise ValueError("nothing fits: really")

    with pytest.raises(ConfigError, match=r"^a.b: nothing fits: really$"):
        build(Odd, {}, "a.b")


def test_a_type_that_files_cannot_hold_is_a_mistake_of_the_program() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Wrong:
        thing: bytes = b""

    with pytest.raises(TypeError, match="thing: <class 'bytes'> is no type that can be read"):
        build(Wrong, {"thing": "x"})


# ---- plug-ins from outside -------------------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module of somebody else."""
    (tmp_path / "somebodys_shapes.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Hexagon:\n"
        "    edge: float = 1.0\n"
        "    sides: int = 6\n"
        "    def area(self):\n"
        "        return 2.6 * self.edge**2\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Line:\n"
        "    edge: float = 1.0\n"
        "class Plain:\n"
        "    pass\n"
    )
    (tmp_path / "somebodys_broken.py").write_text("raise RuntimeError('no licence')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("somebodys_shapes", None)


@pytest.mark.usefixtures("outside")
def test_a_class_from_outside_is_built_and_resolved() -> None:
    built = build(Outer, {"count": 1, "shape": {"class": "somebodys_shapes:Hexagon", "edge": 2}})
    assert built.shape.area() == 2.6 * 4
    assert resolve(built)["shape"] == {"class": "somebodys_shapes:Hexagon", "edge": 2.0, "sides": 6}
    assert build(Outer, resolve(built)) == built


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ({"class": "somebodys_shapes"}, r"shape.class: expected 'package.module:Class', got 'somebodys_shapes'"),
        (
            {"class": "not_there.at_all:X"},
            r"shape.class: cannot import 'not_there.at_all': ModuleNotFoundError: .*PYTHONPATH",
        ),
        ({"class": "somebodys_broken:X"}, r"shape.class: cannot import 'somebodys_broken': RuntimeError: no licence"),
        ({"class": "somebodys_shapes:Hexagn"}, r"shape.class: no class 'Hexagn' .*did you mean 'Hexagon'\?"),
        ({"class": "somebodys_shapes:Plain"}, r"shape.class: expected a dataclass, got <class .*Plain"),
        ({"class": "somebodys_shapes:Line"}, r"shape: Line is no Shape: it has no area, sides"),
        ({"class": "somebodys_shapes:Hexagon", "egde": 1}, r"shape.egde: unknown key, did you mean 'edge'\?"),
        ({"class": "somebodys_shapes:Hexagon", "name": "square"}, r"shape: expected name or class, got both"),
    ],
)
def test_a_class_from_outside_that_is_wrong_is_told(shape: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        build(Outer, {"count": 1, "shape": shape})


# ---- resolve, expand, merge ------------------------------------------------------------------------------------------


def test_resolve_writes_every_default_and_reads_back_equal() -> None:
    outer = Outer(
        count=3,
        folder=Path("a/b"),
        sizes=(1, 2),
        ranks={"b": 1, "a": 2},
        parts={"p": Inner(steps=9)},
        shape=Circle(radius=1.5),
        other=Square(),
        either=Circle(radius=1.0),
    )
    plain = resolve(outer)
    assert plain["inner"] == {"rate": 0.5, "steps": 1, "kind": "soft"}
    assert plain["shape"] == {"name": "circle", "radius": 1.5, "sides": 1}
    assert plain["other"] == {"name": "square", "edge": 1.0, "sides": 4}
    assert plain["either"]["name"] == "circle"
    assert (plain["folder"], plain["betas"], plain["sizes"]) == ("a/b", [0.9, 0.99], [1, 2])
    assert build(Outer, plain) == outer


def test_resolve_gives_a_class_that_stands_twice_its_first_name() -> None:
    assert resolve(build(Outer, {"count": 1, "shape": "box"}))["shape"]["name"] == "square"


def test_resolve_can_leave_out_types() -> None:
    assert "folder" in resolve(Outer(count=1, folder=Path("a")))
    assert "folder" not in resolve(Outer(count=1, folder=Path("a")), without=Path)


def test_a_plugin_without_name_is_of_the_default_class() -> None:
    assert build(Outer, {"count": 1, "shape": {"edge": 2}}).shape == Square(edge=2.0)
    assert build(Outer, {"count": 1, "either": {"radius": 2}}).either == Circle(radius=2.0)


def test_expand_writes_short_plugins_as_mappings() -> None:
    value = {"shape": "square", "other": None, "either": {"name": "circle"}, "inner": {"rate": 1}, "label": "square"}
    assert expand(Outer, value) == {**value, "shape": {"name": "square"}}


@pytest.mark.parametrize(
    ("base", "change", "merged"),
    [
        ({"a": {"x": 1, "y": 2}}, {"a": {"x": 3}}, {"a": {"x": 3, "y": 2}}),
        ({"a": {"x": 1}}, {"a": None}, {"a": None}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"p": {"name": "u", "x": 1}}, {"p": {"name": "u", "y": 2}}, {"p": {"name": "u", "x": 1, "y": 2}}),
        ({"p": {"name": "u", "x": 1}}, {"p": {"y": 2}}, {"p": {"name": "u", "x": 1, "y": 2}}),
        ({"p": {"name": "u", "x": 1}}, {"p": {"name": "v"}}, {"p": {"name": "v"}}),
        ({"p": {"name": "u", "x": 1}}, {"p": {"class": "m:C"}}, {"p": {"class": "m:C"}}),
        ({"p": {"class": "m:C", "x": 1}}, {"p": {"name": "u"}}, {"p": {"name": "u"}}),
        ({"p": {"x": 1}}, {"p": {"name": "u"}}, {"p": {"name": "u"}}),
    ],
)
def test_merge(base: dict[str, Any], change: dict[str, Any], merged: dict[str, Any]) -> None:
    assert merge(base, change) == merged
