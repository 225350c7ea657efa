"""What the commands on patches and slides share: which images, of which scale, by which weights, on which device."""

from __future__ import annotations

import argparse
import glob
import os
from pathlib import Path

__all__ = ["above_zero", "add_images", "add_scale", "add_weights", "images_of", "pick_device", "positive"]


def add_images(parser: argparse.ArgumentParser) -> None:
    """The images."""
    parser.add_argument(
        "images", nargs="+", help="patches or slides: files, folders of them, or patterns such as '*.svs'"
    )


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Weights and device."""
    parser.add_argument(
        "--weights", metavar="TAG|DIR|FILE", help="tag, hf-hub:ORG/NAME, model directory, or parameters"
    )
    parser.add_argument("--device", help="such as cpu or cuda (default: cuda where there is one)")


def add_scale(parser: argparse.ArgumentParser) -> None:
    """Scale of the images, and side of the patches."""
    scale = parser.add_argument_group("scale", "read from the files where they state it; never guessed")
    scale.add_argument("--mpp", type=float, metavar="UM", help="micrometres per pixel")
    scale.add_argument("--magnification", type=float, metavar="X", help="the same as a magnification: 10, 20, 40")
    scale.add_argument(
        "--patch-um",
        type=above_zero,
        metavar="UM",
        help="side of a patch in micrometres (default: that of the training patches of the weights; with"
        " --magnification what that nominally was)",
    )


def images_of(args: argparse.Namespace) -> list[Path]:
    """The files that are meant, those of folders and of patterns that the shell left among them.

    Raises:
        ImageError: A folder holds no image.
    """
    from tcgn_hub.images.pictures import find_images

    # a file may have the characters of a pattern in its name
    return find_images(
        match
        for name in args.images
        for match in ([name] if os.path.exists(name) else sorted(glob.glob(name)) or [name])
    )


def pick_device(name: str | None) -> str:
    """The device to compute on.

    Raises:
        DeviceError: It is not there.
    """
    import torch

    from tcgn_hub.errors import DeviceError

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as err:
        raise DeviceError(f"Device {name!r} cannot be used here ({str(err).splitlines()[0]}).") from err
    return name


def positive(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def above_zero(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value
