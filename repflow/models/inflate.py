"""Networks of pictures made into networks of clips (Carreira and Zisserman, CVPR 2017, section 2)."""

from collections.abc import Callable

from torch import Tensor, nn

# A layer's extent and stride in time.
Time = tuple[int, int]


def inflate(net: nn.Module, time: Callable[[str, nn.Module], Time], *, fresh: bool) -> None:
    """Replace the 2D convolutions, batch norms and max-pools of `net` by 3D ones.

    time: the extent (odd for convolutions) and the stride in time of the layer of a name.
    fresh: the convolutions draw new weights (He et al., ICCV 2015). Otherwise they repeat theirs in time, divided by
        the extent: of a clip that stands still the network then sees what it saw of the picture, but near the clip's
        ends, where zeros are padded.
    """
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.Conv2d):
            net.set_submodule(name, _conv(module, *time(name, module), fresh))
        elif isinstance(module, nn.BatchNorm2d):
            norm = nn.BatchNorm3d(module.num_features, module.eps, module.momentum, device=module.weight.device)
            norm.load_state_dict(module.state_dict())
            net.set_submodule(name, norm)
        elif isinstance(module, nn.MaxPool2d):
            net.set_submodule(name, _max_pool(module, *time(name, module)))


def take_channels(net: nn.Module, channels: int, *, fresh: bool) -> None:
    """Let the first convolution of `net` take `channels` instead of pictures' three.

    Its weights become the mean over red, green and blue ("cross-modality" of Wang et al., TSN, ECCV 2016), or new ones
    where `fresh`.
    """
    name, first = next((n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Conv3d))
    if first.in_channels == channels:
        return
    weight = first.weight.detach().mean(1, keepdim=True).repeat_interleave(channels, 1)
    net.set_submodule(name, _like(first, weight, first.kernel_size, first.stride, first.padding, fresh))


def identity_in_time(channels: int) -> nn.Conv3d:
    """A 3x1x1 convolution that begins as the identity, for a place where the 2D network has none."""
    conv = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), bias=False)
    nn.init.dirac_(conv.weight)
    return conv


def _conv(conv: nn.Conv2d, extent: int, stride: int, fresh: bool) -> nn.Conv3d:
    weight = conv.weight.detach()[:, :, None].repeat(1, 1, extent, 1, 1) / extent
    padding = (extent // 2, *conv.padding)
    return _like(conv, weight, (extent, *conv.kernel_size), (stride, *conv.stride), padding, fresh)


def _max_pool(pool: nn.MaxPool2d, extent: int, stride: int) -> nn.MaxPool3d:
    kernel, step, padding = pool.kernel_size, pool.stride, pool.padding
    before = padding if extent > 1 else 0
    return nn.MaxPool3d(
        (extent, kernel, kernel), (stride, step, step), (before, padding, padding), ceil_mode=pool.ceil_mode
    )


def _like(
    conv: nn.Conv2d | nn.Conv3d,
    weight: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    fresh: bool,
) -> nn.Conv2d | nn.Conv3d:
    """A convolution of this weight's shape, without bias."""
    kind = nn.Conv3d if weight.ndim == 5 else nn.Conv2d
    new = kind(weight.shape[1], conv.out_channels, kernel, stride, padding, bias=False, device="meta")
    new.weight = nn.Parameter(weight)
    if fresh:
        nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    return new
