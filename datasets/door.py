"""What the contract suites ask of every plug-in first: that it is an object of a frozen keyword-only dataclass."""

from __future__ import annotations

import dataclasses


def check_frozen(plugin: object) -> None:
    """Checks that a plug-in is a value: nobody can change it, and its settings have names.

    Raises:
        AssertionError: says what it is instead.
    """
    if isinstance(plugin, type):
        raise AssertionError(f"expected an object, such as {plugin.__name__}(), got the class")
    assert dataclasses.is_dataclass(plugin), f"expected a dataclass, got {type(plugin).__name__}"
    assert getattr(type(plugin), "__dataclass_params__").frozen, "expected a frozen dataclass"  # noqa: B009  # untyped
    positional = [field.name for field in dataclasses.fields(plugin) if field.init and not field.kw_only]
    assert not positional, f"expected keyword-only fields, these are not: {positional}"
