"""YAML as version 1.2 reads it: the core schema for plain scalars, one document, no key twice.

PyYAML follows YAML 1.1, where ``8e-4`` is a text, ``NO`` is false, ``010`` is 8, ``1:30`` is 90, ``2026-01-01`` a date.
Here they are 0.0008, "NO", 10, "1:30" and "2026-01-01". PyYAML scans and parses; scalars become values here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any

import yaml

_PREFIX = "tag:yaml.org,2002:"
_SCALARS: dict[str, tuple[str, list[str | None]]] = {
    # tag: (pattern of the core schema, first characters of a match; "" stands for the empty scalar)
    "null": (r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}


class YamlError(ValueError):
    """A text that is not the YAML we read: says file, line, column (from 1) and what is wrong."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  PyYAML's own class-level table, replaced as a whole


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Double quotes around Unicode line breaks: PyYAML escapes them only there."""
    return dumper.represent_scalar(
        _PREFIX + "str", text, style='"' if re.search("[\x85\u2028\u2029\ufeff]", text) else None
    )


# The dumper keeps the patterns of 1.1 beside these: it quotes what a reader of either version would take for no text.
for _tag, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_PREFIX + _tag, re.compile(rf"^(?:{_pattern})$"), _first)
_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(tuple, lambda dumper, value: dumper.represent_list(value))
_Dumper.add_multi_representer(PurePath, lambda dumper, value: dumper.represent_str(str(value)))


def _integer(text: str) -> int:
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text if base == 10 else text[2:], base)


def _floating(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_VALUES: dict[str, Callable[[str], object]] = {
    "null": lambda _: None,
    "bool": lambda text: text.lower() == "true",
    "int": _integer,
    "float": _floating,
    "str": lambda text: text,
}


def loads(text: str, source: str = "YAML") -> Any:
    """Reads one YAML 1.2 document.

    Args:
        text: The document; an empty one is None.
        source: What to call it in errors, usually a file name.

    Returns:
        Nested dicts, lists and scalars (None, bool, int, float, str).

    Raises:
        YamlError: Bad syntax, a second document, a key given twice, a tag that is not of the core schema.

    Example:
        >>> loads("{lr: 8e-4, site: NO, ranks: [010, 0o10]}")
        {'lr': 0.0008, 'site': 'NO', 'ranks': [10, 8]}
    """
    try:
        node = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        what = ", ".join(filter(None, (error.context, error.problem)))
        raise _error(source, error.problem_mark or error.context_mark, what) from error
    except yaml.reader.ReaderError as error:
        before = text[: error.position].split("\n")
        where = f"line {len(before)}, column {len(before[-1]) + 1}"
        raise YamlError(f"{source}: {where}: character {text[error.position]!r} is not allowed in YAML") from error
    return None if node is None else _value(node, source, ())


def load(path: Path) -> Any:
    """Reads the YAML 1.2 document in a file; see :func:`loads`. Raises YamlError, or OSError when it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise YamlError(
            f"{path}: expected UTF-8 text, got byte {error.object[error.start]:#04x} at {error.start}"
        ) from error
    return loads(text, str(path))


def dump(value: object) -> str:
    """Writes plain values (dicts, lists, tuples, paths and scalars) so that :func:`loads` gives them back.

    Tuples come back as lists and paths as texts. Keys stay in the order given; there are no anchors.

    Raises:
        YamlError: A value of another type.
    """
    try:
        return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    except yaml.representer.RepresenterError as error:
        raise YamlError(f"expected plain values, got {error.args[-1]!r}") from error


def one_line(value: object) -> str:
    """The same on one line, however long.

    Example:
        >>> one_line({"name": "fedprox", "mu": 0.1}), one_line("fedavg")
        ('{name: fedprox, mu: 0.1}', 'fedavg')
    """
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 30, default_flow_style=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _value(node: yaml.Node, source: str, above: tuple[yaml.Node, ...]) -> Any:
    if node in above:
        raise _error(source, node.start_mark, "an alias inside the value it stands for")
    inside = (*above, node)
    if isinstance(node, yaml.MappingNode) and node.tag == _PREFIX + "map":
        return _mapping(node, source, inside)
    if isinstance(node, yaml.SequenceNode) and node.tag == _PREFIX + "seq":
        return [_value(item, source, inside) for item in node.value]
    return _scalar(node, source)


def _mapping(node: yaml.MappingNode, source: str, inside: tuple[yaml.Node, ...]) -> Mapping[Any, Any]:
    result: dict[Any, Any] = {}
    lines: dict[Any, int] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise _error(source, key_node.start_mark, "expected a single word as key, got a list or mapping")
        key = _scalar(key_node, source)
        if key in result:
            first = f"first in line {lines[key]}"
            raise _error(source, key_node.start_mark, f"key {key!r} is given twice ({first}): remove one of them")
        lines[key] = key_node.start_mark.line + 1
        result[key] = _value(value_node, source, inside)
    return result


def _scalar(node: yaml.Node, source: str) -> Any:
    tag = node.tag.removeprefix(_PREFIX)
    if not isinstance(node, yaml.ScalarNode) or tag not in _VALUES:
        raise _error(source, node.start_mark, f"tag {node.tag!r} is not read here; write a plain value")
    pattern = _SCALARS[tag][0] if tag in _SCALARS else ".*"
    if not re.fullmatch(pattern, node.value, re.DOTALL):
        raise _error(source, node.start_mark, f"{node.value!r} is not of type {tag}")
    try:
        return _VALUES[tag](node.value)
    except ValueError as error:  # Python reads no whole number of more than 4300 digits
        raise _error(source, node.start_mark, f"a number of {len(node.value)} digits is too long") from error


def _error(source: str, mark: yaml.Mark | None, what: str) -> YamlError:
    where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
    return YamlError(f"{source}: {where}{what}")
