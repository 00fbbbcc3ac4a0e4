#!/usr/bin/env bash
# imageio's two readers disagree on how many frames a film of variable rate has.
#
# Phones and screen recorders write films whose frames last unequally long. imageio reads the frames of the file with its PyAV plugin;
# with its FFMPEG plugin it repeats frames until the rate is constant. Which one reads depends on what is installed. A repeated frame is
# a pair without motion: its flow is zero, and a network for motion sees a film that stutters.
#
# Guess: the FFMPEG plugin repeats frames.
# Seen (the guess held), for 20 frames of which every fifth lasts three times as long:
#   imageio 2.38.1, imageio-ffmpeg 0.8.1, PyAV 18.1.0
#   pyav: 20 frames, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
#   FFMPEG: 28 frames, [0, 0, 0, 1, 2, 3, 4, 5, 5, 5]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install -q imageio==2.38.1 imageio-ffmpeg==0.8.1 av==18.1.0 numpy==2.4.6
env/bin/python - <<'END'
import sys
from fractions import Fraction

import av
import imageio
import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np

with av.open("phone.mp4", "w") as file:
    stream = file.add_stream("libx264", rate=25, options={"bf": "0"})
    stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
    stream.codec_context.time_base = Fraction(1, 100)
    time = 0
    for k in range(20):  # frame k is a grey of 10 k
        frame = av.VideoFrame.from_ndarray(np.full((96, 128, 3), 10 * k, np.uint8), "rgb24")
        frame.pts, frame.time_base = time, Fraction(1, 100)
        time += 4 if k % 5 else 12
        file.mux(stream.encode(frame))
    file.mux(stream.encode(None))

print(f"imageio {imageio.__version__}, imageio-ffmpeg {imageio_ffmpeg.__version__}, PyAV {av.__version__}")
counts = {}
for plugin in ("pyav", "FFMPEG"):
    numbers = [round(frame.mean() / 10) for frame in iio.imiter("phone.mp4", plugin=plugin)]
    counts[plugin] = len(numbers)
    print(f"{plugin}: {len(numbers)} frames, {numbers[:10]}")
if not counts["pyav"] == 20 < counts["FFMPEG"]:
    sys.exit("changed: the readers repeat other frames, or none")
END
