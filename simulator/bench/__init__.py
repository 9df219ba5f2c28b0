"""``wardround bench``: our engine beside others, on the same work.

An engine is a function ``prepare(workload, runtime, device)`` that returns something with ``round()`` and ``idle()``
(:class:`~wardround.simulator.bench.workload.Prepared`). To add one: its file and a row in :data:`ENGINES`.
"""

from . import bare, flower, naive, ours
from .workload import Engine

ENGINES: dict[str, Engine] = {
    "ours": ours.prepare,
    "naive": naive.prepare,
    "flower": flower.prepare,
    "bare": bare.prepare,
}
"""Every engine by name, in the order of the table."""
