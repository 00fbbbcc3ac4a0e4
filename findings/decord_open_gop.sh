#!/usr/bin/env bash
# decord2 and decord: a frame's number means another frame once the film is not read in order.
#
# H.264 with open groups of pictures (television, x264 with open-gop) and MPEG-4 with B-frames in AVI (as older data sets hold it) read
# right from the start on. get_batch([37, 10, 24, 13]) on the same file gives other frames, silently, though indexing is meant to seek
# exactly. Clips that start in the middle, as in every training, hold frames from elsewhere.
#
# Guess: none was written before the first run.
# Seen:
#   decord2 3.4.0: closed.mp4 in order right: True, get_batch([37, 10, 24, 13]) gives [37, 10, 24, 13]
#   decord2 3.4.0: open.mp4 in order right: True, get_batch([37, 10, 24, 13]) gives [40, 13, 27, 16]
#   decord2 3.4.0: mpeg4.avi in order right: True, get_batch([37, 10, 24, 13]) gives [30, 0, 8, 0]
# decord 0.6.0 gave the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install -q decord2==3.4.0 numpy==2.4.6
python3 -m venv writer
writer/bin/pip install -q av==18.1.0 numpy==2.4.6
writer/bin/python - <<'END'
import av
import numpy as np

x264 = "keyint=12:min-keyint=12:scenecut=0:bframes=3:b-adapt=0:open-gop="
for name, codec, options in [
    ("closed.mp4", "libx264", {"x264-params": x264 + "0"}),
    ("open.mp4", "libx264", {"x264-params": x264 + "1"}),
    ("mpeg4.avi", "mpeg4", {"bf": "2", "g": "12", "qmax": "2"}),
]:
    with av.open(name, "w") as file:
        stream = file.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for k in range(60):  # frame k is a grey of 4 k
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((96, 128, 3), 4 * k, np.uint8), "rgb24")))
        file.mux(stream.encode(None))
END
env/bin/python - <<'END'
import sys

import decord

decord.logging.set_level(decord.logging.QUIET)
asked, right = [37, 10, 24, 13], {}
for name in ("closed.mp4", "open.mp4", "mpeg4.avi"):
    frames = decord.VideoReader(name)
    ordered = [round(frames[k].asnumpy().mean() / 4) for k in range(len(frames))] == list(range(60))
    given = [round(frame.mean() / 4) for frame in decord.VideoReader(name).get_batch(asked).asnumpy()]
    right[name] = given == asked
    print(f"decord2 {decord.__version__}: {name} in order right: {ordered}, get_batch({asked}) gives {given}")
    if not ordered:
        sys.exit("changed: frames in order are wrong")
if right != {"closed.mp4": True, "open.mp4": False, "mpeg4.avi": False}:
    sys.exit("changed: other films are read right")
END
