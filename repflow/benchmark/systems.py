"""The paper's runtime column: what a clip costs in every system, stage by stage."""

import gc
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2.functional import resize
from tqdm.auto import tqdm

from repflow.benchmark import paper_table, statistics, time_in_turn
from repflow.files import Row
from repflow.models import build_model, inputs_of
from repflow.models.systems import SYSTEMS
from repflow.tvl1 import grey, tvl1
from repflow.video import read_clip

# The six systems of the authors' table, and the networks without flow that they are held against.
TABLE = "two_stream_2d", "tvnet_2d", "two_stream_2plus1d", "two_stream_i3d", "repflow_2plus1d", "flow_of_flow_2plus1d"
PLAIN = "rgb_2d", "rgb_2plus1d", "rgb_i3d"
CLASSES = 400
MOST = 64  # clips in a batch, at most


@dataclass(frozen=True)
class Setting:
    """Clips of `frames` frames of `size` x `size` pixels, `batch` at a time, and the device of the networks."""

    frames: int = 32
    size: int = 224
    batch: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.frames < 9 or self.size < 32 or self.batch < 1:
            raise ValueError(
                "expected at least 9 frames, 32 pixels and a batch of 1 (what all systems can take), got "
                f"{self.frames}, {self.size}, {self.batch}"
            )


PROFILES = {"tiny": {"frames": 9, "size": 48}, "small": {"frames": 16, "size": 112}, "paper": {}}


def time_systems(setting: Setting, repeats: int = 5, names: Sequence[str] = (*TABLE, *PLAIN)) -> list[Row]:
    """A row for every stage that can be timed by itself.

    They are a clip's decoding, its TV-L1 by each program, and each system's network, forward and as a training step.

    Columns: stage; by (the program, or the system's name); batch; the seconds of a batch (median, interquartile range,
    minimum; all stages in random order, warmed up, synchronised), clips_per_s by the median, and on a GPU peak_mib,
    the memory taken beyond parameters and input. Networks are fresh, in float32; TV-L1 is at its program's defaults.
    """
    with TemporaryDirectory() as folder:
        video = _make_video(Path(folder) / "clip.mp4", setting)
        tasks: dict[tuple[str, str], Callable[[], object]] = {
            ("decode", "repflow.video"): partial(read_clip, video, 0, setting.frames)
        }
        frames = torch.from_numpy(grey(read_clip(video, 0, setting.frames)))
        tasks |= {("tvl1", program): task for program, task in _flow_tasks(frames).items()}
        for name in tqdm(names, desc="building", leave=False):
            model, inputs = _prepared(name, setting)
            tasks["forward", name] = partial(_forward, model, inputs)
            tasks["training step", name] = partial(_training_step, model, inputs)
        seconds = time_in_turn(tasks, repeats)
    rows = []
    for (stage, by), times in seconds.items():
        batch = setting.batch if stage in ("forward", "training step") else 1
        row: Row = {"stage": stage, "by": by, "batch": batch} | statistics(times, "s")
        rows.append(row | {"clips_per_s": batch / row["median_s"], "peak_mib": _peak(tasks[stage, by], setting, stage)})
    return rows


def best_batch(name: str, setting: Setting, repeats: int = 3) -> Row:
    """The row of the batch size, of 1, 2, 4, ... up to 64, that has most clips a second in the network's forward pass.

    Ends where the device has no more memory.
    """
    best: Row = {}
    batch = 1
    while batch <= MOST:
        try:
            model, inputs = _prepared(name, Setting(setting.frames, setting.size, batch, setting.device))
            times = time_in_turn({name: partial(_forward, model, inputs)}, repeats)[name]
        except torch.OutOfMemoryError:
            break
        finally:
            model = inputs = None
            gc.collect()
            if setting.device == "cuda":
                torch.cuda.empty_cache()
        row: Row = {"stage": "forward, best batch", "by": name, "batch": batch} | statistics(times, "s")
        row |= {"clips_per_s": batch / row["median_s"], "peak_mib": None}
        if best and row["clips_per_s"] < best["clips_per_s"]:
            break
        best, batch = row, 2 * batch
    return best


def table(rows: Sequence[Row], program: str) -> list[Row]:
    """Of each of the table's systems: milliseconds of a clip by stage, with TV-L1 by `program`, beside the paper's.

    Columns: system, paper's name, decode, tvl1, network, total, and paper_ms (a Titan X; length and size of its clips
    are not known).
    """
    ms = {(row["stage"], row["by"]): 1000 * row["median_s"] / row["batch"] for row in rows}
    paper = paper_table()
    lines = []
    for name in dict.fromkeys(row["by"] for row in rows if row["stage"] == "forward"):
        system = SYSTEMS[name]
        flow = ms["tvl1", program] if "flow" in system.inputs else 0.0
        parts = {"decode_ms": ms["decode", "repflow.video"], "tvl1_ms": flow, "network_ms": ms["forward", name]}
        published = paper[system.paper]["milliseconds"]
        total = {"total_ms": sum(parts.values()), "paper_ms": float(published)}
        lines.append({"system": name, "paper": system.paper, **parts, **total})
    return lines


def ratios(lines: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    """The paper's ratios beside ours: two streams against a flow layer, and what the first and second layer add."""
    ours = {line["system"]: line["total_ms"] for line in lines}
    theirs = {line["system"]: line["paper_ms"] for line in lines}
    network = {row["by"]: row["median_s"] for row in rows if row["stage"] == "forward"}
    found = []
    for what, over, under in (
        ("two-stream / rep-flow, (2+1)D", "two_stream_2plus1d", "repflow_2plus1d"),
        ("rep-flow / RGB, (2+1)D", "repflow_2plus1d", "rgb_2plus1d"),
        ("flow-of-flow / RGB, (2+1)D", "flow_of_flow_2plus1d", "rgb_2plus1d"),
        ("flow-of-flow / rep-flow, (2+1)D", "flow_of_flow_2plus1d", "repflow_2plus1d"),
    ):
        if over in ours and under in ours:
            row = {"ratio": what, "paper": theirs[over] / theirs[under], "here": ours[over] / ours[under]}
            found.append(row | {"network_alone": network[over] / network[under]})
    return found


def time_layers(setting: Setting, repeats: int = 5) -> list[Row]:
    """What a flow layer itself adds to the (2+1)D network, at the same number of frames: its time on the maps that it
    sees, forward, over the whole RGB network's.

    (A system with a flow layer has fewer frames above it, which hides part of its cost.)
    """
    model, inputs = _prepared("rgb_2plus1d", setting)
    tasks: dict[str, Callable[[], object]] = {"rgb_2plus1d": partial(_forward, model, inputs)}
    for name in ("repflow_2plus1d", "flow_of_flow_2plus1d"):
        other, clips = _prepared(name, setting)
        with torch.no_grad():
            maps = other.below(*clips)
        tasks[name] = partial(_forward, other.flow, [maps])
    seconds = time_in_turn(tasks, repeats)
    whole = float(np.median(seconds["rgb_2plus1d"]))
    return [
        {"part": "network" if name == "rgb_2plus1d" else "flow layer", "of": name}
        | statistics(times, "s")
        | {"percent_of_rgb": 100 * float(np.median(times)) / whole}
        for name, times in seconds.items()
    ]


def _prepared(name: str, setting: Setting) -> tuple[nn.Module, list[Tensor]]:
    """A fresh system on the device, and a batch of clips (and their flow) for it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(name, CLASSES).to(setting.device)
        B, T, S = setting.batch, setting.frames, setting.size
        clip, flow = torch.rand(B, 3, T, S, S) * 2 - 1, torch.rand(B, 2, T - 1, S, S) * 2 - 1
    return model, inputs_of(model, [clip.to(setting.device), flow.to(setting.device)])


def _forward(model: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(*inputs)


def _training_step(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Forward, backward, and a step of SGD whose rate is 0, so that every repeat computes the same."""
    model.train()
    labels = torch.zeros(len(inputs[0]), dtype=torch.int64, device=inputs[0].device)
    F.cross_entropy(model(*inputs), labels).backward()
    torch.optim.SGD(model.parameters(), lr=0.0).step()
    model.zero_grad(set_to_none=True)


def _flow_tasks(frames: Tensor) -> dict[str, Callable[[], object]]:
    """TV-L1 of all successive frames (T, H, W), grey 0..255, by each program that is here."""
    tasks: dict[str, Callable[[], object]] = {"repflow, cpu": partial(_clip_flow, frames, 1)}
    if torch.cuda.is_available():
        tasks["repflow, cuda"] = partial(_clip_flow, frames.cuda(), len(frames))
    try:
        import cv2

        solver = cv2.optflow.DualTVL1OpticalFlow_create()
    except (ImportError, AttributeError):
        return tasks
    levels = [frame.numpy().astype(np.uint8) for frame in frames]
    tasks["OpenCV"] = lambda: [solver.calc(*pair, None) for pair in itertools.pairwise(levels)]
    return tasks


def _clip_flow(frames: Tensor, at_once: int) -> None:
    pairs = zip(frames[:-1].split(at_once), frames[1:].split(at_once), strict=True)
    for first, second in pairs:
        tvl1(first, second)


def _peak(task: Callable[[], object], setting: Setting, stage: str) -> float | None:
    """MiB that a network takes beyond what it had before; None on the CPU, and for other stages."""
    if setting.device != "cuda" or stage not in ("forward", "training step"):
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    task()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _make_video(path: Path, setting: Setting) -> Path:
    """A moving texture in H.264, or MPEG-4 where this FFmpeg has no encoder for that."""
    rng = np.random.default_rng(0)
    side = setting.size + 2 * setting.frames
    coarse = torch.from_numpy(rng.integers(0, 256, (3, side // 8, side // 8), np.uint8))
    texture = resize(coarse, [side, side]).permute(1, 2, 0).numpy()
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, Fraction(25), options={"g": "12"})
        stream.width = stream.height = setting.size + setting.size % 2
        stream.pix_fmt = "yuv420p"
        for t in range(setting.frames):
            picture = texture[t : t + stream.height, 2 * t : 2 * t + stream.width]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture))))
        container.mux(stream.encode())
    return path
