"""The models of the paper's evaluation, as plain modules.

A user's own module takes their place anywhere: pass it as `Experiment(model=...)`.
"""

from collections.abc import Callable
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


def logistic(features: int, classes: int) -> nn.Module:
    """Multinomial logistic regression on flattened inputs; HAR: 561 features, 6 classes."""
    return nn.Sequential(nn.Flatten(), nn.Linear(features, classes))


def mlp(features: int, classes: int, hidden: int = 64) -> nn.Module:
    """One hidden layer of ReLU units on flattened inputs."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes)
    )


def cnn(channels: int = 1, classes: int = 10) -> nn.Module:
    """The paper's four-layer CNN for 28 x 28 images; d = 139,960 for one channel, ten classes.

    Two 3 x 3 convolutions without padding (30 and 50 channels), each followed by ReLU and
    2 x 2 max pooling, then linear layers 1250-100 (ReLU) and 100-classes. The maximum is taken
    first: it is the same either way, gradients too, with a quarter of the entries left for ReLU.
    """
    return nn.Sequential(
        nn.Conv2d(channels, 30, 3),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(30, 50, 3),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1250, 100),
        nn.ReLU(),
        nn.Linear(100, classes),
    )


class ResNet20(nn.Module):
    """ResNet-20 with batch norm for 32 x 32 images (He et al. 2016, section 4.2).

    Three stages of three basic blocks with 16, 32 and 64 channels; where the shape changes, the
    shortcut subsamples and pads the new channels with zeros (the original's option A, which adds
    no parameters).
    """

    def __init__(self, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.norm = NormReLU(16)
        widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
        self.blocks = nn.Sequential(*(_Block(a, b) for a, b in pairwise(widths)))
        self.head = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of `images` (N, channels, height, width)."""
        features = self.blocks(self.norm(self.conv(images)))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


class _Block(nn.Module):
    """Two 3 x 3 convolutions with batch norm around a parameter-free shortcut."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        stride = 1 if width_in == width_out else 2
        self.conv1 = nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False)
        self.norm1 = NormReLU(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1, bias=False)
        self.norm2 = NormReLU(width_out)
        self.shortcut = Shortcut(stride, width_out - width_in)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.norm1(self.conv1(x)))
        activated: Tensor = self.norm2(y, self.shortcut(x))
        return activated


class NormReLU(nn.BatchNorm2d):
    """Batch norm and the ReLU after it, of which a GPU can make one pass over the images."""

    def forward(self, images: Tensor, addend: Tensor | None = None) -> Tensor:
        """relu(batch norm of `images` + `addend`), all (N, C, H, W)."""
        normal = super().forward(images)
        return F.relu(normal if addend is None else normal + addend)


class Shortcut(nn.Module):
    """Every `step`-th row and column of images, and `more` channels of zeros."""

    def __init__(self, step: int, more: int) -> None:
        super().__init__()
        self.step, self.more = step, more

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C + more, H / step, W / step)."""
        if self.step == 1 and self.more == 0:
            return images
        return F.pad(images[:, :, :: self.step, :: self.step], (0, 0, 0, 0, 0, self.more))


MODELS: dict[str, Callable[[tuple[int, ...], int], nn.Module]] = {
    "logistic": lambda shape, classes: logistic(_size(shape), classes),
    "mlp": lambda shape, classes: mlp(_size(shape), classes),
    "cnn": lambda shape, classes: cnn(shape[0], classes),
    "resnet-20": lambda shape, classes: ResNet20(shape[0], classes),
}
"""Name -> (shape of one sample, number of classes) -> module."""


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size
