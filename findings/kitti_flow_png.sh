#!/usr/bin/env bash
# KITTI's flow files, read by imageio, scikit-image or Pillow, lose half their bits, and every pixel becomes invalid.
#
# KITTI stores flow in PNG with three channels of 16 bits: u and v as 64 x + 32768, and 1 where there is ground truth. Pillow opens such
# a file as RGB of 8 bits without a word, and imageio and scikit-image read by Pillow: the mark of validity, 1, becomes 0, and a motion
# is known to 4 pixels. The shape is right. OpenCV keeps 16 bits with IMREAD_UNCHANGED (in the order valid, v, u), and halves them without.
#
# Guess: 8 bits, silently.
# Seen (the guess held), for a motion of 3.5 and -2.25 pixels:
#   imageio 2.38.1: uint8, 128 127 0
#   scikit-image 0.26.0: uint8, 128 127 0
#   Pillow 13.0.0: uint8, 128 127 0
#   OpenCV 5.0.0, unchanged and reversed: uint16, 32992 32624 1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install -q imageio==2.38.1 scikit-image==0.26.0 pillow==13.0.0 opencv-python-headless==5.0.0.93 numpy==2.4.6
env/bin/python - <<'END'
import sys

import cv2
import imageio
import numpy as np
import PIL
import skimage
import skimage.io
from PIL import Image

stored = np.full((8, 9, 3), (64 * 3.5 + 32768, 64 * -2.25 + 32768, 1), np.uint16)
cv2.imwrite("flow.png", stored[..., ::-1])
read = {
    f"imageio {imageio.__version__}": imageio.v3.imread("flow.png"),
    f"scikit-image {skimage.__version__}": skimage.io.imread("flow.png"),
    f"Pillow {PIL.__version__}": np.asarray(Image.open("flow.png")),
    f"OpenCV {cv2.__version__}, unchanged and reversed": cv2.imread("flow.png", cv2.IMREAD_UNCHANGED)[..., ::-1],
}
for name, values in read.items():
    print(f"{name}: {values.dtype},", *values[0, 0])
*lossy, whole = read.values()
halved = all(values.dtype == np.uint8 and not values[..., 2].any() for values in lossy)
if not (halved and np.array_equal(whole, stored)):
    sys.exit("changed: some reader keeps 16 bits now, or OpenCV does not")
END
