#!/usr/bin/env bash
# torchvision's clips of AVI files with B-frames hold other frames than those that were asked for.
#
# HMDB51 and UCF101 are AVI files of MPEG-4, and torchvision's classes of these names cut them by VideoClips. Where such a file has
# B-frames, most of the clips of one frame show another frame than the one of their number, several in a row the same, and the last frame
# is never seen. torchcodec, which reads for it, gives frame 39 for the last one, 40. Nothing is raised. Of the same pictures as H.264 in
# MP4 all are right.
#
# Guess: both give frame k for k, as for MP4.
# Seen (the guess failed):
#   torchvision 0.28.0+cu130: h264.mp4 [0, 1, 2, 3, 4, 5] ... [39, 40]
#   torchcodec 0.17.0+cu130: h264.mp4 get_frame_at(40) is 40
#   torchvision 0.28.0+cu130: mpeg4.avi [0, 3, 3, 3, 6, 6] ... [39, 39]
#   torchcodec 0.17.0+cu130: mpeg4.avi get_frame_at(40) is 39
# Needs FFmpeg's libraries on the system, as torchcodec does. PyTorch is a large download.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install -q uv==0.13.9
env/bin/uv pip install -q --python env/bin/python torch==2.13.0 torchvision==0.28.0 torchcodec==0.17.0 numpy==2.4.6
python3 -m venv writer
writer/bin/pip install -q av==18.1.0 numpy==2.4.6
writer/bin/python - <<'END'
import av
import numpy as np

for name, codec, options in [
    ("h264.mp4", "libx264", {"bf": "2", "g": "10"}),
    ("mpeg4.avi", "mpeg4", {"bf": "2", "g": "10", "qmax": "2"}),
]:
    with av.open(name, "w") as file:
        stream = file.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for k in range(41):  # frame k is a grey of 6 k
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((96, 128, 3), 6 * k, np.uint8), "rgb24")))
        file.mux(stream.encode(None))
END
env/bin/python - <<'END'
import sys
import warnings

import torchcodec
import torchvision
from torchcodec.decoders import VideoDecoder
from torchvision.datasets.video_utils import VideoClips

warnings.simplefilter("ignore")
right = {}
for name in ("h264.mp4", "mpeg4.avi"):
    clips = VideoClips([name], clip_length_in_frames=1, output_format="THWC")
    numbers = [round(float(clips.get_clip(k)[0].float().mean()) / 6) for k in range(len(clips))]
    last = round(float(VideoDecoder(name).get_frame_at(40).data.float().mean()) / 6)
    print(f"torchvision {torchvision.__version__}: {name} {numbers[:6]} ... {numbers[-2:]}")
    print(f"torchcodec {torchcodec.__version__}: {name} get_frame_at(40) is {last}")
    right[name] = numbers == list(range(41)), last == 40
if right != {"h264.mp4": (True, True), "mpeg4.avi": (False, False)}:
    sys.exit(f"changed: right are now {right}")
END
