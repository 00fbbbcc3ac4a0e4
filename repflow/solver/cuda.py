"""The GPU engine: all of a plane's iterations in a program's registers, compiled by Triton. Equals `reference`.

A program computes windows. A window is a flat block of pixels: a small plane, or a tile of a large one with a halo
around it. A tile takes a few iterations by itself, while what it lacks of the plane spreads inwards through the halo;
then its core is stored, and the tiles meet again. Pixels see their neighbours by `tl.gather`, which moves values
between a program's threads, so nothing need pass through the GPU's memory but the states that the adjoint returns to.

How many iterations an image takes is decided on the device and stays there: nothing waits for it.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from repflow.solver.reference import TINY as REFERENCE_TINY

TINY = tl.constexpr(REFERENCE_TINY)
LARGE = 64 * 64  # pixels: a plane of more is cut into tiles
TILE = 32, 64  # rows and columns of a tile with its halo
TILE_ITERATIONS = 4  # what a tile does by itself; its halo is as wide
ADJOINT_HALO = 2  # one iteration's adjoint looks two pixels back and two ahead
REGISTERS, WARPS = 128, 16  # of a thread, of a program, at most; a multiprocessor has as many registers
# Whole numbers. A kernel is compiled once for all their values.
COUNTS = ("group", "C", "pairs", "H", "W", "tile_h", "tile_w", "halo", "L", "channels", "image_channels")
COUNTS += ("windows", "begin", "end", "length", "iterations")


# Where a window's pixels are. Blocks hold one value per pixel, also for those behind the window's end; anything may
# stand there, as no pixel of the window looks at it.


class Place(NamedTuple):
    """A window in arrays of planes: its plane, masks for the block's pixels, and how to find them."""

    plane: tl.tensor
    pixels: tl.tensor  # of a plane
    first: tl.tensor  # pixels before this plane's first field
    pitch: tl.tensor  # pixels from a field to the next
    offset: tl.tensor  # of the block's pixels in the plane
    inside: tl.tensor
    inner_x: tl.tensor  # where the dual field has values
    inner_y: tl.tensor
    core: tl.tensor  # what this window stores, and no other


class Sides(NamedTuple):
    """Which of the block's pixels have such a neighbour in the window, and how far the one below is."""

    width: tl.tensor
    left: tl.tensor
    up: tl.tensor
    right: tl.tensor
    below: tl.tensor


@triton.jit
def _window(
    number: tl.tensor, group: int, H: int, W: int, tile_h: int, tile_w: int, halo: int, BLOCK: tl.constexpr
) -> tuple[Place, Sides]:
    """Flow is (P / group, 2, group, H, W): u and v of all P planes, or of a clip's, lie one behind the other."""
    columns = tl.cdiv(W, tile_w)
    tiles = columns * tl.cdiv(H, tile_h)
    plane = number // tiles
    tile = number % tiles
    y0 = tile // columns * tile_h
    x0 = tile % columns * tile_w
    top = tl.maximum(y0 - halo, 0)
    left = tl.maximum(x0 - halo, 0)
    height = tl.minimum(y0 + tile_h + halo, H) - top
    width = tl.minimum(x0 + tile_w + halo, W) - left
    row = tl.arange(0, BLOCK) // width
    column = tl.arange(0, BLOCK) % width
    y = top + row
    x = left + column
    inside = row < height
    core = inside & (y >= y0) & (y < y0 + tile_h) & (x >= x0) & (x < x0 + tile_w)
    size = tl.cast(H, tl.int64) * W  # times the number of planes it may pass 2^31
    first = (plane // group * group + plane) * size
    place = Place(plane, size, first, group * size, y * W + x, inside, inside & (x < W - 1), inside & (y < H - 1), core)
    return place, Sides(width, column > 0, row > 0, inside & (column < width - 1), row < height - 1)


@triton.jit
def _shift(values: tl.tensor, by: tl.tensor, there: tl.tensor) -> tl.tensor:
    """The values `by` pixels further on, where there are such neighbours; else zeros."""
    size: tl.constexpr = values.shape[0]
    neighbour = (tl.arange(0, size) + by) & (size - 1)
    return tl.where(there, tl.gather(values, neighbour, 0), 0.0)


@triton.jit
def _load(array: "tl.tensor | None", field: tl.constexpr, place: Place, mask: tl.tensor) -> tl.tensor:
    """A window of a field, in float32; zeros where the mask, or the whole array, is missing."""
    if array is None:
        values = tl.zeros(mask.shape, tl.float32)
    else:
        values = tl.load(array + field * place.pitch + place.first + place.offset, mask, 0).to(tl.float32)
    return values


@triton.jit
def _store(array: "tl.tensor | None", field: tl.constexpr, place: Place, values: tl.tensor) -> None:
    if array is not None:
        tl.store(array + field * place.pitch + place.first + place.offset, values, place.core)


# What is computed with.


class State(NamedTuple):
    """Flow and dual field, in the order of `solve`'s arrays; or the loss's gradient with respect to them."""

    u: tl.tensor
    v: tl.tensor
    xu: tl.tensor
    xv: tl.tensor
    yu: tl.tensor
    yv: tl.tensor


class Problem(NamedTuple):
    """rho_c and grad; or the loss's gradient with respect to them."""

    rho_c: tl.tensor
    gx: tl.tensor
    gy: tl.tensor


class Constants(NamedTuple):
    """One iteration's numbers and taps: the bound is lam theta, the step tau / theta."""

    theta: tl.tensor
    bound: tl.tensor
    step: tl.tensor
    flow_x0: tl.tensor
    flow_x1: tl.tensor
    flow_y0: tl.tensor
    flow_y1: tl.tensor
    div_x0: tl.tensor
    div_x1: tl.tensor
    div_y0: tl.tensor
    div_y1: tl.tensor


@triton.jit
def _load_state(flow: "tl.tensor | None", dual: "tl.tensor | None", place: Place) -> State:
    return State(
        _load(flow, 0, place, place.inside), _load(flow, 1, place, place.inside),
        _load(dual, 0, place, place.inner_x), _load(dual, 1, place, place.inner_x),
        _load(dual, 2, place, place.inner_y), _load(dual, 3, place, place.inner_y),
    )  # fmt: skip


@triton.jit
def _store_state(flow: "tl.tensor | None", dual: "tl.tensor | None", place: Place, state: State) -> None:
    for field in tl.static_range(2):
        _store(flow, field, place, state[field])
    for field in tl.static_range(4):
        _store(dual, field, place, state[2 + field])


@triton.jit
def _load_problem(rho_c: tl.tensor, grad: tl.tensor, place: Place, mask: tl.tensor) -> Problem:
    return Problem(_load(rho_c, 0, place, mask), _load(grad, 0, place, mask), _load(grad, 1, place, mask))


@triton.jit
def _load_constants(
    numbers: tl.tensor, taps: tl.tensor, L: int, channels: int, iteration: tl.tensor, channel: tl.tensor
) -> Constants:
    theta = tl.load(numbers)
    k = taps + (tl.minimum(iteration, L - 1) * channels + channel % channels) * 8
    return Constants(
        theta, tl.load(numbers + 1) * theta, tl.load(numbers + 2) / theta,
        tl.load(k), tl.load(k + 1), tl.load(k + 2), tl.load(k + 3),
        tl.load(k + 4), tl.load(k + 5), tl.load(k + 6), tl.load(k + 7),
    )  # fmt: skip


# A clip's problem. Its planes are pairs of successive frames; `f` is the second, `k` are three taps along a line.


@triton.jit
def _neighbours(f: tl.tensor, before: tl.tensor, behind: tl.tensor, distance: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The values on both sides of each; where there is none, f goes on linearly."""
    last = _shift(f, -distance, before)
    following = _shift(f, distance, behind)
    return tl.where(before, last, 2.0 * f - following), tl.where(behind, following, 2.0 * f - last)


@triton.jit
def _derivative(f: tl.tensor, k: tl.tensor, before: tl.tensor, behind: tl.tensor, distance: tl.tensor) -> tl.tensor:
    values_before, values_behind = _neighbours(f, before, behind, distance)
    g = tl.load(k) * values_before + tl.load(k + 1) * f + tl.load(k + 2) * values_behind
    return tl.where(before | behind, g, 0.0)  # a line of one pixel has no difference along it


@triton.jit
def _derivative_adjoint(
    f: tl.tensor, g_bar: tl.tensor, k: tl.tensor, before: tl.tensor, behind: tl.tensor, distance: tl.tensor,
    core: tl.tensor,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """Gradients of f and of the three taps, with a zero behind them."""
    g_bar = tl.where(core & (before | behind), g_bar, 0.0)
    to_before = tl.load(k) * g_bar
    to_behind = tl.load(k + 2) * g_bar
    at_first = tl.where(before, 0.0, to_before)
    at_last = tl.where(behind, 0.0, to_behind)
    f_bar = tl.load(k + 1) * g_bar + 2.0 * (at_first + at_last)
    f_bar += _shift(to_before - at_last, distance, behind) + _shift(to_behind - at_first, -distance, before)
    values_before, values_behind = _neighbours(f, before, behind, distance)
    return f_bar, _sum(_stack(g_bar * values_before, g_bar * f, g_bar * values_behind, g_bar * 0.0), core)


@triton.jit
def _load_pair(clips: tl.tensor, pairs: int, place: Place) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Where the first frame's pixels lie in clips (B, C, pairs + 1, H, W), and both frames."""
    first = clips + (place.plane + place.plane // pairs) * place.pixels + place.offset
    return first, tl.load(first, place.inside, 0), tl.load(first + place.pixels, place.inside, 0)


@triton.jit
def _image_taps(image_taps: tl.tensor, pairs: int, image_channels: int, place: Place) -> tl.tensor:
    """Where the six taps of a plane's channel begin."""
    return image_taps + place.plane // pairs % image_channels * 6


@triton.jit
def _problem(
    rho_c: tl.tensor, grad: "tl.tensor | None", image_taps: "tl.tensor | None", pairs: int, image_channels: int,
    place: Place, sides: Sides,
) -> Problem:  # fmt: skip
    """A window's problem: as it is given, or where `rho_c` is clips, that of a pair of their frames."""
    if image_taps is None:
        problem = _load_problem(rho_c, grad, place, place.inside)
    else:
        _, f1, f2 = _load_pair(rho_c, pairs, place)
        k = _image_taps(image_taps, pairs, image_channels, place)
        gx = _derivative(f2, k, sides.left, sides.right, 1)
        problem = Problem(f2 - f1, gx, _derivative(f2, k + 3, sides.up, sides.below, sides.width))
    return problem


@triton.jit
def _undo_clip_problem(
    clips: tl.tensor, clips_bar: tl.tensor, sums: tl.tensor, k: tl.tensor, pairs: int, place: Place, sides: Sides,
    bar: Problem,
) -> None:  # fmt: skip
    """Add to the clips' gradient; store that of the image's taps, four for x and four for y, of which three count."""
    _, _, f2 = _load_pair(clips, pairs, place)
    first, _, _ = _load_pair(clips_bar, pairs, place)
    from_x, sums_x = _derivative_adjoint(f2, bar.gx, k, sides.left, sides.right, 1, place.core)
    from_y, sums_y = _derivative_adjoint(f2, bar.gy, k + 3, sides.up, sides.below, sides.width, place.core)
    tl.store(sums + tl.arange(0, 4), sums_x)
    tl.store(sums + 4 + tl.arange(0, 4), sums_y)
    # Two pairs meet in a frame. The order in which two values are added to zero does not change their sum's bits.
    tl.atomic_add(first, -bar.rho_c, place.core)
    tl.atomic_add(first + place.pixels, bar.rho_c + from_x + from_y, place.core)


@triton.jit
def _last_step(end: int, steps: "tl.tensor | None", place: Place, C: int) -> tl.tensor:
    """`end`, or how many iterations the plane's image takes, where that is known and less."""
    if steps is not None:
        end = tl.minimum(end, tl.load(steps + place.plane // C).to(tl.int32))
    return end


# One iteration. u and v are treated alike: `f` is one of them, x and y its dual field.


@triton.jit
def _threshold(u: tl.tensor, v: tl.tensor, problem: Problem, bound: tl.tensor) -> tuple[tl.tensor, ...]:
    """The data term's step along grad, before and after it is bounded; and |grad|^2."""
    rho_c, gx, gy = problem
    slope = gx * gx + gy * gy + TINY
    raw = -(rho_c + gx * u + gy * v) / slope
    return raw, tl.where(raw > bound, bound, tl.where(raw < -bound, -bound, raw)), slope  # NaN stays NaN


@triton.jit
def _divergence(x: tl.tensor, y: tl.tensor, c: Constants, sides: Sides) -> tl.tensor:
    along_x = c.div_x0 * _shift(x, -1, sides.left) + c.div_x1 * x
    return along_x + c.div_y0 * _shift(y, -sides.width, sides.up) + c.div_y1 * y


@triton.jit
def _differences(
    f: tl.tensor, right: tl.tensor, below: tl.tensor, c: Constants, sides: Sides
) -> tuple[tl.tensor, tl.tensor]:
    dx = tl.where(sides.right, c.flow_x0 * f + c.flow_x1 * right, 0.0)
    return dx, tl.where(sides.below, c.flow_y0 * f + c.flow_y1 * below, 0.0)


@triton.jit
def _dual_step(f: tl.tensor, x: tl.tensor, y: tl.tensor, c: Constants, sides: Sides) -> tuple[tl.tensor, tl.tensor]:
    dx, dy = _differences(f, _shift(f, 1, sides.right), _shift(f, sides.width, sides.below), c, sides)
    shrink = 1.0 / (1.0 + c.step * tl.sqrt(dx * dx + dy * dy + TINY))
    return (x + c.step * dx) * shrink, (y + c.step * dy) * shrink


@triton.jit
def _iterate(state: State, problem: Problem, c: Constants, sides: Sides) -> State:
    _, s, _ = _threshold(state.u, state.v, problem, c.bound)
    u = state.u + s * problem.gx + c.theta * _divergence(state.xu, state.yu, c, sides)
    v = state.v + s * problem.gy + c.theta * _divergence(state.xv, state.yv, c, sides)
    xu, yu = _dual_step(u, state.xu, state.yu, c, sides)
    xv, yv = _dual_step(v, state.xv, state.yv, c, sides)
    return State(u, v, xu, xv, yu, yv)


@triton.jit(do_not_specialize=COUNTS)
def _advance(
    rho_c: tl.tensor, grad: "tl.tensor | None", image_taps: "tl.tensor | None", flow: "tl.tensor | None",
    dual: "tl.tensor | None", numbers: tl.tensor, taps: tl.tensor, steps: "tl.tensor | None", new_flow: tl.tensor,
    new_dual: "tl.tensor | None", moved: "tl.tensor | None", taken: "tl.tensor | None", group: int, C: int, pairs: int,
    H: int, W: int, tile_h: int, tile_w: int, halo: int, L: int, channels: int, image_channels: int, begin: int,
    end: int, rest: float, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """A window's iterations begin..end-1, none past its image's `steps`, from (flow, dual) to (new_flow, new_dual).

    With `image_taps`, rho_c is clips and the windows are their pairs of frames.
    Where there is `moved`, the last one is that in which the sum of the flow's squared changes falls to `rest`. That
    sum goes to `moved`, and the number of iterations since the first of all to `taken`.
    """
    window = tl.program_id(0)
    place, sides = _window(window, group, H, W, tile_h, tile_w, halo, BLOCK)
    problem = _problem(rho_c, grad, image_taps, pairs, image_channels, place, sides)
    state = _load_state(flow, dual, place)
    end = _last_step(end, steps, place, C)
    it = begin
    change = tl.full((), float("inf"), tl.float32)
    while (it < end) & (change > rest):
        old = state
        state = _iterate(old, problem, _load_constants(numbers, taps, L, channels, it, place.plane // pairs), sides)
        it += 1
        if moved is not None:
            du = state.u - old.u
            dv = state.v - old.v
            change = tl.sum(tl.where(place.core, du * du + dv * dv, 0.0), 0)
    _store_state(new_flow, new_dual, place, state)
    if moved is not None:
        tl.store(moved + window, change)
        tl.store(taken + window, it)


# Its adjoint. What ends in `_bar` is the loss's gradient with respect to a value.


class Sums(NamedTuple):
    """What becomes the gradients of an iteration's taps and numbers, summed over a window's core."""

    flow: tl.tensor  # (4,)
    div: tl.tensor  # (4,), over theta
    numbers: tl.tensor  # (2,), step and bound


@triton.jit
def _stack(a: tl.tensor, b: tl.tensor, c: tl.tensor, d: tl.tensor) -> tl.tensor:
    """(BLOCK, 2, 2), in this order. To sum it takes one exchange between the threads, not four."""
    return tl.join(tl.join(a, c), tl.join(b, d))


@triton.jit
def _sum(stack: tl.tensor, core: tl.tensor) -> tl.tensor:
    """The sums over a window's core of what is stacked in the last axes."""
    count: tl.constexpr = stack.numel // core.numel
    inside = tl.where(tl.reshape(core, (core.numel, 1)), tl.reshape(stack, (core.numel, count)), 0.0)
    return tl.sum(inside, 0)


@triton.jit
def _dual_adjoint(
    f: tl.tensor, x: tl.tensor, y: tl.tensor, x_bar: tl.tensor, y_bar: tl.tensor, c: Constants, sides: Sides
) -> tuple[tl.tensor, ...]:
    """Gradients of x, y and the new f; and by pixel those of the flow's four taps, stacked, and of the step."""
    right = _shift(f, 1, sides.right)
    below = _shift(f, sides.width, sides.below)
    dx, dy = _differences(f, right, below, c, sides)
    norm = tl.sqrt(dx * dx + dy * dy + TINY)
    shrink = 1.0 / (1.0 + c.step * norm)
    length_bar = -(x_bar * (x + c.step * dx) + y_bar * (y + c.step * dy)) * shrink * shrink
    x_bar *= shrink
    y_bar *= shrink
    along = c.step * length_bar / norm
    ex = tl.where(sides.right, c.step * x_bar + along * dx, 0.0)
    ey = tl.where(sides.below, c.step * y_bar + along * dy, 0.0)
    f_bar = c.flow_x0 * ex + c.flow_x1 * _shift(ex, -1, sides.left)
    f_bar += c.flow_y0 * ey + c.flow_y1 * _shift(ey, -sides.width, sides.up)
    step_bar = x_bar * dx + y_bar * dy + length_bar * norm
    return x_bar, y_bar, f_bar, _stack(ex * f, ex * right, ey * f, ey * below), step_bar


@triton.jit
def _divergence_adjoint(
    x: tl.tensor, y: tl.tensor, f_bar: tl.tensor, c: Constants, sides: Sides
) -> tuple[tl.tensor, ...]:
    """What the divergence brings to the gradients of x and y; and by pixel those of its four taps over theta."""
    right = _shift(f_bar, 1, sides.right)
    below = _shift(f_bar, sides.width, sides.below)
    x_bar = tl.where(sides.right, c.theta * (c.div_x0 * right + c.div_x1 * f_bar), 0.0)
    y_bar = tl.where(sides.below, c.theta * (c.div_y0 * below + c.div_y1 * f_bar), 0.0)
    # The first tap meets f with the x to its left: summed over the plane, it is x with the f to its right.
    return x_bar, y_bar, _stack(x * right, x * f_bar, y * below, y * f_bar)


@triton.jit
def _threshold_adjoint(
    old: State, u_bar: tl.tensor, v_bar: tl.tensor, problem: Problem, problem_bar: Problem, bound: tl.tensor
) -> tuple[tl.tensor, tl.tensor, Problem, tl.tensor]:
    """Gradients of the old u and v, of the problem with what came before, and by pixel that of the bound."""
    raw, s, slope = _threshold(old.u, old.v, problem, bound)
    s_bar = u_bar * problem.gx + v_bar * problem.gy
    bound_bar = tl.where(raw > bound, s_bar, tl.where(raw < -bound, -s_bar, 0.0))
    r = tl.where((raw > bound) | (raw < -bound), 0.0, -s_bar / slope)
    slope_bar = 2.0 * raw * r
    problem_bar = Problem(
        problem_bar.rho_c + r,
        problem_bar.gx + u_bar * s + r * old.u + slope_bar * problem.gx,
        problem_bar.gy + v_bar * s + r * old.v + slope_bar * problem.gy,
    )
    return u_bar + r * problem.gx, v_bar + r * problem.gy, problem_bar, bound_bar


@triton.jit
def _undo(
    old: State, u: tl.tensor, v: tl.tensor, bar: State, problem: Problem, problem_bar: Problem, sums: Sums,
    c: Constants, sides: Sides, core: tl.tensor,
) -> tuple[State, Problem, Sums]:  # fmt: skip
    """The gradient of a state with flow u, v becomes that of the state before it; the others grow."""
    # The order matters: what is summed early need not be kept for each pixel.
    xu_bar, yu_bar, u_bar, taps_u, step_u = _dual_adjoint(u, old.xu, old.yu, bar.xu, bar.yu, c, sides)
    xv_bar, yv_bar, v_bar, taps_v, step_v = _dual_adjoint(v, old.xv, old.yv, bar.xv, bar.yv, c, sides)
    flow_sums = sums.flow + _sum(taps_u + taps_v, core)
    u_bar += bar.u
    v_bar += bar.v
    xu_more, yu_more, taps_u = _divergence_adjoint(old.xu, old.yu, u_bar, c, sides)
    xv_more, yv_more, taps_v = _divergence_adjoint(old.xv, old.yv, v_bar, c, sides)
    div_sums = sums.div + _sum(taps_u + taps_v, core)
    u_bar, v_bar, problem_bar, bound_bar = _threshold_adjoint(old, u_bar, v_bar, problem, problem_bar, c.bound)
    number_sums = sums.numbers + _sum(tl.join(step_u + step_v, bound_bar), core)
    bar = State(u_bar, v_bar, xu_bar + xu_more, xv_bar + xv_more, yu_bar + yu_more, yv_bar + yv_more)
    return bar, problem_bar, Sums(flow_sums, div_sums, number_sums)


@triton.jit
def _load_sums(row: tl.tensor) -> Sums:
    four = row + tl.arange(0, 4)
    return Sums(tl.load(four), tl.load(four + 4), tl.load(row + 8 + tl.arange(0, 2)))


@triton.jit
def _store_sums(rows: tl.tensor, iteration: tl.tensor, L: int, sums: Sums) -> Sums:
    """What was summed down to an iteration goes to its taps. Returns that if they are shared with the one before."""
    row = rows + tl.minimum(iteration, L - 1) * 10
    tl.store(row + tl.arange(0, 4), sums.flow)
    tl.store(row + 4 + tl.arange(0, 4), sums.div)
    tl.store(row + 8 + tl.arange(0, 2), sums.numbers)
    on = iteration >= L
    return Sums(tl.where(on, sums.flow, 0.0), tl.where(on, sums.div, 0.0), tl.where(on, sums.numbers, 0.0))


# A program's tape. It holds fewer than 2 sqrt(n) states: `marks`, `length` iterations apart, and those between two.


@triton.jit
def _slot(tape: tl.tensor, iteration: tl.tensor, length: int, marks: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """Where the state before an iteration is kept."""
    since = iteration % length
    number = tl.where(since == 0, iteration // length, marks + since - 1)
    return tape + number * 6 * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def _recall(slot: tl.tensor, BLOCK: tl.constexpr) -> State:
    return State(
        tl.load(slot), tl.load(slot + BLOCK), tl.load(slot + 2 * BLOCK), tl.load(slot + 3 * BLOCK),
        tl.load(slot + 4 * BLOCK), tl.load(slot + 5 * BLOCK),
    )  # fmt: skip


@triton.jit
def _record(state: State, first: tl.tensor, last: tl.tensor, shared: tl.tuple, BLOCK: tl.constexpr) -> State:
    """Iterations first..last-1; the state before each is kept."""
    problem, numbers, taps, L, channels, channel, sides, tape, begin, length, marks = shared
    for it in range(first, last):
        slot = _slot(tape, it - begin, length, marks, BLOCK)
        for field in tl.static_range(6):
            tl.store(slot + field * BLOCK, state[field])
        state = _iterate(state, problem, _load_constants(numbers, taps, L, channels, it, channel), sides)
    return state


@triton.jit(do_not_specialize=COUNTS)
def _retreat(
    rho_c: tl.tensor, grad: "tl.tensor | None", image_taps: "tl.tensor | None", flow: "tl.tensor | None",
    dual: "tl.tensor | None", numbers: tl.tensor, taps: tl.tensor, steps: "tl.tensor | None",
    flow_bar: "tl.tensor | None", dual_bar: "tl.tensor | None", new_flow_bar: "tl.tensor | None",
    new_dual_bar: "tl.tensor | None", rho_bar: "tl.tensor | None", grad_bar: "tl.tensor | None",
    clips_bar: "tl.tensor | None", image_sums: "tl.tensor | None", sums: tl.tensor, tape: tl.tensor, group: int, C: int,
    pairs: int, H: int, W: int, tile_h: int, tile_w: int, halo: int, L: int, channels: int, image_channels: int,
    windows: int, begin: int, end: int, length: int, iterations: int, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """The adjoint of `_advance`, from (flow_bar, dual_bar) to (new_flow_bar, new_dual_bar).

    (flow, dual) is the state before `begin`. The problem's gradient adds to that of iterations from `end` on. That of
    clips adds to `clips_bar`; `image_sums` gets a row of eight for each window.
    """
    marks = tl.cdiv(end - begin, length)
    tape += tl.program_id(0).to(tl.int64) * (marks + length - 1) * 6 * BLOCK
    for window in range(tl.program_id(0), windows, tl.num_programs(0)):
        place, sides = _window(window, group, H, W, tile_h, tile_w, halo, BLOCK)
        problem = _problem(rho_c, grad, image_taps, pairs, image_channels, place, sides)
        more = tl.where(place.core, end, iterations) < iterations  # a scalar behind `&` Triton 3.9 interprets wrongly
        problem_bar = _load_problem(rho_bar, grad_bar, place, more)
        bar = _load_state(flow_bar, dual_bar, place)
        rows = sums + window * L * 10  # one for each iteration's taps
        last = _last_step(end, steps, place, C)
        total = _load_sums(rows + tl.minimum(tl.maximum(last - 1, 0), L - 1) * 10)
        shared = (problem, numbers, taps, L, channels, place.plane // pairs, sides, tape, begin, length, marks)
        new = _record(_load_state(flow, dual, place), begin, last, shared, BLOCK)
        while last > begin:
            first = begin + (last - 1 - begin) // length * length
            tl.debug_barrier()  # the tape is written
            for it in range(last - 1, first - 1, -1):
                old = _recall(_slot(tape, it - begin, length, marks, BLOCK), BLOCK)
                c = _load_constants(numbers, taps, L, channels, it, place.plane // pairs)
                bar, problem_bar, total = _undo(
                    old, new.u, new.v, bar, problem, problem_bar, total, c, sides, place.core
                )
                new = old
                total = _store_sums(rows, it, L, total)
            tl.debug_barrier()  # the tape is read
            last = first
            first = tl.maximum(last - length, begin)
            _record(_recall(_slot(tape, first - begin, length, marks, BLOCK), BLOCK), first, last, shared, BLOCK)
        _store_state(new_flow_bar, new_dual_bar, place, bar)
        _store(rho_bar, 0, place, problem_bar.rho_c)
        _store(grad_bar, 0, place, problem_bar.gx)
        _store(grad_bar, 1, place, problem_bar.gy)
        if image_taps is not None:
            k = _image_taps(image_taps, pairs, image_channels, place)
            _undo_clip_problem(rho_c, clips_bar, image_sums + window * 8, k, pairs, place, sides, problem_bar)


# From PyTorch.

Pair = tuple[Tensor | None, Tensor | None]  # a flow and a dual field, or their gradients; None stands for zeros


class Task(NamedTuple):
    """What all launches share: a problem, its constants, and how many iterations each image takes.

    The problem is rho_c and grad, or clips (in the place of rho_c) and the taps of their gradient.
    """

    rho_c: Tensor
    grad: Tensor | None
    image_taps: Tensor | None
    numbers: Tensor
    taps: Tensor
    steps: Tensor | None

    @property
    def whole(self) -> bool:
        """Are the windows whole planes?"""
        return self.rho_c.shape[-2:].numel() <= LARGE

    def cut(self, halo: int) -> tuple[int, dict[str, int]]:
        """The number of windows, and how they lie, in the names of the kernels' arguments."""
        N, C, *_, H, W = self.rho_c.shape
        pairs = 1 if self.image_taps is None else self.rho_c.shape[2] - 1
        planes = N * C * pairs
        tile_h, tile_w = (H, W) if self.whole else (side - 2 * halo for side in TILE)
        pixels = triton.next_power_of_2(max(H * W if self.whole else math.prod(TILE), 32))
        return planes * math.ceil(H / tile_h) * math.ceil(W / tile_w), {
            **{"group": planes if self.image_taps is None else C * pairs, "C": C, "pairs": pairs, "H": H, "W": W},
            **{"tile_h": tile_h, "tile_w": tile_w, "halo": halo, "L": self.taps.shape[0]},
            **{
                "channels": self.taps.shape[1],
                "image_channels": 1 if self.image_taps is None else len(self.image_taps),
            },
            **{"BLOCK": pixels, "num_warps": min(max(pixels // 128, 1), WARPS), "maxnreg": REGISTERS},
        }


def _launch(task: Task, state: Pair, begin: int, end: int, epsilon: float = 0.0) -> Pair:
    """All planes' iterations begin..end-1. With `epsilon`, the steps of images that came to rest end there."""
    windows, cut = task.cut(0 if task.whole else end - begin)
    flow = torch.empty_like(task.grad, dtype=torch.float32)
    dual = flow.new_empty(2, *flow.shape)
    moved = flow.new_empty(len(task.steps), windows // len(task.steps)) if epsilon else None
    taken = torch.empty_like(moved, dtype=torch.int64) if epsilon else None
    rest = epsilon**2 * task.rho_c[0].numel()
    _advance[(windows,)](
        task.rho_c, task.grad, None, *state, task.numbers, task.taps, task.steps, flow, dual, moved, taken,
        begin=begin, end=end, rest=rest, **cut,
    )  # fmt: skip
    if epsilon:
        task.steps.copy_(torch.where(moved.sum(1) > rest, task.steps, taken[:, 0]))
    return flow, dual


def _iterate_in_launches(task: Task, state: Pair, begin: int, end: int, length: int, epsilon: float = 0.0) -> Pair:
    """Iterations begin..end-1, at most `length` of them by a launch; no iterations are one launch, too."""
    for first in range(begin, max(end, begin + 1), max(length, 1)):
        state = _launch(task, state, first, min(first + length, end), epsilon)
    return state


def _launch_adjoint(
    task: Task, state: Pair, begin: int, end: int, iterations: int, bar: Pair, problem_bar: tuple[Tensor | None, ...],
    sums: Tensor,
) -> Pair:  # fmt: skip
    """The adjoint of all planes' iterations begin..end-1, the first of which met `state`. Adds to `sums`.

    problem_bar: the gradients of rho_c and grad, of clips and of their taps by window; None where the task has others.
    """
    windows, cut = task.cut(0 if task.whole else ADJOINT_HALO)
    length = math.ceil(math.sqrt(max(end - begin, 1)))
    slots = math.ceil((end - begin) / length) + length - 1
    programs = min(windows, _multiprocessors(task.rho_c.device) * WARPS // cut["num_warps"])
    tape = sums.new_empty(programs, slots, 6, cut["BLOCK"])
    new_bar = tuple(None if t is None else torch.empty_like(t) for t in state)  # a start of zeros has no gradient
    _retreat[(programs,)](
        task.rho_c, task.grad, task.image_taps, *state, task.numbers, task.taps, task.steps, *bar, *new_bar,
        *problem_bar, sums, tape, windows=windows, begin=begin, end=end, length=length, iterations=iterations, **cut,
    )  # fmt: skip
    return new_bar


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _backward_steps(task: Task, start: Pair, iterations: int) -> Iterator[tuple[Pair, int, int]]:
    """What each launch of the adjoint undoes: a state and iterations begin..end-1, from the last to the first.

    A program that has a whole plane keeps its own tape. For tiles it is kept here: fewer than 2 sqrt(n) states.
    """
    if task.whole or not iterations:
        yield start, 0, iterations
        return
    length = math.ceil(math.sqrt(iterations))
    begins = range(0, iterations, length)
    marks = [start]
    for begin in begins[1:]:
        marks.append(_iterate_in_launches(task, marks[-1], begin - length, begin, TILE_ITERATIONS))
    for begin in reversed(begins):
        inside = [marks.pop()]
        for it in range(begin, min(begin + length, iterations) - 1):
            inside.append(_launch(task, inside[-1], it, it + 1))
        for it in reversed(range(begin, begin + len(inside))):
            yield inside.pop(), it, it + 1


def _parameters(task: Task, sums: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of numbers and taps, from the windows' sums."""
    theta, lam, tau = task.numbers.double()
    L, channels, _ = task.taps.shape
    sums = sums.view(len(task.rho_c), channels, -1, L, 10).sum((0, 2), dtype=torch.float64).transpose(0, 1)
    flow_bar, div_bar = sums[..., :4], sums[..., 4:8]
    step_bar, bound_bar = sums[..., 8:].sum((0, 1))
    theta_bar = (task.taps[..., 4:] * div_bar).sum() + lam * bound_bar - tau / theta**2 * step_bar
    numbers_bar = torch.stack([theta_bar, theta * bound_bar, step_bar / theta])
    return numbers_bar.float(), torch.cat([flow_bar, theta * div_bar], 2).float()


def _contiguous(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)


def forward(
    rho_c: Tensor, grad: Tensor, flow: Tensor | None, dual: Tensor | None, numbers: Tensor, taps: Tensor,
    iterations: int, epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`solve` in float32: returns flow, dual, and how many iterations each image took, (N,).

    numbers: theta, lam, tau. taps (L, C or 1, 8): the taps of flow_x, flow_y, div_x, div_y.
    """
    steps = torch.full(rho_c.shape[:1], iterations, device=rho_c.device)
    if not rho_c.numel():
        return (*(grad.new_empty(shape, dtype=torch.float32) for shape in (grad.shape, (2, *grad.shape))), steps)
    task = Task(*_contiguous(rho_c, grad, None, numbers, taps), steps)
    if not task.whole:
        length = 1 if epsilon else TILE_ITERATIONS
    else:  # an image of several planes can stop only between launches
        length = 1 if epsilon and rho_c.shape[1] > 1 else iterations
    with torch.cuda.device_of(rho_c):
        state = _iterate_in_launches(task, _contiguous(flow, dual), 0, iterations, length, epsilon)
    return *state, steps


def backward(
    flow_bar: Tensor | None, dual_bar: Tensor | None, rho_c: Tensor, grad: Tensor, flow: Tensor | None,
    dual: Tensor | None, numbers: Tensor, taps: Tensor, steps: Tensor, iterations: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of rho_c, grad, flow, dual, numbers, taps, from those of `forward`'s flow and dual.

    None stands for zeros; those of a start that was None are empty. No image took more than `iterations` steps.
    """
    problem_bar = tuple(t.new_empty(t.shape, dtype=torch.float32) for t in (rho_c, grad))
    if not rho_c.numel():
        starts_bar = (numbers.new_empty(0 if t is None else t.shape) for t in (flow, dual))
        return *problem_bar, *starts_bar, torch.zeros_like(numbers), torch.zeros_like(taps)
    task = Task(*_contiguous(rho_c, grad, None, numbers, taps), steps)
    windows, _ = task.cut(0 if task.whole else ADJOINT_HALO)
    sums = numbers.new_zeros(windows, len(taps), 10)
    bar = _contiguous(flow_bar, dual_bar)
    with torch.cuda.device_of(rho_c):
        for state, begin, end in _backward_steps(task, _contiguous(flow, dual), iterations):
            bar = _launch_adjoint(task, state, begin, end, iterations, bar, (*problem_bar, None, None), sums)
        numbers_bar, taps_bar = _parameters(task, sums)
    starts_bar = (numbers.new_empty(0) if t is None else t for t in bar)
    return *problem_bar, *starts_bar, numbers_bar, taps_bar


def forward_clips(clips: Tensor, numbers: Tensor, taps: Tensor, image_taps: Tensor, iterations: int) -> Tensor:
    """Flow (B, 2, C, T-1, H, W) between successive frames of clips (B, C, T, H, W), in float32, by one launch.

    numbers and taps as for `forward`; image_taps (C or 1, 6): the taps of image_x and image_y. At most `LARGE` pixels.
    """
    B, C, T, H, W = clips.shape
    flow = clips.new_empty(B, 2, C, T - 1, H, W)
    if flow.numel():
        task = Task(*_contiguous(clips, None, image_taps, numbers, taps), None)
        windows, cut = task.cut(0)
        nothing = (None, None)
        with torch.cuda.device_of(clips):
            _advance[(windows,)](
                task.rho_c, None, task.image_taps, *nothing, task.numbers, task.taps, None, flow, None, *nothing,
                begin=0, end=iterations, rest=0.0, **cut,
            )  # fmt: skip
    return flow


def backward_clips(
    flow_bar: Tensor, clips: Tensor, numbers: Tensor, taps: Tensor, image_taps: Tensor, iterations: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of clips, numbers, taps and image_taps from that of `forward_clips`' flow."""
    B, C, T, *_ = clips.shape
    clips_bar = torch.zeros_like(clips, memory_format=torch.contiguous_format)
    if not flow_bar.numel():
        return clips_bar, *(torch.zeros_like(t) for t in (numbers, taps, image_taps))
    task = Task(*_contiguous(clips, None, image_taps, numbers, taps), None)
    windows, _ = task.cut(0)
    sums, image_sums = numbers.new_zeros(windows, len(taps), 10), numbers.new_empty(windows, 2, 4)
    bar = flow_bar.contiguous(), None
    with torch.cuda.device_of(clips):
        problem_bar = None, None, clips_bar, image_sums
        _launch_adjoint(task, (None, None), 0, iterations, iterations, bar, problem_bar, sums)
        image_bar = image_sums[..., :3].reshape(B, C, T - 1, 6).sum((0, 2), dtype=torch.float64)
        return clips_bar, *_parameters(task, sums), image_bar.sum_to_size(image_taps.shape).float()
