"""The networks whose weights were released in 2019, under their own parameter names.

Both take RGB clips (B, 3, T, H, W) with values in [-1, 1]. The release's loaders scale pixels upside down, 1 - 2x/255;
its demonstration of the Kinetics model takes them upright, 2x/255 - 1. In both networks a clip's scores depend on the
rest of its batch, because the flow layers scale by minimum and maximum of all of it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repflow.official.layers import FlowLayer201902, FlowLayer201906, frame_pairs, per_clip

# The released HMDB51 network's, from its first score: as they first appear in the release's list of fold 1.
HMDB_CLASSES = [
    "pour", "stand", "talk", "shoot_gun", "dive", "climb_stairs", "pushup", "golf", "situp", "push", "clap", "drink",
    "eat", "chew", "kiss", "sword", "smile", "laugh", "dribble", "catch", "kick_ball", "fencing", "shoot_ball", "run",
    "jump", "wave", "brush_hair", "sword_exercise", "ride_horse", "swing_baseball", "ride_bike", "fall_floor",
    "somersault", "smoke", "sit", "cartwheel", "walk", "flic_flac", "punch", "shoot_bow", "shake_hands", "handstand",
    "kick", "hit", "draw_sword", "climb", "throw", "hug", "pullup", "pick", "turn",
]  # fmt: skip
BLOCKS, FILTERS = (3, 4, 6, 3), (64, 128, 256, 512)  # of the four stages, in ResNet-34 as in ResNet-50
TEMPORAL = (3, 3, 1, 3, 1, 3)  # frames that a block of the Kinetics model sees, anew in each stage


class KineticsModel(nn.Module):
    """The (2+1)D ResNet-50 with a representation flow layer that was released for Kinetics-400 (June 2019).

    (B, 3, T, H, W), T >= 11, H and W >= 15, -> (B, num_classes) scores, averaged over time. Any size will do: the map
    before the classifier is averaged whole. iterations: steps of the flow solver; the release took 10. Parameters:
    `stem`, `bn1`, `res2`, `res3`, `rep_flow` (with its faults, see `FlowLayer201906`), `res4`, `res5`, `classify`.
    Raises ValueError for another shape or type.
    """

    def __init__(self, num_classes: int = 400, iterations: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, FILTERS[0], 7, 2, bias=False)
        self.bn1 = nn.BatchNorm3d(FILTERS[0], eps=1e-3)  # as released: here only
        self.pool = nn.Sequential(SamePad((3, 3, 3), (2, 2, 2)), nn.MaxPool3d(3, 2))
        self.res2, self.res3, self.res4, self.res5 = (KineticsStage(i) for i in range(4))
        self.rep_flow = FlowLayer201906(4 * FILTERS[1], n_iter=iterations)
        self.dropout = nn.Dropout(0.5)
        self.classify = nn.Conv3d(4 * FILTERS[-1], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        _check(x, 11, 15)  # fewer, and the flow layer gets a single frame, or maps one pixel wide
        x = self.pool(F.relu(self.bn1(self.stem(x))))
        x = self.rep_flow(self.res3(self.res2(x)))
        x = self.res5(self.res4(x)).mean((3, 4), keepdim=True)
        return self.classify(self.dropout(x)).mean((2, 3, 4))


class HMDBFlowOfFlow(nn.Module):
    """The (2+1)D ResNet with flow-of-flow that was released for HMDB51: the file has 34 layers, the program 50.

    (B, 3, T, H, W), T >= 15, H and W >= 9, -> (B, num_classes) scores. iterations: steps of both flow solvers; None
    takes the release's, 20 with 34 layers and 10 with 50. Parameters: `conv1`, `bn1`, `layer1`, `layer2`, then
    `flow_cmp`, `flow_layer`, `flow_conv`, `flow_cmp2`, `flow_layer2`, `flow_conv2`, `bnf`, then `layer3`, `layer4`,
    `fc`. Raises ValueError for another shape or type, or another number of layers.

    The release averages the last map over 4x4 pixels, which is all of it for inputs of 97 to 128 pixels. Here the map
    is averaged whole at any size, which is the same there. The released file's classes are in the order of
    `HMDB_CLASSES`.

        >>> HMDBFlowOfFlow(layers=34)(torch.rand(1, 3, 32, 112, 112)).shape
        torch.Size([1, 51])
    """

    def __init__(self, num_classes: int = 51, iterations: int | None = None, layers: int = 50) -> None:
        super().__init__()
        if layers not in HMDB_BLOCKS:
            raise ValueError(f"layers: expected one of {', '.join(map(str, HMDB_BLOCKS))}, got {layers!r}")
        self.layers, (block, released) = layers, HMDB_BLOCKS[layers]
        iterations = released if iterations is None else iterations
        self.conv1 = nn.Conv3d(3, FILTERS[0], 7, (1, 2, 2), (0, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(FILTERS[0])
        self.pool = nn.MaxPool3d(3, 2, 1)
        self.layer1, self.layer2, self.layer3, self.layer4 = (_hmdb_stage(block, i) for i in range(4))
        channels, bottleneck = block.expansion * FILTERS[1], 32
        self.flow_cmp = nn.Conv3d(channels, bottleneck, 1, bias=False)
        self.flow_layer = FlowLayer201902(bottleneck, iterations)
        self.flow_conv = nn.Conv3d(2 * bottleneck, 2 * bottleneck, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.flow_cmp2 = nn.Conv3d(2 * bottleneck, bottleneck, 1, bias=False)
        self.flow_layer2 = FlowLayer201902(bottleneck, iterations)
        self.flow_conv2 = nn.Conv3d(2 * bottleneck, channels, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.bnf = nn.BatchNorm3d(channels)
        nn.init.zeros_(self.bnf.weight)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(block.expansion * FILTERS[-1], num_classes)

    def flow_of_flow(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C, T-2, H, W): flow, convolution, flow, added to the average of 3 frames."""
        flow = torch.cat(_clip_flow(self.flow_layer, self.flow_cmp(x)), 1)
        flow = torch.cat(_clip_flow(self.flow_layer2, self.flow_cmp2(self.flow_conv(flow))), 1)
        return F.relu(F.avg_pool3d(x, (3, 1, 1), stride=1) + self.bnf(self.flow_conv2(flow)))

    def forward(self, x: Tensor) -> Tensor:
        # Fewer frames, and `layer3` gets one, of which it takes none; fewer pixels, and maps are one pixel wide.
        _check(x, 15, 9)
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        x = self.flow_of_flow(self.layer2(self.layer1(x)))
        x = self.layer4(self.layer3(x)).mean((2, 3, 4))
        return self.fc(self.dropout(x))


class SamePad(nn.Module):
    """Zeros around (B, C, T, H, W) so that a kernel with a stride then gives ceil(size / stride) along each axis.

    Half of them in front, rounded down, and the rest behind, as in TensorFlow.
    """

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int] = (1, 1, 1)) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        pad = []
        for size, kernel, stride in zip(x.shape[2:], self.kernel, self.stride, strict=True):
            total = max(kernel - (size % stride or stride), 0)
            pad = [total // 2, total - total // 2, *pad]  # the last axis comes first
        return F.pad(x, pad)


class KineticsStage(nn.Module):
    """A stage of the Kinetics model, 0 to 3: its first block halves height and width, but for stage 0's."""

    def __init__(self, stage: int) -> None:
        super().__init__()
        widths = [_channels_into(stage, 4)] + [4 * FILTERS[stage]] * (BLOCKS[stage] - 1)
        self.blocks = nn.Sequential(
            *(
                KineticsBlock(width, FILTERS[stage], temporal, stride=2 if stage and not i else 1, shortcut=not i)
                for i, (width, temporal) in enumerate(zip(widths, TEMPORAL, strict=False))
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class KineticsBlock(nn.Module):
    """Bottleneck of three convolutions: temporal x 1 x 1, 1 x 3 x 3 with the stride in space, 1 x 1 x 1."""

    def __init__(self, channels: int, filters: int, temporal: int, stride: int, shortcut: bool) -> None:
        super().__init__()
        step = (1, stride, stride)
        self.layers = nn.Sequential(
            SamePad((temporal, 1, 1)),
            nn.Conv3d(channels, filters, (temporal, 1, 1), bias=False),
            nn.BatchNorm3d(filters),
            nn.ReLU(),
            SamePad((1, 3, 3), step),
            nn.Conv3d(filters, filters, (1, 3, 3), step, bias=False),
            nn.BatchNorm3d(filters),
            nn.ReLU(),
            nn.Conv3d(filters, 4 * filters, 1, bias=False),
            nn.BatchNorm3d(4 * filters),
        )
        self.shortcut = nn.Sequential(nn.Identity())
        if shortcut:
            self.shortcut.append(nn.Conv3d(channels, 4 * filters, 1, step, bias=False))
            self.shortcut.extend(nn.BatchNorm3d(4 * filters) for _ in range(2))  # as released: two in series

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layers(x) + self.shortcut(x))


class HMDBBottleneck(nn.Module):
    """Three convolutions: 3 x 1 x 1, 1 x 3 x 3 with the stride in time and space, 1 x 1 x 1."""

    expansion = 4  # maps that it gives, for each filter

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, filters, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.bn1 = nn.BatchNorm3d(filters)
        self.conv2 = nn.Conv3d(filters, filters, (1, 3, 3), stride, (_time_padding(stride), 1, 1), bias=False)
        self.bn2 = nn.BatchNorm3d(filters)
        self.conv3 = nn.Conv3d(filters, 4 * filters, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(4 * filters)
        self.downsample = _hmdb_shortcut(channels, 4 * filters, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.downsample(x))


class HMDBBasicBlock(nn.Module):
    """Two convolutions: 1 x 3 x 3 with the stride in time and space, 3 x 3 x 3."""

    expansion = 1

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, filters, (1, 3, 3), stride, (_time_padding(stride), 1, 1), bias=False)
        self.bn1 = nn.BatchNorm3d(filters)
        self.conv2 = nn.Conv3d(filters, filters, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(filters)
        self.downsample = _hmdb_shortcut(channels, filters, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.downsample(x))


# Of each number of layers: the block, and the solver's steps.
HMDB_BLOCKS = {34: (HMDBBasicBlock, 20), 50: (HMDBBottleneck, 10)}


def _hmdb_stage(block: type[HMDBBasicBlock | HMDBBottleneck], stage: int) -> nn.Sequential:
    """A stage of the HMDB model, 0 to 3: its first block halves time, height and width, but for stage 0's."""
    filters = FILTERS[stage]
    first = block(_channels_into(stage, block.expansion), filters, stride=2 if stage else 1)
    rest = (block(block.expansion * filters, filters, stride=1) for _ in range(BLOCKS[stage] - 1))
    return nn.Sequential(first, *rest)


def _hmdb_shortcut(channels: int, maps: int, stride: int) -> nn.Sequential:
    """Nothing, or a convolution where the block changes the number of maps or their size."""
    if channels == maps and stride == 1:
        return nn.Sequential()
    convolution = nn.Conv3d(channels, maps, 1, stride, (_time_padding(stride), 0, 0), bias=False)
    return nn.Sequential(convolution, nn.BatchNorm3d(maps))


def _time_padding(stride: int) -> int:
    # As released: time is padded where it is strided, though the kernel sees one frame: -1 (zeros), 1, 3, ...
    return stride - 1


def _channels_into(stage: int, expansion: int) -> int:
    return expansion * FILTERS[stage - 1] if stage else FILTERS[0]


def _clip_flow(layer: FlowLayer201902, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Flow u, v between successive frames of scaled maps: (B, K, T, H, W) -> (B, K, T-1, H, W) each."""
    u, v = layer(*frame_pairs(maps))
    return per_clip(u, len(maps)), per_clip(v, len(maps))


def _check(x: Tensor, frames: int, pixels: int) -> None:
    fits = x.ndim == 5 and x.shape[1] == 3 and len(x) > 0 and x.shape[2] >= frames and min(x.shape[3:]) >= pixels
    if not fits or not x.is_floating_point():
        raise ValueError(
            f"expected clips (B, 3, T, H, W) with B >= 1, T >= {frames}, H and W >= {pixels}, of floating-point type "
            f"and values in [-1, 1]; got a tensor of shape {tuple(x.shape)} and type {x.dtype}"
        )
