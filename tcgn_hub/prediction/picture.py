"""What a patch looks like without any network: colour, contrast and sharpness, in 32 numbers.

A network that was trained on genes ignores what the genes of its training tissue do not depend on, the stain or the
focus, and so its features cannot tell that these have changed. These numbers can. They follow from the input of the
network, on its device, and are the same for every backend.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tcgn_hub.images.transforms import IMAGENET_MEAN, IMAGENET_STD

_BLOCKS = 8  # along a side; a pen mark or a fold fills some of them
_PAIRS = ((0, 1), (0, 2), (1, 2))
_BRIGHTNESS_STEPS, _REDNESS_STEPS = (2, 4, 8), (1, 4)


def picture_features(x: Any) -> np.ndarray:
    """Colour, contrast and sharpness of patches.

    ``x``: input of the network, array or tensor (n, 3, 224, 224). Returns float32, shape (n, 32): of each channel the
    optical density of the mean, the log of the standard deviation; of each pair the correlation (by Fisher's z); the
    log of the energy of steps of brightness over 1 px, and, relative to it, of its second differences, of steps over 2,
    4 and 8 px and of steps of red against green over 1 and 4 px; the lowest and highest density of each channel among
    8 x 8 blocks; lowest, highest and mean density of green against red and blue among them, which are the amounts of
    the stains; and the lowest and highest energy of steps and variance of brightness among them.
    """
    means = picture_means(x)
    return picture_numbers(means if isinstance(means, np.ndarray) else means.cpu().numpy())


def picture_means(x: Any) -> Any:
    """The means over pixels that `picture_numbers` follow from, on the device of the patches, shape (n, 336)."""
    if not isinstance(x, np.ndarray) and x.device.type == "cpu":
        x = x.numpy()  # as fast, and the same to the last digit as other backends on the CPU
    if isinstance(x, np.ndarray) and len(x) > 1:  # one by one they stay in the processor's cache
        return np.concatenate([picture_means(x[i : i + 1]) for i in range(len(x))])
    channels = [x[:, i] * std + offset for i, (offset, std) in enumerate(zip(IMAGENET_MEAN, IMAGENET_STD, strict=True))]
    means = [channel.mean((1, 2)) for channel in channels]
    centred = [channel - own[:, None, None] for channel, own in zip(channels, means, strict=True)]
    squares = [c * c for c in centred]
    brightness, redness = (channels[0] + channels[1] + channels[2]) / 3, channels[0] - channels[1]
    right, down = _steps(brightness, 1)
    seconds = _steps(right, 1)[0], _steps(down, 1)[1]
    pairs = [(right, down), seconds, *(_steps(brightness, step) for step in _BRIGHTNESS_STEPS)]
    pairs += [_steps(redness, step) for step in _REDNESS_STEPS]
    numbers = [
        *means,
        *(square.mean((1, 2)) for square in squares),
        *((centred[i] * centred[j]).mean((1, 2)) for i, j in _PAIRS),
        *((right * right).mean((1, 2)) + (down * down).mean((1, 2)) for right, down in pairs),
    ]
    planes = [*channels, (squares[0] + squares[1] + squares[2]) / 3, right[:, 1:] ** 2 + down[:, :, 1:] ** 2]
    parts = [*(number[:, None] for number in numbers), *map(_blocks, planes)]
    if isinstance(x, np.ndarray):
        return np.concatenate(parts, axis=1)
    import torch

    return torch.cat(parts, dim=1)


class Means(NamedTuple):
    """`picture_means` by what they are means of."""

    mean: np.ndarray  # of each channel, shape (n, 3)
    variance: np.ndarray  # likewise
    covariance: np.ndarray  # of each pair of channels, shape (n, 3)
    energy: np.ndarray  # of steps, second differences, coarser steps and steps of red against green, shape (n, 7)
    blocks: np.ndarray  # of each channel over 8 x 8 blocks, shape (n, 3, 64)
    squares: np.ndarray  # squared distance from the mean of the patch over the same, shape (n, 64)
    steps: np.ndarray  # energy of steps over the same, shape (n, 64)


def picture_parts(means: np.ndarray) -> Means:
    """What `picture_means` gave, float64."""
    ends = np.cumsum([3, 3, 3, 2 + len(_BRIGHTNESS_STEPS) + len(_REDNESS_STEPS)])
    mean, variance, covariance, energy, blocks = np.split(means.astype(np.float64), ends, axis=1)
    blocks = blocks.reshape(len(means), 5, _BLOCKS**2)
    return Means(mean, variance, covariance, energy, blocks[:, :3], blocks[:, 3], blocks[:, 4])


def picture_numbers(means: np.ndarray) -> np.ndarray:
    """What `picture_features` gives, of `picture_means`."""
    mean, variance, covariance, energy, block_means, squares, steps = picture_parts(means)
    variance = variance + 1e-5
    correlation = covariance / np.sqrt(np.stack([variance[:, i] * variance[:, j] for i, j in _PAIRS], axis=1))
    energy = np.log(energy + 1e-6)
    density = -np.log(block_means.clip(0) + 0.02)
    stains = np.stack([density[:, 1] - density[:, 0], density[:, 1] - density[:, 2]], axis=1)
    spread = squares - ((block_means - mean[:, :, None]) ** 2).mean(axis=1)
    return np.concatenate(
        [
            -np.log(mean.clip(0) + 0.02),
            np.log(variance) / 2,
            np.arctanh(correlation.clip(-0.9999, 0.9999)),
            energy[:, :1],
            energy[:, 1:] - energy[:, :1],
            *(density.min(axis=2), density.max(axis=2)),
            *(stains.min(axis=2), stains.max(axis=2), stains.mean(axis=2)),
            *_extremes(np.log(steps + 1e-5)),
            *_extremes(np.log(spread.clip(0) + 1e-4)),
        ],
        axis=1,
    ).astype(np.float32)


def _steps(plane: Any, step: int) -> tuple[Any, Any]:
    """Differences of pixels so far apart, to the right and downwards."""
    return plane[:, :, step:] - plane[:, :, :-step], plane[:, step:] - plane[:, :-step]


def _blocks(plane: Any) -> Any:
    """Means of blocks, shape (n, 64); pixels that are left over at the right and below are left out."""
    side = plane.shape[1] // _BLOCKS
    inner = plane[:, : side * _BLOCKS, : side * _BLOCKS]
    return inner.reshape(len(plane), _BLOCKS, side, _BLOCKS, side).mean((2, 4)).reshape(len(plane), -1)


def _extremes(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return blocks.min(axis=1, keepdims=True), blocks.max(axis=1, keepdims=True)
