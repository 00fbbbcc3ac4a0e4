"""The CPU engine: all iterations of a plane inside the cache, compiled by Numba. Equals `reference` in float32.

A plane's state is six flat fields: u, v, and the dual field's (x, u), (x, v), (y, u), (y, v), in the order of `solve`'s
arrays. Zeros stand before and behind each, so that a pixel's neighbours are plain shifts and every loop runs over the
whole plane; masks end the differences at the last column and row. A plane too large for the cache is cut into
overlapping tiles, which take a few iterations each before they meet again.
"""

import math
from itertools import pairwise

import numpy as np
import torch
from numpy import ndarray as Array
from torch import Tensor

from repflow.solver.reference import TINY as REFERENCE_TINY
from repflow.solver.threads import compiled, inlined, shared, wide_vectors

ZERO, ONE, TWO, TINY = (np.float32(value) for value in (0, 1, 2, REFERENCE_TINY))
LARGE = 1 << 15  # pixels: a plane of more leaves a core's own cache
TILE = 64, 256  # rows and columns of such a plane's tiles
TILE_ITERATIONS = 6  # what a tile does by itself; its overlap grows with it
KEPT = 1 << 21  # bytes of states that an adjoint keeps at once: within the last caches, whose reading beats computing


# One iteration, in place. `W` is a window's width, `S` its number of pixels, `k` the eight taps of flow_x, flow_y,
# div_x, div_y. Loops stay simple and free of branches: only then do they become vector code.


@inlined
def _aligned(n: int) -> int:
    """n, rounded up to a whole number of 64-byte lines of float32."""
    return (n + 15) // 16 * 16


@inlined
def _size(S: int, W: int) -> int:
    """Of a field: zeros, S pixels up to a whole line, zeros."""
    return _aligned(S) + 2 * _aligned(W)


@inlined
def _fields(number: int, size: int) -> Array:
    """(number, size) of float32; rows begin at lines of 64 bytes, if `size` is `_aligned`: so vectors load fastest."""
    flat = np.empty(number * size + 16, np.float32)
    start = -(flat.ctypes.data // 4) % 16
    return flat[start : start + number * size].reshape(number, size)


@inlined
def _here(field: Array, W: int, S: int) -> Array:
    """A field's pixels, without the zeros around them."""
    return field[_aligned(W) : _aligned(W) + S]


@inlined
def _behind(field: Array, W: int, S: int) -> tuple[Array, Array, Array]:
    """A field's pixels, those to their left, and those above."""
    start = _aligned(W)
    return field[start : start + S], field[start - 1 : start - 1 + S], field[start - W : start - W + S]


@inlined
def _ahead(field: Array, W: int, S: int) -> tuple[Array, Array, Array]:
    """A field's pixels, those to their right, and those below."""
    start = _aligned(W)
    return field[start : start + S], field[start + 1 : start + 1 + S], field[start + W : start + W + S]


@inlined
def _flow_step(state: Array, problem: Array, k: Array, theta: float, bound: float, W: int, S: int) -> None:
    wide_vectors()
    u, v = _here(state[0], W, S), _here(state[1], W, S)
    (xu, xu_left, _), (yu, _, yu_up) = _behind(state[2], W, S), _behind(state[4], W, S)
    (xv, xv_left, _), (yv, _, yv_up) = _behind(state[3], W, S), _behind(state[5], W, S)
    rho_c, gx, gy, inverse = problem[0], problem[1], problem[2], problem[3]
    k0x, k1x, k0y, k1y = theta * k[4], theta * k[5], theta * k[6], theta * k[7]
    for i in range(S):
        s = -(rho_c[i] + gx[i] * u[i] + gy[i] * v[i]) * inverse[i]
        s = bound if s > bound else (-bound if s < -bound else s)  # NaN stays NaN
        u[i] += s * gx[i] + (k0x * xu_left[i] + k1x * xu[i] + k0y * yu_up[i] + k1y * yu[i])
        v[i] += s * gy[i] + (k0x * xv_left[i] + k1x * xv[i] + k0y * yv_up[i] + k1y * yv[i])


@inlined
def _dual_step(state: Array, mask: Array, k: Array, step: float, W: int, S: int) -> None:
    wide_vectors()
    (u, u_right, u_below), (v, v_right, v_below) = _ahead(state[0], W, S), _ahead(state[1], W, S)
    xu, xv, yu, yv = _here(state[2], W, S), _here(state[3], W, S), _here(state[4], W, S), _here(state[5], W, S)
    inner_x, inner_y = mask[0], mask[1]
    k0x, k1x, k0y, k1y = k[0], k[1], k[2], k[3]
    for i in range(S):
        ux = inner_x[i] * (k0x * u[i] + k1x * u_right[i])
        uy = inner_y[i] * (k0y * u[i] + k1y * u_below[i])
        vx = inner_x[i] * (k0x * v[i] + k1x * v_right[i])
        vy = inner_y[i] * (k0y * v[i] + k1y * v_below[i])
        # 1 / (1 + step |grad u|), by the root's reciprocal, for which processors have an instruction.
        root_u, root_v = ONE / math.sqrt(ux * ux + uy * uy + TINY), ONE / math.sqrt(vx * vx + vy * vy + TINY)
        shrink_u, shrink_v = root_u / (root_u + step), root_v / (root_v + step)
        xu[i] = (xu[i] + step * ux) * shrink_u
        yu[i] = (yu[i] + step * uy) * shrink_u
        xv[i] = (xv[i] + step * vx) * shrink_v
        yv[i] = (yv[i] + step * vy) * shrink_v


@inlined
def _iterate(state: Array, problem: Array, mask: Array, k: Array, numbers: Array, W: int, S: int) -> None:
    theta, lam, tau = numbers[0], numbers[1], numbers[2]
    _flow_step(state, problem, k, theta, lam * theta, W, S)
    _dual_step(state, mask, k, tau / theta, W, S)


@inlined
def _taps_of(taps: Array, iteration: int, plane: int) -> Array:
    return taps[min(iteration, taps.shape[0] - 1), plane % taps.shape[1]]


# Windows of planes.


@inlined
def _copy(source: Array, start: int, pitch: int, target: Array, start2: int, pitch2: int, h: int, W: int) -> None:
    """Copy h rows of W pixels between flat arrays in which rows begin `pitch` pixels apart."""
    if pitch == W == pitch2:
        h, W = 1, h * W
    for y in range(h):
        a, b = source[start + y * pitch :][:W], target[start2 + y * pitch2 :][:W]
        for x in range(W):
            b[x] = a[x]


@inlined
def _load_state(
    flow: Array, dual: Array, plane: int, start: int, pitch: int, mask: Array, h: int, W: int, state: Array
) -> None:
    """Fill `state` from (2, P, S) and (4, P, S); arrays of no size mean zeros. The dual field ends where masks do."""
    S, base = h * W, _aligned(W)
    state[:, :] = ZERO
    if flow.size:
        for j in range(2):
            _copy(flow[j, plane], start, pitch, state[j], base, W, h, W)
    if dual.size:
        for j in range(4):
            _copy(dual[j, plane], start, pitch, state[2 + j], base, W, h, W)
            field, inner = state[2 + j, base : base + S], mask[j // 2]
            for i in range(S):
                field[i] *= inner[i]


@inlined
def _load_mask(W: int, S: int, mask: Array) -> None:
    """1 where a difference to the right (mask[0]) and downwards (mask[1]) is taken, 0 in the last column and row."""
    mask[:, :S], mask[:, S:] = ONE, ZERO
    mask[0, W - 1 : S : W] = ZERO
    mask[1, S - W : S] = ZERO


@inlined
def _load_problem(
    rho_c: Array, grad: Array, plane: int, start: int, pitch: int, h: int, W: int, problem: Array, mask: Array
) -> None:
    S = h * W
    _load_mask(W, S, mask)
    _copy(rho_c[plane], start, pitch, problem[0], 0, W, h, W)
    _copy(grad[0, plane], start, pitch, problem[1], 0, W, h, W)
    _copy(grad[1, plane], start, pitch, problem[2], 0, W, h, W)
    problem[:, S:] = ZERO
    gx, gy, inverse = problem[1], problem[2], problem[3]
    for i in range(S):
        inverse[i] = ONE / (gx[i] * gx[i] + gy[i] * gy[i] + TINY)


@inlined
def _movement(state: Array, before: Array, W: int, y0: int, y1: int, x0: int, x1: int) -> float:
    """Sum of the flow's squared changes over rows y0..y1-1 and columns x0..x1-1."""
    total = 0.0
    for y in range(y0, y1):
        for i in range(_aligned(W) + y * W + x0, _aligned(W) + y * W + x1):
            total += (state[0, i] - before[0, i]) ** 2 + (state[1, i] - before[1, i]) ** 2
    return total


@compiled
def _advance(
    first: int, last: int, windows: Array, pitch: int, rho_c: Array, grad: Array, flow: Array, dual: Array,
    numbers: Array, taps: Array, begin: int, end: int, new_flow: Array, new_dual: Array, moved: Array, rest: float,
) -> None:  # fmt: skip
    """Iterations begin..end-1 of windows first..last-1, from (flow, dual) to (new_flow, new_dual).

    windows: rows of plane, then y0, y1, x0, x1 of what is stored, then of what is computed. Planes are flat, with rows
    of `pitch` pixels. moved (windows, iterations): `_movement` of what is stored; nothing where it has no columns. A
    window ends where that is not above `rest`; below 0 none does.
    """
    size = 0
    for w in range(first, last):
        W = windows[w, 8] - windows[w, 7]
        size = max(size, _size((windows[w, 6] - windows[w, 5]) * W, W))
    problem, mask, state, before = _fields(4, size), _fields(2, size), _fields(6, size), _fields(2, size)
    for w in range(first, last):
        plane, y0, y1, x0, x1, Y0, Y1, X0, X1 = windows[w]
        h, W = Y1 - Y0, X1 - X0
        _load_problem(rho_c, grad, plane, Y0 * pitch + X0, pitch, h, W, problem, mask)
        _load_state(flow, dual, plane, Y0 * pitch + X0, pitch, mask, h, W, state)
        for it in range(begin, end):
            if moved.shape[1]:
                before[0], before[1] = state[0], state[1]
            _iterate(state, problem, mask, _taps_of(taps, it, plane), numbers, W, _aligned(h * W))
            if moved.shape[1]:
                moved[w, it - begin] = _movement(state, before, W, y0 - Y0, y1 - Y0, x0 - X0, x1 - X0)
                if rest >= 0 and not moved[w, it - begin] > rest:  # so does NaN end it
                    break
        inner = _aligned(W) + (y0 - Y0) * W + x0 - X0
        for j in range(2):
            _copy(state[j], inner, W, new_flow[j, plane], y0 * pitch + x0, pitch, y1 - y0, x1 - x0)
        for j in range(4):
            _copy(state[2 + j], inner, W, new_dual[j, plane], y0 * pitch + x0, pitch, y1 - y0, x1 - x0)


# The adjoint of an iteration. `bar` holds the loss's gradient with respect to the state, and is changed in place;
# `old` and `new` are the states before and behind the iteration.


@inlined
def _dual_adjoint(
    new: Array, bar: Array, mask: Array, k: Array, step: float, W: int, S: int, e: Array, k_bar: Array
) -> float:
    """Undo the dual step; the gradients of the flow's differences go to `e`. Returns the step's gradient."""
    wide_vectors()
    inner_x, inner_y = mask[0], mask[1]
    k0x, k1x, k0y, k1y = k[0], k[1], k[2], k[3]
    sum_step, sum0x, sum1x, sum0y, sum1y = ZERO, ZERO, ZERO, ZERO, ZERO
    for a in range(2):
        f, right, below = _ahead(new[a], W, S)
        x, y = _here(new[2 + a], W, S), _here(new[4 + a], W, S)
        x_bar, y_bar = _here(bar[2 + a], W, S), _here(bar[4 + a], W, S)
        ex, ey = _here(e[a], W, S), _here(e[2 + a], W, S)
        for i in range(S):
            dx = inner_x[i] * (k0x * f[i] + k1x * right[i])
            dy = inner_y[i] * (k0y * f[i] + k1y * below[i])
            root = ONE / math.sqrt(dx * dx + dy * dy + TINY)
            shrink = root / (root + step)
            length_bar = -(x_bar[i] * x[i] + y_bar[i] * y[i]) * shrink
            x_bar[i] *= shrink
            y_bar[i] *= shrink
            along = step * length_bar * root
            ex[i] = inner_x[i] * (step * x_bar[i] + along * dx)
            ey[i] = inner_y[i] * (step * y_bar[i] + along * dy)
            sum_step += x_bar[i] * dx + y_bar[i] * dy + length_bar * (dx * dx + dy * dy + TINY) * root
            sum0x += ex[i] * f[i]
            sum1x += ex[i] * right[i]
            sum0y += ey[i] * f[i]
            sum1y += ey[i] * below[i]
    k_bar[0] += sum0x
    k_bar[1] += sum1x
    k_bar[2] += sum0y
    k_bar[3] += sum1y
    return sum_step


@inlined
def _gradient_adjoint(e: Array, bar: Array, k: Array, W: int, S: int) -> None:
    """Add to the new flow's gradient what its differences bring."""
    wide_vectors()
    k0x, k1x, k0y, k1y = k[0], k[1], k[2], k[3]
    for a in range(2):
        (ex, ex_left, _), (ey, _, ey_up) = _behind(e[a], W, S), _behind(e[2 + a], W, S)
        f_bar = _here(bar[a], W, S)
        for i in range(S):
            f_bar[i] += k0x * ex[i] + k1x * ex_left[i] + k0y * ey[i] + k1y * ey_up[i]


@inlined
def _divergence_adjoint(
    old: Array, bar: Array, mask: Array, k: Array, theta: float, W: int, S: int, k_bar: Array
) -> float:
    """Add to the old dual field's gradient what its divergence brings. Returns the gradient of theta there."""
    wide_vectors()
    inner_x, inner_y = mask[0], mask[1]
    k0x, k1x, k0y, k1y = theta * k[4], theta * k[5], theta * k[6], theta * k[7]
    sum0x, sum1x, sum0y, sum1y = ZERO, ZERO, ZERO, ZERO
    for a in range(2):
        f_bar, right, below = _ahead(bar[a], W, S)
        (x, x_left, _), (y, _, y_up) = _behind(old[2 + a], W, S), _behind(old[4 + a], W, S)
        x_bar, y_bar = _here(bar[2 + a], W, S), _here(bar[4 + a], W, S)
        for i in range(S):
            x_bar[i] += inner_x[i] * (k0x * right[i] + k1x * f_bar[i])
            y_bar[i] += inner_y[i] * (k0y * below[i] + k1y * f_bar[i])
            sum0x += f_bar[i] * x_left[i]
            sum1x += f_bar[i] * x[i]
            sum0y += f_bar[i] * y_up[i]
            sum1y += f_bar[i] * y[i]
    k_bar[4] += theta * sum0x
    k_bar[5] += theta * sum1x
    k_bar[6] += theta * sum0y
    k_bar[7] += theta * sum1y
    return k[4] * sum0x + k[5] * sum1x + k[6] * sum0y + k[7] * sum1y


@inlined
def _threshold_adjoint(
    old: Array, bar: Array, problem: Array, bound: float, W: int, S: int, problem_bar: Array
) -> float:
    """Undo the threshold; adds to the gradients of rho_c and grad. Returns that of lam theta."""
    wide_vectors()
    u, v, u_bar, v_bar = _here(old[0], W, S), _here(old[1], W, S), _here(bar[0], W, S), _here(bar[1], W, S)
    rho_c, gx, gy, inverse = problem[0], problem[1], problem[2], problem[3]
    rho_bar, gx_bar, gy_bar = problem_bar[0], problem_bar[1], problem_bar[2]
    sum_bound = ZERO
    for i in range(S):
        raw = -(rho_c[i] + gx[i] * u[i] + gy[i] * v[i]) * inverse[i]
        above, under = ONE if raw > bound else ZERO, ONE if raw < -bound else ZERO
        s = bound if raw > bound else (-bound if raw < -bound else raw)
        s_bar = u_bar[i] * gx[i] + v_bar[i] * gy[i]
        sum_bound += (above - under) * s_bar
        r = (above + under - ONE) * inverse[i] * s_bar
        slope_bar = TWO * raw * r
        rho_bar[i] += r
        gx_bar[i] += u_bar[i] * s + r * u[i] + slope_bar * gx[i]
        gy_bar[i] += v_bar[i] * s + r * v[i] + slope_bar * gy[i]
        u_bar[i] += r * gx[i]
        v_bar[i] += r * gy[i]
    return sum_bound


@inlined
def _undo(
    old: Array, new: Array, bar: Array, problem: Array, mask: Array, k: Array, numbers: Array, W: int, S: int,
    e: Array, problem_bar: Array, numbers_bar: Array, k_bar: Array,
) -> None:  # fmt: skip
    theta, lam, tau = numbers[0], numbers[1], numbers[2]
    sum_step = _dual_adjoint(new, bar, mask, k, tau / theta, W, S, e, k_bar)
    _gradient_adjoint(e, bar, k, W, S)
    sum_theta = _divergence_adjoint(old, bar, mask, k, theta, W, S, k_bar)
    sum_bound = _threshold_adjoint(old, bar, problem, lam * theta, W, S, problem_bar)
    numbers_bar[0] += sum_theta + lam * sum_bound - tau / theta**2 * sum_step
    numbers_bar[1] += theta * sum_bound
    numbers_bar[2] += sum_step / theta


@inlined
def _keep(state: Array, slot: Array) -> None:
    _copy(state.ravel(), 0, state.size, slot.ravel(), 0, state.size, 1, state.size)


@inlined
def _store(fields: Array, start: int, target: Array, plane: int) -> None:
    """Copy whole planes to (fields, P, S), or nowhere where that has no size."""
    if target.size:
        for j in range(target.shape[0]):
            _copy(fields[j], start, target.shape[2], target[j, plane], 0, target.shape[2], 1, target.shape[2])


@inlined
def segments(iterations: int, size: int) -> tuple[int, int]:
    """Length and number of the segments in which an adjoint goes back, for fields of `size` values.

    It keeps the state before each, and those within one. One segment computes nothing twice; where its states would
    leave the cache, number + length - 1 of them are fewer than 2 sqrt(iterations).
    """
    length = max(math.ceil(math.sqrt(iterations)), min(iterations, KEPT // (6 * 4 * size)), 1)
    return length, math.ceil(iterations / length)


@inlined
def _undo_plane(
    steps: int, state: Array, bar: Array, problem: Array, mask: Array, taps: Array, plane: int, numbers: Array, W: int,
    S: int, e: Array, begins: Array, within: Array, problem_bar: Array, numbers_bar: Array, taps_bar: Array,
) -> None:  # fmt: skip
    """Compute the iterations again, from the first `state`, and carry `bar` back through them, segment by segment."""
    length = within.shape[0] + 1
    last_begin = (math.ceil(steps / length) - 1) * length
    for it in range(last_begin):
        if it % length == 0:
            _keep(state, begins[it // length])
        _iterate(state, problem, mask, _taps_of(taps, it, plane), numbers, W, S)
    for begin in range(last_begin, -1, -length):
        end, slot = min(steps, begin + length), begins[begin // length]
        if begin == last_begin:
            _keep(state, slot)
        else:
            _keep(slot, state)
        for it in range(begin, end):
            if it > begin:
                _keep(state, within[it - begin - 1])
            _iterate(state, problem, mask, _taps_of(taps, it, plane), numbers, W, S)
        new = state
        for it in range(end - 1, begin - 1, -1):
            old = within[it - begin - 1] if it > begin else slot
            k, k_bar = _taps_of(taps, it, plane), taps_bar[min(it, taps.shape[0] - 1)]
            _undo(old, new, bar, problem, mask, k, numbers, W, S, e, problem_bar, numbers_bar, k_bar)
            new = old


@inlined
def _workspace(size: int, iterations: int) -> tuple[Array, ...]:
    """Fields of an adjoint: problem, its gradient, mask, state, its gradient, e of `_undo`, states that are kept."""
    length, most = segments(iterations, size)
    e = _fields(4, size)
    e[:, :] = ZERO
    return (
        _fields(4, size), _fields(3, size), _fields(2, size), _fields(6, size), _fields(6, size), e,
        _fields(6 * most, size).reshape(most, 6, size), _fields(6 * (length - 1), size).reshape(length - 1, 6, size),
    )  # fmt: skip


@compiled
def _adjoint(
    first: int, last: int, pitch: int, rho_c: Array, grad: Array, flow: Array, dual: Array, numbers: Array,
    taps: Array, steps: Array, flow_bar: Array, dual_bar: Array, rho_bar: Array, grad_bar: Array,
    start_bar: Array, start_dual_bar: Array, numbers_bar: Array, taps_bar: Array,
) -> None:  # fmt: skip
    """Gradients of planes first..last-1, whose iterations are computed again."""
    W, S = pitch, rho_c.shape[1]
    size = _size(S, W)
    problem, problem_bar, mask, state, bar, e, begins, within = _workspace(size, steps[first:last].max())
    for p in range(first, last):
        _load_problem(rho_c, grad, p, 0, W, S // W, W, problem, mask)
        _load_state(flow, dual, p, 0, W, mask, S // W, W, state)
        _load_state(flow_bar, dual_bar, p, 0, W, mask, S // W, W, bar)
        problem_bar[:, :] = ZERO
        _undo_plane(
            steps[p], state, bar, problem, mask, taps, p, numbers, W, _aligned(S), e, begins, within, problem_bar,
            numbers_bar[p], taps_bar[p],
        )  # fmt: skip
        _store(problem_bar[:1], 0, rho_bar.reshape(1, -1, S), p)
        _store(problem_bar[1:], 0, grad_bar, p)
        _store(bar[:2], _aligned(W), start_bar, p)
        _store(bar[2:], _aligned(W), start_dual_bar, p)


# Clips: planes of one channel, frame after frame. A pair's residual and image gradient are made where they are used.
# A direction is three numbers: the step to the next pixel, the step to the next line, and how long a line is. At its
# ends a frame goes on linearly, as in `operators.image_gradient`.


@inlined
def _directions(W: int, S: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    return (1, W, W), (W, 1, S // W)


@inlined
def _neighbours(f: Array, direction: tuple[int, int, int], S: int, before: Array, behind: Array) -> None:
    """What stands before and behind each of S pixels along a direction."""
    step, line, n = direction
    for i in range(S - step):
        before[i + step], behind[i] = f[i], f[i + step]
    for first in range(0, S // n * line, line):
        last = first + (n - 1) * step
        before[first], behind[last] = TWO * f[first] - f[first + step], TWO * f[last] - f[last - step]


@inlined
def _derivative(
    f: Array, k: Array, direction: tuple[int, int, int], S: int, before: Array, behind: Array, g: Array
) -> None:
    wide_vectors()
    g[:S] = ZERO
    if direction[2] > 1:  # a line of one pixel has no difference along it
        _neighbours(f, direction, S, before, behind)
        for i in range(S):
            g[i] = k[0] * before[i] + k[1] * f[i] + k[2] * behind[i]


@inlined
def _derivative_adjoint(
    f: Array, k: Array, direction: tuple[int, int, int], S: int, before: Array, behind: Array, g_bar: Array,
    f_bar: Array, k_bar: Array,
) -> None:  # fmt: skip
    """Add to the gradients of a frame and of three taps."""
    wide_vectors()
    step, line, n = direction
    if n > 1:
        _neighbours(f, direction, S, before, behind)
        sum0, sum1, sum2 = ZERO, ZERO, ZERO
        for i in range(S):
            sum0 += g_bar[i] * before[i]
            sum1 += g_bar[i] * f[i]
            sum2 += g_bar[i] * behind[i]
            before[i], behind[i] = k[0] * g_bar[i], k[2] * g_bar[i]  # from here on their gradients
            f_bar[i] += k[1] * g_bar[i]
        k_bar[0] += sum0
        k_bar[1] += sum1
        k_bar[2] += sum2
        for first in range(0, S // n * line, line):
            last = first + (n - 1) * step
            f_bar[first] += TWO * before[first]
            f_bar[first + step] -= before[first]
            f_bar[last] += TWO * behind[last]
            f_bar[last - step] -= behind[last]
            before[first], behind[last] = ZERO, ZERO
        for i in range(S - step):
            f_bar[i] += before[i + step]
        for i in range(S - step):
            f_bar[i + step] += behind[i]


@inlined
def _load_pair(f1: Array, f2: Array, k: Array, W: int, S: int, problem: Array, mask: Array, spare: Array) -> None:
    _load_mask(W, S, mask)
    x, y = _directions(W, S)
    _derivative(f2, k[:3], x, S, spare[0], spare[1], problem[1])
    _derivative(f2, k[3:], y, S, spare[0], spare[1], problem[2])
    problem[:, S:] = ZERO
    rho_c, gx, gy, inverse = problem[0], problem[1], problem[2], problem[3]
    for i in range(S):
        rho_c[i] = f2[i] - f1[i]
        inverse[i] = ONE / (gx[i] * gx[i] + gy[i] * gy[i] + TINY)


@compiled
def _advance_clips(
    first: int, last: int, W: int, clips: Array, numbers: Array, taps: Array, image_taps: Array, iterations: int,
    flow: Array,
) -> None:  # fmt: skip
    """Flow (B, 2, C, T-1, S) of pairs first..last-1 of clips (B, C, T, S), from zero."""
    _, C, T, S = clips.shape
    size = _size(S, W)
    problem, mask, state, spare = _fields(4, size), _fields(2, size), _fields(6, size), _fields(2, size)
    for pair in range(first, last):
        plane, t = pair // (T - 1), pair % (T - 1)
        b, c = plane // C, plane % C
        _load_pair(clips[b, c, t], clips[b, c, t + 1], image_taps[c % len(image_taps)], W, S, problem, mask, spare)
        state[:, :] = ZERO
        for it in range(iterations):
            _iterate(state, problem, mask, _taps_of(taps, it, c), numbers, W, _aligned(S))
        for j in range(2):
            _copy(state[j], _aligned(W), S, flow[b, j, c, t], 0, S, 1, S)


@compiled
def _undo_clips(
    first: int, last: int, W: int, clips: Array, numbers: Array, taps: Array, image_taps: Array, iterations: int,
    flow_bar: Array, clips_bar: Array, numbers_bar: Array, taps_bar: Array, image_bar: Array,
) -> None:  # fmt: skip
    """Gradients of channels first..last-1 of all clips, pair after pair."""
    _, C, T, S = clips.shape
    size = _size(S, W)
    problem, problem_bar, mask, state, bar, e, begins, within = _workspace(size, iterations)
    spare = _fields(2, size)
    for plane in range(first, last):
        b, c = plane // C, plane % C
        k, frame_bars = image_taps[c % len(image_taps)], clips_bar[b, c]
        frame_bars[0] = ZERO
        for t in range(T - 1):
            f1, f2 = clips[b, c, t], clips[b, c, t + 1]
            _load_pair(f1, f2, k, W, S, problem, mask, spare)
            state[:, :], bar[:, :], problem_bar[:, :] = ZERO, ZERO, ZERO
            for j in range(2):
                _copy(flow_bar[b, j, c, t], 0, S, bar[j], _aligned(W), S, 1, S)
            _undo_plane(
                iterations, state, bar, problem, mask, taps, c, numbers, W, _aligned(S), e, begins, within, problem_bar,
                numbers_bar[plane], taps_bar[plane],
            )  # fmt: skip
            x, y = _directions(W, S)
            f1_bar, f2_bar, rho_bar = frame_bars[t], frame_bars[t + 1], problem_bar[0]
            for i in range(S):
                f1_bar[i] -= rho_bar[i]
                f2_bar[i] = rho_bar[i]
            _derivative_adjoint(f2, k[:3], x, S, spare[0], spare[1], problem_bar[1], f2_bar, image_bar[plane, :3])
            _derivative_adjoint(f2, k[3:], y, S, spare[0], spare[1], problem_bar[2], f2_bar, image_bar[plane, 3:])


# From PyTorch.


def _arrays(tensor: Tensor | None, fields: int) -> Array:
    """A tensor as (fields, planes, pixels), for one field as (planes, pixels); of no size where it is None."""
    if tensor is None:
        return np.empty((fields, 0, 0), np.float32)
    *_, H, W = tensor.shape
    shape = (-1, H * W) if fields == 1 else (fields, -1, H * W)
    return tensor.detach().contiguous().numpy().reshape(shape)


def _windows(planes: Array, H: int, W: int, reach: int) -> Array:
    """The windows of `_advance` that cover these planes: whole planes, or tiles with what `reach` iterations need."""
    if H * W <= LARGE:
        tiles = [(0, H, 0, W, 0, H, 0, W)]
    else:
        counts = [math.ceil(n / side) for n, side in zip((H, W), TILE, strict=True)]
        ys, xs = ([n * i // count for i in range(count + 1)] for n, count in zip((H, W), counts, strict=True))
        # An iteration looks one pixel back for the dual field and one ahead for the flow, and this for the dual field.
        tiles = [
            (y0, y1, x0, x1, max(y0 - reach, 0), min(y1 + reach + 1, H), max(x0 - reach, 0), min(x1 + reach + 1, W))
            for y0, y1 in pairwise(ys)
            for x0, x1 in pairwise(xs)
        ]
    return np.column_stack([np.repeat(planes, len(tiles)), np.tile(tiles, (len(planes), 1))])


def forward(
    rho_c: Tensor, grad: Tensor, flow: Tensor | None, dual: Tensor | None, numbers: Tensor, taps: Tensor,
    iterations: int, epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`solve` in float32: returns flow, dual, and how many iterations each image took, (N,).

    numbers: theta, lam, tau. taps (L, C or 1, 8): the taps of flow_x, flow_y, div_x, div_y.
    """
    rho_c, grad = rho_c.float(), grad.float()
    N, C, H, W = rho_c.shape
    new_flow, new_dual = grad.new_empty(grad.shape), grad.new_empty(2, *grad.shape)
    steps = torch.full((N,), iterations)
    if not rho_c.numel():
        return new_flow, new_dual, steps
    problem = W, _arrays(rho_c, 1), _arrays(grad, 2)
    constants = numbers.detach().numpy(), taps.detach().contiguous().numpy()

    def advance(images: Array, begin: int, end: int, source: tuple, target: tuple, rest: float = -1.0) -> Array:
        """Squared changes of the windows of each image in each of these iterations, or -1 where one was at rest."""
        windows = _windows((images[:, None] * C + np.arange(C)).ravel(), H, W, end - begin)
        moved = np.full((len(windows), end - begin if epsilon else 0), -1.0)
        shared(_advance, len(windows), windows, *problem, *source, *constants, begin, end, *target, moved, rest)
        return moved.reshape(len(images), len(windows) // len(images), moved.shape[1])

    result = _arrays(new_flow, 2), _arrays(new_dual, 4)
    running, current = np.arange(N), (_arrays(flow, 2), _arrays(dual, 4))
    if epsilon and C == 1 and H * W <= LARGE:  # an image is one window, which sees by itself when it is at rest
        moved = advance(running, 0, iterations, current, result, epsilon**2 * H * W)
        return new_flow, new_dual, torch.from_numpy((moved[:, 0] != -1).sum(1))
    length = iterations if H * W <= LARGE and not epsilon else TILE_ITERATIONS
    spare = [tuple(map(np.empty_like, result)) for _ in range(2)] if length < iterations else []
    for begin in range(0, max(iterations, 1), max(length, 1)):
        end = min(begin + length, iterations)
        target = result if end == iterations else spare[0]
        moved = advance(running, begin, end, current, target)
        if epsilon:
            # An image that came to rest within the pass is taken there once more, no further.
            rest = ~(moved.sum(1) / (C * H * W) > epsilon**2)
            taken = np.where(rest.any(1), rest.argmax(1) + 1, 0)
            for count in np.unique(taken[taken > 0]):
                advance(running[taken == count], begin, begin + int(count), current, result)
            steps[running[taken > 0]] = torch.from_numpy(begin + taken[taken > 0])
            running = running[taken == 0]
            if not running.size:
                break
        current, spare = target, spare[::-1]
    return new_flow, new_dual, steps


def backward(
    flow_bar: Tensor | None, dual_bar: Tensor | None, rho_c: Tensor, grad: Tensor, flow: Tensor | None,
    dual: Tensor | None, numbers: Tensor, taps: Tensor, steps: Tensor, _: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of rho_c, grad, flow, dual, numbers, taps, from those of `forward`'s flow and dual.

    None stands for zeros; those of a start that was None are empty. `steps` says how many iterations each image took.
    """
    rho_c, grad = rho_c.float(), grad.float()
    _, C, _, W = rho_c.shape
    bars = [rho_c.new_empty(0 if t is None else t.shape) for t in (rho_c, grad, flow, dual)]
    if not rho_c.numel():
        return *bars, torch.zeros_like(numbers), torch.zeros_like(taps)
    outputs = [_arrays(bar if bar.numel() else None, fields) for bar, fields in zip(bars, (1, 2, 2, 4), strict=True)]
    planes = outputs[0].shape[0]
    numbers_bar, taps_bar = np.zeros((planes, 3)), np.zeros((planes, taps.shape[0], 8))
    shared(
        _adjoint, planes, W, _arrays(rho_c, 1), _arrays(grad, 2), _arrays(flow, 2), _arrays(dual, 4),
        numbers.detach().numpy(), taps.detach().contiguous().numpy(), steps.repeat_interleave(C).numpy(),
        _arrays(flow_bar, 2), _arrays(dual_bar, 4), *outputs, numbers_bar, taps_bar,
    )  # fmt: skip
    return *bars, torch.from_numpy(numbers_bar.sum(0)).to(numbers), _taps_gradient(taps_bar, taps)


def forward_clips(clips: Tensor, numbers: Tensor, taps: Tensor, image_taps: Tensor, iterations: int) -> Tensor:
    """Flow (B, 2, C, T-1, H, W) between successive frames of clips (B, C, T, H, W), in float32.

    numbers and taps as for `forward`; image_taps (C or 1, 6): the taps of image_x and image_y.
    """
    B, C, T, H, W = clips.shape
    flow = clips.new_empty(B, 2, C, T - 1, H, W)
    if flow.numel():
        pairs = B * C * (T - 1)
        shared(_advance_clips, pairs, W, *_clip_arrays(clips, numbers, taps, image_taps), iterations, _flat(flow))
    return flow


def backward_clips(
    flow_bar: Tensor, clips: Tensor, numbers: Tensor, taps: Tensor, image_taps: Tensor, iterations: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of clips, numbers, taps and image_taps from that of `forward_clips`' flow."""
    B, C, _, _, W = clips.shape
    bars = np.zeros((B * C, 3)), np.zeros((B * C, taps.shape[0], 8)), np.zeros((B * C, 6))
    clips_bar = torch.zeros_like(clips, memory_format=torch.contiguous_format)
    if flow_bar.numel():
        arrays = _clip_arrays(clips, numbers, taps, image_taps)
        shared(_undo_clips, B * C, W, *arrays, iterations, _flat(flow_bar), _flat(clips_bar), *bars)
    numbers_bar, taps_bar, image_bar = bars
    image_bar = image_bar.reshape(-1, *image_taps.shape).sum(0)
    sums = [torch.from_numpy(bar).to(clips) for bar in (numbers_bar.sum(0), image_bar)]
    return clips_bar, sums[0], _taps_gradient(taps_bar, taps), sums[1]


def _taps_gradient(planes: Array, taps: Tensor) -> Tensor:
    """That of the taps (L, C or 1, 8) from those of all planes, (planes, L, 8)."""
    return torch.from_numpy(planes.reshape(-1, taps.shape[1], *planes.shape[1:]).sum(0).swapaxes(0, 1)).to(taps)


def _clip_arrays(clips: Tensor, numbers: Tensor, taps: Tensor, image_taps: Tensor) -> tuple[Array, ...]:
    return _flat(clips), *(t.detach().contiguous().numpy() for t in (numbers, taps, image_taps))


def _flat(maps: Tensor) -> Array:
    """Maps (..., H, W) as (..., pixels)."""
    return maps.detach().contiguous().flatten(-2).numpy()
