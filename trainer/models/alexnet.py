"""The four AlexNets, each a sequence of layers.

`alexnet` follows the paper's text, `alexnet_source` the code released with it. `alexnet_owt` is the network
of the 2014 "one weird trick" paper with torchvision's parameter names. `alexnet_bn` has batch normalization
in place of local response normalization.

Shapes: B batch, S crop. Input: preprocessed images (B, 3, S, S). Output: logits (B, classes).
"""

import math
from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn

from pipeline.arguments import LEAST, check_word, checked
from trainer.models.layers import LocalResponseNorm, MaxPool2d, PaperDropout, SpatialResponseNorm

# Channels of conv1 to conv5 and units of fc6 and fc7 (paper, section 3.5).
_PAPER_CHANNELS = (96, 256, 384, 384, 256, 4096, 4096)
# Paper, section 5: weights N(0, 0.01); some biases are 1, which gives their ReLUs positive inputs early on.
_PAPER_DEVIATION = 0.01
_SOURCE_DEVIATION = {"conv3": 0.03, "conv4": 0.03, "conv5": 0.03}
# The released code divides α = 1e-4 by the window of 5, and normalizes each GPU's half of the channels alone.
_SOURCE_ALPHA = 1e-4 / 5
_BIAS_ONE = frozenset({"conv2", "conv4", "conv5", "fc6", "fc7"})
# conv1 and three poolings leave nothing of smaller inputs (`alexnet_source` has the least padding).
_SMALLEST_CROP = 64
WIDEST = 8
"""Largest `width` that `build_model` accepts."""


@checked(classes=(2, math.inf), width=(LEAST, WIDEST), crop=(_SMALLEST_CROP, math.inf))
def build_model(arch: str, classes: int, width: float = 1.0, crop: int = 224) -> nn.Sequential:
    """Build a network and initialize it from torch's default random generator.

    Args:
        arch: Name of the architecture, one of `ARCHITECTURES`.
        classes: Number of classes, at least 2.
        width: Factor on the channels and units of every hidden layer, above 0 and at most `WIDEST`; 1 is
            the published network.
        crop: Side of the input in pixels, at least 64; 224 in the paper.

    Raises:
        UsageError: The name is unknown, or a number is out of range.
    """
    check_word("arch", arch, ARCHITECTURES)
    return ARCHITECTURES[arch](classes, width, crop)


def _alexnet(classes: int, width: float, crop: int) -> nn.Sequential:
    c1, c2, *hidden = _widths(_PAPER_CHANNELS, width)
    front = OrderedDict(
        conv1=nn.Conv2d(3, c1, 11, stride=4, padding=2),
        relu1=nn.ReLU(inplace=True),
        norm1=LocalResponseNorm(),
        pool1=MaxPool2d(3, stride=2),
        conv2=nn.Conv2d(c1, c2, 5, padding=2, groups=2),
        relu2=nn.ReLU(inplace=True),
        norm2=LocalResponseNorm(),
        pool2=MaxPool2d(3, stride=2),
    )
    rest = _from_conv3([c2, *hidden], _pooled_side(crop + 4), classes)
    return _initialize(nn.Sequential(front | rest), width, {})


def _alexnet_source(classes: int, width: float, crop: int) -> nn.Sequential:
    c1, c2, *hidden = _widths(_PAPER_CHANNELS, width)
    front = OrderedDict(
        pad1=nn.ZeroPad2d((0, 3, 0, 3)),
        conv1=nn.Conv2d(3, c1, 11, stride=4),
        norm1=LocalResponseNorm(alpha=_SOURCE_ALPHA, groups=2),  # before the ReLU, so its input is signed
        pool1=MaxPool2d(3, stride=2),
        relu1=nn.ReLU(inplace=True),
        conv2=nn.Conv2d(c1, c2, 5, padding=2, groups=2),
        relu2=nn.ReLU(inplace=True),
        norm2=LocalResponseNorm(alpha=_SOURCE_ALPHA, groups=2),
        spatial2=SpatialResponseNorm(),
        pool2=MaxPool2d(3, stride=2),
    )
    rest = _from_conv3([c2, *hidden], _pooled_side(crop + 3), classes)
    return _initialize(nn.Sequential(front | rest), width, _SOURCE_DEVIATION)


def _from_conv3(widths: list[int], side: int, classes: int) -> OrderedDict[str, nn.Module]:
    """Build conv3 to fc8, which are the same in the paper's text and the released code."""
    c2, c3, c4, c5, f6, f7 = widths
    return OrderedDict(
        conv3=nn.Conv2d(c2, c3, 3, padding=1),
        relu3=nn.ReLU(inplace=True),
        conv4=nn.Conv2d(c3, c4, 3, padding=1, groups=2),
        relu4=nn.ReLU(inplace=True),
        conv5=nn.Conv2d(c4, c5, 3, padding=1, groups=2),
        relu5=nn.ReLU(inplace=True),
        pool5=MaxPool2d(3, stride=2),
        flatten=nn.Flatten(),
        fc6=nn.Linear(c5 * side * side, f6),
        relu6=nn.ReLU(inplace=True),
        drop6=PaperDropout(),
        fc7=nn.Linear(f6, f7),
        relu7=nn.ReLU(inplace=True),
        drop7=PaperDropout(),
        fc8=nn.Linear(f7, classes),
    )


def _alexnet_bn(classes: int, width: float, crop: int) -> nn.Sequential:
    c1, c2, c3, c4, c5, f6, f7 = _widths(_PAPER_CHANNELS, width)
    side = _pooled_side(crop + 4)
    model = nn.Sequential(
        _normalized(conv1=nn.Conv2d(3, c1, 11, stride=4, padding=2, bias=False))
        | OrderedDict(pool1=MaxPool2d(3, stride=2))
        | _normalized(conv2=nn.Conv2d(c1, c2, 5, padding=2, groups=2, bias=False))
        | OrderedDict(pool2=MaxPool2d(3, stride=2))
        | _normalized(conv3=nn.Conv2d(c2, c3, 3, padding=1, bias=False))
        | _normalized(conv4=nn.Conv2d(c3, c4, 3, padding=1, groups=2, bias=False))
        | _normalized(conv5=nn.Conv2d(c4, c5, 3, padding=1, groups=2, bias=False))
        | OrderedDict(pool5=MaxPool2d(3, stride=2), flatten=nn.Flatten())
        | _normalized(fc6=nn.Linear(c5 * side * side, f6, bias=False))
        | OrderedDict(drop6=nn.Dropout(0.5))
        | _normalized(fc7=nn.Linear(f6, f7, bias=False))
        | OrderedDict(drop7=nn.Dropout(0.5), fc8=nn.Linear(f7, classes))
    )
    for name, module in model.named_children():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            # Batch normalization cancels the scale of conv1's weights, which only decides how fast they
            # change direction: with the paper's small scale, conv1 loses its initial noise within a short
            # run. With small weights in fc8, predictions start near chance.
            if name in ("conv1", "fc8"):
                nn.init.normal_(module.weight, std=_PAPER_DEVIATION)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def _normalized(**layer: nn.Conv2d | nn.Linear) -> OrderedDict[str, nn.Module]:
    """Add batch normalization and ReLU to one layer: conv1 → conv1, bn1, relu1."""
    ((name, module),) = layer.items()
    if isinstance(module, nn.Conv2d):
        bn: nn.Module = nn.BatchNorm2d(module.out_channels)
    else:
        bn = nn.BatchNorm1d(module.out_features)
    return OrderedDict({name: module, f"bn{name[-1]}": bn, f"relu{name[-1]}": nn.ReLU(inplace=True)})


class AlexNetOWT(nn.Sequential):
    """torchvision's `alexnet`: no groups, no normalization, its parameter names and its initialization."""

    def __init__(self, classes: int, width: float, _crop: int) -> None:
        c1, c2, c3, c4, c5, f6, f7 = _widths((64, 192, 384, 256, 256, 4096, 4096), width)
        features = nn.Sequential(
            nn.Conv2d(3, c1, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            MaxPool2d(3, stride=2),
            nn.Conv2d(c1, c2, 5, padding=2),
            nn.ReLU(inplace=True),
            MaxPool2d(3, stride=2),
            nn.Conv2d(c2, c3, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(c3, c4, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(c4, c5, 3, padding=1),
            nn.ReLU(inplace=True),
            MaxPool2d(3, stride=2),
        )
        classifier = nn.Sequential(
            nn.Dropout(0.5),
            nn.Linear(c5 * 36, f6),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(f6, f7),
            nn.ReLU(inplace=True),
            nn.Linear(f7, classes),
        )
        super().__init__(
            OrderedDict(
                features=features,
                avgpool=nn.AdaptiveAvgPool2d((6, 6)),
                flatten=nn.Flatten(),
                classifier=classifier,
            )
        )


ARCHITECTURES: dict[str, Callable[[int, float, int], nn.Sequential]] = {
    "alexnet": _alexnet,
    "alexnet_source": _alexnet_source,
    "alexnet_owt": AlexNetOWT,
    "alexnet_bn": _alexnet_bn,
}


def first_kernels(model: nn.Sequential) -> Tensor:
    """Return the first convolution's weights, (C1, 3, 11, 11), which the paper's figure 3 shows."""
    conv = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    return conv.weight.detach()


def layer_names(model: nn.Module) -> list[str]:
    """List the modules that own parameters, in order: the names allowed in a recipe's `layer_lr_factors`."""
    return [name for name, module in model.named_modules() if list(module.parameters(recurse=False))]


def _widths(full: tuple[int, ...], width: float) -> list[int]:
    """Scale channel counts, rounded to even numbers of at least 2 because some layers have two groups."""
    return [max(2, 2 * round(channels * width / 2)) for channels in full]


def _pooled_side(padded: int) -> int:
    """Compute the side of pool5's output from the padded input side: 228 or 227 → 55 → 27 → 13 → 6."""
    side = (padded - 11) // 4 + 1
    for _ in range(3):
        side = (side - 3) // 2 + 1
    return side


def _initialize(model: nn.Sequential, width: float, deviations: dict[str, float]) -> nn.Sequential:
    """Initialize weights from N(0, deviation) and biases to 0 or 1, as in the paper; return the network.

    A layer's gain grows with deviation · √(inputs). Narrow networks (`width` below 1) have fewer inputs per
    layer, and with the published deviation they stay at chance. So their hidden layers get √(1 / inputs)
    where that is larger, except conv1, which has 363 inputs at every width. Measured on 40 crops of 64 px
    at widths 0.1, 0.25 and 0.5: the loss starts near ln(classes) and is below 0.2 after 120 to 240 steps
    at a learning rate of 0.01. With √(2 / inputs) of He et al., and the biases of 1 in addition, the loss
    starts at 4 to 9 and falls more slowly. At full width the published numbers hold.

    Args:
        model: Network whose layers are its direct children.
        width: The network's width factor.
        deviations: Standard deviation per layer name; other layers get the paper's 0.01.
    """
    for name, module in model.named_children():
        if isinstance(module, nn.Conv2d | nn.Linear):
            deviation = deviations.get(name, _PAPER_DEVIATION)
            if width < 1 and name not in ("conv1", "fc8"):
                inputs = module.weight[0].numel()
                deviation = max(deviation, math.sqrt(1 / inputs))
            nn.init.normal_(module.weight, std=deviation)
            if module.bias is not None:
                nn.init.constant_(module.bias, 1.0 if name in _BIAS_ONE else 0.0)
    return model
