"""Time and memory of the solver's engines and of the layers."""

import ctypes
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from tqdm.auto import tqdm

from repflow.files import Row
from repflow.lab.bench.timing import M_MMAP_THRESHOLD, statistics, time_in_turn
from repflow.layers import RepresentationFlow, representation_flow
from repflow.official import FlowLayer201906
from repflow.processes import fresh_processes

_CLEAR_PEAK = Path("/proc/self/clear_refs")  # Linux: 5, written there, makes the process's peak begin anew


@dataclass(frozen=True)
class Problem:
    """What `time_solver` computes: flow between `pairs` pairs of feature maps, `channels` x `size` x `size` each.

    `clips` of them at once for the layers.
    """

    channels: int = 32
    pairs: int = 15
    size: int = 28  # pixels
    iterations: int = 20
    device: str = "cpu"
    clips: int = 1


Case = tuple[str, str, str]  # part: function or layer; engine, or "official"; pass
PASSES = ("forward", "forward + backward")


def engines(device: str) -> tuple[str, ...]:
    """The solver's engines that can run on a device, "cpu" or "cuda"; the reference comes first."""
    maps = torch.zeros(1, 1, 2, 2, device=device)
    try:
        representation_flow(maps, maps, engine=device)
    except ValueError:  # it says what is missing
        return ("reference",)
    return "reference", device


def time_solver(problem: Problem, repeats: int = 7) -> list[Row]:
    """Time and memory of `representation_flow` ("function") and of the whole layer on one clip, for each engine, and of
    the official layer of June 2019: forward, as in training, and forward + backward, with gradients for inputs and
    parameters.

    A row has milliseconds (median, interquartile range, minimum), how many times as fast as the reference engine and as
    the official layer it is, and MiB (2^20 bytes): what is saved for the backward pass, each storage once, and the peak
    of the memory taken beyond inputs and parameters. On the CPU that is resident memory of a process of its own, None
    where the system is not Linux; a script that calls this needs `if __name__ == "__main__"`.
    """
    able = engines(problem.device)
    whats = [*(("function", engine) for engine in able), *(("layer", engine) for engine in (*able, "official"))]
    cases = [(*what, name) for what in whats for name in PASSES]
    tasks = {case: task_of(problem, *case) for case in cases}
    times = {case: 1000 * seconds for case, seconds in time_in_turn(tasks, repeats).items()}
    medians = {case: np.median(values) for case, values in times.items()}
    rows = []
    for case, peak in zip(cases, _peaks(problem, cases), strict=True):
        part, engine, name = case
        others = {other: medians.get((part, other, name)) for other in ("reference", "official")}
        rows.append(
            {"part": part, "engine": engine, "pass": name}
            | statistics(times[case], "ms")
            | {f"speedup_{other}": median and median / medians[case] for other, median in others.items()}
            | {"saved_mib": saved_bytes(tasks[case]) / 2**20, "peak_mib": None if peak is None else peak / 2**20}
        )
    return rows


def task_of(problem: Problem, part: str, engine: str, name: str) -> Callable[[], None]:
    """One pass on random inputs and output gradients, the same ones for all engines."""
    P, C, S = problem.pairs, problem.channels, problem.size
    make = partial(torch.rand, generator=torch.Generator().manual_seed(0))
    if part == "function":
        compute, parameters = partial(representation_flow, iterations=problem.iterations, engine=engine), ()
        inputs, bars = 255 * make(2, P, C, S, S), make(2, P, C, S, S)
    else:
        layer = _layer(problem, engine)
        compute, parameters = lambda clip: (layer(clip),), tuple(layer.parameters())
        B = problem.clips
        inputs, bars = 255 * make(1, B, C, P + 1, S, S), make(1, B, C, P, S, S)
    inputs = [each.to(problem.device).requires_grad_() for each in inputs]
    bars = list(bars.to(problem.device))

    def task() -> None:
        outputs = compute(*inputs)
        if name == "forward + backward":
            # A single iteration leaves the dual step unused, and tau with it.
            torch.autograd.grad(outputs, (*inputs, *parameters), bars, allow_unused=True)

    return task


def _layer(problem: Problem, engine: str) -> nn.Module:
    C, iterations = problem.channels, problem.iterations
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if engine == "official":
            layer = FlowLayer201906(C, bottleneck=C, n_iter=iterations)
            nn.init.ones_(layer.bn.weight)  # the released zeros let no gradient through
        else:
            layer = RepresentationFlow(C, bottleneck=C, iterations=iterations, engine=engine)
    return layer.to(problem.device)


def saved_bytes(task: Callable[[], None]) -> int:
    """Bytes that a task's forward pass keeps for the backward pass."""
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage  # held, so that no other comes to lie at its address
        return tensor.detach()

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        task()
    return sum(storage.nbytes() for storage in storages.values())


def _peaks(problem: Problem, cases: Sequence[Case]) -> list[int | None]:
    """The most bytes that each case takes at a time, beyond its inputs and parameters."""
    progress = partial(tqdm, cases, desc="measuring memory", leave=False)
    if problem.device == "cuda":
        return [_gpu_peak(task_of(problem, *case)) for case in progress()]
    if not os.access(_CLEAR_PEAK, os.W_OK):
        return [None] * len(cases)
    context = fresh_processes(__name__, "numba", "sympy")  # the last is what PyTorch's backward pass loads
    return [_elsewhere(context, problem, case) for case in progress()]


def _elsewhere(context: BaseContext, problem: Problem, case: Case) -> int | None:
    """`_resident_peak` in a process of its own; None if that died, as for want of memory."""
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_resident_peak, args=(problem, case, there), daemon=True)
    try:
        process.start()
        there.close()
        return here.recv()
    except EOFError:
        return None
    finally:
        if process.pid:
            process.kill()
            process.join()


def _gpu_peak(task: Callable[[], None]) -> int:
    task()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    task()
    return torch.cuda.max_memory_allocated() - before


def _resident_peak(problem: Problem, case: Case, answer: Connection) -> None:
    """Tell how far this process's resident memory grows in one case. All that is allocated counts, whoever does it."""
    # Each block of 64 KiB or more becomes a mapping of its own, which is gone once it is freed: glibc's heap would add
    # its holes, as much again, and hide what it had free before.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)
    task_of(replace(problem, pairs=1, size=8), *case)()  # loads the code
    task = task_of(problem, *case)
    _CLEAR_PEAK.write_text("5")
    before = _resident("VmRSS")
    task()
    with suppress(BrokenPipeError):  # our parent was stopped while it started us
        answer.send(_resident("VmHWM") - before)


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024
