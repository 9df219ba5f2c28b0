"""The same work as a simulation of Flower: a ServerApp with FedAvg, and a ClientApp that trains one hospital.

::

    this process  --"round 3"-->  ServerApp (flwr, a process of its own)  --messages-->  workers (Ray, one per thread)
                  <--loss, aggregation time, peak memory--                               each with a model of its own

A worker builds the model once and keeps it; every task gets the trained tensors, runs the bare loop over the batches of
its hospital and sends them back. Flower's simulation runs to its end once it is begun, so it lives in a process that
waits for its next round on standard input.

Needs the extra ``flower``; flwr and Ray are imported nowhere else.

Legend: K hospitals.

Source: Beutel et al., "Flower: A Friendly Federated Learning Research Framework", arXiv 2007.14390; flwr 1.41.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Any

import torch

from ..runtime import Runtime
from . import bare
from .workload import Workload

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp

PATIENCE_S = 60
"""Seconds that the simulation has to end once it is told to."""

QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
"""Nothing is reported to anybody from a measurement."""


class Flower:
    """A process with a simulation, which waits for its first line."""

    def __init__(self) -> None:
        self.folder = TemporaryDirectory(prefix="wardround-flower-")
        self.log = (Path(self.folder.name) / "log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"from {__name__} import serve; serve()"],
            cwd=self.folder.name,  # Ray puts the working directory on the path of its workers
            env={**os.environ, **QUIET},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        self.number, self.peak_mb, self.seconds = 0, 0.0, 0.0

    def begin(self, workload: Workload, threads: int) -> None:
        """Says what the work is, and waits until the server has a model.

        Args:
            workload: Resolved.
            threads: Workers, each of one thread.
        """
        self._ask({"workload": asdict(workload), "threads": threads})

    def round(self) -> float:
        """Has every hospital trained by some worker, and averages; the mean training loss."""
        self.number += 1
        return float(self._ask({"number": self.number})["loss"])

    def idle(self) -> None:
        """The same messages without a step; what comes back is dropped."""
        self._ask({"number": 0})

    def aggregation_s(self) -> float | None:
        """Seconds that the strategy took to average in the last round, idle or not."""
        return self.seconds

    def facts(self) -> Mapping[str, str | float]:
        """The rule that averages, and the memory of all processes of the simulation after the largest round."""
        return {"aggregator": "fedavg", **({"peak_host_mb": self.peak_mb} if self.peak_mb else {})}

    def close(self) -> None:
        """Ends the simulation; by force where it does not end by itself."""
        try:
            self.process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
        self.log.close()
        self.folder.cleanup()

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Sends a line and waits for the answer. Raises ValueError with the end of the log where there is none."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: there will be no answer either
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise ValueError(f"the simulation of Flower ended unexpectedly; its last words: {self.log.read()[-500:]}")
        answer: dict[str, Any] = json.loads(line)
        self.seconds = answer.get("aggregation_s", 0.0)
        self.peak_mb = max(self.peak_mb, family_mb(self.process.pid))
        return answer


def prepare(workload: Workload, runtime: Runtime, device: torch.device) -> Flower:
    """The engine ``flower``, on the CPU.

    Hospitals are averaged by Flower's FedAvg whatever the workload's aggregator; the first round does not depend on it.

    Raises:
        ImportError: flwr or Ray is missing.
        ValueError: the device is none of those it works on, or the simulation ended.
    """
    missing = [name for name in ("flwr", "ray") if find_spec(name) is None]
    if missing:
        raise ImportError(f"{' and '.join(missing)} not installed: pip install 'wardround[flower]'")
    if device.type != "cpu":
        raise ValueError(f"device: expected 'cpu' with the engine flower, got {str(device)!r}")
    flower = Flower()
    try:
        flower.begin(workload, runtime.threads or torch.get_num_threads())
    except ValueError:
        flower.close()
        raise
    return flower


# ---- memory of a family of processes ---------------------------------------------------------------------------------


def family_mb(pid: int) -> float:
    """Memory of a process and all its descendants, in MB; pages that several share are counted once.

    The proportional set sizes of Linux, summed; 0 on other systems.
    """
    return sum(map(_proportional_mb, _family(pid)))


def _family(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in _text(task).split():
            yield from _family(int(child))


def _proportional_mb(pid: int) -> float:
    lines = _text(Path(f"/proc/{pid}/smaps_rollup")).splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1000


def _text(path: Path) -> str:
    """Of a file of ``/proc``; empty where its process has just ended."""
    try:
        return path.read_text()
    except OSError:
        return ""


# ---- the process of the simulation -----------------------------------------------------------------------------------


def serve() -> None:
    """The simulation: the first line of standard input says what the work is, every other one asks for a round."""
    from flwr.simulation import run_simulation

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what flwr and Ray print goes to the log
    first = json.loads(sys.stdin.readline())
    run_simulation(
        server_app=_server_app(json.dumps(first["workload"]), answers),
        client_app=_client_app(),
        num_supernodes=first["workload"]["hospitals"],
        backend_config={
            "init_args": {"num_cpus": first["threads"]},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )


def _server_app(workload: str, answers: IO[str]) -> ServerApp:
    from flwr.app import ArrayRecord, ConfigRecord
    from flwr.serverapp import ServerApp

    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy, arrays = _strategy(json.loads(workload)["hospitals"]), ArrayRecord(_tensors(_loop(workload)))
        print(json.dumps({"ready": True}), file=answers)
        for line in sys.stdin:
            number = json.loads(line)["number"]
            config = ConfigRecord({"number": number, "workload": workload})
            result = strategy.start(grid, arrays, num_rounds=1, train_config=config)
            arrays = result.arrays if number else arrays
            answer = {"loss": result.train_metrics_clientapp[1]["loss"], "aggregation_s": strategy.seconds}
            print(json.dumps(answer), file=answers)

    return app


def _strategy(hospitals: int) -> Any:
    """Flower's FedAvg over all hospitals, which takes its own time and accepts no failure."""
    from flwr.serverapp.strategy import FedAvg

    class Timed(FedAvg):
        seconds = 0.0

        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            replies = list(replies)
            problems = [reply.error.reason for reply in replies if reply.has_error()]
            if problems or len(replies) < hospitals:
                raise RuntimeError(f"expected {hospitals} replies, got {len(replies)}, with errors: {problems[:1]}")
            begun = time.perf_counter()
            averaged = super().aggregate_train(server_round, replies)
            self.seconds = time.perf_counter() - begun
            return averaged

    return Timed(fraction_evaluate=0.0, min_train_nodes=hospitals, min_available_nodes=hospitals)


# ---- the processes of the workers ------------------------------------------------------------------------------------


def _client_app() -> ClientApp:
    from flwr.clientapp import ClientApp

    app = ClientApp()
    app.train()(_task)
    return app


def _task(message: Message, context: Context) -> Message:
    """Trains one hospital from the tensors of the message; number 0: sends them back as they came."""
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

    config, arrays = message.content.config_records["config"], message.content.array_records["arrays"]
    loop, number = _loop(str(config["workload"])), int(str(config["number"]))
    hospital, loss = list(loop.made.windows)[int(context.node_config["partition-id"])], 0.0
    received = arrays.to_torch_state_dict()
    loop.start, loop.number = [received[name] for name in _tensors(loop)], number
    if number:
        loss = float(torch.stack(loop.train(hospital)).double().mean())
        arrays = ArrayRecord(_tensors(loop))
    metrics = MetricRecord({"loss": loss, "num-examples": len(loop.made.windows[hospital])})
    return Message(content=RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@cache
def _loop(workload: str) -> bare.Bare:
    """The bare loop with its model, built once per process, on one thread."""
    torch.set_num_threads(1)
    return bare.prepare(Workload.read(json.loads(workload)), Runtime(threads=1), torch.device("cpu"))


def _tensors(loop: bare.Bare) -> dict[str, torch.Tensor]:
    """What travels: the trained tensors, in order."""
    return {str(number): value.detach() for number, value in enumerate(loop.trained)}
