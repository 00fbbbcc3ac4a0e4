#!/usr/bin/env bash
# scikit-image: optical_flow_tvl1 finds no motion in frames of 8 bits that are stored in wider integers.
#
# The same frames move by 2 pixels as uint8, by 0.2 as int16, by 0.02 as uint16, and not at all as int32: each integer type is scaled by
# its whole range, and the method's weights expect values near 1. A difference of uint8 frames, or a tensor turned into an array, is
# readily int32. Nothing is said; float frames from 0 to 255 are taken as they are and get another flow again.
#
# Guess: int16, and float frames from 0 to 255, find another motion than uint8.
# Seen (the guess held; that int32 finds none was a surprise):
#   scikit-image 0.26.0: uint8 2.000, int16 0.227, uint16 0.022, int32 0.000
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install -q scikit-image==0.26.0 scipy==1.17.1 numpy==2.4.6
env/bin/python - <<'END'
import sys

import numpy as np
import skimage
from scipy.ndimage import gaussian_filter
from skimage.registration import optical_flow_tvl1

frame = gaussian_filter(np.random.default_rng(0).random((64, 64)), 2, mode="wrap")
frame = np.round(255 * (frame - frame.min()) / np.ptp(frame)).astype(np.uint8)
later = np.roll(frame, 2, 1)
types = ("uint8", "int16", "uint16", "int32")
motion = {kind: np.median(optical_flow_tvl1(frame.astype(kind), later.astype(kind))[1]) for kind in types}
print(f"scikit-image {skimage.__version__}:", ", ".join(f"{kind} {u:.3f}" for kind, u in motion.items()))
if not (motion["uint8"] > 1.9 and motion["int16"] < 1 and abs(motion["int32"]) < 0.01):
    sys.exit("changed: the type of the frames counts otherwise")
END
