"""The two flow layers of the 2019 PyTorch releases under their own parameter names, on the common solver.

Repaired: the inverted byte masks, which current PyTorch turns into integer indexing (wrong output, NaN gradients).
All else is as released; what differs from the paper or from `repflow`'s own layers is marked.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repflow.solver import Kernels, image_gradient, solve
from repflow.solver.operators import X, Y, replace_border
from repflow.solver.reference import TINY, iterate


class FlowLayer201902(nn.Module):
    """The two-frame layer released in February 2019: depthwise, all of it learnable, no scaling.

    frame1, frame2: (N, C, H, W) each -> u, v, (N, C, H, W) each. Parameters: `img_grad` (C, 1, 1, 3), `img_grad2`
    (C, 1, 3, 1), `f_grad` and `div` (C, 1, 1, 2), `f_grad2` and `div2` (C, 1, 2, 1), and `t` theta, `l` lambda,
    `a` tau, (1,) each.
    """

    def __init__(self, channels: int, n_iter: int = 10) -> None:
        super().__init__()
        self.n_iter = n_iter

        def across(*taps: float) -> nn.Parameter:
            return nn.Parameter(torch.tensor(taps).repeat(channels, 1, 1, 1))

        def down(*taps: float) -> nn.Parameter:
            return nn.Parameter(torch.tensor(taps)[:, None].repeat(channels, 1, 1, 1))

        self.img_grad, self.img_grad2 = across(-0.5, 0.0, 0.5), down(-0.5, 0.0, 0.5)
        self.f_grad, self.f_grad2 = across(-1.0, 1.0), down(-1.0, 1.0)
        self.div, self.div2 = across(-1.0, 1.0), down(-1.0, 1.0)
        self.t, self.l, self.a = (nn.Parameter(torch.tensor([value])) for value in (0.3, 0.15, 0.25))

    def forward(self, frame1: Tensor, frame2: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.img_grad, self.img_grad2, self.f_grad, self.f_grad2, self.div, self.div2
        kernels = Kernels(*(w.flatten(1)[None] for w in weights))
        # Border gradients come from frame 1, the inner ones from frame 2.
        grad = image_gradient(frame2, kernels.image_x[0], kernels.image_y[0], border_frame=frame1)
        rho_c = frame2 - frame1 + TINY  # the release adds it to rho in every iteration
        flow, _ = solve(rho_c, grad, theta=self.t, lam=self.l, tau=self.a, iterations=self.n_iter, kernels=kernels)
        return flow[0], flow[1]


class FlowLayer201906(nn.Module):
    """The layer of the released Kinetics model (June 2019), with its faults, which its weights need.

    (B, C, T, H, W) -> (B, C, T-1, H, W). Its kernels are dense over channels; both derivatives of the flow, and both
    terms of the divergence, run down the columns; minimum and maximum are those of the whole batch. Parameters:
    `bottleneck`, `unbottleneck`, `bn`; `img_grad` (K, K, 1, 3), `img_grad2` (K, K, 3, 1), `f_grad`, `f_grad2`, `div`,
    `div2` (K, K, 2, 1) for K = bottleneck; `t` theta, `l` lambda, `a` tau, (1,) each.
    """

    def __init__(self, channels: int, bottleneck: int = 32, n_iter: int = 10) -> None:
        super().__init__()
        self.n_iter = n_iter

        def dense(*taps: float) -> nn.Parameter:
            # As released: all kernels alike, so every channel begins as the sum of all channels.
            return nn.Parameter(torch.tensor(taps)[:, None].repeat(bottleneck, bottleneck, 1, 1))

        self.bottleneck = nn.Conv3d(channels, bottleneck, 1, bias=False)
        self.unbottleneck = nn.Conv3d(2 * bottleneck, channels, 1, bias=False)
        self.bn = nn.BatchNorm3d(channels)
        nn.init.zeros_(self.bn.weight)
        self.img_grad = nn.Parameter(dense(-0.5, 0.0, 0.5).detach().mT.contiguous())
        self.img_grad2 = dense(-0.5, 0.0, 0.5)
        self.f_grad, self.f_grad2, self.div, self.div2 = (dense(-1.0, 1.0) for _ in range(4))
        self.t, self.l, self.a = (nn.Parameter(torch.tensor([value])) for value in (0.3, 0.15, 0.25))

    def flow(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The learned flow u, v, (B, K, T-1, H, W) each."""
        first, second = frame_pairs(self.bottleneck(x))
        by_x = F.conv2d(second, self.img_grad, padding=(0, 1))
        by_y = F.conv2d(second, self.img_grad2, padding=(1, 0))
        grad = torch.stack([replace_border(by_x, first, X), replace_border(by_y, first, Y)])
        at_rest = torch.zeros_like(grad), grad.new_zeros(2, *grad.shape)
        kernels = _DenseKernels(self.f_grad, self.f_grad2, self.div, self.div2)
        numbers = {"theta": self.t, "lam": self.l, "tau": self.a, "iterations": self.n_iter, "epsilon": 0.0}
        flow, _ = iterate(second - first + TINY, grad, *at_rest, kernels=kernels, **numbers)
        return per_clip(flow[0], len(x)), per_clip(flow[1], len(x))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x[:, :, :-1] + self.bn(self.unbottleneck(torch.cat(self.flow(x), 1))))


def frame_pairs(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled maps (B, K, T, H, W) as frames t and t+1, (B * (T-1), K, H, W) each."""
    # As released: minimum and maximum of the whole batch, and upside down (-255..0).
    low, high = maps.min(), maps.max()
    frames = (255 * (maps - low) / (low - high)).transpose(1, 2)
    return frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)


def per_clip(frames: Tensor, clips: int) -> Tensor:
    """Maps of frames, (clips * T, K, H, W), as maps of clips, (clips, K, T, H, W)."""
    return frames.unflatten(0, (clips, -1)).transpose(1, 2)


@dataclass(frozen=True)
class _DenseKernels:
    """`solver.Kernels` of the June 2019 layer: convolutions over channels, both down the columns."""

    f_grad: Tensor
    f_grad2: Tensor
    div: Tensor
    div2: Tensor

    def at(self, _: int) -> "_DenseKernels":
        return self

    def gradient(self, flow: Tensor) -> Tensor:
        below = F.pad(flow.flatten(0, 1), (0, 0, 0, 1))
        both = [F.conv2d(below, kernel)[..., :-1, :] for kernel in (self.f_grad, self.f_grad2)]
        return torch.stack([F.pad(d, (0, 0, 0, 1)).view_as(flow) for d in both])

    def divergence(self, dual: Tensor) -> Tensor:
        both = [F.pad(p.flatten(0, 1)[..., :-1, :], (0, 0, 1, 1)) for p in dual]
        terms = [F.conv2d(p, kernel) for p, kernel in zip(both, (self.div, self.div2), strict=True)]
        return (terms[0] + terms[1]).view_as(dual[0])
