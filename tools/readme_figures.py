"""The README's figure and GIFs, made from generated data: `python tools/readme_figures.py` (a minute).

docs/explorer.png   TV-L1 on a turning pair, as notebook 01's sliders show it
docs/flow.gif       a clip that zooms, beside its TV-L1 flow
docs/channels.gif   a clip that speeds up above one that slows down, beside second flows that a network has learned
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

from repflow.data import Clips, SyntheticMotion
from repflow.data.synthetic import PAIRS, render
from repflow.figures import flow_scale, flow_to_rgb, frame_and_flow, write_gif
from repflow.models.learned import learned_flows
from repflow.training import Recipe, train
from repflow.tvl1 import grey, tvl1
from repflow.widgets import made_pair, tvl1_figure

_SHOWN = 4  # channels


def zooming(frames: int = 12, size: int = 128) -> list[np.ndarray]:
    """Each frame beside its flow to the next one, uint8 (size, 2 size, 3)."""
    clip = render("zoom-in", np.random.default_rng(0), size, frames, speed=2.0)
    flows = tvl1(grey(clip[:-1]), grey(clip[1:])).numpy()
    return [frame_and_flow(frame, flow, 4.0) for frame, flow in zip(clip[:-1], flows, strict=True)]


def learned(steps: int = 80, clips: int = 60) -> list[np.ndarray]:
    """Above a clip that speeds up, below one that slows down, and beside each what the second flow makes of it.

    The channels are those whose mean flows differ most between the two clips.
    """
    with TemporaryDirectory() as folder:
        SyntheticMotion.make(Path(folder) / "set", train=clips, test=1, unused=0)
        classes = [name for pair in PAIRS for name in pair]
        training = Clips(SyntheticMotion(Path(folder) / "set", "train", classes), frames=9, train=True)
        model = train("flow_of_flow_2d", training, len(classes), Recipe(steps), backbone="tiny_2d", iterations=10).model
    shown = [render(name, np.random.default_rng(0), speed=1.8) for name in PAIRS[0]]
    flows = np.stack([learned_flows(model, torch.from_numpy(c).permute(3, 0, 1, 2) / 127.5 - 1)[1] for c in shown])
    means = flows.mean((3, 4, 5))  # (clips, 2, channels)
    picked = flows[:, :, np.argsort(-np.hypot(*(means[0] - means[1])))[:_SHOWN]]
    largest = flow_scale(picked.swapaxes(0, 1))
    colours = flow_to_rgb(picked.transpose(3, 0, 2, 1, 4, 5), largest)  # (times, clips, channels, H, W, 3)
    return [
        np.vstack([np.hstack([_tile(p) for p in (clip[t], *row)]) for clip, row in zip(shown, rows, strict=True)])
        for t, rows in enumerate(colours)
    ]


def _tile(picture: np.ndarray) -> np.ndarray:
    """A picture of 96 px, its own pixels as squares, with a white rim."""
    inner = Image.fromarray(picture).resize((92, 92), Image.Resampling.NEAREST)
    return np.pad(np.asarray(inner), ((2, 2), (2, 2), (0, 0)), constant_values=255)


def main(folder: Path) -> None:
    """Write the three files into `folder`, made where there is none."""
    folder.mkdir(exist_ok=True)
    tvl1_figure(*made_pair("turn")).savefig(folder / "explorer.png", dpi=80)
    write_gif(folder / "flow.gif", zooming(), fps=8)
    write_gif(folder / "channels.gif", learned(), fps=3)


if __name__ == "__main__":
    main(Path(__file__).parents[1] / "docs")
