"""Sliders around figures, for JupyterLab, and the same figures for readers of a page. Core ipywidgets only."""

import io
from collections.abc import Callable, Sequence
from html import escape
from itertools import chain, pairwise
from time import perf_counter
from typing import Any, NamedTuple

import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor, nn

from repflow.data.flow import narrowed
from repflow.data.pairs import moving_pair
from repflow.figures import COLOURS, draw_arrows, draw_flow, flow_scale, flow_to_rgb
from repflow.models.learned import learned_flows
from repflow.solver import solve
from repflow.tvl1 import Warp, grey, tvl1
from repflow.video import read_clip

# Pairs to choose from: the class of SyntheticMotion that moves so, and its speed in px/frame.
MADE = {"shift": ("right", 1.5), "far shift": ("down", 12.0), "turn": ("clockwise", 2.0), "zoom": ("zoom-in", 2.0)}
_GIVEN, _OWN = "the notebook's", "your own video"
_SIDE = 256  # px of the made pairs; wider videos are narrowed to it
_SLIDERS = {
    "lam": lambda: widgets.FloatLogSlider(0.15, min=-2.5, max=0.5, step=0.05, readout_format=".3f"),
    "theta": lambda: widgets.FloatSlider(0.3, min=0.05, max=1.0, step=0.05),
    "tau": lambda: widgets.FloatSlider(0.25, min=0.01, max=0.5, step=0.01),
    "iterations": lambda: widgets.IntSlider(30, min=1, max=100),
    "warps": lambda: widgets.IntSlider(5, min=1, max=10),
    "scales": lambda: widgets.IntSlider(5, min=1, max=6),
}


class Pair(NamedTuple):
    """Two grey frames (H, W) in 0..255 and, where it is known, the flow (2, H, W) from the first to the second."""

    frame1: np.ndarray
    frame2: np.ndarray
    true: np.ndarray | None = None


def made_pair(name: str, size: int = _SIDE, seed: int = 0) -> Pair:
    """A generated pair (size, size) whose flow is known exactly; `name` is one of MADE."""
    kind, speed = MADE[name]
    return Pair(*moving_pair(kind, speed, size, seed))


def tvl1_explorer(frame1: np.ndarray, frame2: np.ndarray, true: np.ndarray | None = None) -> widgets.Widget:
    """Sliders for `tvl1`'s parameters above its figure, on this pair, a made one (MADE) or frames of a video.

    frame1, frame2: grey (H, W) in 0..255, any real dtype; with the true flow (2, H, W) the end-point error is told.
    It solves again when a slider is let go. Colours and arrows keep their scale until another pair is chosen.
    """
    sliders = {name: make() for name, make in _SLIDERS.items()}
    pair = widgets.Dropdown(options=[_GIVEN, *MADE, _OWN], description="pair")
    path = widgets.Text(placeholder="path of a video", description="video", continuous_update=False)
    upload = widgets.FileUpload(accept="video/*", description="upload", tooltip="10 MB at most, Jupyter's limit")
    frame = widgets.BoundedIntText(0, min=0, max=10**7, description="frame", continuous_update=False)

    def make() -> _TVL1View:
        if pair.value == _GIVEN:
            return _TVL1View(Pair(frame1, frame2, true))
        if pair.value != _OWN:
            return _TVL1View(made_pair(pair.value))
        source = bytes(upload.value[0]["content"]) if upload.value else path.value
        if not source:
            raise ValueError("choose a video with “upload”, or type the path of one")
        return _TVL1View(Pair(*grey(np.stack([narrowed(f, _SIDE) for f in read_clip(source, frame.value, 2)]))))

    def solve_again(view: _TVL1View) -> None:
        view.solve(**{name: slider.value for name, slider in sliders.items()})

    for name, slider in sliders.items():
        slider.description, slider.continuous_update = name, False
    columns = list(sliders.values())
    choices = [pair, frame, path, upload]
    return _explorer([choices, columns[:3], columns[3:]], choices, make, solve_again)


def tvl1_figure(
    frame1: np.ndarray, frame2: np.ndarray, true: np.ndarray | None = None, **parameters: float | int
) -> Figure:
    """What `tvl1_explorer` shows for these parameters of `tvl1`, as a figure: for pages, where no slider lives."""
    view = _TVL1View(Pair(frame1, frame2, true))
    view.solve(**({name: make().value for name, make in _SLIDERS.items()} | parameters))
    return view.figure


def channel_explorer(model: nn.Module, clip: Tensor) -> widgets.Widget:
    """What each channel of each flow layer in `model` sees in a clip (C, T, H, W), which it takes as (1, C, T, H, W).

    Sliders choose channel and time. Raises ValueError for a model without a flow layer of this package's.
    """
    flows = learned_flows(model, clip)
    layer = widgets.Dropdown(options=[(f"flow {i + 1}", i) for i in range(len(flows))], description="layer")
    channel, time = (widgets.IntSlider(0, description=name, continuous_update=False) for name in ("channel", "time"))

    def make() -> _ChannelView:
        _, channels, times, _, _ = flows[layer.value].shape
        channel.max, time.max = channels - 1, times - 1
        return _ChannelView(clip, flows[layer.value])

    return _explorer([[layer, channel, time]], [layer], make, lambda view: view.show(channel.value, time.value))


def channel_figure(model: nn.Module, clip: Tensor, layer: int = 0, channel: int = 0, time: int = 0) -> Figure:
    """What `channel_explorer` shows for this layer, channel and time, as a figure."""
    view = _ChannelView(clip, learned_flows(model, clip)[layer])
    view.show(channel, time)
    return view.figure


class _View:
    """A figure that is drawn once; after that only the artists that change are: a tenth of the time."""

    def __init__(self) -> None:
        self.figure = Figure(figsize=(9.6, 7), dpi=80, layout="constrained")
        self.canvas = FigureCanvasAgg(self.figure)
        self.axes = self.figure.subplots(2, 2)

    def keep_all_but(self, changing: Sequence[Artist]) -> None:
        self.changing = changing
        for artist in changing:
            artist.set_animated(True)  # laid out, and not drawn
        self.canvas.draw()
        self.still = self.canvas.copy_from_bbox(self.figure.bbox)
        self.figure.set_layout_engine("none")  # it stays as it is
        for artist in changing:
            artist.set_animated(False)

    def png(self) -> bytes:
        self.canvas.restore_region(self.still)
        for artist in self.changing:
            self.figure.draw_artist(artist)
        file = io.BytesIO()
        Image.fromarray(np.asarray(self.canvas.buffer_rgba())[..., :3]).save(file, "PNG", compress_level=1)
        return file.getvalue()


class _TVL1View(_View):
    """A pair's flow as arrows and colours, the difference that it leaves, and how fast the energy falls."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        frames = (np.asarray(frame, np.float32) for frame in pair[:2])  # differences of bytes would wrap
        self.pair = pair = Pair(*frames, pair.true)
        self.warp = Warp(*(torch.as_tensor(frame)[None, None] for frame in (pair.frame1, pair.frame2)))
        found = tvl1(pair.frame1, pair.frame2).numpy()  # where this compiles, it does so before anything is timed
        reference = found if pair.true is None else pair.true
        self.largest = flow_scale(reference)
        (arrows, colours), (left, energy) = self.axes
        draw_arrows(arrows, pair.frame1, reference)
        draw_flow(colours, reference, self.largest)
        colours.set_title("flow")
        self.before = np.abs(pair.frame2 - pair.frame1)
        difference = left.imshow(self.before, "magma", vmin=0, vmax=max(np.percentile(self.before, 99.5), 1))
        left.set(xticks=[], yticks=[])
        self.figure.colorbar(difference, ax=left, label="grey levels")
        (self.falls,) = energy.plot([], [], "o-", color=COLOURS[0], label="iterating from rest")
        self.reached = energy.axhline(0, color=COLOURS[1], linestyle="--", label="the flow shown")
        energy.set(xscale="log", ylim=(0, 120), title="energy, linearised at the flow shown")
        energy.set(xlabel="inner iterations", ylabel="energy (% of that at rest)")
        energy.grid(alpha=0.3)
        energy.legend(loc="upper right", fontsize="small")
        self.title = self.figure.suptitle("solved")
        self.arrows, self.colours, self.difference = arrows.collections[0], colours.images[0], difference
        self.left = left.set_title("|frame 2 − frame 1|")
        changing = [self.arrows, self.colours, *colours.child_axes, difference, self.left, energy.xaxis, energy.yaxis]
        self.keep_all_but([*changing, self.falls, self.reached, energy.get_legend(), self.title])

    def solve(self, **parameters: float | int) -> None:
        start = perf_counter()
        flow = tvl1(self.pair.frame1, self.pair.frame2, **parameters)
        told = f"solved in {1000 * (perf_counter() - start):.0f} ms"
        seen = flow.numpy()
        if self.pair.true is not None:
            told += f", mean end-point error {np.hypot(*(seen - self.pair.true)).mean():.3f} px"
        self.title.set_text(told)
        self.arrows.set_UVC(*seen[:, *self.arrows.XY.T[::-1].astype(int)])
        self.colours.set_data(flow_to_rgb(seen, self.largest))
        flow = flow[:, None, None]
        rho_c, grad = self.warp.linearise(flow)
        after = (rho_c + (grad * flow).sum(0))[0, 0].abs().numpy()  # 0 where the flow leaves frame 2
        self.difference.set_data(after)
        self.left.set_text(f"|frame 2 − frame 1|: mean {self.before.mean():.2f}, warped {after.mean():.2f}")
        steps, falling, reached = _energies(rho_c, grad, flow, parameters)
        self.falls.set_data(steps, falling)
        self.reached.set_ydata([reached, reached])
        low, high = min(*falling, reached), max(*falling, reached)
        margin = max(0.1 * (high - low), 1)
        self.falls.axes.set(xlim=(0.9, max(1.1 * steps[-1], 11)), ylim=(low - margin, high + margin))


def _energies(
    rho_c: Tensor, grad: Tensor, flow: Tensor, parameters: dict[str, float | int]
) -> tuple[list[int], list[float], float]:
    """Percent of the energy at rest: after so many inner iterations from rest, and of `flow`, for one linearisation."""
    lam, iterations = parameters["lam"], int(parameters["iterations"])

    def energy(flow: Tensor) -> float:
        along_x = flow.diff(dim=-1, append=flow[..., -1:])
        along_y = flow.diff(dim=-2, append=flow[..., -1:, :])
        return float(torch.hypot(along_x, along_y).sum() + lam * (rho_c + (grad * flow).sum(0)).abs().sum())

    numbers = {name: parameters[name] for name in ("lam", "theta", "tau")}
    rest = torch.zeros_like(flow)
    at_rest = max(energy(rest), 1e-6)  # two equal frames have none
    steps = sorted({round(iterations ** (i / 12)) for i in range(13)})
    now, dual, falling = rest, None, []
    for done, step in pairwise([0, *steps]):
        now, dual = solve(rho_c, grad, iterations=step - done, flow=now, dual=dual, **numbers)
        falling.append(100 * energy(now) / at_rest)
    return steps, falling, 100 * energy(flow) / at_rest


class _ChannelView(_View):
    """One channel's flow over the clip, in colours and over time, beside all channels of its layer."""

    def __init__(self, clip: Tensor, flow: np.ndarray) -> None:
        super().__init__()
        self.flow, self.frames = flow, _pictures(clip)
        _, channels, times, H, W = flow.shape
        self.largest = flow_scale(flow)
        (arrows, colours), (every, mean) = self.axes
        height, width = self.frames.shape[1:3]
        step = max(1, W // 16)
        self.at = np.mgrid[step // 2 : H : step, step // 2 : W : step]
        y, x = ((i + 0.5) * size / n - 0.5 for i, size, n in zip(self.at, (height, width), (H, W), strict=True))
        self.frame = arrows.imshow(self.frames[0])
        spacing = step * width / W  # an arrow of the largest flow reaches over two
        options = {"angles": "xy", "scale_units": "xy", "scale": self.largest / (2 * spacing), "width": 0.005}
        self.arrows = arrows.quiver(x, y, *flow[:, 0, 0][:, *self.at], color=COLOURS[4], **options)
        arrows.set(xticks=[], yticks=[])
        self.named = arrows.set_title("channel")
        draw_flow(colours, flow[:, 0, 0], self.largest)
        colours.set_title("its flow")
        self.columns = int(np.ceil(channels**0.5))
        every.set(xticks=[], yticks=[], title=f"all {channels} channels, in the same colours")
        self.colours, self.every = colours.images[0], every.imshow(self._mosaic(0))
        self.mark = every.add_patch(Rectangle((-1, -1), W + 1, H + 1, fill=False, color="black", linewidth=2))
        self.means = flow.mean((3, 4))
        self.lines = [
            mean.plot(np.zeros(times), style, color=colour, label=label)[0]
            for style, colour, label in (("o-", COLOURS[0], "u, to the right"), ("s--", COLOURS[1], "v, down"))
        ]
        self.now = mean.axvline(0, color="0.5")
        reach = 1.1 * max(float(np.abs(self.means).max()), 0.01)
        mean.set(ylim=(-reach, 1.4 * reach), title="over time")
        mean.set(xlabel="time (pair of maps)", ylabel="mean flow (px/frame)")
        mean.grid(alpha=0.3)
        mean.legend(loc="upper left", ncols=2, fontsize="small")
        changing = [self.frame, self.arrows, self.named, self.colours, *colours.child_axes, self.every, self.mark]
        self.keep_all_but([*changing, *self.lines, self.now])

    def show(self, channel: int, time: int) -> None:
        _, channels, times, H, W = self.flow.shape
        frame = time * (len(self.frames) - 1) // times
        seen = self.flow[:, channel, time]
        self.frame.set_data(self.frames[frame])
        self.arrows.set_UVC(*seen[:, *self.at])
        self.named.set_text(f"channel {channel} of {channels}, over frame {frame}")
        self.colours.set_data(flow_to_rgb(seen, self.largest))
        self.every.set_data(self._mosaic(time))
        row, column = divmod(channel, self.columns)
        self.mark.set_xy((column * (W + 1) - 1, row * (H + 1) - 1))
        for line, values in zip(self.lines, self.means[:, channel], strict=True):
            line.set_ydata(values)
        self.now.set_xdata([time, time])

    def _mosaic(self, time: int) -> np.ndarray:
        """The flow of all channels in colours, one grey pixel between two."""
        colours = flow_to_rgb(self.flow[:, :, time].swapaxes(0, 1), self.largest)
        tiles = np.pad(colours, ((0, -len(colours) % self.columns), (0, 1), (0, 1), (0, 0)), constant_values=128)
        rows = tiles.reshape(-1, self.columns, *tiles.shape[1:])
        return np.concatenate(np.concatenate(rows.swapaxes(0, 1), 2), 0)


def _pictures(clip: Tensor) -> np.ndarray:
    """A clip (C, T, H, W) to look at, uint8 (T, H, W, 3): its colours, or the mean of its channels, stretched."""
    shown = clip.detach().cpu().float()
    shown = shown if len(shown) == 3 else shown.mean(0, keepdim=True).expand(3, -1, -1, -1)
    low, high = shown.min(), shown.max()
    return (255 * (shown - low) / (high - low).clamp(min=1e-6)).byte().permute(1, 2, 3, 0).numpy()


def _explorer(
    rows: Sequence[Sequence[widgets.Widget]],
    choices: Sequence[widgets.Widget],
    make: Callable[[], _View],
    show: Callable[[Any], None],
) -> widgets.Widget:
    """Rows of controls, which wrap where the page is narrow, above a message and the picture of a view.

    One of the `choices` makes the view anew, and each control shows it anew. Errors that this raises are shown: those
    of callbacks go to a log that nobody opens.
    """
    message = widgets.HTML(layout=widgets.Layout(min_height="2em", flex="0 0 auto"))
    # As wide as the page lets it be; its attributes tell the browser its proportions before it comes.
    layout = widgets.Layout(width="100%", max_width="768px", height="auto", flex="0 0 auto")
    picture = widgets.Image(format="png", width=768, height=560, layout=layout)
    view = make()

    def draw() -> None:
        show(view)
        picture.value = view.png()

    def update(change: Any) -> None:
        nonlocal view
        try:
            if change.owner in choices:
                view = make()
            draw()
        except Exception as error:
            message.value = f'<b style="color: {COLOURS[1]}">{escape(str(error) or repr(error))}</b>'
        else:
            message.value = ""

    draw()
    for control in chain(*rows):
        control.layout.max_width = "calc(100% - 4px)"  # its margins
        control.observe(update, "value")
    boxes = [widgets.HBox(row, layout=widgets.Layout(flex_flow="row wrap", flex="0 0 auto")) for row in rows]
    return widgets.VBox([*boxes, message, picture])
