#!/usr/bin/env bash
# OpenCV: two of its optical flows want float frames of different ranges, and neither refuses the other's.
#
# calcOpticalFlowFarneback on float32 frames from 0 to 1 finds no motion at all: its regularisation is made for 0 to 255.
# DualTVL1OpticalFlow on float32 frames from 0 to 255 finds wild motion at some pixels: it multiplies float frames by 255 itself. Who
# compares the two methods on the same float frames has one of them wrong, whichever range is taken. (DIS refuses float frames.)
#
# Guess: Farneback sees the same in both ranges; DualTVL1 sees in 0 to 255 what it sees in uint8, and something else in 0 to 1.
# Seen (both guesses failed), for a texture that moves by 2 pixels:
#   OpenCV 5.0.0 Farneback: uint8 mean 2.018, worst error 0.79; 0 to 1 mean 0.000, worst error 2.00; 0 to 255 mean 2.018, worst error 0.79
#   OpenCV 5.0.0 DualTVL1: uint8 mean 1.993, worst error 0.29; 0 to 1 mean 1.993, worst error 0.29; 0 to 255 mean 1.657, worst error 160.16
# OpenCV 4.13.0 did the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install -q opencv-contrib-python-headless==5.0.0.93 numpy==2.4.6
env/bin/python - <<'END'
import sys

import cv2
import numpy as np

frame = cv2.GaussianBlur(np.random.default_rng(0).random((64, 64)).astype(np.float32), (0, 0), 2)
frame = np.round(255 * (frame - frame.min()) / (frame.max() - frame.min())).astype(np.uint8)
later = np.roll(frame, 2, 1)
ranges = {"uint8": lambda x: x, "0 to 1": lambda x: np.float32(x) / 255, "0 to 255": np.float32}
methods = {
    "Farneback": lambda a, b: cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 15, 3, 5, 1.2, 0),
    "DualTVL1": lambda a, b: cv2.optflow.DualTVL1OpticalFlow_create().calc(a, b, None),
}
worst = {}
for method, flow in methods.items():
    texts = []
    for name, convert in ranges.items():
        u = flow(convert(frame), convert(later))[..., 0]
        worst[method, name] = np.abs(u - 2).max()
        texts.append(f"{name} mean {u.mean():.3f}, worst error {worst[method, name]:.2f}")
    print(f"OpenCV {cv2.__version__} {method}: {'; '.join(texts)}")
wrong = {key for key, error in worst.items() if error > 1}
if wrong != {("Farneback", "0 to 1"), ("DualTVL1", "0 to 255")}:
    sys.exit(f"changed: wrong are now {sorted(wrong)}")
END
