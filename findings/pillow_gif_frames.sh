#!/usr/bin/env bash
# Pillow: an animation read back has fewer frames than were saved, and 30 frames a second become 33.
#
# Saved as GIF, PNG or WebP, equal successive frames are merged into one that lasts longer. A film of a still object comes back short:
# n_frames is not the number of frames, and frame k is not frame k. A GIF counts in hundredths of a second: the 33 ms of 30 frames a
# second are cut to 30 (PNG and WebP keep 33), so a film of ten seconds ends after nine.
#
# Guess: GIF merges equal frames, and 33 ms become 30 or 40.
# Seen (the guess held; WebP and PNG merge too):
#   Pillow 13.0.0: 10 frames of 33 ms saved
#   GIF: 4 frames of [90, 60, 90, 60] ms, together 300
#   PNG: 4 frames of [99, 66, 99, 66] ms, together 330
#   WEBP: 4 frames of [99, 66, 99, 66] ms, together 330
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install -q pillow==13.0.0
env/bin/python - <<'END'
import sys

import PIL
from PIL import Image

frames = [Image.new("RGB", (16, 16), (grey,) * 3) for grey in (0, 0, 0, 80, 80, 160, 160, 160, 255, 255)]
print(f"Pillow {PIL.__version__}: {len(frames)} frames of 33 ms saved")
seen = {}
for kind in ("GIF", "PNG", "WEBP"):
    frames[0].save(f"film.{kind}", kind, save_all=True, append_images=frames[1:], duration=33)
    durations = []
    with Image.open(f"film.{kind}") as film:
        for k in range(film.n_frames):
            film.seek(k)
            film.load()
            durations.append(round(film.info["duration"]))
    seen[kind] = len(durations), sum(durations)
    print(f"{kind}: {len(durations)} frames of {durations} ms, together {sum(durations)}")
if seen != {"GIF": (4, 300), "PNG": (4, 330), "WEBP": (4, 330)}:
    sys.exit("changed: frames are merged or timed otherwise")
END
