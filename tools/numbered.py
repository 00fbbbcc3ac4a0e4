"""Pictures that carry their number and four colours, so that what a video's reader returns can be judged.

The upper third is red and green, the lower blue and grey; between them six fields, black or white, are the number's
bits. Only NumPy is imported: this runs in the environments of other readers, too.
"""

import numpy as np

BITS = 6
COLOURS = np.array([(200, 60, 50), (60, 170, 70), (60, 80, 190), (128, 128, 128)], np.uint8)
CENTRES = (1 / 6, 1 / 4), (1 / 6, 3 / 4), (5 / 6, 1 / 4), (5 / 6, 3 / 4)  # of the colours: share of height, of width
# (exchange the sides, then mirror left to right, then top to bottom): how a picture is set upright.
UPRIGHT = False, False, False
ORIENTATIONS = [(swap, across, down) for swap in (False, True) for across in (False, True) for down in (False, True)]


def drawn(number: int, width: int, height: int) -> np.ndarray:
    """The picture of this number: uint8 RGB (H, W, 3)."""
    picture = np.empty((height, width, 3), np.uint8)
    for colour, (y, x) in zip(COLOURS, CENTRES, strict=True):
        rows = slice(height // 3) if y < 1 / 2 else slice(height - height // 3, height)
        columns = slice(width // 2) if x < 1 / 2 else slice(width // 2, width)
        picture[rows, columns] = colour
    for bit in range(BITS):
        columns = slice(width * bit // BITS, width * (bit + 1) // BITS)
        picture[height // 3 : height - height // 3, columns] = 220 if number >> bit & 1 else 30
    return picture


def turned(picture: np.ndarray, how: tuple[bool, bool, bool]) -> np.ndarray:
    """The picture with its sides exchanged, mirrored left to right, mirrored top to bottom: what `how` asks for."""
    swap, across, down = how
    picture = picture.swapaxes(0, 1) if swap else picture
    return picture[:: -1 if down else 1, :: -1 if across else 1]


def seen(picture: np.ndarray) -> dict:
    """What a picture shows: its number (None where no picture of ours is recognised), how it has to be set upright, its
    height and width, and its four colours."""
    height, width = picture.shape[:2]
    how = min(ORIENTATIONS, key=lambda how: np.abs(colours(turned(picture, how)) - COLOURS).sum())
    upright = turned(picture, how)
    fields = [_patch(upright, 1 / 2, (bit + 1 / 2) / BITS).mean() for bit in range(BITS)]
    sound = np.abs(colours(upright) - COLOURS).max() < 60 and all(value < 70 or value > 180 for value in fields)
    number = sum(int(value > 125) << bit for bit, value in enumerate(fields)) if sound else None
    return {"number": number, "how": how, "size": [height, width], "colours": colours(upright).round(1).tolist()}


def colours(picture: np.ndarray) -> np.ndarray:
    """Its four colours, (4, 3)."""
    return np.stack([_patch(picture, *centre).mean((0, 1)) for centre in CENTRES])


def _patch(picture: np.ndarray, y: float, x: float) -> np.ndarray:
    """A small part around a place in shares of height and width."""
    height, width = picture.shape[:2]
    row, column, half = int(y * height), int(x * width), max(min(height, width) // 40, 1)
    return picture[max(row - half, 0) : row + half + 1, max(column - half, 0) : column + half + 1]
