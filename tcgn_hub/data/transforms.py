"""From an image to the tensor a model takes: crop by magnification, resize to 224, ImageNet normalisation.

The rule of the paper (Xiao et al. 2024, data preparation): a patch is 112 px at 20x, 56 px at 10x and 224 px at 40x,
nominally 56 um of tissue, resized to 224 x 224 with antialiased bilinear interpolation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tcgn_hub.errors import ImageError

if TYPE_CHECKING:
    import torch
    from PIL import Image

__all__ = ["CROP_PX", "IMAGENET_MEAN", "IMAGENET_STD", "INPUT_PX", "center_crop", "to_input", "to_rgb"]

INPUT_PX = 224
CROP_PX = {10: 56, 20: 112, 40: 224}
"""Side of a patch in pixels of the image, by magnification."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB: alpha over white (glass), 16-bit scaled down by its range.

    Raises:
        ImageError: The image holds floating point or 32-bit values, whose range is not known.
    """
    from PIL import Image

    if image.mode.startswith("I;16"):
        import numpy as np

        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(f"pixels are stored as mode {image.mode}, whose range is unknown; save the image as 8-bit RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The central ``size`` x ``size`` pixels.

    Raises:
        ImageError: The image is smaller than that.
    """
    width, height = image.size
    if min(width, height) < size:
        raise ImageError(f"the image is {width} x {height} px, smaller than the crop of {size} x {size} px")
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def to_input(pixels: torch.Tensor) -> torch.Tensor:
    """Resize crops to 224 x 224 and normalise them as the published weights expect.

    Args:
        pixels: RGB crops, uint8, or float in 0 to 255, shape (B, 3, H, W).

    Returns:
        Model input, float32, shape (B, 3, 224, 224).
    """
    import torch
    import torch.nn.functional as F

    x = pixels.float()
    if x.shape[-2:] != (INPUT_PX, INPUT_PX):
        x = F.interpolate(x, size=(INPUT_PX, INPUT_PX), mode="bilinear", antialias=True, align_corners=False)
    mean = torch.tensor(IMAGENET_MEAN, device=x.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=x.device).view(1, 3, 1, 1)
    return (x / 255 - mean) / std
