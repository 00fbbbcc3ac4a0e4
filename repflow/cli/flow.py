"""`repflow flow`."""

import argparse
import sys
from pathlib import Path

from repflow.cli.options import check_out, numbers_of
from repflow.lab.parameters import UsageError


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("video", type=Path, metavar="VIDEO", help="any video file")
    add("--out", type=Path, required=True, metavar="FILE",
        help="a .gif or .mp4 to look at, an .npz with the numbers, or a .flo with those of the first two "
        "frames")  # fmt: skip
    add("--start", type=int, default=0, metavar="N", help="first frame (default: 0)")
    add("--frames", type=int, metavar="N",
        help="at most so many frames (default: all; with --checkpoint as many as it was trained on)")  # fmt: skip
    add("--stride", type=int, default=1, metavar="N", help="take every N-th frame (default: 1)")
    add("--width", type=int, metavar="PX", help="reduce wider frames first (default: 320 for pictures)")
    add("--checkpoint", type=Path, metavar="FILE",
        help="instead of TV-L1, the flow that this trained model computes inside, as .gif or .mp4")  # fmt: skip
    add("--channels", type=int, nargs="+", metavar="N", help="which of its channels (default: 0 1 2)")
    add("--layer", type=int, metavar="N", help="which of its flows, 0 is the first (default: the last)")


def run(arguments: argparse.Namespace) -> int:
    """Compute TV-L1 flow between successive frames, and write it as a GIF or MP4 (frames beside flow colours) or as
    arrays: `flow` (T-1, 2, H, W) in pixels per frame taken, u to the right and v down, and `fps`."""
    options = numbers_of(arguments, start=0, frames=1, stride=1, width=1)
    if arguments.checkpoint:
        check_out(arguments.out, ".gif", ".mp4")
        _write_learned_flow(arguments)
    else:
        for name in ("channels", "layer"):
            if getattr(arguments, name) is not None:
                raise UsageError(f"--{name}: is of the flow inside a trained model; name it: --checkpoint FILE")
        check_out(arguments.out, ".gif", ".mp4", ".npz", ".flo")
        from repflow.data.flow import write_flow_flo, write_flow_npz
        from repflow.figures import write_flow_gif, write_flow_mp4

        writers = {".gif": write_flow_gif, ".mp4": write_flow_mp4, ".npz": write_flow_npz, ".flo": write_flow_flo}
        writers[arguments.out.suffix.lower()](arguments.video, arguments.out, **options)
    sys.stdout.write(f"{arguments.out}\n")
    return 0


def _write_learned_flow(arguments: argparse.Namespace) -> None:
    import numpy as np
    import torch

    from repflow.data.flow import flow_rate, narrowed
    from repflow.figures import write_channels
    from repflow.models.learned import learned_flows
    from repflow.training import open_checkpoint
    from repflow.video import read_clip

    model, settings, *_ = open_checkpoint(arguments.checkpoint)
    frames, width = arguments.frames or settings["frames"], arguments.width or 320
    layer, channels = -1 if arguments.layer is None else arguments.layer, arguments.channels or [0, 1, 2]
    pixels = read_clip(arguments.video, arguments.start, frames, arguments.stride)
    pixels = np.stack([narrowed(frame, width) for frame in pixels])
    clip = torch.from_numpy(pixels).permute(3, 0, 1, 2) * (2 / 255) - 1
    flows = learned_flows(model, -clip if settings["inverted"] else clip)
    if layer not in range(-len(flows), len(flows)):
        raise UsageError(f"--layer {layer}: the model has {len(flows)} flows, 0 to {len(flows) - 1}")
    flow = flows[layer]
    if wrong := [channel for channel in channels if channel not in range(flow.shape[1])]:
        raise UsageError(f"--channels {wrong[0]}: this flow has channels 0 to {flow.shape[1] - 1}")
    write_channels(arguments.out, pixels, flow, channels, flow_rate(arguments.video, arguments.stride))
