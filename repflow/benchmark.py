"""Timing: the solver, the layers, whole optical flow programs; the machine that did it; the paper's table beside it."""

import csv
import ctypes
import multiprocessing
import os
import platform
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from operator import attrgetter
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from tqdm.auto import tqdm

from repflow import __version__
from repflow.files import beside
from repflow.layers import RepresentationFlow, representation_flow
from repflow.official import FlowLayer201906
from repflow.tvl1 import grey, tvl1

Key = TypeVar("Key", bound=Hashable)
Row = dict[str, Any]  # a line of a table: text, number, or None where there is nothing to say

_CLEAR_PEAK = Path("/proc/self/clear_refs")  # Linux: 5, written there, makes the process's peak begin anew
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD in glibc's malloc.h
_FLO_MAGIC = np.float32(202021.25)
_UNKNOWN = 1e9  # Middlebury's files have larger numbers where the flow is not known


def time_in_turn(tasks: Mapping[Key, Callable[[], object]], repeats: int = 5, seed: int = 0) -> dict[Key, np.ndarray]:
    """Seconds of each task, (repeats,) float64, synchronised with the GPU where there is one.

    Every task runs once uncounted, then `repeats` rounds run all of them in random order, so that a machine that slows
    down slows all alike. Compare medians and ratios of one call; single times of a shared machine mean little.
    """
    order = random.Random(seed)
    seconds: dict[Key, list[float]] = {name: [] for name in tasks}
    for task in tqdm(tasks.values(), desc="warming up", leave=False):
        _seconds(task)
    for _ in tqdm(range(repeats), desc="timing", leave=False):
        for name in order.sample(list(tasks), len(tasks)):
            seconds[name].append(_seconds(tasks[name]))
    return {name: np.array(values) for name, values in seconds.items()}


def paper_table() -> dict[str, dict[str, str]]:
    """The paper's final table by method, as results/paper.csv has it: texts, empty where the paper has no figure."""
    package = Path(__file__).parent
    places = (package / "results" / "paper.csv", package.parent / "results" / "paper.csv")  # wheel, checkout
    return {row["method"]: row for row in read_csv(next(place for place in places if place.is_file()))}


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a file with column names in its first line, as texts."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows of the same columns, whole or not at all; floats with six digits, nothing for None."""
    with beside(path) as folder:
        whole = folder / path.name
        with whole.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(rows[0])
            writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in row.values()] for row in rows)
        whole.replace(path)


def text_table(rows: Sequence[Row]) -> str:
    """Rows of the same columns as aligned lines: texts to the left, numbers (four digits) to the right."""
    lines = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = ["<" if isinstance(value, str) else ">" for value in rows[0].values()]
    columns = list(zip(sides, widths, strict=True))
    return "\n".join(
        "  ".join(f"{cell:{side}{width}}" for cell, (side, width) in zip(line, columns, strict=True)).rstrip()
        for line in lines
    )


def environment() -> dict[str, Any]:
    """Return what a result file says about where it was made: versions, commit, processor, GPU, platform."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "repflow": __version__,
        "commit": _commit(),
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": platform.platform(),
    }


def circumstances(*modules: str) -> Row:
    """What a timing's file says beside its numbers: `environment`, threads, time, and the versions of the named modules
    that have been loaded."""
    versions = {name: getattr(sys.modules.get(name), "__version__", None) for name in modules}
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    return environment() | {"threads": torch.get_num_threads()} | versions | {"date": now}


# The solver and the layers.


@dataclass(frozen=True)
class Problem:
    """What `time_solver` computes: flow between `pairs` pairs of feature maps, `channels` x `size` x `size` each."""

    channels: int = 32
    pairs: int = 15
    size: int = 28  # pixels
    iterations: int = 20
    device: str = "cpu"


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
    tasks = {case: _task(problem, *case) for case in cases}
    times = {case: 1000 * seconds for case, seconds in time_in_turn(tasks, repeats).items()}
    medians = {case: np.median(values) for case, values in times.items()}
    rows = []
    for case, peak in zip(cases, _peaks(problem, cases), strict=True):
        part, engine, name = case
        others = {other: medians.get((part, other, name)) for other in ("reference", "official")}
        rows.append(
            {"part": part, "engine": engine, "pass": name}
            | _statistics(times[case], "ms")
            | {f"speedup_{other}": median and median / medians[case] for other, median in others.items()}
            | {"saved_mib": _saved(tasks[case]) / 2**20, "peak_mib": None if peak is None else peak / 2**20}
        )
    return rows


def _task(problem: Problem, part: str, engine: str, name: str) -> Callable[[], None]:
    """One pass on random inputs and output gradients, the same ones for all engines."""
    P, C, S = problem.pairs, problem.channels, problem.size
    make = partial(torch.rand, generator=torch.Generator().manual_seed(0))
    if part == "function":
        compute, parameters = partial(representation_flow, iterations=problem.iterations, engine=engine), ()
        inputs, bars = 255 * make(2, P, C, S, S), make(2, P, C, S, S)
    else:
        layer = _layer(problem, engine)
        compute, parameters = lambda clip: (layer(clip),), tuple(layer.parameters())
        inputs, bars = 255 * make(1, 1, C, P + 1, S, S), make(1, 1, C, P, S, S)
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


def _saved(task: Callable[[], None]) -> int:
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
        return [_gpu_peak(_task(problem, *case)) for case in progress()]
    if not os.access(_CLEAR_PEAK, os.W_OK):
        return [None] * len(cases)
    context = _fresh_processes()
    return [_elsewhere(context, problem, case) for case in progress()]


def _fresh_processes() -> BaseContext:
    """Forks of a process that has the code loaded and nothing computed: as good as new ones, and seconds quicker."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "numba", "sympy"])  # the last is what PyTorch's backward pass loads
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which they inherit: ctrl-C is for us alone to act on
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)
    return context


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
    ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 1 << 16)
    _task(replace(problem, pairs=1, size=8), *case)()  # loads the code
    task = _task(problem, *case)
    _CLEAR_PEAK.write_text("5")
    before = _resident("VmRSS")
    task()
    with suppress(BrokenPipeError):  # our parent was stopped while it started us
        answer.send(_resident("VmHWM") - before)


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


# Optical flow of two frames, by this package and others.


class Pair(NamedTuple):
    """Two frames, uint8 (H, W), and the true flow between them, (2, H, W) in pixels, above 1e9 where not known."""

    name: str
    first: np.ndarray
    second: np.ndarray
    flow: np.ndarray


def read_pairs(folder: Path) -> list[Pair]:
    """The pairs of Middlebury's layout: subfolders with frame10.png, frame11.png and flow10.flo.

    Raises OSError, naming the file, for one that is missing or damaged; subfolders without flow10.flo are passed over.
    """
    return [_read_pair(file) for file in sorted(folder.glob("*/flow10.flo"))]


def made_pair(H: int = 480, W: int = 640, speed: float = 3.0) -> Pair:
    """A made texture that turns about the frame's centre, H <= W; over its square the mean motion is `speed` pixels."""
    from repflow.data.synthetic import motion, render

    top = (W - H) // 2
    frames = render("clockwise", np.random.default_rng(0), W, 2, speed)[:, top : top + H]
    turn = motion("clockwise", speed, W, 2)[1, 2]
    y, x = np.mgrid[:H, :W] - np.array([H - 1, W - 1])[:, None, None] / 2
    cos, sin = np.cos(turn) - 1, np.sin(turn)
    return Pair("made", *grey(frames).round().astype(np.uint8), np.stack([cos * x - sin * y, sin * x + cos * y]))


def time_tvl1(pairs: Sequence[Pair], device: str, repeats: int = 5) -> list[Row]:
    """Time and accuracy of `tvl1` by each engine on `device`, and of OpenCV's and scikit-image's programs on the CPU,
    all with their own defaults.

    A row has the seconds from frames to flow, both in the computer's memory (median, interquartile range, minimum), and
    `end_point_error`; or, of a program that is not there, a note that says so.
    """
    rows = []
    for pair in tqdm(pairs, desc="pairs", unit="pair", leave=False):
        methods = _methods(pair, device)
        seconds = time_in_turn({name: method for name, method in methods.items() if method}, repeats)
        for name, method in methods.items():
            row: Row = {"pair": pair.name, "height": pair.first.shape[0], "width": pair.first.shape[1], "method": name}
            if method is None:
                row |= dict.fromkeys(("median_s", "iqr_s", "min_s", "error_px")) | {"note": "not installed"}
            else:
                row |= _statistics(seconds[name], "s")
                row |= {"error_px": end_point_error(method(), pair.flow), "note": ""}
            rows.append(row)
    return rows


def end_point_error(flow: np.ndarray, true: np.ndarray) -> float:
    """Mean distance in pixels between flows (2, H, W), where the true one is known."""
    known = (np.abs(true) < _UNKNOWN).all(0)
    return float(np.hypot(*(flow - true))[known].mean())


def _methods(pair: Pair, device: str) -> dict[str, Callable[[], np.ndarray] | None]:
    """Programs that compute the pair's flow, (2, H, W); None for those that are not installed."""

    def ours(engine: str) -> np.ndarray:
        frames = (torch.from_numpy(frame).to(device) for frame in (pair.first, pair.second))
        return tvl1(*frames, engine=engine).cpu().numpy()

    methods = {f"repflow, {engine}": partial(ours, engine) for engine in engines(device)}
    others = {
        "OpenCV DualTVL1": partial(_opencv, "optflow.DualTVL1OpticalFlow_create"),
        "OpenCV DIS": partial(_opencv, "DISOpticalFlow_create"),
        "scikit-image TV-L1": _scikit_image,
    }
    for name, other in others.items():
        try:
            methods[name] = other(pair)
        except (ImportError, AttributeError):  # the latter: an OpenCV without its contributed modules
            methods[name] = None
    return methods


def _opencv(create: str, pair: Pair) -> Callable[[], np.ndarray]:
    import cv2

    cv2.setNumThreads(torch.get_num_threads())  # it does not ask OMP_NUM_THREADS
    method = attrgetter(create)(cv2)()
    return lambda: method.calc(pair.first, pair.second, None).transpose(2, 0, 1)


def _scikit_image(pair: Pair) -> Callable[[], np.ndarray]:
    from skimage.registration import optical_flow_tvl1

    # It takes values in 0..1, and its first component goes along rows.
    return lambda: optical_flow_tvl1(np.float32(pair.first) / 255, np.float32(pair.second) / 255)[::-1]


def _read_pair(file: Path) -> Pair:
    from PIL import Image

    images = (Image.open(file.with_name(f"frame{number}.png")) for number in (10, 11))
    first, second = (np.array(image.convert("L")) for image in images)
    raw = np.fromfile(file, np.float32)
    W, H = raw[1:3].view(np.int32) if raw.size > 3 and raw[0] == _FLO_MAGIC else (0, 0)
    if raw.size != 3 + 2 * W * H or not first.shape == second.shape == (H, W):
        raise OSError(f"{file} is no .flo file of the size of the frames beside it")
    return Pair(file.parent.name, first, second, raw[3:].reshape(H, W, 2).transpose(2, 0, 1))


def _statistics(times: np.ndarray, unit: str) -> Row:
    low, median, high = np.percentile(times, [25, 50, 75])
    return {f"median_{unit}": median, f"iqr_{unit}": high - low, f"min_{unit}": times.min()}


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return "" if value is None else str(value)


def _seconds(task: Callable[[], object]) -> float:
    _synchronise()
    start = perf_counter()
    task()
    _synchronise()
    return perf_counter() - start


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _commit() -> str | None:
    """Return the checkout's commit, with `-dirty` after it when files differ; None where there is no checkout."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git here, or a checkout of somebody else's
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # only Linux has it
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
