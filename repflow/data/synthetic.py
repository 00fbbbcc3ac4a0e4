"""SyntheticMotion: real video files whose class is told by motion alone.

A clip is a sum of plane waves. Each has its own direction, phase and logarithmic wavelength, all drawn uniformly, and
its own colour. Every motion here keeps a plane wave a plane wave: a shift moves its phase, a turn its direction, a zoom
its wavelength, which runs in a circle of three octaves and fades out at the ends (Shepard, "Circularity in Judgments of
Relative Pitch", 1964). A variable that is uniform on a circle stays so when shifted: each single frame has the same
distribution at any time and in any class. The waves are evaluated at the pixels themselves, so nothing is interpolated
and no frame is sharper than another.

With `moving="object"` that picture is cut out to a disc, before a still one of the same kind. The place of the disc
is uniform on a torus, and stays so when it moves; turns and zooms happen inside. So single frames tell nothing there,
either.
"""

import json
from math import asinh, log, sqrt
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm.auto import tqdm

from repflow.data.hmdb51 import HMDB51, TAGS
from repflow.data.lists import Classes, PathLike
from repflow.files import beside
from repflow.video.write import BITEXACT, write_video

# What moves, as (right, down, clockwise, growing), and how much its speed changes from the middle to the end.
_MOTIONS = {
    "left": ((-1, 0, 0, 0), 0),
    "right": ((1, 0, 0, 0), 0),
    "up": ((0, -1, 0, 0), 0),
    "down": ((0, 1, 0, 0), 0),
    "clockwise": ((0, 0, 1, 0), 0),
    "counter-clockwise": ((0, 0, -1, 0), 0),
    "zoom-in": ((0, 0, 0, 1), 0),
    "zoom-out": ((0, 0, 0, -1), 0),
    "right-accelerating": ((1, 0, 0, 0), 0.9),
    "right-decelerating": ((1, 0, 0, 0), -0.9),
    "left-accelerating": ((-1, 0, 0, 0), 0.9),
    "left-decelerating": ((-1, 0, 0, 0), -0.9),
}
CLASSES = tuple(_MOTIONS)
BASIC = CLASSES[:8]
PAIRS = (CLASSES[8:10], CLASSES[10:])

# MPEG-4 with every frame coded alone at a fixed quantiser, 2 in units of 1/118: a frame's artefacts depend on it only.
_CODING = {"flags": "+bitexact+qscale", "global_quality": "236", "g": "1", "threads": "1"}
_VERSION = 1  # raise it whenever the same parameters give other pixels
_SPEEDS = (1.0, 2.5)  # px/frame, mean over the frame and over time
_WAVES = 96
_SHORTEST = 16 / sqrt(8)  # px: three octaves up from here are centred on 16, with half the weight or more in 9.5 to 27
_CONTRAST = 45.0  # grey levels, standard deviation
_OBJECT = 1 / 3  # radius of a moving object, as a share of the frame's side: it covers 35 % of the frame

Moving = Literal["frame", "object"]


class SyntheticMotion(HMDB51):
    """One subset of a set that `make` wrote; `samples`, `classes` and `quarantine` as in HMDB51."""

    directed = True  # a mirrored clip has another class

    def __init__(
        self, root: PathLike, subset: str = "train", classes: Classes = None, *, quarantine: PathLike | None = None
    ) -> None:
        super().__init__(root, fold=1, subset=subset, classes=classes, quarantine=quarantine)

    @staticmethod
    def make(
        root: PathLike,
        *,
        train: int = 60,
        test: int = 20,
        unused: int = 2,
        size: int = 48,
        frames: int = 9,
        seed: int = 0,
        moving: Moving = "frame",
    ) -> None:
        """Write `train`, `test` and `unused` clips of each class, of `frames` frames of `size`×`size` px, under `root`.

        The whole frame moves, or an object in it. Clip i of a class and subset depends on seed, size, frames and
        moving alone, not on how many are made. An existing set of the same parameters is kept; anything else in `root`
        raises FileExistsError, and fewer than 3 frames, which cannot show acceleration, ValueError.

            SyntheticMotion.make("data/motion", train=10, test=5)
            clips = Clips(SyntheticMotion("data/motion"), frames=9, train=True)
        """
        if frames < 3:
            raise ValueError(f"frames must be at least 3, to tell accelerating from decelerating, got {frames}")
        counts = {"train": train, "test": test, "unused": unused}
        recipe = {"set": "SyntheticMotion", "version": _VERSION, **counts}
        recipe |= {"size": size, "frames": frames, "seed": seed, "moving": moving}
        root = Path(root).absolute()
        if _is_made(root, recipe):
            return
        root.parent.mkdir(parents=True, exist_ok=True)
        with beside(root) as folder:
            made = folder / root.name
            for name in tqdm(CLASSES, desc=f"making {root.name}", unit="class", leave=False):
                (made / name).mkdir(parents=True)
                clips = [(subset, i) for subset, count in counts.items() for i in range(count)]
                for subset, i in clips:
                    rng = np.random.default_rng((seed, CLASSES.index(name), TAGS[subset], i))
                    clip = render(name, rng, size, frames, moving=moving)
                    file = made / name / f"{name}_{subset}_{i:04}.avi"
                    write_video(file, clip, "mpeg4", 25, container=BITEXACT, **_CODING)
                lines = [f"{name}_{subset}_{i:04}.avi {TAGS[subset]} \n" for subset, i in clips]
                (made / f"{name}_test_split1.txt").write_text("".join(lines))
            (made / "recipe.json").write_text(json.dumps(recipe))
            try:
                made.rename(root)
            except OSError:  # another process may have made the same set meanwhile
                if not _is_made(root, recipe):
                    raise


def motion(class_name: str, speed: float, size: int = 48, frames: int = 9, moving: Moving = "frame") -> np.ndarray:
    """The true motion: where the picture of frame 0 is at each frame, float64 (T, 4).

    The columns are the shift to the right and down in px, the clockwise turn in radians and the growth as the natural
    logarithm of the scale; turn and growth are about the centre of what moves. `speed` is in px/frame, the mean over
    what moves and over time. Accelerating and decelerating clips go through the same speeds in opposite order.
    Raises ValueError for a class that is not in CLASSES.
    """
    if class_name not in _MOTIONS:
        raise ValueError(f"class_name must be one of {', '.join(CLASSES)}, got {class_name!r}")
    direction, change = _MOTIONS[class_name]
    steps = speed * (1 + change * np.linspace(-1, 1, frames - 1))
    path = np.concatenate([[0], np.cumsum(steps)])
    # Mean distance from the centre of a square's points, or a disc's.
    radius = size * ((sqrt(2) + asinh(1)) / 6 if moving == "frame" else 2 / 3 * _OBJECT)
    return path[:, None] * direction / (1, 1, radius, radius)


def render(
    class_name: str,
    rng: np.random.Generator,
    size: int = 48,
    frames: int = 9,
    speed: float | None = None,
    moving: Moving = "frame",
) -> np.ndarray:
    """One clip of a class in CLASSES: uint8 RGB (T, size, size, 3).

    `speed` and `moving` are those of `motion`; a speed of None is drawn from 1 to 2.5 px/frame.
    """
    if speed is None:
        speed = rng.uniform(*_SPEEDS)
    right, down, turn, growth = motion(class_name, speed, size, frames, moving).T
    pixel = np.arange(size) - (size - 1) / 2
    x, y = pixel - right[:, None], pixel - down[:, None]  # (T, W) and (T, H): of the pixels in the moving picture
    if moving == "frame":
        picture = _texture(rng, x, y, turn, growth)
    else:
        # The disc leaves on one side and comes back on the other; its texture is fixed to it.
        x, y = ((line - size * rng.uniform() + size / 2) % size - size / 2 for line in (x, y))
        inside = _OBJECT * size - np.hypot(x[:, None, :], y[:, :, None])  # px from the disc's edge
        cover = (inside + 0.5).clip(0, 1)[:, None]
        still = np.broadcast_to(pixel, x.shape)
        moved, background = _texture(rng, x, y, turn, growth), _texture(rng, still, still, 0 * turn, 0 * growth)
        picture = cover * moved + (1 - cover) * background
    return (127.5 + picture).clip(0, 255).round().astype(np.uint8).transpose(0, 2, 3, 1)


def _texture(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, turn: np.ndarray, growth: np.ndarray
) -> np.ndarray:
    """Random plane waves, turned and grown about 0, at places x (T, W) and y (T, H): float64 (T, 3, H, W)."""
    angle = rng.uniform(0, 2 * np.pi, _WAVES) + turn[:, None]  # (T, waves), as all below
    octaves = (rng.uniform(0, 1, _WAVES) + growth[:, None] / log(8)) % 1
    frequency = 2 * np.pi / (_SHORTEST * 8**octaves)  # radians per px
    kx, ky = frequency * np.cos(angle), frequency * np.sin(angle)
    weight = np.sin(np.pi * octaves) ** 2

    noise = rng.normal(size=(3, _WAVES)) + 1j * rng.normal(size=(3, _WAVES))  # random phase and height
    mix = rng.normal(size=(3, 3))
    colour = mix / np.linalg.norm(mix, axis=1, keepdims=True) @ noise

    # A plane wave is a product of one factor for x and one for y, so a frame's sum over waves is a matrix product.
    along_x = np.exp(1j * kx[:, None, :, None] * x[:, None, None, :])  # (T, 1, waves, W)
    along_y = np.exp(1j * ky[:, None, None, :] * y[:, None, :, None])  # (T, 1, H, waves)
    # The gain is fixed (3/8 is the mean of sin⁴): one that looked at the clip would tell a frame about the others.
    gain = _CONTRAST / sqrt(3 / 8 * _WAVES)
    return gain * ((weight[:, None] * colour)[:, :, None] * along_y @ along_x).real


def _is_made(root: Path, recipe: dict[str, str | int]) -> bool:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    file = root / "recipe.json"
    # Sets that were made before objects could move say nothing of it.
    content = {"moving": "frame"} | json.loads(file.read_text()) if file.is_file() else "other files"
    if content != recipe:
        raise FileExistsError(
            f"{str(root)!r}: expected {recipe} or an empty folder, found {content}; delete it or choose another"
        )
    return True
