#!/usr/bin/env bash
# Bicubic warping by a tenth of a pixel moves a picture by more: 0.136 in OpenCV, 0.172 in Pillow; bilinear moves it by 0.100.
#
# The cubic kernel with the parameter a = -0.75 (OpenCV) or -1 (Pillow's transform, whose resize has -0.5) does not keep a straight ramp
# straight. Who tests an optical flow on frames that were moved by such a "better" interpolation measures an error of one or two
# thirds of the motion, and it is the frames'. SciPy's cubic splines and a = -0.5 move the ramp by 0.100.
#
# Guess: none was written before the first run.
# Seen: a ramp that rises by 1 a pixel, moved by 0.1
#   OpenCV 5.0.0 0.136, Pillow 13.0.0 0.172, SciPy 1.17.1 0.100
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install -q opencv-python-headless==5.0.0.93 pillow==13.0.0 scipy==1.17.1 numpy==2.4.6
env/bin/python - <<'END'
import sys

import cv2
import numpy as np
import PIL
import scipy
from PIL import Image

y, x = np.mgrid[:16, :64].astype(np.float32)  # x is the ramp, too
tenth = Image.fromarray(x).transform((64, 16), Image.Transform.AFFINE, (1, 0, 0.1, 0, 1, 0), Image.Resampling.BICUBIC)
moved = {
    f"OpenCV {cv2.__version__}": cv2.remap(x, x + np.float32(0.1), y, cv2.INTER_CUBIC),
    f"Pillow {PIL.__version__}": np.asarray(tenth),
    f"SciPy {scipy.__version__}": scipy.ndimage.map_coordinates(x, [y, x + 0.1], order=3),
}
opencv, pillow, spline = shifts = [(image - x)[8, 32] for image in moved.values()]
print(", ".join(f"{name} {shift:.3f}" for name, shift in zip(moved, shifts)))
if not (abs(opencv - 0.136) < 0.002 and abs(pillow - 0.172) < 0.002 and abs(spline - 0.1) < 0.002):
    sys.exit("changed: the cubic kernels move a ramp otherwise")
END
