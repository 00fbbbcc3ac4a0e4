"""Video decoding, exact to the frame, and lintel's call convention."""

from repflow.video.backends import decoders, loadvid, loadvid_frame_nums
from repflow.video.opening import VideoError, open_video
from repflow.video.reading import (
    VideoInfo,
    count_frames,
    frame_rate,
    iter_frames,
    probe,
    read_clip,
)

__all__ = [
    "VideoError",
    "VideoInfo",
    "count_frames",
    "decoders",
    "frame_rate",
    "iter_frames",
    "loadvid",
    "loadvid_frame_nums",
    "open_video",
    "probe",
    "read_clip",
]
