#!/usr/bin/env bash
# flow_vis: one unknown pixel makes the whole picture of a flow white.
#
# Files of optical flow mark pixels without ground truth by values above 1e9 (Middlebury, and what reads its .flo files keeps them).
# flow_vis divides by the largest motion, takes that mark for one, and paints every other pixel nearly white and the unknown one in full
# colour. flowiz, made for the same files and colours, leaves the unknown out. Without unknown pixels both draw the same picture.
#
# Guess: both draw the same picture.
# Seen (the guess failed for unknown pixels): a motion of 1 pixel to the right, and one unknown pixel
#   flow_vis 0.1: known [255, 254, 254], unknown [255, 114, 0]; without unknown pixels [255, 0, 0]
#   flowiz 2.4.0: known [255, 0, 0], unknown [255, 255, 255]; without unknown pixels [255, 0, 0]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install -q flow-vis==0.1 flowiz==2.4.0 numpy==2.4.6
env/bin/python - <<'END'
import sys
from importlib.metadata import version

import flow_vis
import flowiz
import numpy as np

flow = np.zeros((4, 5, 2), np.float32)
flow[..., 0] = 1
marked = flow.copy()
marked[0, 0] = 1e10
seen = {}
for name, draw in {"flow_vis": flow_vis.flow_to_color, "flowiz": flowiz.convert_from_flow}.items():
    picture, clean = draw(marked.copy()), draw(flow.copy())
    seen[name] = np.array_equal(picture[1, 1], clean[1, 1])
    known, unknown, without = (pixel.tolist() for pixel in (picture[1, 1], picture[0, 0], clean[1, 1]))
    print(f"{name} {version(name)}: known {known}, unknown {unknown}; without unknown pixels {without}")
if seen != {"flow_vis": False, "flowiz": True}:
    sys.exit("changed: unknown pixels are drawn otherwise")
END
