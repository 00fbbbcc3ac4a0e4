"""Pictures: flow colours, arrows, strips, curves, GIF and MP4. Functions of data that return arrays or figures."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from repflow.data.flow import flow_rate, narrowed, video_flow
from repflow.files import beside
from repflow.spline import CubicSpline
from repflow.video import iter_frames
from repflow.video.write import write_mp4

_log = logging.getLogger(__name__)
# Okabe and Ito's palette: told apart with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def flow_to_rgb(flow: np.ndarray, largest: float) -> np.ndarray:
    """Flow (..., 2, H, W) as colours, uint8 (..., H, W, 3): the hue is the direction, white is no motion.

    Full colour stands for `largest` px/frame or more.
    """
    u, v = np.moveaxis(np.asarray(flow, np.float32), -3, 0)
    hue = np.arctan2(v, u) / (2 * np.pi) % 1
    saturation = np.clip(np.hypot(u, v) / largest, 0, 1)
    return np.uint8(255 * hsv_to_rgb(np.stack([hue, saturation, np.ones_like(hue)], -1)))


def flow_scale(flow: np.ndarray) -> float:
    """What full colour may stand for: 99 % of a flow (2, ...) is shorter than so many px/frame, never less than 0.1."""
    return max(float(np.percentile(np.hypot(*flow), 99)), 0.1)


def flow_wheel(pixels: int) -> np.ndarray:
    """The legend of `flow_to_rgb`, uint8 (pixels, pixels, 4): a disc, transparent outside."""
    y, x = np.mgrid[-1 : 1 : pixels * 1j, -1 : 1 : pixels * 1j]
    radius = np.hypot(x, y)
    colours = flow_to_rgb(np.stack([x, y]), 1.0)
    colours[radius > 0.93] = 60  # a rim, to be seen on its own colours
    return np.dstack([colours, np.uint8(255 * (radius <= 1))])


def draw_flow(axes: Axes, flow: np.ndarray, largest: float | None = None) -> None:
    """Draw flow (2, H, W) in colours, with the colour wheel and its scale (`largest`, or its own) in a corner."""
    largest = largest or flow_scale(flow)
    axes.imshow(flow_to_rgb(flow, largest))
    wheel = axes.inset_axes((0.02, 0.02, 0.2, 0.2))
    wheel.imshow(flow_wheel(101))
    wheel.set_aspect("equal")
    wheel.axis("off")
    axes.set_xlabel(f"wheel's rim: {largest:.2g} px/frame", fontsize="small")
    _bare(axes)


def draw_arrows(axes: Axes, picture: np.ndarray, flow: np.ndarray) -> None:
    """Draw flow (2, H, W) as about 24 arrows a row over a grey or RGB picture; the title tells their scale."""
    H, W = flow.shape[-2:]
    step = max(1, W // 24)
    y, x = np.mgrid[step // 2 : H : step, step // 2 : W : step]
    enlarged = 2 * step / flow_scale(flow)  # the longest reach over two steps
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
    options = {"angles": "xy", "scale_units": "xy", "scale": 1 / enlarged, "width": 0.004, "minlength": 0.5}
    axes.quiver(x, y, *flow[:, y, x], color=COLOURS[4], **options)
    axes.set_title(f"frame 1, arrows {enlarged:.2g} × the flow")
    _bare(axes)


def flow_panel(frame1: np.ndarray, frame2: np.ndarray, flow: np.ndarray, title: str = "") -> Figure:
    """Four views of a flow (2, H, W) between grey frames (H, W) in 0..255: arrows, colours, and what it explains."""
    image, motion = (torch.as_tensor(np.array(a, np.float32)) for a in (frame2, flow))
    warped = CubicSpline(image[None, None]).warp(motion[:, None, None])[0][0, 0].numpy()
    before, after = (np.abs(f - frame1.astype(np.float32)) for f in (frame2, warped))
    H, W = frame1.shape
    figure, axes = plt.subplots(2, 2, figsize=(8, 8 * H / W + 0.9), layout="constrained")
    draw_arrows(axes[0, 0], frame1, np.asarray(flow))
    draw_flow(axes[0, 1], np.asarray(flow))
    axes[0, 1].set_title("flow")
    brightest = max(np.percentile(before, 99.5), 1.0)
    for ax, difference, name in ((axes[1, 0], before, "before"), (axes[1, 1], after, "after warping")):
        shown = ax.imshow(difference, cmap="magma", vmin=0, vmax=brightest)
        ax.set_title(f"difference {name}: mean {difference.mean():.2f}")
        _bare(ax)
    figure.colorbar(shown, ax=axes[1], label="|frame 2 − frame 1| (grey levels)", shrink=0.8)
    figure.suptitle(title)
    return _finished(figure)


def clip_strip(clips: Mapping[str, np.ndarray], every: int = 1) -> Figure:
    """One row of frames a clip: {name: uint8 (T, H, W, 3)}, every so many frames."""
    shown = {name: clip[::every] for name, clip in clips.items()}
    columns = max(map(len, shown.values()))
    size = 1.1 * columns + 1.2, 1.15 * len(shown)
    figure, axes = plt.subplots(len(shown), columns, figsize=size, squeeze=False, layout="constrained")
    for row, (name, clip) in zip(axes, shown.items(), strict=True):
        for t, ax in enumerate(row):
            ax.imshow(clip[t]) if t < len(clip) else ax.set_visible(False)
            _bare(ax)
        row[0].set_ylabel(name.replace("-", "-\n"), rotation=0, ha="right", va="center")
    for t, ax in enumerate(axes[0]):
        ax.set_title(f"frame {t * every}", fontsize="small")
    return _finished(figure)


def curves(series: Mapping[str, Sequence[float]], x: str, y: str, smooth: int = 1) -> Figure:
    """One line a series over 1, 2, ...; `smooth` is the length of a running mean."""
    figure, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for colour, (name, values) in zip(cycle(COLOURS), series.items(), strict=False):
        mean = np.convolve(values, np.full(smooth, 1 / smooth), "valid")
        ax.plot(np.arange(len(mean)) + smooth, mean, color=colour, label=name)
    ax.set(xlabel=x, ylabel=y)
    ax.grid(alpha=0.3)
    ax.legend()
    return _finished(figure)


def bars(groups: Mapping[str, Mapping[str, float]], y: str, lines: Mapping[str, float] | None = None) -> Figure:
    """Grouped bars {group: {bar: value}}, every value written on its bar, with named horizontal lines.

    The legend names bars and lines; a single bar a group needs none.
    """
    figure, ax = plt.subplots(figsize=(max(7.5, 1.4 * len(groups)), 3.6), layout="constrained")
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    width = 0.8 / len(names)
    for i, (name, colour) in enumerate(zip(names, cycle(COLOURS), strict=False)):
        places = np.arange(len(groups)) + (i - (len(names) - 1) / 2) * width
        drawn = ax.bar(places, [group.get(name, np.nan) for group in groups.values()], width, color=colour, label=name)
        ax.bar_label(drawn, fmt="%.3g", padding=2, fontsize="small", bbox={"color": "white", "pad": 0.5})  # over lines
    for i, (name, value) in enumerate((lines or {}).items()):
        ax.axhline(value, color="0.3", linestyle=("--", ":")[i % 2], label=name)
    ax.set_xticks(range(len(groups)), [fill(name, 14, break_long_words=False) for name in groups])
    ax.set_ylabel(y)
    ax.margins(y=0.12)
    if len(names) > 1 or lines:
        figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return _finished(figure)


def confusion_matrix(counts: np.ndarray, classes: Sequence[str], title: str = "") -> Figure:
    """How often clips of a class (row) were taken for each class (column): (N, N) of int; names up to 16 classes."""
    figure, axes = plt.subplots(figsize=(6.4, 5.6), layout="constrained")
    figure.colorbar(axes.imshow(counts, cmap="viridis"), label="clips")
    if len(classes) <= 16:
        axes.set_xticks(range(len(classes)), classes, rotation=90)
        axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted class", ylabel="true class", title=title)
    return _finished(figure)


def write_gif(path: str | os.PathLike[str], pictures: Iterable[np.ndarray], fps: float) -> None:
    """Write uint8 (H, W, 3) pictures as a GIF that repeats, whole or not at all.

    `fps` is kept on the average, as GIF counts in 10 ms, between 50, the most that viewers show, and one in 10 s.
    """
    step = 100 / min(max(fps, 0.1), 50)

    def timed() -> Iterator[Image.Image]:
        for number, picture in enumerate(pictures):
            image = Image.fromarray(picture)
            image.info["duration"] = 10 * (round((number + 1) * step) - round(number * step))
            yield image

    images = timed()
    with beside(path) as folder:
        next(images).save(folder / "whole", "GIF", save_all=True, append_images=images, loop=0)
        (folder / "whole").replace(path)


def write_flow_gif(video: Path, out: Path, *, width: int | None = None, **options: int | None) -> None:
    """Write a video's frames (320 px wide where `width` is None) beside their `video_flow` in colours, as a GIF."""
    with beside(out) as folder:
        write_gif(out, _frames_and_flow(video, folder, width or 320, options), flow_rate(video, options["stride"]))


def write_flow_mp4(video: Path, out: Path, *, width: int | None = None, **options: int | None) -> None:
    """Write what `write_flow_gif` writes as an .mp4."""
    with beside(out) as folder:
        write_mp4(out, _frames_and_flow(video, folder, width or 320, options), flow_rate(video, options["stride"]))


def write_channels(
    path: str | os.PathLike[str], frames: np.ndarray, flow: np.ndarray, channels: Sequence[int], fps: float
) -> None:
    """Write frames beside the learned flow of some channels, in colours, as a .gif or .mp4, whole or not at all.

    frames: uint8 (T, H, W, 3). flow: (2, C, T', h, w), as `learned_flows` has it; its maps are enlarged to the frames,
    and each of its T' times stands beside the frame at the same share of the clip. Each channel has its own scale.
    """
    H, W = frames.shape[1:3]
    scales = {channel: flow_scale(flow[:, channel]) for channel in channels}
    told = ", ".join(f"{channel} ({largest:.2g} px/frame)" for channel, largest in scales.items())
    _log.info("%d frames; from left to right channels, and what full colour stands for: %s", len(frames), told)

    def picture(t: int) -> np.ndarray:
        tiles = [frames[t * len(frames) // flow.shape[2]]]
        for channel, largest in scales.items():
            colours = Image.fromarray(flow_to_rgb(flow[:, channel, t], largest))
            tiles.append(np.asarray(colours.resize((W, H), Image.Resampling.NEAREST)))
        return np.concatenate(tiles, 1)

    write_film(path, map(picture, range(flow.shape[2])), fps)


def write_film(path: str | os.PathLike[str], pictures: Iterable[np.ndarray], fps: float) -> None:
    """Write pictures by `write_mp4` where the path ends in .mp4, else by `write_gif`."""
    write = write_mp4 if os.fspath(path).lower().endswith(".mp4") else write_gif
    write(path, pictures, fps)


def frame_and_flow(frame: np.ndarray, flow: np.ndarray, largest: float) -> np.ndarray:
    """An RGB frame (H, W, 3) beside its flow (2, h, w) in colours: uint8 (H, 2W, 3), with the wheel in a corner.

    A smaller map of flow is enlarged. Frames of less than 18 px have no room for the wheel.
    """
    H, W, _ = frame.shape
    colours = np.array(Image.fromarray(flow_to_rgb(flow, largest)).resize((W, H), Image.Resampling.NEAREST))
    if (pixels := min(frame.shape[:2]) // 6) >= 3:
        wheel = flow_wheel(pixels)
        corner = colours[-pixels:, -pixels:]
        corner[wheel[..., 3] > 0] = wheel[wheel[..., 3] > 0, :3]
    return np.concatenate([frame, colours], 1)


def draw_labels(picture: np.ndarray, labels: Sequence[tuple[str, float]]) -> np.ndarray:
    """An RGB picture (H, W, 3) with labels over its lower edge, each with its probability (0 to 1) as number and bar.

    The letters are as large as the longest label lets them be. Labels for which half the height has no room are left
    out, but for the first.
    """
    H, W, _ = picture.shape
    file, size = findfont("DejaVu Sans"), max(W / 22, 4)
    room = 0.94 * W - 4 * size  # the number has the rest
    widest = max(1, *(ImageFont.truetype(file, size).getlength(label) for label, _ in labels))
    font = ImageFont.truetype(file, max(size * min(1, room / widest), 4))
    line = 1.5 * font.size
    labels = labels[: max(1, int(H / 2 / line))]
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image, "RGBA")
    for row, (label, share) in enumerate(labels):
        top = H - (len(labels) - row) * line
        draw.rectangle((0, top, W, top + line), fill=(0, 0, 0, 150))
        draw.rectangle((0, top, share * W, top + line), fill=f"{COLOURS[0]}B0")
        for x, text, anchor in ((0.03 * W, label, "lm"), (0.97 * W, f"{100 * share:.0f} %", "rm")):
            draw.text((x, top + line / 2), text, "white", font, anchor)
    return np.asarray(image)


def _frames_and_flow(video: Path, folder: Path, width: int, options: Mapping[str, int | None]) -> Iterator[np.ndarray]:
    """`frame_and_flow` of each pair of taken frames; the flow lies in `folder` meanwhile.

    One scale for all frames: the 99th percentile of the flow's length, in a sample of it where it is long.
    """
    flow = video_flow(video, folder / "flow.npy", width=width, **options)
    largest = flow_scale(np.moveaxis(flow[:: max(1, len(flow) // 100), :, ::4, ::4], 1, 0))
    _log.info("full colour stands for %.2g px/frame in frames of %d x %d px", largest, *flow.shape[:1:-1])
    frames = iter_frames(video, options["start"], len(flow), options["stride"])
    for frame, motion in zip(frames, flow, strict=True):
        yield frame_and_flow(narrowed(frame, width), motion, largest)


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])


def _finished(figure: Figure) -> Figure:
    plt.close(figure)  # shown where it is returned, not once more by pyplot
    return figure
