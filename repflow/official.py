"""The 2019 PyTorch releases: their layers under their own parameter names, on the common solver.

Repaired: the inverted byte masks, which current PyTorch turns into integer indexing (wrong output, NaN gradients).
All else is as released; what differs from the paper or from `repflow`'s own layers is marked.
"""

import torch
from torch import Tensor, nn

from .solver import Kernels, image_gradient, solve
from .solver.reference import TINY


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
