"""The non-local block: attention between all places and times of a feature map."""

import torch.nn.functional as F
from torch import Tensor, nn


class NonLocal(nn.Module):
    """Non-local block, embedded Gaussian (Wang, Girshick, Gupta and He, CVPR 2018).

    (B, C, T, H, W) -> the same shape: x + bn(W softmax(theta(x)^T phi(x)) g(x)), with theta, phi and g 1x1x1
    convolutions to C/2 channels; phi and g are max-pooled by 2 in height and width. The batch norm's scale starts at 0,
    so the block begins as the identity. The convolutions have no biases (our choice): but for theta's, the softmax and
    the batch norm would take them away.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = max(channels // 2, 1)
        self.theta, self.phi, self.g = (nn.Conv3d(channels, half, 1, bias=False) for _ in range(3))
        self.pool = nn.MaxPool3d((1, 2, 2), ceil_mode=True)
        self.expand = nn.Conv3d(half, channels, 1, bias=False)
        self.bn = nn.BatchNorm3d(channels)
        nn.init.zeros_(self.bn.weight)

    def forward(self, x: Tensor) -> Tensor:
        # (B, 1 head, places, C/2), the shape that the kernels without a stored attention matrix take.
        query, key, value = (
            f.flatten(2).transpose(1, 2).unsqueeze(1)
            for f in (self.theta(x), self.pool(self.phi(x)), self.pool(self.g(x)))
        )
        # The paper's softmax is of the plain products: not divided by the root of their length.
        seen = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        seen = seen.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.bn(self.expand(seen))
