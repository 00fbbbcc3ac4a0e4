"""`repflow classify`."""

import argparse
import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from repflow.cli.options import check_out, numbers_of
from repflow.files import Row, write_csv, write_whole
from repflow.lab.parameters import UsageError

if TYPE_CHECKING:
    from repflow.classify import Answer

FILMS, TABLES = (".mp4", ".gif"), (".csv", ".json")
_log = logging.getLogger(__name__)


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("videos", type=Path, nargs="+", metavar="VIDEO", help="any video file")
    add("--checkpoint", type=Path, required=True, metavar="FILE",
        help="weights: of a run of this package, or a .pt file (or its conversion) of the 2019 release")  # fmt: skip
    add("--top", type=int, default=5, metavar="N", help="labels of each video (default: 5)")
    add("--window", metavar="N", help="also for parts of so many seconds (2.5), or frames (64f)")
    add("--classes", type=Path, metavar="FILE", help="names for a checkpoint that has none, one a line, in its order")
    add("--out", type=Path, metavar="FILE", help="a .csv or .json with the rows; for one video an .mp4 or .gif: the "
        "video with the labels over it, and beside it what a flow layer in the network sees")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """The likeliest classes of each video: the mean over ten clips, which are cut as in the checkpoint's training. A
    video that cannot be read is named, and the others go on; the exit code then is 1."""
    numbers_of(arguments, top=1)
    _check_window(arguments.window)
    _check_out(arguments.out, arguments.videos)
    from repflow.classify import class_names, classify, write_labelled
    from repflow.data.lists import read_classes
    from repflow.training import open_checkpoint

    checkpoint = open_checkpoint(arguments.checkpoint)
    names = class_names(checkpoint, arguments.classes and read_classes(arguments.classes))
    out, found = arguments.out, {}
    for video in arguments.videos:
        try:
            window = _window_of(video, arguments.window)
            found[video] = classify(checkpoint, video, window=window, classes=names, top=arguments.top)
        except (OSError, ValueError) as error:
            _log.error("not classified: %s", error)
            continue
        _show(video, found[video])
    if out and out.suffix.lower() in FILMS:
        for video, answers in found.items():
            write_labelled(out, video, answers, checkpoint)
    elif out and found:
        rows = [row for video, answers in found.items() for row in _rows(video, answers)]
        if out.suffix.lower() == ".csv":
            write_csv(out, rows)
        else:
            write_whole(out, f"{json.dumps(rows, indent=2)}\n".encode())
    return int(len(found) < len(set(arguments.videos)))


def _check_window(window: str | None) -> None:
    if window is not None and not (re.fullmatch(r"\d+f|\d+(\.\d+)?", window) and float(window.rstrip("f")) > 0):
        raise UsageError(f"--window {window}: expected seconds, such as 2.5, or frames, such as 64f")


def _check_out(out: Path | None, videos: list[Path]) -> None:
    if out is None:
        return
    check_out(out, *FILMS, *TABLES)
    if out.suffix.lower() in FILMS and len(videos) > 1:
        raise UsageError(f"--out {out}: shows one video, got {len(videos)}; name one, or a .csv or .json file")
    if any(out.exists() and video.exists() and out.samefile(video) for video in videos):
        raise UsageError(f"--out {out}: is the video itself; take another name")


def _window_of(video: Path, window: str | None) -> int | None:
    """The frames of a part of this video."""
    from repflow.data.flow import flow_rate

    if window is None or window.endswith("f"):
        return window and int(window[:-1])
    return round(float(window) * flow_rate(video, 1))


def _show(video: Path, answers: "list[Answer]") -> None:
    whole, *parts = answers
    sys.stdout.write(f"{video}  {whole}\n")
    for part in parts:
        sys.stdout.write(f"  {part.start:.1f}–{part.end:.1f} s  {part}\n")
    sys.stdout.flush()  # the next video may take long


def _rows(video: Path, answers: "list[Answer]") -> list[Row]:
    name = os.fspath(video).encode("utf-8", "backslashreplace").decode()  # file names may be in any encoding
    return [
        {"video": name, "start": part.start, "end": part.end, "rank": rank, "label": label, "probability": share}
        for part in answers
        for rank, (label, share) in enumerate(part.labels, 1)
    ]
