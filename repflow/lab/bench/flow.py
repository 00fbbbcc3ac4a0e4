"""Time and accuracy of optical flow between two frames, by this package and others."""

from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from repflow.data.flow import read_flo
from repflow.data.pairs import moving_pair
from repflow.files import Row
from repflow.lab.bench.solver import engines
from repflow.lab.bench.timing import statistics, time_in_turn
from repflow.tvl1 import tvl1

_UNKNOWN = 1e9  # Middlebury's files have larger numbers where the flow is not known

Program = Callable[[np.ndarray, np.ndarray], np.ndarray]  # two frames uint8 (H, W) -> flow (2, H, W) in pixels


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
    rows = slice((W - H) // 2, (W - H) // 2 + H)
    frame1, frame2, flow = moving_pair("clockwise", speed, W)
    first, second = (frame[rows].round().astype(np.uint8) for frame in (frame1, frame2))
    return Pair("made", first, second, flow[:, rows])


def time_tvl1(pairs: Sequence[Pair], device: str, repeats: int = 5) -> list[Row]:
    """Time and accuracy of `tvl1` by each engine on `device`, and of OpenCV's and scikit-image's programs on the CPU,
    all with their own defaults.

    A row has the seconds from frames to flow, both in the computer's memory (median, interquartile range, minimum), and
    `error_px`, the end-point error; or a note that a program is not installed.

    >>> rows = time_tvl1([made_pair(48, 64)], "cpu", repeats=1)
    """
    rows, programs = [], _programs(device)
    for pair in tqdm(pairs, desc="pairs", unit="pair", leave=False):
        tasks = {name: partial(program, pair.first, pair.second) for name, program in programs.items() if program}
        seconds = time_in_turn(tasks, repeats)
        for name in programs:
            row: Row = {"pair": pair.name, "height": pair.first.shape[0], "width": pair.first.shape[1], "method": name}
            error = end_point_error(tasks[name](), pair.flow) if name in tasks else None
            note = "" if name in tasks else "not installed"
            rows.append(row | statistics(seconds.get(name), "s") | {"error_px": error, "note": note})
    return rows


def end_point_error(flow: np.ndarray, true: np.ndarray) -> float:
    """Mean distance in pixels between flows (2, H, W), where the true one is known."""
    known = (np.abs(true) < _UNKNOWN).all(0)
    return float(np.hypot(*(flow - true))[known].mean())


def opencv(create: str = "optflow.DualTVL1OpticalFlow_create") -> Program:
    """OpenCV's TV-L1, or what else it creates by this name.

    Raises ImportError without OpenCV, AttributeError for one without its contributed modules.
    """
    import cv2

    cv2.setNumThreads(torch.get_num_threads())  # it does not ask OMP_NUM_THREADS
    solver = attrgetter(create)(cv2)()
    return lambda first, second: solver.calc(first, second, None).transpose(2, 0, 1)


def _scikit_image() -> Program:
    from skimage.registration import optical_flow_tvl1

    # It takes values in 0..1, and its first component goes along rows.
    return lambda first, second: optical_flow_tvl1(np.float32(first) / 255, np.float32(second) / 255)[::-1]


def _ours(engine: str, device: str) -> Program:
    def flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        frames = (torch.from_numpy(frame).to(device) for frame in (first, second))
        return tvl1(*frames, engine=engine).cpu().numpy()

    return flow


def _programs(device: str) -> dict[str, Program | None]:
    """All programs by name; None for those that are not installed."""
    programs: dict[str, Program | None] = {f"repflow, {engine}": _ours(engine, device) for engine in engines(device)}
    others = {
        "OpenCV DualTVL1": opencv,
        "OpenCV DIS": partial(opencv, "DISOpticalFlow_create"),
        "scikit-image TV-L1": _scikit_image,
    }
    for name, make in others.items():
        try:
            programs[name] = make()
        except (ImportError, AttributeError):
            programs[name] = None
    return programs


def _read_pair(file: Path) -> Pair:
    from PIL import Image

    images = (Image.open(file.with_name(f"frame{number}.png")) for number in (10, 11))
    first, second = (np.array(image.convert("L")) for image in images)
    flow = read_flo(file)
    if not first.shape == second.shape == flow.shape[1:]:
        raise OSError(f"{file}: expected flow of the size of the frames beside it; fetch all three again")
    return Pair(file.parent.name, first, second, flow)
