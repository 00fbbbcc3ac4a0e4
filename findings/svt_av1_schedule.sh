#!/usr/bin/env bash
# SVT-AV1 makes a process of root's a real-time one, of the highest priority, and leaves it so.
#
# Encoding three frames with PyAV's libsvtav1 turns the scheduling policy of the thread that encodes from SCHED_OTHER into
# SCHED_FIFO with priority 99. It stays after the file is closed, and every process started later inherits it. In a container,
# where all is root's, a test suite or a data pipeline that once writes AV1 then runs its browser, its workers and its notebooks
# before everything else on the machine: two busy ones of them on two cores, and nothing else moves any more. x264 and x265 change nothing.
#
# Guess: an encoder's threads may have a priority of their own, the caller's is left alone.
# Seen (the guess failed):
#   PyAV 18.1.0, libx264: policy 0, priority 0; a child: policy 0
#   PyAV 18.1.0, libx265: policy 0, priority 0; a child: policy 0
#   PyAV 18.1.0, libsvtav1: policy 1, priority 99; a child: policy 1
# The script takes the policy back. For another user than root, or where real-time priority is not allowed, it says so and ends.
set -euo pipefail
if [ "$(uname)" != Linux ] || [ "$(id -u)" != 0 ] || ! chrt --fifo 99 true 2>/dev/null; then
  echo "SKIPPED: root may not set real-time priorities here, or this is not root on Linux"
  exit 0
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install -q av==18.1.0 numpy==2.4.6
env/bin/python - 2>/dev/null <<'END'
import os
import subprocess
import sys

import av
import numpy as np

ASK = "import os; print(os.sched_getscheduler(0))"
seen = {}
for codec in ("libx264", "libx265", "libsvtav1"):
    with av.open(f"{codec}.mkv", "w") as file:
        stream = file.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for grey in (0, 40, 80):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), grey, np.uint8), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    child = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True).stdout.strip()
    seen[codec] = os.sched_getscheduler(0), os.sched_getparam(0).sched_priority
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    print(f"PyAV {av.__version__}, {codec}: policy {seen[codec][0]}, priority {seen[codec][1]}; a child: policy {child}")
calm = os.SCHED_OTHER, 0
if seen != {"libx264": calm, "libx265": calm, "libsvtav1": (os.SCHED_FIFO, 99)} or child != str(os.SCHED_FIFO):
    sys.exit("CHANGED: expected SCHED_FIFO 99 after libsvtav1 alone")
END
echo "OK"
