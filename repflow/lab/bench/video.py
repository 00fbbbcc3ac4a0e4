"""Speed of reading random clips from videos, by this package and others."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from repflow.data.flow import resize
from repflow.files import Row
from repflow.lab.bench.timing import statistics, time_in_turn
from repflow.processes import fresh_processes
from repflow.video import VideoError, probe, read_clip, write

Reader = Callable[[str, int, int], np.ndarray]  # file, first frame, number of frames -> uint8 (T, H, W, 3) RGB
SIDE = 112  # pixels of the clips that are handed out
PLAIN = "PyAV, to_ndarray"


def time_readers(videos: Mapping[str, Path], clips: int = 24, repeats: int = 5, frames: int = 32) -> list[Row]:
    """Clips a second of `frames` frames at random starts, resized to 112 x 112, by 1 and by 2 DataLoader workers.

    videos: files by the name they are to have in the table. Each round reads the same `clips` clips of a video by every
    reader, in random order. A row has the seconds of a round (median, interquartile range, minimum), clips_per_s by
    the median, and how many times as fast as plain PyAV that is; or a note that a reader is not installed.
    """
    context = fresh_processes(__name__)  # PyAV's to_ndarray keeps a pool of threads, and waits for it in a fork
    rows = []
    for name, path in tqdm(videos.items(), desc="videos", leave=False):
        data = {reader: RandomClips(os.fspath(path), read, frames, clips) for reader, read in READERS.items()}
        able = [reader for reader in READERS if _is_installed(data[reader])]
        for workers in (1, 2):
            options = {"num_workers": workers, "persistent_workers": True, "multiprocessing_context": context}
            tasks = {reader: partial(_read_all, DataLoader(data[reader], None, **options)) for reader in able}
            seconds = time_in_turn(tasks, repeats)
            medians = {reader: float(np.median(times)) for reader, times in seconds.items()}
            for reader in (*able, *(reader for reader in READERS if reader not in able)):
                row: Row = {"video": name, "workers": workers, "reader": reader}
                median = medians.get(reader)
                row |= {"clips_per_s": median and clips / median, "speedup_plain": median and medians[PLAIN] / median}
                note = "" if reader in able else "not installed"
                rows.append(row | statistics(seconds.get(reader), "s") | {"note": note})
    return rows


class RandomClips(Dataset[Tensor]):
    """So many clips of one video; clip i begins at a frame that depends on i alone."""

    def __init__(self, path: str, read: Reader, frames: int, clips: int) -> None:
        self.path, self.read, self.frames = path, read, frames
        latest = probe(path).frames - frames
        if latest < 0:
            raise VideoError(f"{path!r}: expected at least {frames} frames, got {latest + frames}; take a longer video")
        self.starts = np.random.default_rng(0).integers(latest + 1, size=clips).tolist()

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Tensor:
        torch.set_num_threads(1)
        pixels = self.read(self.path, self.starts[index], self.frames)
        return resize(torch.from_numpy(pixels).permute(0, 3, 1, 2), (SIDE, SIDE))


def make_videos(folder: Path) -> dict[str, Path]:
    """Two videos of 320 x 240 px: one like Kinetics' (H.264, 10 s, a key frame every 12), one like HMDB51's."""
    files = {"H.264, 10 s": folder / "kinetics.mp4", "MPEG-4 avi, 3 s": folder / "hmdb.avi"}
    kinetics, hmdb = files.values()
    write_video(kinetics, "libx264", 300, (320, 240), g="12")
    write_video(hmdb, "mpeg4", 90, (320, 240))
    return files


def write_video(path: Path, codec: str, frames: int, size: tuple[int, int], **options: str) -> None:
    """A texture that moves by 2 px to the left and 1 down a frame: 30 frames and 600 kbit a second.

    size: width and height, both even. options: the codec's.
    """
    width, height = size
    cells = np.random.default_rng(0).integers(0, 256, (3, height // 8 + 40, width // 8 + 50), np.uint8)
    texture = resize(torch.from_numpy(cells), [8 * side for side in cells.shape[1:]]).permute(1, 2, 0).numpy()
    pictures = (np.roll(texture, (t, -2 * t), (0, 1))[:height, :width] for t in range(frames))
    write.write_video(path, pictures, codec, 30, b="600000", **options)


def _read_all(loader: DataLoader) -> None:
    for _ in loader:
        pass


def _is_installed(clips: RandomClips) -> bool:
    """Whether what the clips' reader needs is there."""
    try:
        clips.read(clips.path, 0, clips.frames)
    except (ImportError, RuntimeError):  # the latter: torchcodec without FFmpeg's libraries
        return False
    return True


def read_plainly(path: str, start: int, frames: int) -> np.ndarray:
    """As one writes it first: seek by time, then an array of every frame."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        first = round(start / (stream.average_rate * stream.time_base))
        container.seek(first, stream=stream)
        pictures = []
        for frame in container.decode(stream):
            if frame.pts >= first:
                pictures.append(frame.to_ndarray(format="rgb24"))
            if len(pictures) == frames:
                break
    return np.stack(pictures)


def read_by_torchcodec(path: str, start: int, frames: int) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, num_ffmpeg_threads=1, dimension_order="NHWC")
    return decoder.get_frames_in_range(start, start + frames).data.numpy()


def read_by_opencv(path: str, start: int, frames: int) -> np.ndarray:
    import cv2

    cv2.setNumThreads(1)
    capture = cv2.VideoCapture(path)
    capture.set(cv2.CAP_PROP_POS_FRAMES, start)
    pictures = [cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB) for _ in range(frames)]
    capture.release()
    return np.stack(pictures)


READERS = {"repflow": read_clip, PLAIN: read_plainly, "torchcodec": read_by_torchcodec, "OpenCV": read_by_opencv}
