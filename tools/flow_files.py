"""Flow in files, by each program that writes or reads the format: as its user would, without knowing of the others."""

import re
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import torchvision.io
from PIL import Image

from repflow.data.flow import from_bytes, read_flo, read_flow, to_bytes, write_flo, write_flow
from repflow.video import read_clip
from repflow.video.write import write_video

SAVED = {".flo": ".flo", "PFM": ".pfm", "KITTI's PNG": ".png", "bytes in JPEG": ".jpg", "bytes in H.264": ".mp4",
         "bytes in FFV1": ".mkv"}  # fmt: skip
QUALITY = 95  # of JPEG


def flow_to_store(height: int = 96, width: int = 128) -> np.ndarray:
    """A smooth flow of up to 15 pixels, float32 (2, H, W)."""
    y, x = np.mgrid[:height, :width]
    return np.float32([15 * np.sin(x / 20) * np.cos(y / 30), 12 * np.cos(x / 25 + y / 15)])


def last(flow: np.ndarray, third: float) -> np.ndarray:
    """(2, H, W) as (H, W, 3), the third channel as given."""
    return np.dstack([*flow, np.full_like(flow[0], third)])


def first(picture: np.ndarray) -> np.ndarray:
    """The first two channels of (H, W, 3) as (2, H, W)."""
    return np.moveaxis(picture[..., :2], 2, 0)


def kitti(flow: np.ndarray) -> np.ndarray:
    return np.rint(last(64 * flow + 32768, 1)).astype(np.uint16)


def from_kitti(picture: np.ndarray) -> np.ndarray:
    return (first(picture).astype(np.float32) - 32768) / 64


def picture_of(flow: np.ndarray) -> np.ndarray:
    """u above v as bytes, (2H, W)."""
    return to_bytes(flow).reshape(-1, flow.shape[2])


def flow_of(picture: np.ndarray) -> np.ndarray:
    return from_bytes(picture.reshape(2, -1, picture.shape[1]))


def plain_flo(path: Path, flow: np.ndarray) -> None:
    """By the words of the format's authors: 202021.25, width, height, then u and v of each pixel."""
    size = np.array(flow.shape[:0:-1], "<i4").tobytes()
    path.write_bytes(np.float32(202021.25).tobytes() + size + np.moveaxis(flow, 0, 2).astype("<f4").tobytes())


def plain_read_flo(path: Path) -> np.ndarray:
    content = path.read_bytes()
    width, height = np.frombuffer(content, "<i4", 2, 4)
    return np.moveaxis(np.frombuffer(content, "<f4", offset=12).reshape(height, width, 2), 2, 0)


def plain_pfm(path: Path, flow: np.ndarray) -> None:
    """Red is u, green v; the lowest row first, little-endian."""
    _, height, width = flow.shape
    path.write_bytes(f"PF\n{width} {height}\n-1.0\n".encode() + last(flow, 0)[::-1].astype("<f4").tobytes())


def plain_read_pfm(path: Path) -> np.ndarray:
    head = re.match(rb"PF\s(\d+)\s(\d+)\s-[\d.]+\n", content := path.read_bytes())
    width, height = map(int, head.groups())
    return first(np.frombuffer(content, "<f4", offset=head.end()).reshape(height, width, 3)[::-1])


def opencv_video(path: Path, flow: np.ndarray) -> None:
    picture = picture_of(flow)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"FFV1"), 25, picture.shape[::-1], isColor=False)
    writer.write(picture)
    writer.release()


def opencv_frame(path: Path) -> np.ndarray:
    return flow_of(cv2.VideoCapture(str(path)).read()[1][..., 0])


def pyav_frame(path: Path) -> np.ndarray:
    with av.open(str(path)) as file:
        return flow_of(next(file.decode(video=0)).to_ndarray(format="gray"))


def pyav_video(pixels: str, crf: str) -> Callable[[Path, np.ndarray], None]:
    return lambda path, flow: write_video(path, [picture_of(flow)], "libx264", 25, pixels=pixels, crf=crf)


def torchvision_image(path: Path) -> np.ndarray:
    return torchvision.io.decode_image(str(path)).numpy()


def unchanged(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


WRITERS: dict[tuple[str, str], Callable[[Path, np.ndarray], object]] = {
    (".flo", "NumPy"): plain_flo,
    (".flo", "repflow"): write_flo,
    (".flo", "OpenCV"): lambda path, flow: cv2.writeOpticalFlow(
        str(path), np.ascontiguousarray(np.moveaxis(flow, 0, 2))
    ),
    ("PFM", "NumPy"): plain_pfm,
    ("PFM", "OpenCV"): lambda path, flow: cv2.imwrite(str(path), last(flow, 0)),
    ("PFM", "OpenCV-reversed"): lambda path, flow: cv2.imwrite(str(path), last(flow, 0)[..., ::-1]),
    ("KITTI's PNG", "OpenCV"): lambda path, flow: cv2.imwrite(str(path), kitti(flow)),
    ("KITTI's PNG", "OpenCV-reversed"): lambda path, flow: cv2.imwrite(str(path), kitti(flow)[..., ::-1]),
    ("bytes in JPEG", "OpenCV"): lambda path, flow: cv2.imwrite(
        str(path), picture_of(flow), [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    ),
    ("bytes in JPEG", "Pillow"): lambda path, flow: Image.fromarray(picture_of(flow)).save(path, quality=QUALITY),
    ("bytes in H.264", "PyAV, yuv420p, crf 18"): pyav_video("yuv420p", "18"),
    ("bytes in H.264", "PyAV, gray, lossless"): pyav_video("gray", "0"),
    ("bytes in FFV1", "repflow"): lambda path, flow: write_flow(path, [flow], 25),
    ("bytes in FFV1", "OpenCV"): opencv_video,
}
READERS: dict[tuple[str, str], Callable[[Path], np.ndarray]] = {
    (".flo", "NumPy"): plain_read_flo,
    (".flo", "repflow"): read_flo,
    (".flo", "OpenCV"): lambda path: np.moveaxis(cv2.readOpticalFlow(str(path)), 2, 0),
    ("PFM", "NumPy"): plain_read_pfm,
    ("PFM", "OpenCV"): lambda path: first(unchanged(path)),
    ("PFM", "OpenCV-reversed"): lambda path: first(unchanged(path)[..., ::-1]),
    ("KITTI's PNG", "OpenCV"): lambda path: from_kitti(unchanged(path)),
    ("KITTI's PNG", "OpenCV-reversed"): lambda path: from_kitti(unchanged(path)[..., ::-1]),
    ("KITTI's PNG", "Pillow"): lambda path: from_kitti(np.asarray(Image.open(path))),
    ("KITTI's PNG", "torchvision"): lambda path: from_kitti(
        torchvision.io.decode_image(str(path)).permute(1, 2, 0).numpy()
    ),
    ("bytes in JPEG", "OpenCV"): lambda path: flow_of(unchanged(path)),
    ("bytes in JPEG", "Pillow"): lambda path: flow_of(np.asarray(Image.open(path))),
    ("bytes in JPEG", "torchvision"): lambda path: flow_of(torchvision_image(path)[0]),
    ("bytes in H.264", "repflow"): lambda path: flow_of(read_clip(path)[0, ..., 0]),
    ("bytes in H.264", "OpenCV"): opencv_frame,
    ("bytes in H.264", "PyAV"): pyav_frame,
    ("bytes in FFV1", "repflow"): lambda path: read_flow(path)[0],
    ("bytes in FFV1", "OpenCV"): opencv_frame,
    ("bytes in FFV1", "PyAV"): pyav_frame,
}
