#!/usr/bin/env bash
# PyAV and OpenCV: grey pictures that x264 keeps without loss come back stretched; those of x265 and FFV1 do not.
#
# H.264 has a kind of its own for grey, and libx264 writes it (pix_fmt gray). FFmpeg's decoder gives such frames as yuv420p, and says
# nothing of their range. Their bytes are those that were written, 0 to 255, yet on the way to grey or RGB both readers take them for
# 16 to 235: what is darker or brighter is lost. Masks, depths and optical flow kept so are wrong by up to 20 levels of 255. The first
# plane of PyAV's frame has the right values.
#
# Guess: lossless is lossless, with all three.
# Seen (the guess failed for x264), for the levels 0, 16, 128, 235, 255:
#   PyAV 18.1.0, OpenCV 5.0.0
#   libx264, decoded as yuv420p: first plane [0 16 128 235 255]; PyAV [0 0 130 255 255]; OpenCV [0 0 130 255 255]
#   libx265, decoded as gray: first plane [0 16 128 235 255]; PyAV [0 16 128 235 255]; OpenCV [0 16 128 235 255]
#   ffv1, decoded as gray: first plane [0 16 128 235 255]; PyAV [0 16 128 235 255]; OpenCV [0 16 128 235 255]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install -q opencv-python-headless==5.0.0.93 av==18.1.0 numpy==2.4.6
env/bin/python - <<'END'
import sys

import av
import cv2
import numpy as np

av.logging.set_level(av.logging.ERROR)
ramp = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
levels = [0, 16, 128, 235, 255]
print(f"PyAV {av.__version__}, OpenCV {cv2.__version__}")
worst = {}
for codec, options in {"libx264": {"qp": "0"}, "libx265": {"x265-params": "lossless=1:log-level=none"}, "ffv1": {}}.items():
    with av.open("grey.mkv", "w") as file:
        stream = file.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 256, 64, "gray"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(ramp, "gray")))
        file.mux(stream.encode(None))
    with av.open("grey.mkv") as file:
        frame = next(file.decode(video=0))
    read = {
        "first plane": frame.to_ndarray()[:64],
        "PyAV": frame.to_ndarray(format="gray"),
        "OpenCV": cv2.VideoCapture("grey.mkv").read()[1][..., 0],
    }
    print(f"{codec}, decoded as {frame.format.name}: {'; '.join(f'{name} {p[0, levels]}' for name, p in read.items())}")
    worst[codec] = [int(np.abs(picture.astype(int) - ramp).max()) for picture in read.values()]
if worst["libx265"] != [0, 0, 0] or worst["ffv1"] != [0, 0, 0] or worst["libx264"][0] != 0 or min(worst["libx264"][1:]) < 10:
    sys.exit(f"changed: the greatest errors are {worst}")
END
