"""The checks of the notebooks' exercises: `check(answer, exercises.NAME)`. Do not read on if you want to solve them.

Each function takes an answer, number, text or function, and returns whether it is right, or raises an error if the
answer is of another kind. It knows the right answer in another way than a solution does: by counting, simulating, brute
force, or the equation that a solution has to obey. Whole numbers may be floats. Order and names are the notebooks'.

    >>> pyramid_levels(5)
    False
"""

from collections.abc import Callable, Iterable
from functools import cache
from itertools import combinations, count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repflow.data.synthetic import CLASSES, PAIRS, motion, render
from repflow.layers import representation_flow, scale_clips
from repflow.records import paper_table
from repflow.solver import Kernels, classical_kernels, image_gradient, solve
from repflow.tvl1 import grey

Array = np.ndarray


def _whole(number: float) -> int:
    if number != int(number):
        raise ValueError(f"expected a whole number, got {number}")
    return int(number)


# Notebook 01


def squares_for_the_data(step: Callable[[float, float, float, float], float]) -> bool:
    """At (rho, g2, lam, theta) -> s the energy's slope is 0, whatever the sign and the size of rho."""
    slopes = []
    for rho, g2, lam, theta in np.random.default_rng(2).uniform((-20, 0.1, 0.1, 0.1), (20, 2, 2, 2), (20, 4)):
        s = step(rho, g2, lam, theta)
        slopes.append(s * g2 / theta + lam * (rho + s * g2) * g2)
    return np.allclose(slopes, 0, atol=1e-9)


def torus_divergence(divergence: Callable[[Array, Array], Array]) -> bool:
    """(px, py) -> divergence, all (H, W), is the negative adjoint of the differences on a torus."""
    u, px, py = np.random.default_rng(3).normal(size=(3, 5, 6))
    right, down = (np.roll(u, -1, axis) - u for axis in (1, 0))
    return np.isclose((px * right + py * down).sum(), -(divergence(px, py) * u).sum())


def dual_step(step: Callable[[Array, Array, float, float], tuple[Array, Array]]) -> bool:
    """(w, p, theta, tau) -> (u, the next p) obeys (11) and the equation before (13), on a row of pixels."""
    rng, theta, tau = np.random.default_rng(5), 0.4, 0.2
    w, p = rng.normal(size=6), rng.uniform(-1, 1, 5)
    differences = np.diff(np.eye(6), axis=0)  # as a matrix (5, 6), whose transpose is minus the divergence
    u, following = step(w.copy(), p.copy(), theta, tau)
    slope = differences @ u
    climbed = p + tau / theta * (slope - abs(slope) * following)
    return np.allclose(u, w - theta * differences.T @ p) and np.allclose(following, climbed)


def another_camera(lam: float) -> bool:
    """The flow of 0..4095 is that of 0..255 with 0.15, to a thousandth."""
    rho_c, *grad = torch.randn(3, 1, 1, 20, 20, generator=torch.Generator().manual_seed(4)) * 10
    ours, theirs = (
        solve(k * rho_c, k * torch.stack(grad), lam=weight, iterations=1, engine="reference")[0]
        for k, weight in ((1, 0.15), (4095 / 255, float(lam)))
    )
    return torch.allclose(theirs, ours, rtol=1e-3, atol=0)


def pyramid_levels(scales: float) -> bool:
    """So many scales are needed until 20 px have become 1 px or less."""
    pixels, levels = 20.0, 1
    while pixels > 1:
        pixels, levels = pixels / 2, levels + 1
    return _whole(scales) == levels


# Notebook 02


def reach(iterations: float) -> bool:
    """After so many iterations, and no fewer, the flow of a ramp has arrived at 4 px."""
    x = torch.arange(32.0).expand(1, 1, 8, 32)
    flows = (representation_flow(10 * x, 10 * (x - 4), iterations=n, engine="reference")[0].mean() for n in count(1))
    return _whole(iterations) == next(n for n, flow in enumerate(flows, 1) if flow > 3.999)


def who_learns(derivative: float) -> bool:
    """The derivative of the clipped step with respect to lambda is autograd's."""
    lam = torch.tensor(0.15, requires_grad=True)
    torch.clamp(torch.tensor(-1 / 4), -lam * 0.3, lam * 0.3).backward()
    return abs(derivative - lam.grad.item()) < 1e-4


def negative_film(word: str) -> bool:
    """The flow of two negatives is the "same", the "opposite" or "another"."""
    a, b = 255 * torch.rand(2, 1, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    once, negative = (
        torch.stack(representation_flow(*maps, engine="reference")) for maps in ((a, b), (255 - a, 255 - b))
    )
    signs = [name for name, sign in (("same", 1), ("opposite", -1)) if torch.allclose(negative, sign * once, atol=1e-3)]
    return str(word).lower() == (*signs, "another")[0]


def scaling(scale: Callable[[Tensor], Tensor]) -> bool:
    """Clips (B, C, T, H, W) are scaled as in the layer, and so are their gradients; a constant clip's are finite."""
    x = torch.randn(3, 2, 4, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (x * torch.tensor([1.0, 7.0, 0.0]).view(3, 1, 1, 1, 1) + 5).requires_grad_()  # the third one is constant
    weight = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
    theirs, ours = scale(x), scale_clips(x)
    (slope,), (expected,) = (torch.autograd.grad(scaled, x, weight) for scaled in (theirs, ours))
    same = torch.allclose(theirs, ours) and torch.allclose(slope[:2], expected[:2])
    return same and bool(slope.isfinite().all())


def learned_iteration(iterate: Callable[..., tuple[Tensor, Tensor]]) -> bool:
    """Three times (flow, p, rho_c, grad, learned) -> (flow, p) is the solver's flow; so are the parts' gradients."""
    rng = torch.Generator().manual_seed(6)
    rho_c, *grad = torch.randn(3, 5, 6, generator=rng, dtype=torch.float64)
    learned: dict[str, Any] = {"theta": torch.tensor(0.3), "lam": torch.tensor(0.5), "tau": torch.tensor(0.2)}
    learned |= {name: torch.randn(2, generator=rng) for name in ("flow_x", "flow_y", "div_x", "div_y")}
    learned = {name: part.double().requires_grad_() for name, part in learned.items()}
    flow, p = torch.zeros(2, 5, 6).double(), torch.zeros(2, 2, 5, 6).double()
    for _ in range(3):
        flow, p = iterate(flow, p, rho_c, torch.stack(grad), learned)
    kernels = Kernels(*classical_kernels()[:2], *(part.view(1, 1, 2) for part in list(learned.values())[3:]))
    scalars = {name: learned[name] for name in ("theta", "lam", "tau")}
    arrays = rho_c[None, None], torch.stack(grad)[:, None, None]
    expected = solve(*arrays, **scalars, kernels=kernels, iterations=3, engine="reference")[0][:, 0, 0]
    ours, theirs = (torch.autograd.grad(f.square().sum(), list(learned.values())) for f in (flow, expected))
    return torch.allclose(flow, expected) and all(map(torch.allclose, ours, theirs))


# Notebook 03


def acceleration_detector(detector: Callable[[Array], float]) -> bool:
    """(8,) speeds in px/frame -> positive where a clip speeds up, negative where it slows down, slow or fast."""
    signs = {"accelerating": 1, "decelerating": -1}
    clips = [(name, speed) for pair in PAIRS for name in pair for speed in (0.05, 0.5, 5)]
    found = [np.sign(detector(np.diff(motion(name, speed)[:, 0]))) for name, speed in clips]
    return found == [signs[name.split("-")[1]] for name, _ in clips]


def mean_square(factor: float) -> bool:
    """The mean square of an accelerating clip's speeds is so many times that of a steady one."""
    steady, growing = (np.square(np.diff(motion(name, 1.0)[:, 0])).mean() for name in ("right", PAIRS[0][0]))
    return abs(factor - growing / steady) < 0.01


def sixteen_classes(percent: float) -> bool:
    """The ceiling, in percent, of an average over time on sixteen classes."""
    ways = ("steady", "changing", "changing")  # faster and slower look alike
    seen = [(name, way) for name in ("left", "right", "up", "down") for way in ways]
    seen += [("turning", 1), ("turning", -1), ("zooming", 1), ("zooming", -1)]
    return abs(percent - 100 * len(set(seen)) / len(seen)) < 0.1


@cache
def _second_flows() -> tuple[Array, Tensor, Tensor]:
    """Which of 24 clips speed up (24,), and their bare second flow and the gradient it saw, (24, 7, 2, H, W) each."""
    rng, names = np.random.default_rng(1), PAIRS[0] * 12
    maps = torch.from_numpy(np.stack([grey(render(name, rng, 32)) for name in names]))[:, None]  # (24, 1, 9, H, W)

    def flow(maps: Tensor) -> Tensor:
        pairs = (maps[:, :, times].transpose(1, 2).flatten(0, 1) for times in (slice(None, -1), slice(1, None)))
        return torch.stack(representation_flow(*pairs, iterations=10), 2).unflatten(0, (len(maps), -1))[:, :, 0]

    u = scale_clips(flow(maps)[:, None, :, 0])
    kernel = classical_kernels().image_x[0]
    grad = image_gradient(u[:, 0, 1:].flatten(0, 1)[:, None], kernel, kernel)[:, :, 0]
    return np.array(names) == PAIRS[0][0], flow(u), grad.transpose(0, 1).unflatten(0, (len(names), -1))


def second_flow(statistic: Callable[[Tensor, Tensor], float]) -> bool:
    """The mean over time of (d, g) -> number, both (2, H, W), tells 23 of 24 clips by one threshold."""
    faster, flows, grads = _second_flows()
    numbers = [
        np.mean([float(statistic(*maps)) for maps in zip(*clip, strict=True)])
        for clip in zip(flows, grads, strict=True)
    ]
    right = [((numbers >= threshold) == faster).mean() for threshold in numbers]
    return max(*right, *(1 - np.array(right))) > 0.95


# Notebook 04


def clips_needed(clips: float) -> bool:
    """With so many clips, and no fewer, two standard errors are at most 3 points."""
    return _whole(clips) == next(n for n in count(1) if 200 * np.sqrt(0.25 / n) <= 3)


def mirrored_classes(names: Iterable[str]) -> bool:
    """These classes, and no other, move in the same way in a mirror."""
    mirror = np.array([-1, 1, -1, 1])  # of the motion's columns: right, down, clockwise, growing
    return set(names) == {name for name in CLASSES if np.allclose(motion(name, 1.0) * mirror, motion(name, 1.0))}


def mirrored_ceiling(percent: float) -> bool:
    """The ceiling, in percent, of an average over time that is trained on mirrored clips."""

    def seen(name: str) -> str:  # the velocities, in any order, in both mirror images: all that is left of a class
        path = np.diff(motion(name, 1.0), axis=0).round(6) + 0.0
        images = (sorted(map(tuple, path * mirror + 0.0)) for mirror in ([1, 1, 1, 1], [-1, 1, -1, 1]))
        return str(sorted(images))

    return abs(percent - 100 * len({seen(name) for name in CLASSES}) / len(CLASSES)) < 0.1


def most_confused(merged: Callable[[Array], Iterable[int]]) -> bool:
    """(C, C) counts -> two classes; no other two, made one class, raise top-1 as much."""
    rng = np.random.default_rng(7)
    for _ in range(20):
        labels, said = rng.integers(0, 5, (2, 200)) * rng.integers(0, 2, (2, 200))  # many of class 0
        counts = np.histogram2d(labels, said, bins=range(6))[0].astype(int)
        hits = {(a, b): ((labels == said) | (np.isin(labels, (a, b)) & np.isin(said, (a, b)))).sum()
                for a, b in combinations(range(5), 2)}  # fmt: skip
        pair = tuple(sorted(map(int, merged(counts.copy()))))
        if hits[pair] < max(hits.values()):
            return False
    return True


# Notebook 05


def break_even(times: float) -> bool:
    """With flow so many times as fast, two-stream takes Rep-Flow's time in the paper's table, to three digits."""
    names = ("2D RGB", "2D Two-Stream", "2D + Rep-Flow")
    network, two_stream, rep_flow = (float(paper_table()[name]["milliseconds"]) for name in names)
    return abs(2 * network + (two_stream - 2 * network) / times - rep_flow) < 0.3


def speed_model(ratio: Callable[[float, float, float, float], float]) -> bool:
    """(decode, flow, network, layer) -> rep-flow's clips a second over two-stream's is that of 2000 clips in a row."""

    def seconds(on_cpu: float, on_gpu: float) -> float:
        ready = done = 0.0
        for _ in range(2000):
            ready += on_cpu
            done = max(ready, done) + on_gpu
        return done

    times = np.random.default_rng(8).uniform(0.1, 1, (30, 4))
    expected = [seconds(d + f, 2 * n) / seconds(d, n + layer) for d, f, n, layer in times]
    return np.allclose([ratio(*line) for line in times], expected, rtol=0.01)


def power_law(power: Callable[[Array, Array], float]) -> bool:
    """(x, t) -> k is the slope of least squares in logarithms."""
    x = np.array([4.0, 7.0, 14.0, 56.0])
    disturbed = 0.5 * x**2 * np.array([1.0, 1.6, 0.7, 1.2])
    slope = np.cov(np.log(x), np.log(disturbed))[0, 1] / np.var(np.log(x), ddof=1)
    return np.isclose(power(x, disturbed), slope) and all(np.isclose(power(x, 3 * x**k), k) for k in (0.5, 1, 2))


# Notebook 06


def cached_plane(side: float) -> bool:
    """Ten float32 fields of this side, and of no larger one, fit into 512 KiB."""
    return _whole(side) == max(n for n in range(1000) if 10 * np.dtype(np.float32).itemsize * n * n <= 512 * 1024)


def remembering_nothing(iterations: float) -> bool:
    """So many iterations are computed to undo 100 of them from the first state."""
    return _whole(iterations) == sum(1 for k in range(100) for _ in range(k))


def segment(backward: Callable[..., Array]) -> bool:
    """(step, undo, state, bar, n) -> the gradient before a segment, with n - 1 calls of `step` at most."""
    steps, state, bar = [], np.array([0.2, 0.5, 0.7]), np.array([1.0, -2.0, 3.0])

    def step(x: Array) -> Array:  # every number by itself, as in a logistic map
        steps.append(x)
        return 3 * x * (1 - x)

    found = backward(step, lambda x, bar: 3 * (1 - 2 * x) * bar, state, bar, 5)
    computed = len(steps)
    end = state + 1e-20j  # the imaginary part becomes the slope
    for _ in range(5):
        end = step(end)
    return np.allclose(found, bar * end.imag / 1e-20) and computed <= 4


def transposed_gradient(transpose: Callable[[Array], Array]) -> bool:
    """d (n,) -> (n,) is the transpose of the differences' matrix."""
    matrix = np.stack([np.append(np.diff(unit), 0) for unit in np.eye(6)], axis=1)  # column by column
    d = np.random.default_rng(4).normal(size=6)
    return np.allclose(transpose(d), matrix.T @ d)
