#!/usr/bin/env bash
# OpenCV and decord2 show a video that is to be mirrored left to right upside down.
#
# MP4's display matrix can turn a picture or mirror it; cameras that face their user and editing programs write the latter, and FFmpeg's
# own option is -display_hflip. Both readers turn the frame by 180 degrees instead: the people in such a film stand on their heads.
# ffmpeg, asked for the same frames, mirrors them.
#
# Guess: both mirror, or leave the frame as it is.
# Seen (the guess failed), for a frame that is white in its top left quarter:
#   ffmpeg n9.0.2-17-g2a571b6068-20260930: white is top right
#   OpenCV 5.0.0: white is bottom right
#   decord2 3.4.0: white is bottom right
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install -q opencv-python-headless==5.0.0.93 imageio-ffmpeg==0.8.1 decord2==3.4.0 numpy==2.4.6
env/bin/python - <<'END'
import subprocess
import sys

import cv2
import decord
import imageio_ffmpeg
import numpy as np

decord.logging.set_level(decord.logging.QUIET)
frame = np.zeros((96, 128, 3), np.uint8)
frame[:48, :64] = 255
ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y"]
raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "128x96", "-r", "25"]
subprocess.run([*ffmpeg, *raw, "-i", "-", "-pix_fmt", "yuv420p", "coded.mp4"], input=10 * frame.tobytes(), check=True)
subprocess.run([*ffmpeg, "-display_hflip", "-i", "coded.mp4", "-c", "copy", "mirrored.mp4"], check=True)


def corner(picture: np.ndarray) -> str:
    quarters = {
        f"{row} {column}": picture[48 * i : 48 * i + 48, 64 * j : 64 * j + 64].mean()
        for i, row in enumerate(("top", "bottom"))
        for j, column in enumerate(("left", "right"))
    }
    return max(quarters, key=quarters.get)


command = [*ffmpeg, "-i", "mirrored.mp4", "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
decoded = subprocess.run(command, capture_output=True, check=True).stdout
seen = {
    f"ffmpeg {imageio_ffmpeg.get_ffmpeg_version()}": np.frombuffer(decoded, np.uint8).reshape(96, 128, 3),
    f"OpenCV {cv2.__version__}": cv2.VideoCapture("mirrored.mp4").read()[1],
    f"decord2 {decord.__version__}": decord.VideoReader("mirrored.mp4")[0].asnumpy(),
}
seen = {name: corner(picture) for name, picture in seen.items()}
for name, white in seen.items():
    print(f"{name}: white is {white}")
if list(seen.values()) != ["top right", "bottom right", "bottom right"]:
    sys.exit("changed")
END
