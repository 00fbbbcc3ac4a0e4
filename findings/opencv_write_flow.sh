#!/usr/bin/env bash
# OpenCV: writeOpticalFlow of a float64 array writes no flow and raises nothing.
#
# NumPy computes in float64, and almost all of OpenCV raises on a type that it does not take. writeOpticalFlow returns False and makes
# no file. A file of that name from an earlier run stays as it was, and readOpticalFlow then reads the old flow as if it were the new one.
#
# Guess: returns False, raises nothing.
# Seen (the guess held):
#   OpenCV 5.0.0: float64 returns False; the file holds 1.0
#   OpenCV 5.0.0: float32 returns True; the file holds 2.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install -q opencv-python-headless==5.0.0.93 numpy==2.4.6
env/bin/python - <<'END'
import sys

import cv2
import numpy as np

cv2.writeOpticalFlow("flow.flo", np.full((6, 7, 2), 1, np.float32))
for kind, written, held in ((np.float64, False, 1), (np.float32, True, 2)):
    returned = cv2.writeOpticalFlow("flow.flo", np.full((6, 7, 2), 2, kind))
    value = cv2.readOpticalFlow("flow.flo")[0, 0, 0]
    print(f"OpenCV {cv2.__version__}: {kind.__name__} returns {returned}; the file holds {value}")
    if (returned, value) != (written, held):
        sys.exit(f"changed: {kind.__name__} is written otherwise")
END
