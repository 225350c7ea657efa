"""From an image to the tensor a model takes: crop by magnification or by micrometres, resize to 224, normalise.

The rule of the paper (Xiao et al. 2024, data preparation): a patch is 112 px at 20x, 56 px at 10x and 224 px at 40x,
nominally 56 um of tissue, resized to 224 x 224 with antialiased bilinear interpolation.

Crops are of the kind of what goes in: PIL images, arrays (..., H, W, 3), tensors (..., 3, H, W) on any device. They go
before the transforms of timm::

    crop = CropMicrons(mpp=0.5, patch_um=154)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    model(transform(crop(image))[None])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from tcgn_hub.errors import ImageError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

Picture = TypeVar("Picture")  # a PIL image, an array or a tensor
Pixels = TypeVar("Pixels")  # an array or a tensor

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
        if rgba.getchannel("A").getextrema() == (255, 255):
            return rgba.convert("RGB")  # a tenth of the time, and regions of slides are nearly all opaque
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def patch_px(mpp: float, patch_um: float) -> int:
    """Side in pixels of a patch of so many micrometres."""
    return max(1, round(patch_um / mpp))


def center_crop(image: Picture, size: int) -> Picture:
    """The central ``size`` x ``size`` pixels of a PIL image, an array (..., H, W, 3) or a tensor (..., 3, H, W).

    Raises:
        ImageError: The image is smaller than that.
    """
    import numpy as np

    picture: Any = image
    if hasattr(image, "crop"):
        width, height = picture.size
    else:
        height, width = picture.shape[-3:-1] if isinstance(image, np.ndarray) else picture.shape[-2:]
    if min(width, height) < size:
        raise ImageError(f"the image is {width} x {height} px, smaller than the crop of {size} x {size} px")
    left, top = (width - size) // 2, (height - size) // 2
    if hasattr(image, "crop"):
        return picture.crop((left, top, left + size, top + size))
    channels = (slice(None),) if isinstance(image, np.ndarray) else ()
    inside = (..., slice(top, top + size), slice(left, left + size), *channels)
    return picture[inside]


@dataclass(frozen=True)
class CropMagnification:
    """The central patch by the rule of the paper.

    Attributes:
        magnification: 10, 20 or 40.

    Raises:
        ImageError: The rule has no crop for the magnification; when called: the image is smaller than the crop.
    """

    magnification: int

    def __post_init__(self) -> None:
        if self.magnification not in CROP_PX:
            raise ImageError(
                f"Magnification {self.magnification} has no crop; give one of {', '.join(map(str, CROP_PX))}."
            )

    def __call__(self, image: Picture) -> Picture:
        """Crop a PIL image, an array (..., H, W, 3) or a tensor (..., 3, H, W)."""
        return center_crop(image, CROP_PX[self.magnification])


@dataclass(frozen=True)
class CropMicrons:
    """The central patch of so many micrometres.

    Attributes:
        mpp: Micrometres per pixel of the image.
        patch_um: Side of the patch; 56 is the nominal one of the paper, 154 that of the default weights.

    Raises:
        ImageError: When called: the image is smaller than the crop.
    """

    mpp: float
    patch_um: float = 56.0

    def __call__(self, image: Picture) -> Picture:
        """Crop a PIL image, an array (..., H, W, 3) or a tensor (..., 3, H, W)."""
        return center_crop(image, patch_px(self.mpp, self.patch_um))


def dihedral(pixels: Pixels, index: int) -> Pixels:
    """One of the eight rotations and reflections of square pictures (..., H, W), array or tensor; 0 changes nothing."""
    import numpy as np

    if isinstance(pixels, np.ndarray):
        rotated: Any = np.rot90(pixels, index % 4, (-2, -1))
        return rotated[..., ::-1] if index >= 4 else rotated
    picture: Any = pixels
    rotated = picture.rot90(index % 4, (-2, -1))
    return rotated.flip(-1) if index >= 4 else rotated


def to_input(pixels: torch.Tensor | np.ndarray | Image.Image) -> torch.Tensor:
    """Resize crops to 224 x 224 and normalise them as the published weights expect.

    Args:
        pixels: RGB crops: a tensor, uint8 or float in 0 to 255, shape (B, 3, H, W); a uint8 array of shape (H, W, 3) or
            (B, H, W, 3); or a PIL image of any mode.

    Returns:
        Model input, float32, shape (B, 3, 224, 224), on the device of a tensor.
    """
    import numpy as np
    import torch
    import torch.nn.functional as F

    if not isinstance(pixels, torch.Tensor):
        array = np.asarray(pixels if isinstance(pixels, np.ndarray) else to_rgb(pixels))
        array = array[None] if array.ndim == 3 else array
        pixels = torch.from_numpy(np.array(array)).permute(0, 3, 1, 2)
    x = pixels.float()
    if x.shape[-2:] != (INPUT_PX, INPUT_PX):
        x = F.interpolate(x, size=(INPUT_PX, INPUT_PX), mode="bilinear", antialias=True, align_corners=False)
    mean = torch.tensor(IMAGENET_MEAN, device=x.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=x.device).view(1, 3, 1, 1)
    return (x / 255 - mean) / std


def to_input_array(pixels: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    """`to_input` by Pillow and NumPy, the same to 1e-4.

    Args:
        pixels: RGB crops, uint8, shape (B, H, W, 3), or several of any size (H, W, 3).

    Returns:
        Model input, float32, shape (B, 3, 224, 224).
    """
    import numpy as np
    from PIL import Image

    def resized(channel: np.ndarray) -> np.ndarray:
        if channel.shape == (INPUT_PX, INPUT_PX):
            return channel.astype(np.float32)
        image = Image.fromarray(channel.astype(np.float32), mode="F")
        return np.asarray(image.resize((INPUT_PX, INPUT_PX), Image.Resampling.BILINEAR))

    planes = [[resized(crop[..., i]) for i in range(3)] for crop in pixels]
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (np.array(planes, np.float32) / 255 - mean) / std
