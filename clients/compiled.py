"""``torch.compile`` as the engine uses it: one graph per shape, or an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
import torch._dynamo

P = ParamSpec("P")
R = TypeVar("R")

Backend = str | Callable[..., Any]

LIMIT = 64
"""Graphs of one function: a sweep in one process has a few for every model, method and batch size. The 8 of torch are
meant to catch shapes that go on changing, of which :func:`compiled` has none."""


def compiled(function: Callable[P, R], backend: Backend = "inductor") -> Callable[P, R]:
    """A function that is compiled when it is first called, and again for every new shape.

    Shapes are constants of what is compiled. A part that cannot be compiled is an error; nothing runs as it is written
    without anybody noticing. Models of one structure share what was compiled.

    Args:
        function: Of tensors and constants.
        backend: As in :func:`torch.compile`.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, LIMIT)
    return torch.compile(function, backend=backend, fullgraph=True, dynamic=False)
