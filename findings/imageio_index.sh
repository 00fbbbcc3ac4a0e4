#!/usr/bin/env bash
# imageio's PyAV plugin: imread(index=k) is not the frame number k of a film with B-frames.
#
# Read in order, the film's frames are right. Asked for one by its index, imageio gives a neighbour, and nothing is said; its last
# frame ends in a StopIteration. The film is what `ffmpeg -c:v mpeg4 -bf 2` writes. A data set that draws single frames from films
# (a clip with a stride) trains on others than it names, two frames of a clip can be the same one, and flow between them is zero.
#
# Guess: right for closed groups of pictures, wrong for open ones.
# Seen (the guess failed: H.264 with closed groups was right in MP4 and Matroska, but wrong in AVI):
#   imageio 2.38.1, PyAV 18.1.0
#   b.avi: 60 frames, in order right: True; index -> frame {5: 6, 10: 12, 11: 12, 12: 12, 13: 15, 14: 15, 35: 36, 59: 'StopIteration'}
#   b.mp4: the same
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install -q imageio==2.38.1 av==18.1.0 numpy==2.4.6
env/bin/python - <<'END'
import sys

import av
import imageio
import imageio.v3 as iio
import numpy as np


def number(frame: np.ndarray) -> int:
    return round(frame.mean() / 4)


def at(name: str, index: int) -> int | str:
    try:
        return number(iio.imread(name, plugin="pyav", index=index))
    except StopIteration:
        return "StopIteration"


print(f"imageio {imageio.__version__}, PyAV {av.__version__}")
for name in ("b.avi", "b.mp4"):
    with av.open(name, "w") as file:
        stream = file.add_stream("mpeg4", rate=25, options={"bf": "2", "g": "12", "qmax": "2"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for k in range(60):  # frame k is a grey of 4 k
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((96, 128, 3), 4 * k, np.uint8), "rgb24")))
        file.mux(stream.encode(None))
    ordered = [number(frame) for frame in iio.imiter(name, plugin="pyav")] == list(range(60))
    found = {k: at(name, k) for k in (5, 10, 11, 12, 13, 14, 35, 59)}
    print(f"{name}: 60 frames, in order right: {ordered}; index -> frame {found}")
    if not ordered or all(k == frame for k, frame in found.items()):
        sys.exit(f"changed: imageio reads the frames of {name} otherwise")
END
