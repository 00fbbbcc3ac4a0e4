"""What a trained network says of any video: the likeliest classes of the whole and of its parts, as text or film."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from repflow.data import Views
from repflow.data.flow import flow_rate, narrowed
from repflow.evaluation import check_classes, predict
from repflow.figures import draw_labels, flow_scale, frame_and_flow, write_film
from repflow.models.learned import has_flow_layer, learned_flows
from repflow.training import Checkpoint
from repflow.video import VideoError, count_frames, iter_frames

CLIPS = 10  # of a video, as `repflow evaluate` takes
LEGIBLE, WIDEST = 320, {".gif": 320, ".mp4": 640}  # px: narrower frames are enlarged, wider ones reduced
DRAWN = 3  # labels over a film


class Answer(NamedTuple):
    """What a network says of a video from `start` to `end`, in seconds.

    labels: (name, probability in 0..1), the likeliest first.

        >>> str(Answer(0.0, 2.0, [("run", 0.831), ("walk", 0.09)]))
        'run 83.1 %, walk 9.0 %'
    """

    start: float
    end: float
    labels: list[tuple[str, float]]

    def __str__(self) -> str:
        return ", ".join(f"{name} {100 * share:.1f} %" for name, share in self.labels)


def classify(
    checkpoint: Checkpoint,
    video: str | os.PathLike[str],
    *,
    window: int | None = None,
    classes: Sequence[str] | None = None,
    top: int = 5,
) -> list[Answer]:
    """The `top` likeliest classes of a video; with `window`, also of each part of so many frames, behind the whole.

    Clips are cut as in the checkpoint's training; where it takes flow beside them, TV-L1 is computed. Probabilities are
    the mean over ten clips of the video, as `evaluate` has them, and over the clips that a part holds side by side, at
    most ten. A rest that is shorter than a clip belongs to the part before it. `classes`: see `class_names`. Raises
    VideoError for a video that cannot be read, ValueError for a window shorter than a clip, and as `predict` does.

        >>> print(classify(open_checkpoint("runs/motion/best.pt"), "my.mp4")[0])
        run 83.1 %, walk 9.0 %, ...
    """
    names, settings = class_names(checkpoint, classes), _settings(checkpoint)
    length, rate = count_frames(video), flow_rate(video, 1)
    clip = (settings["frames"] - 1) * settings["stride"] + 1 + ("flow" in settings)
    if window is not None and window < clip:
        raise ValueError(f"{os.fspath(video)!r}, window: expected at least {clip} frames, a clip's, got {window}")

    def said(parts: list[range], clips: int) -> list[Answer]:
        scores = predict(checkpoint.model, _views(video, parts, clips, settings), batch=16)
        if not np.isfinite(scores).all():
            raise VideoError(f"{os.fspath(video)!r}: a part of it cannot be read; cut it off, or encode it anew")
        best = np.argsort(-scores, 1, kind="stable")[:, :top]
        return [
            Answer(part.start / rate, part.stop / rate, [(names[i], float(row[i])) for i in order])
            for part, row, order in zip(parts, scores, best, strict=True)
        ]

    whole = said([range(length)], CLIPS)
    starts = [start for start in range(0, length, window or length) if not start or length - start >= clip]
    if len(starts) == 1:
        return whole
    parts = [range(*ends) for ends in zip(starts, [*starts[1:], length], strict=True)]
    return whole + said(parts, min(CLIPS, window // clip))


def class_names(checkpoint: Checkpoint, classes: Sequence[str] | None = None) -> list[str]:
    """The names of a checkpoint's classes: its own; where it has none `classes`, or else "class 0", "class 1", ...

    Raises ValueError for `classes` that differ from the checkpoint's own, or are not as many as the network tells.
    """
    *_, bias = checkpoint.model.parameters()  # the classifier's
    if classes is None:
        return checkpoint.classes or [f"class {i}" for i in range(len(bias))]
    if checkpoint.classes is not None:
        check_classes(checkpoint.classes, classes, "the checkpoint and the names given for its classes")
    if len(classes) != len(bias):
        raise ValueError(f"classes: expected {len(bias)} names, the network tells so many classes; got {len(classes)}")
    return list(classes)


def write_labelled(
    path: str | os.PathLike[str], video: str | os.PathLike[str], answers: Sequence[Answer], checkpoint: Checkpoint
) -> None:
    """Write a video with the labels of `classify` over it as an .mp4 or .gif, whole or not at all.

    Each part shows its own labels. Where the network has a flow layer, each frame stands beside what the last such
    layer sees of it, in colours: the flow in the channel with the most motion, of frames cut to no square. Frames wider
    than 640 px (.gif: 320) are reduced, narrow ones enlarged. Shows progress. Raises as `iter_frames` does.
    """
    rate, widest = flow_rate(video, 1), WIDEST[Path(path).suffix.lower()]
    length, parts = round(answers[0].end * rate), answers[1:] or answers
    flows = _channel(checkpoint, video, length) if has_flow_layer(checkpoint.model) else None

    def pictures() -> Iterator[np.ndarray]:
        for t, frame in enumerate(tqdm(iter_frames(video), "writing", length, leave=False, unit="frame")):
            times = max(1, LEGIBLE // frame.shape[1])
            frame = narrowed(frame, widest).repeat(times, 0).repeat(times, 1)
            now = [part for part in parts if part.start <= t / rate][-1]
            picture = draw_labels(frame, now.labels[:DRAWN])
            yield frame_and_flow(picture, *next(flows)) if flows else picture

    write_film(path, pictures(), rate)


def _channel(checkpoint: Checkpoint, video: str | os.PathLike[str], length: int) -> Iterator[tuple[np.ndarray, float]]:
    """For each frame the flow (2, h, w) that one channel of the last flow layer sees, and what full colour stands for.

    Clip by clip, in constant memory. A few clips decide which channel has the most motion, and its scale.
    """
    settings = _settings(checkpoint) | {"crop": None}
    span = settings["frames"] * settings["stride"]
    parts = [range(start, min(start + span, length)) for start in range(0, length, span)]
    views = _views(video, parts, 1, settings)

    def flow(index: int) -> np.ndarray:
        return learned_flows(checkpoint.model, views[index][0][0])[-1]

    some = np.concatenate([flow(index) for index in range(0, len(parts), 1 + len(parts) // 5)], 2)
    channel = np.hypot(*some).mean((1, 2, 3)).argmax()
    largest = flow_scale(some[:, channel])
    for index, part in enumerate(parts):
        maps = flow(index)[:, channel]
        for t in range(len(part)):
            yield maps[:, ((t + 1) * maps.shape[1] - 1) // span], largest


def _settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """How clips are cut; the flow that a network takes beside them is computed."""
    takes: Sequence[str] = getattr(checkpoint.model, "inputs", ())  # the released networks have no such list
    return checkpoint.clips | ({"flow": "tvl1"} if "flow" in takes else {})


def _views(video: str | os.PathLike[str], parts: list[range], clips: int, settings: dict[str, Any]) -> Views:
    source = SimpleNamespace(samples=[(video, 0)] * len(parts), parts=parts)
    return Views(source, clips=clips, **settings)
