"""Spline interpolation against SciPy, and at its edges."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from repflow.spline import CubicSpline


@pytest.mark.parametrize("shape", [(20, 33), (1, 9), (2, 5), (7, 1), (1, 1)])
def test_values_are_scipys(shape):
    rng = np.random.default_rng(0)
    image, flow = rng.uniform(0, 255, shape), rng.uniform(-3, 3, (2, *shape))
    y, x = np.mgrid[: shape[0], : shape[1]] + flow[::-1]
    inside = (x >= 0) & (x <= shape[1] - 1) & (y >= 0) & (y <= shape[0] - 1)
    expected = ndimage.map_coordinates(
        image, [y.clip(0, shape[0] - 1), x.clip(0, shape[1] - 1)], order=3, mode="mirror"
    )
    values, _, mask = CubicSpline(torch.from_numpy(image)[None, None]).warp(torch.from_numpy(flow)[:, None, None])
    np.testing.assert_allclose(values[0, 0], expected, atol=1e-3)
    np.testing.assert_array_equal(mask[0, 0], inside)


def test_gradient_is_the_slope_of_the_values():
    rng = torch.Generator().manual_seed(0)
    spline = CubicSpline(torch.rand(2, 1, 9, 11, generator=rng, dtype=torch.float64))
    flow = torch.rand(2, 2, 1, 9, 11, generator=rng, dtype=torch.float64) * 0.8 + 0.1
    gradient = spline.warp(flow)[1][..., 1:-1, 1:-1]
    for axis in range(2):
        step = torch.zeros_like(flow)
        step[axis] = 1e-6
        slope = (spline.warp(flow + step)[0] - spline.warp(flow - step)[0]) / 2e-6
        torch.testing.assert_close(gradient[axis], slope[..., 1:-1, 1:-1], rtol=1e-6, atol=1e-8)


def test_no_motion_gives_back_the_image_exactly():
    image = torch.rand(1, 1, 30, 40) * 255
    assert torch.equal(CubicSpline(image).warp(torch.zeros(2, 1, 1, 30, 40))[0], image)


def test_far_outside_is_the_border():
    image = torch.rand(1, 1, 5, 6)
    values, _, inside = CubicSpline(image).warp(torch.full((2, 1, 1, 5, 6), 1e9))
    torch.testing.assert_close(values, image[..., -1:, -1:].expand_as(image), rtol=1e-5, atol=1e-5)
    assert not inside.any()
