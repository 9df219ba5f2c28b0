"""Out of memory: the real texts of torch, what is said to be lowered, and that nothing stays."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

from wardround.simulator.config import Experiment, load_experiment
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.out_of_memory import OutOfMemoryError, advice, memory_errors, no_memory

CPU = torch.device("cpu")
LOWEST = ["training.batch_size=1", "evaluation.batch_size=1", "model.image_size=8", "runtime.features_mb=0"]
LOWEST += ["windows.depth=1", "windows.normalise=volume"]


def tiny(*settings: str) -> Experiment:
    return load_experiment("tiny", open_file(PACKAGED), settings)


def greedy(kept: list[weakref.ref[torch.Tensor]], bytes_wanted: int = 1 << 60) -> None:
    """Has a tensor, and asks for a larger one than any machine has."""
    tensor = torch.zeros(3)
    kept.append(weakref.ref(tensor))
    torch.empty(bytes_wanted, dtype=torch.uint8)


def test_what_torch_says_on_a_cpu_becomes_one_error_that_holds_no_tensor() -> None:
    kept: list[weakref.ref[torch.Tensor]] = []
    with pytest.raises(OutOfMemoryError, match="out of memory on cpu") as caught, memory_errors(tiny(), CPU):
        greedy(kept)
    assert "lower training.batch_size (now 8), " in str(caught.value)
    assert "DefaultCPUAllocator: can't allocate memory: you tried to allocate" in str(caught.value)
    assert caught.value.__cause__ is not None
    assert kept[0]() is None  # while the error is still held


def test_an_error_behind_another_is_emptied_too() -> None:
    kept: list[weakref.ref[torch.Tensor]] = []

    def twice() -> None:
        try:
            greedy(kept)
        except RuntimeError as error:
            raise MemoryError from error

    with pytest.raises(OutOfMemoryError, match=r"\(MemoryError\)$") as caught, memory_errors(tiny(), CPU):
        twice()
    assert isinstance(caught.value, ValueError)
    assert kept[0]() is None


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:81] . DefaultCPUAllocator: not enough memory: you tried to"),
        RuntimeError("Storage size calculation overflowed with sizes=[9223372036854775807]"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=lambda error: str(error)[:40],
)
def test_all_words_for_it_are_known(error: Exception) -> None:
    assert no_memory(error)


def test_other_errors_pass() -> None:
    for error in (
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        OSError(2, "No such file"),
        ValueError("x"),
    ):
        with pytest.raises(type(error)) as caught, memory_errors(tiny(), CPU):
            raise error
        assert caught.value is error


def test_only_what_can_be_lowered_is_named() -> None:
    """On a CPU with every number at its lowest there is nothing but a smaller model."""
    assert advice(tiny(*LOWEST), "cpu") == "take a smaller model (model.size) or a machine with more memory"
    assert advice(tiny(*LOWEST, "training.precision=fp64"), "cpu") == "set training.precision=fp32"
    assert advice(tiny(*LOWEST, "training.batch_size=3"), "cpu") == "lower training.batch_size (now 3)"


def test_what_a_gpu_can_do_besides() -> None:
    lowest = tiny(*LOWEST, "runtime.cohort=sequential", "runtime.windows=host", "training.precision=bf16")
    assert advice(lowest, "cuda").startswith("take a smaller model")
    assert advice(tiny(*LOWEST), "cuda") == (
        "lower runtime.stack (now 8; or set runtime.cohort=sequential), or set runtime.windows=host or "
        "training.precision=bf16"
    )


SCRIPT = """
import os, resource, sys
import torch, wardround.simulator.sweeps.execution, wardround.simulator.reports.run
from wardround.simulator.cli import main
torch.ones(8, 8) @ torch.ones(8, 8)
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 700_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
small = ["rounds=1", "instruments.every=0", "runtime.threads=1", "runtime.device=cpu"]
words = [word for setting in small for word in ("--set", setting)]
large = ["--set", "model.image_size=1024"]
sweep = ["--set", "sweep.variants.fedavg={model: {image_size: 1024}, aggregator: fedavg}"]
sweep += ["--set", "sweep.seeds=[0]", "--set", "sweep.references=[]"]
print("run", main(["run", "tiny", *words, *large, "--quiet"]))
print("sweep", main(["sweep", "sweep-tiny", *words, *sweep]))
"""


def test_a_machine_without_memory(tmp_path: Path) -> None:
    """A limit on the address space: attention over 16,384 patches needs 2 GB per image and does not get them."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WARDROUND_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-P", "-c", SCRIPT]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "\nrun 2\n" in f"\n{done.stdout}", done.stderr
    assert done.stdout.endswith("sweep 1\n"), done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith("wardround: error: out of memory on cpu: lower training.batch_size (now 8), ")
    assert "model.image_size (now 1024)" in lines[0]
    assert "DefaultCPUAllocator: can't allocate memory" in lines[0]
    assert "[1/2] fedavg, seed 0: failed: OutOfMemoryError: out of memory on cpu: lower " in done.stdout
    assert "[2/2] flap_sam, seed 0: Dice 0." in done.stdout
