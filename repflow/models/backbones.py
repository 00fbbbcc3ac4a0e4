"""Backbones: what turns clips into feature maps, stage by stage."""

import os
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repflow.models.inflate import Time, identity_in_time, inflate, take_channels

Numbers = tuple[float, ...]
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KINETICS = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
PLAIN = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Backbone:
    """Stages, each (B, C, T, H, W) to (B, C', T', H', W'), and what a classifier of their maps has to know.

    widths: the channels C of the input, and C' of each stage.
    time_stride: frames of the clip to a step in time of the maps, from the first stage on.
    least: the fewest frames, and the shortest side in pixels, that the stages can take.
    window: steps in time that are averaged before they are classified.
    mean, std: of each input channel, for values in 0..1: what the weights were trained on.
    head: the classifier that belongs to the weights, (classes, C') and (classes,); None with fresh ones.
    """

    stages: list[nn.Module]
    widths: tuple[int, ...]
    time_stride: int = 1
    least: tuple[int, int] = (1, 1)
    window: int = 1
    mean: Numbers = PLAIN[0]
    std: Numbers = PLAIN[1]
    head: tuple[Tensor, Tensor] | None = None


class Residual(nn.Module):
    """Basic residual block on every frame of (B, C, T, H, W) alone (He et al., CVPR 2016).

    With `temporal` a 3x1x1 convolution comes first, so that it sees three frames.
    """

    def __init__(self, channels_in: int, channels: int, stride: int, *, temporal: bool) -> None:
        super().__init__()
        step = (1, stride, stride)
        self.time = identity_in_time(channels_in) if temporal else nn.Identity()
        self.conv1 = nn.Conv3d(channels_in, channels, (1, 3, 3), step, (0, 1, 1), bias=False)
        self.bn1 = nn.BatchNorm3d(channels)
        self.conv2 = nn.Conv3d(channels, channels, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.bn2 = nn.BatchNorm3d(channels)
        self.shortcut = nn.Sequential(nn.Conv3d(channels_in, channels, 1, step, bias=False), nn.BatchNorm3d(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(self.time(x))))))
        return F.relu(out + self.shortcut(x))


class PerFrame(nn.Sequential):
    """Modules for pictures (N, C, H, W), applied to every frame of (B, C, T, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        frames = x.transpose(1, 2)
        return super().forward(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).transpose(1, 2)


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
        maps = self.theta(x), self.pool(self.phi(x)), self.pool(self.g(x))
        query, key, value = (f.flatten(2).transpose(1, 2).unsqueeze(1) for f in maps)
        # The paper's softmax is of the plain products: not divided by the root of their length.
        seen = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        seen = seen.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.bn(self.expand(seen))


def tiny(channels: int, *, temporal: bool, non_local: bool = False) -> Backbone:
    """Three stages for clips of about 48x48 pixels that train in a minute on two cores: 24x24, 12x12, 6x6 maps.

    tiny_2d sees each frame alone: motion is what a flow layer between its stages adds. tiny_2plus1d (`temporal`) sees
    three frames in each of two blocks, and so some motion by itself; tiny_nonlocal has a non-local block between them.
    """
    conv = nn.Conv3d(channels, 12, (1, 5, 5), (1, 2, 2), (0, 2, 2), bias=False)
    stem = nn.Sequential(conv, nn.BatchNorm3d(12), nn.ReLU())
    stages = [stem, *(Residual(width, 2 * width, 2, temporal=temporal) for width in (12, 24))]
    if non_local:
        stages[1] = nn.Sequential(stages[1], NonLocal(24))
    return Backbone(stages, (channels, 12, 24, 48), mean=(0.5,) * channels, std=(0.5,) * channels)


@dataclass(frozen=True)
class Pretrained:
    """A backbone made of one of torchvision's networks.

    network: torchvision's name for it. weights: torchvision's entries, by what they were trained on.
    parts: of each stage, the network's parts in their order.
    per_frame: the network is one of pictures, and sees each frame alone.
    to_clips: makes the network of pictures one of clips; told whether its weights are fresh.
    head: the network's own classifier. Others as for `Backbone`.
    """

    network: str
    weights: dict[str, str]
    parts: tuple[str, ...]
    widths: tuple[int, ...]
    normal: tuple[Numbers, Numbers]
    head: str = "fc"
    per_frame: bool = False
    to_clips: Callable[..., None] | None = None
    options: dict[str, bool] = field(default_factory=dict)
    time_stride: int = 1
    least: tuple[int, int] = (1, 1)
    window: int = 1


def build_backbone(name: str, channels: int = 3, weights: str | os.PathLike[str] | None = None) -> Backbone:
    """The backbone of a name in `BACKBONES`, for clips of `channels` channels (flow: 2).

    weights: None (fresh), "imagenet" or "kinetics400" where torchvision has them, or a file with a state dict of
    torchvision's network. Raises ValueError for weights that don't fit, OSError for some that cannot be had.
    """
    if name in TINY:
        if weights is not None:
            raise ValueError(f"weights: there are none for {name}, expected None, got {weights!r}")
        return tiny(channels, **TINY[name])
    from torchvision.models import get_model_builder  # takes seconds

    source, fresh = BACKBONES[name], weights is None
    net = get_model_builder(source.network)(**source.options)
    if not fresh:
        _load(net, _read_weights(weights, source.weights), source, weights)
    take_channels(net, channels, fresh=fresh)
    if source.to_clips:
        source.to_clips(net, fresh=fresh)
    kind = PerFrame if source.per_frame else nn.Sequential
    mean, std = PLAIN if fresh else source.normal
    if channels != 3:  # flow around 0, scaled as the pictures are (TSN)
        mean, std = (0.5,) * channels, (sum(std) / 3,) * channels
    head = net.get_submodule(source.head)
    return Backbone(
        [kind(*(net.get_submodule(part) for part in parts.split())) for parts in source.parts],
        (channels, *source.widths),
        time_stride=source.time_stride,
        least=source.least,
        window=source.window,
        mean=mean,
        std=std,
        head=None if fresh else (head.weight.detach().flatten(1), head.bias.detach()),
    )


def _load(net: nn.Module, state: dict[str, Tensor], source: Pretrained, weights: str | os.PathLike[str]) -> None:
    """Load a state dict of torchvision's network, which may have been trained for any number of classes."""
    state = {key: value for key, value in state.items() if not key.startswith("aux")}  # GoogLeNet's, used in training
    try:
        for part in ("weight", "bias"):
            setattr(net.get_submodule(source.head), part, nn.Parameter(state[f"{source.head}.{part}"]))
        net.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        expected = f"weights: expected a state dict of torchvision's {source.network}"
        raise ValueError(f"{expected}; {str(weights)!r} doesn't fit: {error}") from error


def _read_weights(weights: str | os.PathLike[str], named: Mapping[str, str]) -> dict[str, Tensor]:
    """The state dict for `weights`: a name among `named`'s, which are torchvision's entries, or a file.

    A named one is torchvision's file in PyTorch's cache (`torch.hub.get_dir()`), downloaded if it is not there yet.
    Raises ValueError for another name or a file without a state dict, FileNotFoundError for a missing file, and OSError
    if the download fails, with the address and the folder for a download by hand.
    """
    if weights in named:
        return _from_torchvision(named[weights])
    if weights in ("imagenet", "kinetics400"):
        known = ", ".join([*map(repr, named), "None", "a file"])
        raise ValueError(f"weights: expected one of {known} for this backbone, got {weights!r}")
    file = Path(weights)
    if not file.is_file():
        raise FileNotFoundError(f"weights: expected 'imagenet', 'kinetics400' or a file; found no file {str(file)!r}")
    with _damage_named(file):
        state = torch.load(file, "cpu", weights_only=True)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{file}: expected a state dict, names to tensors; save `model.state_dict()`")
    return state


def _from_torchvision(entry: str) -> dict[str, Tensor]:
    from torchvision.models import get_weight  # takes seconds

    source = get_weight(entry)
    file = Path(torch.hub.get_dir(), "checkpoints", source.url.rsplit("/", 1)[1])
    try:
        with _damage_named(file), redirect_stdout(sys.stderr):  # it reports a download on stdout, which is for results
            return source.get_state_dict(check_hash=True, weights_only=True, map_location="cpu")
    except OSError as error:
        raise OSError(
            f"{file.name} cannot be downloaded ({error}). It is torchvision's {entry}: fetch {source.url} "
            f"where there is a network, and put it into {file.parent}"
        ) from error


@contextmanager
def _damage_named(file: Path) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{file}: cannot be read as PyTorch weights ({error}); fetch it again") from error


def _resnet(depth: int) -> Pretrained:
    """He et al., CVPR 2016, on every frame alone. The weights are torchvision's first: the published training."""
    expansion = 4 if depth >= 50 else 1
    return Pretrained(
        f"resnet{depth}",
        {"imagenet": f"ResNet{depth}_Weights.IMAGENET1K_V1"},
        ("conv1 bn1 relu maxpool layer1", "layer2", "layer3", "layer4"),
        tuple(expansion * width for width in (64, 128, 256, 512)),
        IMAGENET,
        per_frame=True,
    )


def _resnet_2plus1d(depth: int) -> Pretrained:
    """The paper's (2+1)D ResNet: of the released Kinetics model, 7x7x7 stem, pool and bottlenecks T x 1 x 1, 1 x 3 x 3,
    1 x 1 x 1.

    Deviations from the release: T is 3 in every other block (the release: 3, 3, 1, 3, 1, ... in each stage), padding
    is symmetric, all batch norms have the default epsilon, and a shortcut has one of them.
    """
    return replace(_resnet(depth), per_frame=False, to_clips=_to_2plus1d, time_stride=4)


def _to_2plus1d(net: nn.Module, *, fresh: bool) -> None:
    """3x1x1 in every other block, the first of each stage included: a bottleneck's first convolution becomes it, and in
    a basic block, which has no such place, it comes before the first 1x3x3."""
    from torchvision.models.resnet import BasicBlock, Bottleneck

    blocks = [(name, b) for name, b in net.named_modules() if isinstance(b, BasicBlock | Bottleneck)]
    temporal = {name: block for name, block in blocks if int(name.rsplit(".", 1)[1]) % 2 == 0}
    times = {f"{name}.conv1": (3, 1) for name, block in temporal.items() if isinstance(block, Bottleneck)}
    times |= {"conv1": (7, 2), "maxpool": (3, 2)}
    inflate(net, lambda name, _: times.get(name, (1, 1)), fresh=fresh)
    for block in temporal.values():
        if isinstance(block, BasicBlock):
            block.conv1 = nn.Sequential(identity_in_time(block.conv1.in_channels), block.conv1)


def _resnet_nonlocal(depth: int) -> Pretrained:
    """Wang et al.'s I3D ResNet with five non-local blocks (CVPR 2018), which sees an eighth of the frames in time.

    32 frames of 224x224 become 4x28x28 maps after the second stage, as in the paper's table 1; its final network takes
    128 frames. Deviations from the released code: pools in time see 3 steps, as that table says, not 2, and are padded
    as convolutions are; batch norms learn; and see `NonLocal`.
    """
    parts = "conv1 bn1 relu maxpool layer1 pool2", "layer2", "layer3", "layer4"
    return replace(_resnet(depth), parts=parts, per_frame=False, to_clips=_to_nonlocal, time_stride=8)


def _to_nonlocal(net: nn.Module, *, fresh: bool) -> None:
    """The first convolutions of about every other bottleneck become 3x1x1 (the released code's choice), and non-local
    blocks stand in even distances: two in the second stage, three in the third."""
    temporal = {1: (0, 1, 2), 2: (0, 2), 3: range(0, len(net.layer3), 2), 4: (1,)}
    times = {f"layer{stage}.{i}.conv1": (3, 1) for stage, blocks in temporal.items() for i in blocks}
    times |= {"conv1": (5, 2), "maxpool": (3, 2)}
    inflate(net, lambda name, _: times.get(name, (1, 1)), fresh=fresh)
    net.pool2 = nn.MaxPool3d((3, 1, 1), (2, 1, 1), (1, 0, 0))
    for blocks, count in ((net.layer2, 2), (net.layer3, 3)):
        every = len(blocks) // count
        for i in range(every - 1, count * every, every):
            blocks[i] = nn.Sequential(blocks[i], NonLocal(blocks[i].conv3.out_channels))


def _to_i3d(net: nn.Module, *, fresh: bool) -> None:
    """Cubic kernels, but for the first two pools, which keep time whole."""

    def time(name: str, module: nn.Module) -> Time:
        extent, stride = (size if isinstance(size, int) else size[0] for size in (module.kernel_size, module.stride))
        return (1, 1) if name in ("maxpool1", "maxpool2") else (extent, stride)

    inflate(net, time, fresh=fresh)


TINY = {
    "tiny_2d": {"temporal": False},
    "tiny_2plus1d": {"temporal": True},
    "tiny_nonlocal": {"temporal": True, "non_local": True},
}
BACKBONES = {f"resnet{depth}_2d": _resnet(depth) for depth in (18, 34, 50)}
BACKBONES |= {f"resnet{depth}_2plus1d": _resnet_2plus1d(depth) for depth in (18, 34, 50)}
BACKBONES |= {f"resnet{depth}_nonlocal": _resnet_nonlocal(depth) for depth in (50, 101)}
# Inception-v1 with 3x3 where Szegedy et al. have 5x5, as I3D has it too. torchvision's network brings pictures from
# ImageNet's mean and deviation back to [-1, 1], which its weights come from.
BACKBONES["i3d"] = Pretrained(
    "googlenet",
    {"imagenet": "GoogLeNet_Weights.IMAGENET1K_V1"},
    (
        "conv1",
        "maxpool1 conv2 conv3",
        "maxpool2 inception3a inception3b",
        "maxpool3 inception4a inception4b inception4c inception4d inception4e",
        "maxpool4 inception5a inception5b",
    ),
    (64, 192, 480, 832, 1024),
    PLAIN,
    to_clips=_to_i3d,
    options={"aux_logits": False, "init_weights": False},
    least=(3, 15),
    window=2,
)
BACKBONES["s3d"] = Pretrained(
    "s3d",
    {"kinetics400": "S3D_Weights.KINETICS400_V1"},
    tuple(" ".join(f"features.{i}" for i in range(*ends)) for ends in pairwise((0, 1, 4, 7, 13, 16))),
    (64, 192, 480, 832, 1024),
    KINETICS,
    head="classifier.1",
    least=(5, 17),
    window=2,
)
BACKBONES["r2plus1d_18"] = Pretrained(
    "r2plus1d_18",
    {"kinetics400": "R2Plus1D_18_Weights.KINETICS400_V1"},
    ("stem layer1", "layer2", "layer3", "layer4"),
    (64, 128, 256, 512),
    KINETICS,
)
