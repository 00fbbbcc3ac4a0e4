"""Time and memory of the solver's engines and of the layers."""

import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from tqdm.auto import tqdm

from repflow.files import Row
from repflow.lab.bench.timing import gpu_peak, map_blocks_from, statistics, time_in_turn
from repflow.layers import RepresentationFlow, representation_flow
from repflow.official import FlowLayer201906
from repflow.processes import fresh_processes

PASSES = ("forward", "forward + backward")
Case = tuple[str, str, str]  # part: function or layer; engine, or "official"; pass


@dataclass(frozen=True)
class Problem:
    """What `time_solver` computes: flow between `pairs` pairs of feature maps, `channels` x `size` x `size` each.

    The layers get `clips` clips of `pairs` + 1 maps at once.
    """

    channels: int = 32
    pairs: int = 15
    size: int = 28  # pixels
    iterations: int = 20
    device: str = "cpu"
    clips: int = 1


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

    >>> rows = time_solver(Problem(channels=2, pairs=2, size=8, iterations=3), repeats=1)
    """
    able = engines(problem.device)
    parts = [*(("function", engine) for engine in able), *(("layer", engine) for engine in (*able, "official"))]
    cases: list[Case] = [(part, engine, name) for part, engine in parts for name in PASSES]
    tasks = {case: task_of(problem, *case) for case in cases}
    times = {case: 1000 * seconds for case, seconds in time_in_turn(tasks, repeats).items()}
    medians = {case: np.median(values) for case, values in times.items()}
    rows = []
    for case in tqdm(cases, desc="measuring memory", leave=False):
        part, engine, name = case
        others = {other: medians.get((part, other, name)) for other in ("reference", "official")}
        peak = gpu_peak(tasks[case]) if problem.device == "cuda" else _cpu_peak(problem, case)
        rows.append(
            {"part": part, "engine": engine, "pass": name}
            | statistics(times[case], "ms")
            | {f"speedup_{other}": median and median / medians[case] for other, median in others.items()}
            | {"saved_mib": saved_bytes(tasks[case]) / 2**20, "peak_mib": None if peak is None else peak / 2**20}
        )
    return rows


def task_of(problem: Problem, part: str, engine: str, name: str) -> Callable[[], tuple[Tensor, ...]]:
    """One pass on random inputs and output gradients, the same ones for all engines. It returns the layer's flow,
    (clips, 2 channels, pairs, size, size), or the function's u and v, (pairs, channels, size, size)."""
    P, C, S = problem.pairs, problem.channels, problem.size
    random = partial(torch.rand, generator=torch.Generator().manual_seed(0))
    if part == "function":
        compute, parameters = partial(representation_flow, iterations=problem.iterations, engine=engine), ()
        inputs, bars = 255 * random(2, P, C, S, S), random(2, P, C, S, S)
    else:
        layer = _layer(problem, engine)
        compute, parameters = lambda clips: (layer(clips),), tuple(layer.parameters())
        B = problem.clips
        inputs, bars = 255 * random(1, B, C, P + 1, S, S), random(1, B, C, P, S, S)
    inputs = [maps.to(problem.device).requires_grad_() for maps in inputs]
    bars = list(bars.to(problem.device))

    def task() -> tuple[Tensor, ...]:
        outputs = compute(*inputs)
        if name == "forward + backward":
            # A single iteration leaves the dual step unused, and tau with it.
            torch.autograd.grad(outputs, (*inputs, *parameters), bars, allow_unused=True)
        return outputs

    return task


def saved_bytes(task: Callable[[], object]) -> int:
    """Bytes that a task's forward pass keeps for the backward pass."""
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage  # held, so that no other comes to lie at its address
        return tensor.detach()

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        task()
    return sum(storage.nbytes() for storage in storages.values())


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


def _cpu_peak(problem: Problem, case: Case) -> int | None:
    """The peak in a process of its own; None if that died, as for want of memory."""
    if sys.platform != "linux":  # elsewhere ru_maxrss has another unit, or is missing
        return None
    context = fresh_processes(__name__, "numba", "sympy")  # the last is what PyTorch's backward pass loads
    receiver, sender = context.Pipe(duplex=False)  # a pool would leave locks behind if ctrl-C came while it starts
    process = context.Process(target=_send_resident_peak, args=(sender, problem, case))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return None
    finally:
        process.terminate()  # it has sent its number, or ctrl-C leaves it unasked
        process.join()


def _send_resident_peak(sender: Connection, problem: Problem, case: Case) -> None:
    """Sends the bytes by which the peak of this process's resident memory grows in one case."""
    # A mapping for each block is gone once it is freed; glibc's heap would add its holes, as much again.
    map_blocks_from(1 << 16)
    task_of(replace(problem, pairs=1, size=8), *case)()  # loads the code
    task = task_of(problem, *case)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    task()
    sender.send(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
