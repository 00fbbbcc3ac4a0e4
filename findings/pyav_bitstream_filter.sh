#!/usr/bin/env bash
# PyAV: a bitstream filter empties the packet that it is given.
#
# BitStreamFilterContext.filter(packet) returns new packets and leaves the given one with size 0 and no time stamps, and it is no key
# frame any more. Who looks at a packet through a filter (which kinds of frame does it hold?) and decodes it afterwards hands the decoder
# an empty packet, which means "the film has ended" to it: not one frame comes, and the second packet raises EOFError, which a loop over
# a film takes for its end.
#
# Guess: the packet is emptied.
# Seen (the guess held):
#   PyAV 18.1.0: before (723, 0, True), after (0, None, False)
#   frames decoded: 30 without the filter, 0 after it
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install -q av==18.1.0 numpy==2.4.6
env/bin/python - <<'END'
import sys

import av
import numpy as np
from av.bitstream import BitStreamFilterContext

with av.open("film.mp4", "w") as file:
    stream = file.add_stream("libx264", rate=25)
    stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
    for k in range(30):
        file.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((96, 128, 3), 4 * k, np.uint8), "rgb24")))
    file.mux(stream.encode(None))

with av.open("film.mp4") as file:
    packet = next(file.demux(video=0))
    before = packet.size, packet.pts, packet.is_keyframe
    BitStreamFilterContext("h264_mp4toannexb", file.streams.video[0]).filter(packet)
    after = packet.size, packet.pts, packet.is_keyframe
print(f"PyAV {av.__version__}: before {before}, after {after}")

counts = []
for filtered in (False, True):
    with av.open("film.mp4") as file:
        look, count = BitStreamFilterContext("h264_mp4toannexb", file.streams.video[0]), 0
        for packet in file.demux(video=0):
            if filtered and packet.size:
                look.filter(packet)
            try:
                count += len(packet.decode())
            except av.EOFError:
                break
        counts.append(count)
print(f"frames decoded: {counts[0]} without the filter, {counts[1]} after it")
if after != (0, None, False) or counts != [30, 0]:
    sys.exit("changed: the filter leaves the packet")
END
