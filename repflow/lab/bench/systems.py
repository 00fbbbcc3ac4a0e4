"""The paper's runtime column: what a clip costs in every system, stage by stage."""

import gc
import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from repflow.files import Row
from repflow.lab.bench.flow import opencv
from repflow.lab.bench.timing import fits_memory, gpu_peak, statistics, time_in_turn
from repflow.lab.bench.video import write_video
from repflow.models import build_model, inputs_of
from repflow.models.streams import Stream
from repflow.models.systems import SYSTEMS
from repflow.records import paper_table
from repflow.tvl1 import grey, tvl1
from repflow.video import read_clip

log = logging.getLogger(__name__)

# The six systems of the authors' table, and the networks without flow that they are held against.
TABLE = "two_stream_2d", "tvnet_2d", "two_stream_2plus1d", "two_stream_i3d", "repflow_2plus1d", "flow_of_flow_2plus1d"
PLAIN = "rgb_2d", "rgb_2plus1d", "rgb_i3d"
ROWS = tuple(name for name, system in SYSTEMS.items() if system.paper)  # of the paper's table
CLASSES = 400
MOST = 64  # clips in a batch, at most
FASTER = 1.05  # by how much a batch must have more clips a second than half of it, to go on
NUMBERS = "batch", "median_s", "iqr_s", "min_s", "clips_per_s", "peak_mib"  # of a row; all else there is text

Task = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """Clips of `frames` frames of `size` x `size` pixels, `batch` at a time, and the device of the networks."""

    frames: int = 32
    size: int = 224
    batch: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.frames < 9 or self.size < 64 or self.batch < 1:
            raise ValueError(
                "expected at least 9 frames, 64 pixels and a batch of 1 (what all systems can take), got "
                f"{self.frames}, {self.size}, {self.batch}"
            )


PROFILES = {"tiny": {"frames": 9, "size": 64}, "small": {"frames": 16, "size": 112}, "paper": {}}


def time_systems(setting: Setting, repeats: int = 5, names: Sequence[str] = ROWS) -> list[Row]:
    """A row for every stage that can be timed by itself.

    They are a clip's decoding, its TV-L1 by each program, each system's network, forward and as a training step, and
    "flow inside": what computes flow in the network, by itself, forward, on the maps or the clip that it sees there.

    Columns: stage; by (the program, or the system's name); batch; the seconds of a batch (median, interquartile range,
    minimum; all stages in random order, warmed up, synchronised), clips_per_s by the median, and on a GPU peak_mib,
    the most of its memory that is taken beyond parameters and input. Networks are fresh, in float32, for which a GPU's
    convolutions take TF32, PyTorch's default; TV-L1 is at its program's defaults. What is read or computed on the CPU
    is not moved to the GPU here, and what does not fit into its memory is left out.
    """
    with TemporaryDirectory() as folder:
        video = _make_video(Path(folder) / "clip.mp4", setting)
        tasks: dict[tuple[str, str], Task] = {("decode", "repflow.video"): partial(read_clip, video, 0, setting.frames)}
        frames = torch.from_numpy(grey(read_clip(video, 0, setting.frames)))
        tasks |= {("tvl1", program): task for program, task in _flow_tasks(frames).items()}
        for name in tqdm(names, desc="building", leave=False):
            model, inputs = _prepared(name, setting)
            tasks["forward", name] = partial(_forward, model, inputs)
            tasks["training step", name] = partial(_training_step, model, inputs)
            if (inside := _flow_inside(model, inputs)) is not None:
                tasks["flow inside", name] = inside
        if setting.device == "cuda":
            tasks = _fitting(tasks)
        seconds = time_in_turn(tasks, repeats)
    alone = "decode", "tvl1"  # of one clip, whatever the batch is
    return [
        _row(stage, by, times, tasks[stage, by], replace(setting, batch=1) if stage in alone else setting)
        for (stage, by), times in seconds.items()
    ]


def best_batch(name: str, setting: Setting, repeats: int = 3) -> Row:
    """The row of the batch size, of 1, 2, 4, ... up to 64, that has most clips a second in the network's forward pass.

    Ends where twice the batch is less than 5 % faster, or the GPU has no more memory; empty if that is so at once.
    """
    best: Row = {}
    batch = 1
    while batch <= MOST and (row := _forward_row(name, replace(setting, batch=batch), repeats)):
        faster = not best or row["clips_per_s"] >= FASTER * best["clips_per_s"]
        best = max(best or row, row, key=itemgetter("clips_per_s"))
        if not faster:
            break
        batch *= 2
    return best


def programs(rows: Iterable[Row]) -> list[str]:
    """The programs whose TV-L1 was timed; OpenCV's, which is nearest to what the paper timed, comes first."""
    timed = [row["by"] for row in rows if row["stage"] == "tvl1"]
    return sorted(timed, key=lambda program: program != "OpenCV")


def table(rows: Iterable[Row], program: str) -> list[Row]:
    """Of each timed system: milliseconds of a clip by stage, with TV-L1 by `program`, beside the paper's.

    Columns: system, paper's name, decode, tvl1 (before the network), flow inside the network, the rest of the network,
    total, and paper_ms (a Titan X; length and size of its clips are not known).
    """
    ms = {(row["stage"], row["by"]): 1000 * row["median_s"] / row["batch"] for row in rows}  # of a clip
    paper = paper_table()
    lines = []
    for name in [by for stage, by in ms if stage == "forward"]:
        system = SYSTEMS[name]
        inside = ms.get(("flow inside", name), 0.0)
        parts = {
            "decode_ms": ms["decode", "repflow.video"],
            "tvl1_ms": ms["tvl1", program] if "flow" in system.inputs else 0.0,
            "flow_inside_ms": inside,
            "network_ms": ms["forward", name] - inside,
        }
        total = {"total_ms": sum(parts.values()), "paper_ms": float(paper[system.paper]["milliseconds"])}
        lines.append({"system": name, "paper": system.paper, **parts, **total})
    return lines


def ratios(rows: Sequence[Row], program: str) -> list[Row]:
    """The paper's ratios beside ours, with TV-L1 by `program`: rows (ratio, paper, here), none if a system is missing.

    Of the first and second layer, here their own time over the (2+1)D RGB network's, at the same number of frames; in
    the paper's column differences of whole systems, in which fewer frames above a flow layer hide part of its cost.
    """
    lines = {line["system"]: line for line in table(rows, program)}
    if not lines.keys() >= {"two_stream_2plus1d", "repflow_2plus1d", "flow_of_flow_2plus1d", "rgb_2plus1d"}:
        return []
    two, one, twice, rgb = (lines[f"{n}_2plus1d"] for n in ("two_stream", "repflow", "flow_of_flow", "rgb"))
    paper, ours = ([line[key] for line in (two, one, twice, rgb)] for key in ("paper_ms", "total_ms"))
    network = rgb["network_ms"]
    first, second = one["flow_inside_ms"], twice["flow_inside_ms"] - one["flow_inside_ms"]
    pairs = {
        "two-stream / rep-flow": (paper[0] / paper[1], ours[0] / ours[1]),
        "the same if TV-L1 took no time": (2 * paper[3] / paper[1], (ours[0] - two["tvl1_ms"]) / ours[1]),
        "share of TV-L1 in two-stream, %": (100 * (1 - 2 * paper[3] / paper[0]), 100 * two["tvl1_ms"] / ours[0]),
        "rep-flow / RGB": (paper[1] / paper[3], ours[1] / ours[3]),
        "flow-of-flow / RGB": (paper[2] / paper[3], ours[2] / ours[3]),
        "first flow layer, % of RGB": (100 * (paper[1] - paper[3]) / paper[3], 100 * first / network),
        "both flow layers, % of RGB": (100 * (paper[2] - paper[3]) / paper[3], 100 * (first + second) / network),
        "second flow layer, % of RGB": (100 * (paper[2] - paper[1]) / paper[3], 100 * second / network),
    }
    return [{"ratio": name, "paper": in_paper, "here": measured} for name, (in_paper, measured) in pairs.items()]


def _row(stage: str, by: str, times: np.ndarray, task: Task, setting: Setting) -> Row:
    row: Row = {"stage": stage, "by": by, "batch": setting.batch} | statistics(times, "s")
    peak = gpu_peak(task) / 2**20 if setting.device == "cuda" else None
    return row | {"clips_per_s": setting.batch / row["median_s"], "peak_mib": peak}


def _prepared(name: str, setting: Setting) -> tuple[nn.Module, list[Tensor]]:
    """A fresh system on the device, and a batch of clips (and their flow) for it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(name, CLASSES).to(setting.device)
        B, T, S = setting.batch, setting.frames, setting.size
        clip, flow = torch.rand(B, 3, T, S, S) * 2 - 1, torch.rand(B, 2, T - 1, S, S) * 2 - 1
    return model, inputs_of(model, [clip.to(setting.device), flow.to(setting.device)])


def _fitting(tasks: Mapping[tuple[str, str], Task]) -> dict[tuple[str, str], Task]:
    """The tasks that the GPU's memory suffices for; the others are named in the log."""
    fitting = {name: task for name, task in tasks.items() if fits_memory(task)}
    for name in tasks:
        if name not in fitting:
            log.warning("left out, for the GPU's memory is too small: %s of %s", *name)
    return fitting


def _forward_row(name: str, setting: Setting, repeats: int) -> Row | None:
    """The row of a network's forward pass; None where the GPU's memory is too small."""
    try:
        model, inputs = _prepared(name, setting)
        task = partial(_forward, model, inputs)
        seconds = time_in_turn({name: task}, repeats)[name]
        return _row("forward, best batch", name, seconds, task, setting)
    except torch.OutOfMemoryError:
        return None
    finally:
        model = inputs = task = None  # before the next batch takes memory
        gc.collect()
        if setting.device == "cuda":
            torch.cuda.empty_cache()


def _forward(model: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(*inputs)


def _training_step(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Forward, backward, and a step of SGD whose rate is 0, so that every repeat computes the same."""
    model.train()
    labels = torch.zeros(len(inputs[0]), dtype=torch.int64, device=inputs[0].device)
    try:
        F.cross_entropy(model(*inputs), labels).backward()
        torch.optim.SGD(model.parameters(), lr=0.0).step()
    finally:
        model.zero_grad(set_to_none=True)


def _flow_inside(model: nn.Module, inputs: Sequence[Tensor]) -> Task | None:
    """What computes flow within a network, by itself: a flow layer on the maps that it sees, or TVNet on the clip."""
    if not isinstance(model, Stream):
        return None if model.flow.source is None else partial(_forward, model.flow.source, inputs)
    if model.flow is None:
        return None
    with torch.no_grad():
        return partial(_forward, model.flow, [model.eval().below(*inputs)])


def _flow_tasks(frames: Tensor) -> dict[str, Task]:
    """TV-L1 of all successive frames (T, H, W), grey 0..255, by each program that is installed."""
    tasks: dict[str, Task] = {"repflow, cpu": partial(_clip_flow, frames, 1)}
    if torch.cuda.is_available():
        tasks["repflow, cuda"] = partial(_clip_flow, frames.cuda(), len(frames))
    with suppress(ImportError, AttributeError):  # the latter: an OpenCV without its contributed modules
        solver = opencv()
        levels = [frame.numpy().astype(np.uint8) for frame in frames]
        tasks["OpenCV"] = lambda: [solver(*pair) for pair in itertools.pairwise(levels)]
    return tasks


def _clip_flow(frames: Tensor, at_once: int) -> None:
    for first, second in zip(frames[:-1].split(at_once), frames[1:].split(at_once), strict=True):
        tvl1(first, second)


def _make_video(path: Path, setting: Setting) -> Path:
    """A moving texture in H.264, or MPEG-4 where this FFmpeg has no encoder for that."""
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    side = setting.size + setting.size % 2  # colours are stored for two by two pixels
    write_video(path, codec, setting.frames, (side, side), g="12")
    return path
