"""lintel's call convention, on PyAV or on another decoder."""

import math
import sys
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import torch

from repflow.video.opening import VideoError, name_of, too_short
from repflow.video.reading import VideoInfo, choose_frames, count_frames, frame_rate, survey
from repflow.video.write import write_video


def loadvid(
    encoded_video: bytes,
    *,
    should_random_seek: bool = True,
    width: int = 0,
    height: int = 0,
    num_frames: int = 32,
    backend: str = "pyav",
    rng: np.random.Generator | None = None,
) -> tuple[bytearray, int, int, float] | tuple[bytearray, float]:
    """lintel's function of that name: (RGB bytes in T, H, W, C order, width, height, seconds skipped).

    Width and height are left out of the result where they were given; they must be the video's. The clip's start is
    uniform over all that fit, drawn from `rng` or PyTorch's generator, or 0 without random seek. A video shorter than
    `num_frames` repeats from its first frame on. Other than in lintel, the clip without random seek starts at frame 0,
    not 1; seeds reach the start, so that workers differ; the seconds are start / rate; videos are cropped and turned
    upright as their files say; videos without time stamps are read right.

    Raises ValueError for another size, and VideoError for unreadable and damaged videos (see `read_clip`), where lintel
    returns uninitialised memory or aborts. `backend` "lintel" and "torchcodec" decode with those packages (ImportError
    where they are missing) after the bytes have been decoded once with PyAV, since neither is strict. They refuse
    (VideoError) turned, mirrored or cropped videos and uneven time stamps. In some MPEG-TS and MPEG-PS files torchcodec
    gives other frames, as their times tell: VideoError, too.

        pixels, width, height, seconds = loadvid(Path("a.avi").read_bytes(), num_frames=16)
    """
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    length = count_frames(encoded_video)
    room = max(length - num_frames, 0) if should_random_seek else 0
    start = int(torch.randint(room + 1, ()) if rng is None else rng.integers(room + 1))
    numbers = [number % length for number in range(start, start + num_frames)]
    seconds = start / frame_rate(encoded_video) if start else 0.0
    return *_read(encoded_video, numbers, backend, width, height), seconds


def loadvid_frame_nums(
    encoded_video: bytes,
    *,
    frame_nums: Sequence[int],
    width: int = 0,
    height: int = 0,
    should_seek: bool = False,
    backend: str = "pyav",
) -> tuple[bytearray, int, int] | bytearray:
    """lintel's function of that name: the frames of these numbers (from 0), RGB bytes in T, H, W, C order.

    Returns (bytes, width, height), or the bytes alone where width and height were given. Other than in lintel, numbers
    may repeat and come in any order, are exact with `should_seek` or without (it changes nothing), and one beyond the
    video's end raises VideoError. For the rest see `loadvid`.
    """
    if not len(frame_nums) or min(frame_nums) < 0:
        raise ValueError(f"frame_nums must be one or more numbers from 0 on, got {list(frame_nums)}")
    result = _read(encoded_video, frame_nums, backend, width, height)
    return result[0] if width else result


def decoders() -> list[tuple[str, bool, str]]:
    """What `backend` may be: (name, whether it decodes a small clip, what was found or how to mend it).

    A lintel built on FFmpeg 5 or newer may hang here.
    """
    with TemporaryDirectory() as folder:
        write_video(Path(folder, "black.mp4"), np.zeros((2, 32, 32, 3), np.uint8), "mpeg4", 25)
        clip = Path(folder, "black.mp4").read_bytes()
    report = []
    for name in _BACKENDS:
        try:
            loadvid(clip, should_random_seek=False, num_frames=2, backend=name)
        except Exception as error:  # whatever a foreign decoder raises
            report.append((name, False, str(error)))
        else:
            version = getattr(sys.modules.get(name, av), "__version__", "unknown")
            report.append((name, True, f"decodes; version {version}"))
    return report


def _read(
    encoded: bytes, numbers: Sequence[int], backend: str, width: int, height: int
) -> tuple[bytearray, int, int] | tuple[bytearray]:
    """What lintel returns for the frames of these numbers."""
    if backend not in _BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(_BACKENDS)}, got {backend!r}")
    wanted, places = np.unique(numbers, return_inverse=True)
    frames = _BACKENDS[backend](encoded, wanted.tolist())[places]
    size = frames.shape[2], frames.shape[1]
    if (width, height) not in (size, (0, 0)):
        raise ValueError(
            f"width and height must be the video's, {size}, or 0, got {(width, height)}; resize afterwards"
        )
    return (bytearray(frames),) if width else (bytearray(frames), *size)


def _pyav(encoded: bytes, numbers: list[int]) -> np.ndarray:
    return np.stack(list(choose_frames(encoded, numbers)))


def _lintel(encoded: bytes, numbers: list[int]) -> np.ndarray:
    try:
        from lintel import loadvid_frame_nums as read
    except ImportError as error:
        raise ImportError(
            f"backend 'lintel' expected the video decoder ({error}); conda-forge has it for Python up to 3.9, PyPI's "
            "lintel is a docstring checker: never pip install that; or use backend='pyav'"
        ) from error
    (width, height, *_), _ = _vet(encoded, numbers)
    # Without should_seek it is off by one; its loadvid takes no seed, and skips frame 0 where nothing is random.
    pixels = read(bytes(encoded), frame_nums=numbers, width=width, height=height, should_seek=True)
    return np.frombuffer(pixels, np.uint8).reshape(len(numbers), height, width, 3)


def _torchcodec(encoded: bytes, numbers: list[int]) -> np.ndarray:
    _, times = _vet(encoded, numbers)
    try:
        from torchcodec.decoders import VideoDecoder

        frames = VideoDecoder(bytes(encoded), dimension_order="NHWC", num_ffmpeg_threads=1).get_frames_at(numbers)
    except (ImportError, OSError, RuntimeError, ValueError, IndexError) as error:
        reason = str(error).strip().partition("\n")[0]
        if isinstance(error, ImportError) or "load" in reason:  # FFmpeg is missed at the import or at the first use
            raise ImportError(
                f"backend 'torchcodec' does not work ({reason}); pip install torchcodec, in a version that fits this "
                "torch, and install FFmpeg's libraries with the system's package manager, or use backend='pyav'"
            ) from error
        raise VideoError(f"{name_of(encoded)}: torchcodec fails ({reason}); use backend='pyav'") from error
    wanted = np.array([float(times[number]) for number in numbers])
    wrong = np.flatnonzero(np.abs(np.asarray(frames.pts_seconds) - wanted) > 1e-6)
    if wrong.size:
        raise VideoError(
            f"{name_of(encoded)}: expected frame {numbers[wrong[0]]}, at {wanted[wrong[0]]:.6g} s, torchcodec gives "
            f"the one at {float(frames.pts_seconds[wrong[0]]):.6g} s; use backend='pyav'"
        )
    return frames.data.numpy()


_BACKENDS = {"pyav": _pyav, "lintel": _lintel, "torchcodec": _torchcodec}


def _vet(encoded: bytes, numbers: list[int]) -> tuple[VideoInfo, list[Fraction]]:
    """Data and times of a sound video that decoders which go by the time stamps read right; else VideoError."""
    info, times, altered = survey(encoded)
    steps = [0, math.inf] if None in times else [after - before for before, after in pairwise(times)] or [1]
    if altered or min(steps) <= 0 or max(steps) > 1.5 * min(steps):  # more than rounding
        raise VideoError(
            f"{name_of(encoded)}: turned, mirrored, cropped or without even time stamps; backend='pyav' reads it"
        )
    if numbers[-1] >= info.frames:
        raise too_short(encoded, numbers[-1], info.frames)
    return info, times
