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
from repflow.files import Row
from repflow.lab.bench.solver import engines
from repflow.lab.bench.timing import statistics, time_in_turn
from repflow.tvl1 import grey, tvl1

_UNKNOWN = 1e9  # Middlebury's files have larger numbers where the flow is not known


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
                row |= statistics(seconds[name], "s")
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
    flow = read_flo(file)
    if not first.shape == second.shape == flow.shape[1:]:
        raise OSError(f"{file}: expected flow of the size of the frames beside it; fetch all three again")
    return Pair(file.parent.name, first, second, flow)
