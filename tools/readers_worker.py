"""Asks one reader about videos, in the environment of that reader: started by readers.py, it answers in lines of JSON.

python readers_worker.py READER SECONDS FRAMES:FILE ...        (FRAMES is how many there are in truth)
"""

import json
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numbered import seen

Pictures = Iterable[np.ndarray]


class Repflow:
    needs = "repflow.video"

    def __init__(self, video: ModuleType, path: str) -> None:
        self.video, self.path = video, path

    def count(self) -> int:
        return self.video.count_frames(self.path)

    def in_order(self) -> Pictures:
        return self.video.iter_frames(self.path)

    def at(self, numbers: Sequence[int]) -> Pictures:
        return (self.video.read_clip(self.path, number, 1)[0] for number in numbers)


class PyAV:
    """With the usual recipe for a frame by its number: seek to number / rate, decode until that time."""

    needs = "av"

    def __init__(self, av: ModuleType, path: str) -> None:
        self.file = av.open(path)
        self.stream = self.file.streams.video[0]

    def count(self) -> int:
        return self.stream.frames

    def in_order(self) -> Pictures:
        return (frame.to_ndarray(format="rgb24") for frame in self.file.decode(self.stream))

    def at(self, numbers: Sequence[int]) -> Pictures:
        stream = self.stream
        for number in numbers:
            time = (stream.start_time or 0) + round(number / stream.average_rate / stream.time_base)
            self.file.seek(time, stream=stream)
            yield next(f for f in self.file.decode(stream) if f.pts >= time).to_ndarray(format="rgb24")


class Torchcodec:
    needs, mode = "torchcodec.decoders", "exact"

    def __init__(self, decoders: ModuleType, path: str) -> None:
        self.decoder = decoders.VideoDecoder(path, dimension_order="NHWC", seek_mode=self.mode)

    def count(self) -> int:
        return len(self.decoder)

    def in_order(self) -> Pictures:
        return (picture.numpy() for picture in self.decoder)

    def at(self, numbers: Sequence[int]) -> Pictures:
        return self.decoder.get_frames_at(list(numbers)).data.numpy()


class Approximate(Torchcodec):
    mode = "approximate"


class Torchvision:
    """What its HMDB51 and UCF101 are made of, with clips of one frame."""

    needs = "torchvision.datasets.video_utils"

    def __init__(self, utils: ModuleType, path: str) -> None:
        self.clips = utils.VideoClips([path], clip_length_in_frames=1, output_format="THWC")

    def count(self) -> int:
        return len(self.clips)

    def in_order(self) -> Pictures:
        return self.at(range(len(self.clips)))

    def at(self, numbers: Sequence[int]) -> Pictures:
        return (self.clips.get_clip(number)[0][0].numpy() for number in numbers)


class OpenCV:
    needs = "cv2"

    def __init__(self, cv2: ModuleType, path: str) -> None:
        self.cv2, self.capture = cv2, cv2.VideoCapture(path)

    def count(self) -> int:
        return int(self.capture.get(self.cv2.CAP_PROP_FRAME_COUNT))

    def in_order(self) -> Pictures:
        while True:
            good, picture = self.capture.read()
            if not good:
                return
            yield picture[..., ::-1]

    def at(self, numbers: Sequence[int]) -> Pictures:
        for number in numbers:
            self.capture.set(self.cv2.CAP_PROP_POS_FRAMES, number)
            good, picture = self.capture.read()
            if not good:
                raise EOFError(f"read() gives False for frame {number}")
            yield picture[..., ::-1]


class Decord:
    needs = "decord"

    def __init__(self, decord: ModuleType, path: str) -> None:
        self.reader = decord.VideoReader(path, num_threads=1)

    def count(self) -> int:
        return len(self.reader)

    def in_order(self) -> Pictures:
        return (self.reader.next().asnumpy() for _ in range(len(self.reader)))

    def at(self, numbers: Sequence[int]) -> Pictures:
        return (self.reader[number].asnumpy() for number in numbers)


class ImageioPyAV:
    needs = "imageio.v3"

    def __init__(self, imageio: ModuleType, path: str) -> None:
        self.file = imageio.imopen(path, "r", plugin="pyav")

    def count(self) -> int:
        return self.file.properties(index=...).shape[0]

    def in_order(self) -> Pictures:
        return self.file.iter()

    def at(self, numbers: Sequence[int]) -> Pictures:
        return (self.file.read(index=number) for number in numbers)


class ImageioFFmpeg:
    needs = "imageio"

    def __init__(self, imageio: ModuleType, path: str) -> None:
        self.reader = imageio.get_reader(path, "ffmpeg")

    def count(self) -> int:
        return self.reader.count_frames()

    def in_order(self) -> Pictures:
        return iter(self.reader)

    def at(self, numbers: Sequence[int]) -> Pictures:
        return (self.reader.get_data(number) for number in numbers)


def sampled(frames: int) -> list[int]:
    """All numbers in another order, the same everywhere."""
    return np.random.default_rng(0).permutation(frames).tolist()


def replies(reader: type, path: str, frames: int) -> Iterator[dict[str, Any]]:
    """The answer to every question about a file, or what the reader raises."""
    module = import_module(reader.needs)
    questions: dict[str, Callable[[], Any]] = {
        "count": lambda: reader(module, path).count(),
        "in order": lambda: list(map(seen, reader(module, path).in_order())),
        "last": lambda: list(map(seen, reader(module, path).at([frames - 1]))),
        "first": lambda: list(map(seen, reader(module, path).at([frames // 2, 0])))[1:],
        "random": lambda: list(map(seen, reader(module, path).at(sampled(frames)))),
    }
    for question, answer in questions.items():
        try:
            line = {"answer": answer()}
        except Exception as error:  # whatever a reader raises
            line = {"raises": f"{type(error).__name__}: {error}".strip().partition("\n")[0]}
        yield {"file": Path(path).name, "question": question} | line


def main(name: str, seconds: str, *videos: str) -> None:
    """Print a line for each video and question; where one takes too long the process ends."""
    for video in videos:
        frames, _, path = video.partition(":")
        signal.alarm(int(seconds))  # no handler: the signal ends the process, whatever library hangs
        for line in replies(globals()[name], path, int(frames)):
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
            signal.alarm(int(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
