#!/usr/bin/env bash
# OpenCV 4: remap moves an image in steps of 1/32 pixel, also float32 images; OpenCV 5 moves it by what was asked.
#
# Warping by a flow of 0.01 pixel returns the image as it was, and 0.3 pixel is 0.3125. An optical flow that is refined by warping and
# estimating again cannot see its last error, and an error of warping measured with remap ends near 1/64 pixel. Between the versions, the
# same call on the same numbers gives other results.
#
# Guess: steps in 4.13, none in 5.0.
# Seen (the guess held): a ramp that rises by 1 a pixel, moved bilinearly
#   OpenCV 4.13.0: asked 0.0100 got 0.0000, asked 0.0200 got 0.0312, asked 0.3000 got 0.3125
#   OpenCV 5.0.0: asked 0.0100 got 0.0100, asked 0.0200 got 0.0200, asked 0.3000 got 0.3000
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat > warp.py <<'END'
import sys

import cv2
import numpy as np

y, x = np.mgrid[:16, :64].astype(np.float32)
got = {d: (cv2.remap(x, x + np.float32(d), y, cv2.INTER_LINEAR) - x)[8, 10] for d in (0.01, 0.02, 0.3)}
print(f"OpenCV {cv2.__version__}:", ", ".join(f"asked {d:.4f} got {moved:.4f}" for d, moved in got.items()))
exact = all(abs(d - moved) < 0.001 for d, moved in got.items())
if exact != (sys.argv[1] == "exact"):
    sys.exit(f"changed: OpenCV {cv2.__version__} is no longer {sys.argv[1]}")
END
for version in 4.13.0.92 5.0.0.93; do
  python3 -m venv "$version"
  "$version/bin/pip" install -q "opencv-python-headless==$version" numpy==2.4.6
done
4.13.0.92/bin/python warp.py stepped
5.0.0.93/bin/python warp.py exact
