"""TV-L1 on images: against true flows, independent programs, symmetries, bad input."""

import warnings

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from skimage.registration import optical_flow_tvl1

from repflow import tvl1
from repflow.tvl1 import Warp, _median_filter
from repflow.warp import CompiledWarp


def end_point_error(flow, true):
    """Mean distance in pixels between (2, H, W) flows, where the true one is known."""
    known = (np.abs(true) < 1e9).all(0)
    return np.hypot(*(np.asarray(flow) - true))[known].mean()


def texture(H=96, W=128, shift=(0.0, 0.0), seed=3):
    """A smooth random picture in 0..255, seen `shift` = (u, v) pixels further on: sums of sinusoids, no resampling."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:H, :W].astype(float)
    x, y = x - shift[0], y - shift[1]
    waves = [
        rng.normal() * np.sin(2 * np.pi * (a * x + b * y) + c)
        for a, b, c in zip(*rng.uniform(-0.06, 0.06, (2, 24)), rng.uniform(0, 6.28, 24), strict=True)
    ]
    return np.float32(127 + 12 * sum(waves))


def middlebury(folder):
    frames = [np.asarray(Image.open(folder / f"frame{i}.png").convert("L")) for i in (10, 11)]
    raw = np.fromfile(folder / "flow10.flo", np.float32)
    W, H = raw[1:3].view(np.int32)
    return *frames, raw[3:].reshape(H, W, 2).transpose(2, 0, 1)


@pytest.mark.parametrize("name", ["RubberWhale", "Grove2"])
def test_middlebury_with_the_defaults(shared, name):
    frame1, frame2, true = middlebury(shared / "middlebury" / name)
    error = end_point_error(tvl1(frame1, frame2), true)
    assert error <= 0.15
    peer = optical_flow_tvl1(frame1 / 255.0, frame2 / 255.0)[::-1]
    assert error < end_point_error(peer, true)


def test_the_linearisation_errs_by_the_cube_of_the_step():
    """As the trapezoidal rule does; with one frame's gradient it would be the square: half a step, a quarter."""
    left = []
    for step in (0.8, 0.4):
        first, second = (
            torch.tensor(texture(shift=shift), dtype=torch.float64)[None, None] for shift in ((0, 0), (step, 0))
        )
        rho_c, grad = Warp(first, second).linearise(torch.zeros(2, *first.shape, dtype=torch.float64))
        left.append((rho_c + grad[0] * step)[..., 12:-12, 12:-12].square().mean().sqrt())
    assert 7 < left[0] / left[1] < 9


@pytest.mark.parametrize("shift", [(1.0, 0.0), (0.0, -1.5), (-4.25, 2.5), (6.0, 5.0)])
def test_known_translation_and_its_signs(shift):
    flow = tvl1(texture(), texture(shift=shift)).numpy()
    inner = np.median(flow[:, 12:-12, 12:-12], axis=(1, 2))
    np.testing.assert_allclose(inner, shift, atol=0.01)


def test_agrees_with_opencv_on_a_rotation():
    frame1 = texture()
    centre = (63.5, 47.5)
    matrix = cv2.getRotationMatrix2D(centre, 2.0, 1.0)
    frame2 = cv2.warpAffine(frame1, matrix, frame1.shape[::-1], flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    ours = tvl1(frame1, frame2).numpy()
    theirs = cv2.optflow.DualTVL1OpticalFlow_create().calc(frame1 / 255, frame2 / 255, None).transpose(2, 0, 1)
    difference = np.hypot(*(ours - theirs))[10:-10, 10:-10]
    assert np.median(difference) < 0.05


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (2, 2), (16, 16), (31, 45)])
def test_no_motion_is_exactly_no_flow_at_any_size(size):
    frame = torch.rand(size, generator=torch.Generator().manual_seed(1)) * 255
    flow = tvl1(frame, frame)
    assert flow.shape == (2, *size)
    assert not flow.any()


def test_swapping_x_and_y_transposes_the_flow():
    frame1, frame2 = texture(), texture(shift=(1.3, -0.7))
    flow = tvl1(frame1, frame2)
    swapped = tvl1(frame1.T, frame2.T)
    assert (swapped.flip(0).mT - flow).abs().mean() < 1e-3


def test_mirroring_mirrors_the_flow():
    frame1, frame2 = texture(), texture(shift=(1.3, -0.7))
    flow, mirrored = tvl1(frame1, frame2), tvl1(frame1[:, ::-1], frame2[:, ::-1])
    sign = torch.tensor([-1.0, 1.0])[:, None, None]
    inner = (mirrored.flip(-1) * sign - flow)[:, 8:-8, 8:-8]
    assert inner.abs().mean() < 0.02  # the forward difference of the flow looks one way only


def test_a_pair_alone_equals_the_pair_in_a_batch():
    first = torch.from_numpy(np.stack([texture(48, 64), texture(48, 64, seed=4)]))
    second = torch.from_numpy(np.stack([texture(48, 64, (0.4, 0)), texture(48, 64, (3, -2), seed=4)]))
    both = tvl1(first[None], second[None])
    assert both.shape == (1, 2, 2, 48, 64)
    for i in range(2):
        torch.testing.assert_close(both[0, i], tvl1(first[i], second[i]), rtol=0, atol=1e-4)


def test_engines_agree():
    """Rounding may be blown up where the image says nothing, so single pixels may differ."""
    first, second = texture(), texture(shift=(1.3, -0.8), seed=3)
    fast, slow = (tvl1(first, second, engine=engine) for engine in ("cpu", "reference"))
    assert (fast - slow).abs().mean() < 1e-4


@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("shape", [(9, 11), (1, 5), (4, 1), (1, 1)])
def test_median_filter_equals_scipy(rng, shape, size, engine):
    flow = torch.randn(2, 3, 1, *shape, generator=rng)
    expected = ndimage.median_filter(flow.numpy(), (1, 1, 1, size, size), mode="nearest")
    assert torch.equal(_median_filter(flow, size, engine), torch.from_numpy(expected))


@pytest.mark.parametrize(
    "shape", [(3, 1, 30, 41), (1, 1, 1, 5), (2, 1, 2, 3), (1, 1, 5, 1), (1, 1, 1, 1), (0, 1, 5, 6)]
)
@pytest.mark.parametrize("motion", [0.0, 2.0, 1e9])
def test_both_engines_linearise_alike(rng, shape, motion):
    first, second = (torch.rand(shape, generator=rng) * 255 for _ in range(2))
    flow = torch.randn(2, *shape, generator=rng) * motion
    flow[..., :1] = 0  # exactly: there the frame itself counts, not the spline's sum
    found = CompiledWarp(first, second).linearise(flow)
    for ours, expected in zip(found, Warp(first, second).linearise(flow), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=2e-3)  # of 255, times the motion


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float16, np.float64])
def test_dtypes_give_the_flow_of_their_values(dtype):
    frames = [np.round(texture(40, 40, (s, 0))) for s in (0, 1)]
    torch.testing.assert_close(tvl1(*(f.astype(dtype) for f in frames)), tvl1(*frames))


def test_warns_where_the_frames_look_like_0_to_1_or_minus_1_to_1(recwarn):
    frame = texture(20, 20) / 255
    with pytest.warns(UserWarning, match=r"within 0\.\.1; .* 0\.\.255: multiply the frames by 255"):
        tvl1(frame, frame)
    with pytest.warns(UserWarning, match=r"within -1\.\.1; .* 0\.\.255: multiply the frames by 127\.5"):
        tvl1(2 * frame - 1, 2 * frame - 1)
    recwarn.clear()
    tvl1(np.zeros((20, 20), np.float32), np.zeros((20, 20), np.float32))
    tvl1(np.ones((20, 20), np.uint8), np.zeros((20, 20), np.uint8))
    assert not recwarn.list


def test_the_warning_points_at_its_caller_and_comes_once_a_place():
    frame = texture(20, 20) / 255
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for _ in range(2):
            tvl1(frame, frame)
        with torch.no_grad():
            tvl1(frame, frame)
    assert [warning.filename for warning in seen] == [__file__] * 4  # of each frame, at each of the two places
    assert len({warning.lineno for warning in seen}) == 2


def test_numbers_may_be_numpys():
    frames = texture(40, 40), texture(40, 40, (1, 0))
    whole = {"scales": 2, "warps": 2, "iterations": 4, "median": 5}
    real = {"tau": 0.25, "lam": 0.125, "theta": 0.25, "zoom": 0.5, "epsilon": 0.0}  # exact in single precision
    numpys = {name: np.int64(n) for name, n in whole.items()} | {name: np.float32(x) for name, x in real.items()}
    assert torch.equal(tvl1(*frames, **numpys), tvl1(*frames, **whole, **real))
    for name in whole:
        for wrong in (True, np.bool_(True), 3.0, np.float32(3), "3", None):
            with pytest.raises(ValueError, match=f"{name}: expected a whole number"):
                tvl1(*frames, **{name: wrong})


@pytest.mark.parametrize(
    ("frames", "arguments", "message"),
    [
        ((np.zeros((4, 5)), np.zeros((4, 6))), {}, "one size"),
        ((np.zeros((4, 5)), np.full((4, 5), np.nan)), {}, "frame2.*NaN"),
        ((np.full((4, 5), np.inf), np.zeros((4, 5))), {}, "frame1.*infinity"),
        ((np.zeros(4), np.zeros(4)), {}, "H, W"),
        ((np.zeros((0, 5)), np.zeros((0, 5))), {}, "H, W"),
        ((np.zeros((4, 5), complex), np.zeros((4, 5))), {}, "frame1"),
        ((np.zeros((4, 5)),) * 2, {"scales": 0}, "scales"),
        ((np.zeros((4, 5)),) * 2, {"zoom": 1.0}, "zoom"),
        ((np.zeros((4, 5)),) * 2, {"warps": 0}, "warps"),
        ((np.zeros((4, 5)),) * 2, {"median": 4}, "median"),
        ((np.zeros((4, 5)),) * 2, {"theta": 0}, "theta"),
        ((np.zeros((4, 5)),) * 2, {"epsilon": -1.0}, "epsilon"),
        ((np.zeros((4, 5)),) * 2, {"engine": "fast"}, "engine"),
    ],
)
def test_bad_input_is_named(frames, arguments, message):
    with pytest.raises(ValueError, match=message):
        tvl1(*frames, **arguments)
