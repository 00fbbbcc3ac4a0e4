"""Networks of pictures made into networks of clips (Carreira and Zisserman, CVPR 2017, section 2)."""

from collections.abc import Callable

from torch import Tensor, nn

Time = tuple[int, int]  # a layer's extent and stride
Conv = nn.Conv2d | nn.Conv3d


def inflate(net: nn.Module, time: Callable[[str, nn.Module], Time], *, fresh: bool) -> None:
    """Replace the 2D convolutions, batch norms and max-pools of `net` by 3D ones.

    time: the extent (odd for convolutions) and the stride in time of the layer of a name.
    fresh: the convolutions draw new weights (He et al., ICCV 2015). Otherwise they repeat theirs in time, divided by
        the extent: of a clip that stands still the network then sees what it saw of the picture, but near the clip's
        ends, where zeros are padded.
    """
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.Conv2d):
            extent, stride = time(name, module)
            weight = module.weight.detach()[:, :, None].repeat(1, 1, extent, 1, 1) / extent
            new = _like(module, weight, (stride, *module.stride), (extent // 2, *module.padding), fresh)
        elif isinstance(module, nn.BatchNorm2d):
            new = nn.BatchNorm3d(module.num_features, module.eps, module.momentum, device=module.weight.device)
            new.load_state_dict(module.state_dict())
        elif isinstance(module, nn.MaxPool2d):
            extent, stride = time(name, module)
            kernel, step, padding = module.kernel_size, module.stride, module.padding
            paddings = (padding if extent > 1 else 0, padding, padding)
            new = nn.MaxPool3d((extent, kernel, kernel), (stride, step, step), paddings, ceil_mode=module.ceil_mode)
        else:
            continue
        net.set_submodule(name, new)


def take_channels(net: nn.Module, channels: int, *, fresh: bool) -> None:
    """Let the first convolution of `net` take `channels` instead of pictures' three.

    Its weights become the mean over red, green and blue ("cross-modality" of Wang et al., TSN, ECCV 2016), or new ones
    where `fresh`.
    """
    name, first = next((n, m) for n, m in net.named_modules() if isinstance(m, Conv))
    if first.in_channels == channels:
        return
    weight = first.weight.detach().mean(1, keepdim=True).repeat_interleave(channels, 1)
    net.set_submodule(name, _like(first, weight, first.stride, first.padding, fresh))


def identity_in_time(channels: int) -> nn.Conv3d:
    """A 3x1x1 convolution that begins as the identity, for a place where the 2D network has none."""
    conv = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), bias=False)
    nn.init.dirac_(conv.weight)
    return conv


def _like(conv: Conv, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...], fresh: bool) -> Conv:
    """A convolution of this weight's shape, without bias."""
    kind = nn.Conv3d if weight.ndim == 5 else nn.Conv2d
    channels, *kernel = weight.shape[1:]
    new = kind(channels, conv.out_channels, kernel, stride, padding, bias=False, device="meta")
    new.weight = nn.Parameter(weight)
    if fresh:
        nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    return new
