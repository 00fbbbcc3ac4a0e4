#!/usr/bin/env bash
# PyAV 16 and PyAV 17 decode one file to different colours.
#
# A film in HD says in its header that its colours follow BT.709. PyAV up to 16 ignores that and decodes by BT.601; PyAV 17 decodes by
# BT.709. No call and no option differs, and nothing is said: frames that were extracted with the one and with the other do not mix, and
# a network that was trained on the one sees other greens in the other. A file without the tag gives the same colours in both.
#
# Guess: PyAV ignores the tag.
# Seen, for a green of 40 200 30 (the guess held up to PyAV 16 only):
#   PyAV 16.0.1: tagged.mp4, colour space 1, decoded as [50, 228, 33]
#   PyAV 16.0.1: untagged.mp4, colour space 2, decoded as [39, 198, 29]
#   PyAV 17.0.0: tagged.mp4, colour space 1, decoded as [38, 199, 28]
#   PyAV 17.0.0: untagged.mp4, colour space 2, decoded as [39, 198, 29]
# 12.3.0 to 15.1.0 decoded as 16.0.1, and 18.1.0 as 17.0.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat > write.py <<'END'
import av
import numpy as np

green = np.full((720, 1280, 3), (40, 200, 30), np.uint8)
for name, space in [("tagged.mp4", 1), ("untagged.mp4", 5)]:  # AVCOL_SPC_BT709 and BT470BG, which is BT.601
    with av.open(name, "w") as file:
        stream = file.add_stream("libx264", rate=25, options={"qp": "4"})
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        if space == 1:
            stream.codec_context.colorspace = space
        frame = av.VideoFrame.from_ndarray(green, "rgb24").reformat(format="yuv420p", dst_colorspace=space)
        frame.colorspace = space
        file.mux([*stream.encode(frame), *stream.encode(None)])
END
cat > read.py <<'END'
import sys

import av

seen = {}
for name in ("tagged.mp4", "untagged.mp4"):
    with av.open(name) as file:
        frame = next(file.decode(video=0))
        seen[name] = frame.to_ndarray(format="rgb24")[300, 300].tolist()
        print(f"PyAV {av.__version__}: {name}, colour space {int(frame.colorspace)}, decoded as {seen[name]}")
right = all(abs(a - b) < 5 for a, b in zip(seen["tagged.mp4"], (40, 200, 30)))
if right != (sys.argv[1] == "follows"):
    sys.exit(f"changed: PyAV {av.__version__} no longer {sys.argv[1]} the tag")
END
for version in 17.0.0 16.0.1; do
  python3 -m venv "$version"
  "$version/bin/pip" install -q "av==$version" numpy==2.4.6
done
17.0.0/bin/python write.py
16.0.1/bin/python read.py ignores
17.0.0/bin/python read.py follows
