"""The data sets that need no files: the handwritten digits of scikit-learn, and a made-up one."""

import torch

from skymask.randomness import generator
from skymask.types import Batch, Dataset

_TEST_SHARE = 0.2


def digits(seed: int = 1) -> Dataset:
    """Handwritten digits: 1,797 grey images (N, 1, 8, 8) in [0, 1], 10 classes.

    They ship with scikit-learn. A fifth, drawn by `seed`, is the test set: 1,438 images to train
    on, 359 to test.
    """
    from sklearn.datasets import load_digits  # slow to import, and only needed here

    images, labels = load_digits(return_X_y=True)
    inputs = torch.from_numpy(images).float().div_(16).reshape(-1, 1, 8, 8)
    targets = torch.from_numpy(labels).long()
    order = torch.randperm(len(targets), generator=generator(seed, "digits"))
    test, train = order.tensor_split([round(_TEST_SHARE * len(order))])
    return Dataset(
        "digits", Batch(inputs[train], targets[train]), Batch(inputs[test], targets[test]), 10
    )


def synthetic(seed: int = 1) -> Dataset:
    """Ten Gaussian clusters in 20 dimensions, one a class: 2,000 vectors to train on, 500 to test.

    The centres are drawn with a standard deviation of 0.9 in each dimension, the samples around
    them with 1: neighbouring classes overlap a little, so that logistic regression reaches more
    than 0.9 but not 1.
    """
    random = generator(seed, "synthetic")
    centres = 0.9 * torch.randn(10, 20, generator=random)
    labels = torch.arange(2500).remainder(10)  # every class equally often in both parts
    inputs = centres[labels] + torch.randn(2500, 20, generator=random)
    return Dataset(
        "synthetic", Batch(inputs[:2000], labels[:2000]), Batch(inputs[2000:], labels[2000:]), 10
    )
