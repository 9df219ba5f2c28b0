"""YAML 1.2: what plain scalars mean, what is an error and where, and that dump reads back identically."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import yaml

from wardround.simulator.yaml12 import YamlError, dump, load, loads


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8e-4", 0.0008),
        ("1e3", 1000.0),
        ("+12e03", 12000.0),
        ("1.", 1.0),
        ("-.5", -0.5),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("-7", -7),
        ("1_000", "1_000"),
        ("-0o7", "-0o7"),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("NO", "NO"),
        ("yes", "yes"),
        ("on", "on"),
        ("TRUE", True),
        ("False", False),
        ("tRUE", "tRUE"),
        ("~", None),
        ("null", None),
        ("", None),
        ("'8e-4'", "8e-4"),
        ("!!str 010", "010"),
        ("!!float 3", 3.0),
        ("1e", "1e"),
        (".", "."),
        ("=", "="),
    ],
)
def test_plain_scalars_follow_the_core_schema(text: str, value: object) -> None:
    read = loads(f"key: {text}")["key"]
    assert read == value
    assert type(read) is type(value)


def test_nan_is_a_number() -> None:
    assert math.isnan(loads(".nan"))


def test_merge_keys_of_yaml_1_1_are_ordinary_keys() -> None:
    assert loads("{base: &b {x: 1}, <<: *b}") == {"base": {"x": 1}, "<<": {"x": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", r"f.yaml: line 3, column 1: key 'a' is given twice \(first in line 1\)"),
        ("x:\n  lr: 1\n  lr: 2", r"line 3, column 3: key 'lr' is given twice \(first in line 2\)"),
        ("a: [1", r"line 1, column 6: while parsing a flow sequence, expected ',' or '\]'"),
        ("--- 1\n--- 2", "line 2, column 1: expected a single document"),
        ("a:\n\t- b", "line 2, column 1: .*cannot start any token"),
        ("a: 1\nb: x\x07", r"line 2, column 5: character '\\x07' is not allowed"),
        ("a: !!python/object:os.system x", "line 1, column 4: tag .* is not read here"),
        ("a: !!timestamp 2026-01-01", "line 1, column 4: tag .* is not read here"),
        ("!!set {a}", "line 1, column 1: tag .* is not read here"),
        ("a: !!int x", "line 1, column 4: 'x' is not of type int"),
        ("a: !!float 0x1", "line 1, column 4: '0x1' is not of type float"),
        ("&a [*a]", "line 1, column 1: an alias inside the value it stands for"),
        ("a: *b", "line 1, column 4: found undefined alias"),
        ("? [a]\n: 1", "line 1, column 3: expected a single word as key"),
        ("a: " + 5000 * "9", "line 1, column 4: a number of 5000 digits is too long"),
    ],
)
def test_errors_name_file_line_and_column(text: str, message: str) -> None:
    with pytest.raises(YamlError, match=message):
        loads(text, "f.yaml")


def test_a_file_that_is_not_utf8_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("a: é".encode("latin-1"))
    with pytest.raises(YamlError, match=r"latin\.yaml: expected UTF-8 text, got byte 0xe9 at 3"):
        load(tmp_path / "latin.yaml")


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "bom.yaml").write_text("a: 1\n", encoding="utf-8-sig")
    assert load(tmp_path / "bom.yaml") == {"a": 1}


AWKWARD = [
    *"NO 010 0o10 8e-4 1:30 2026-01-01 ~ null true .inf .nan << = yes 1e3 +1 0x1f 1_0 - --- ... 0b11 #a".split(" "),  # noqa: SIM905  short
    *"%x !t é 😀 *a &a | > {} [ , ` ' \" \x00 \n \t \u2028 \ufeff a\x85b a\nb a\n".split(" "),  # noqa: SIM905  short
    *("", "- a", "? a", "a: b", " a", "a ", "a #b"),
]
"""Texts that a careless writer would leave without quotes."""


def _random_value(rng: random.Random, depth: int = 0) -> object:
    choices = [
        lambda: rng.choice([None, True, False]),
        lambda: rng.randrange(-(9**20), 9**20),
        lambda: rng.choice([rng.uniform(-1, 1) * 10.0 ** rng.randrange(-300, 300), math.inf, -0.0, 1e22, 8e-4]),
        lambda: rng.choice(AWKWARD) + rng.choice(AWKWARD),
        lambda: "".join(rng.choices("0123456789eE+-._oxb:", k=rng.randrange(1, 7))),
        lambda: [_random_value(rng, depth + 1) for _ in range(rng.randrange(4))],
        lambda: {rng.choice(AWKWARD): _random_value(rng, depth + 1) for _ in range(rng.randrange(4))},
    ]
    return rng.choice(choices if depth < 3 else choices[:5])()


def test_dump_reads_back_identically() -> None:
    """5,000 nested values of awkward scalars; repr also tells 1 from 1.0 and 0.0 from -0.0."""
    rng = random.Random(0)
    for _ in range(5000):
        value = _random_value(rng)
        assert repr(loads(dump(value))) == repr(value)


@pytest.mark.parametrize("word", AWKWARD)
def test_dump_is_read_alike_by_yaml_1_1(word: str) -> None:
    """Other tools read our files with PyYAML's defaults: texts must stay texts there, too."""
    assert yaml.safe_load(dump({word: word, "lr": 8e-4, "tiny": 1e-08})) == {word: word, "lr": 8e-4, "tiny": 1e-08}


def test_dump_writes_tuples_and_paths_as_plain_values() -> None:
    assert loads(dump({"betas": (0.9, 0.999), "path": Path("a/b")})) == {"betas": [0.9, 0.999], "path": "a/b"}


def test_dump_keeps_the_order_and_repeats_shared_values() -> None:
    shared = [1]
    assert dump({"b": shared, "a": shared}) == "b:\n- 1\na:\n- 1\n"


def test_dump_refuses_what_is_not_plain() -> None:
    with pytest.raises(YamlError, match="expected plain values, got <object"):
        dump({"a": object()})
