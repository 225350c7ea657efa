"""How large a pixel is: what files say of it, what users say, and what is too odd to believe."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tcgn_hub.errors import ImageError

if TYPE_CHECKING:
    from PIL import Image

NOMINAL_PATCH_UM = 56.0
"""Side of the paper's patch if 20x were 0.5 um/px: 112 px."""

_PLAUSIBLE_UM = (0.05, 10.0)
_INCH_UM = 25400.0


@dataclass(frozen=True)
class Scale:
    """Size of the pixels of an image, in micrometres per pixel."""

    mpp: float
    source: str  # such as 'openslide.mpp-x' or '--mpp'
    nominal: bool = False  # 10 um/px over a magnification, and not measured

    def patch_um(self, trained_um: float, nominal_um: float = NOMINAL_PATCH_UM) -> float:
        """Side of the patch to predict: what the weights were trained on, or what that nominally was."""
        return nominal_um if self.nominal else trained_um


def given_scale(mpp: float | None, magnification: float | None) -> Scale | None:
    """What the user says of the scale; None if nothing."""
    if mpp is not None and magnification is not None:
        raise ImageError("Give the scale once: either the magnification or the micrometres per pixel.")
    if mpp is not None:
        if not _plausible(mpp):
            low, high = _PLAUSIBLE_UM
            raise ImageError(f"{mpp:g} um/px cannot be the scale of a histology image; give {low:g} to {high:g}.")
        return Scale(float(mpp), "--mpp")
    if magnification is not None:
        if not (magnification > 0 and _plausible(10 / magnification)):
            raise ImageError(f"{magnification:g}x cannot be the magnification of a histology image; give 1 to 200.")
        return Scale(10 / magnification, "--magnification", nominal=True)
    return None


def scale_of_properties(properties: Any) -> Scale | None:
    """Scale in the properties of OpenSlide or tiffslide, which name vendor values and OME-XML alike."""
    for prefix in ("openslide", "tiffslide"):
        mpp = _number(properties.get(f"{prefix}.mpp-x"))
        if _plausible(mpp):
            return Scale(mpp, f"{prefix}.mpp-x")
    per_unit = {"inch": _INCH_UM, "centimeter": 10_000.0}.get(str(properties.get("tiff.ResolutionUnit")).lower())
    density = _number(properties.get("tiff.XResolution"))
    if per_unit and density and _plausible(per_unit / density):
        return Scale(per_unit / density, "tiff.XResolution")
    for prefix in ("openslide", "tiffslide"):
        power = _number(properties.get(f"{prefix}.objective-power"))
        if power and _plausible(10 / power):
            return Scale(10 / power, f"{prefix}.objective-power", nominal=True)
    return None


def scale_of_picture(image: Image.Image) -> Scale | None:
    """Scale in a plain picture: its OME-XML, or its resolution, unless that is the 72 or 96 dpi of screens."""
    description = str(getattr(image, "tag_v2", {}).get(270, "")) if hasattr(image, "tag_v2") else ""
    match = re.search(r'PhysicalSizeX="([0-9.eE+-]+)"', description)
    unit = re.search(r'PhysicalSizeXUnit="([^"]+)"', description)
    if match and (unit is None or unit[1] in ("µm", "um", "μm")):
        mpp = _number(match[1])
        if _plausible(mpp):
            return Scale(mpp, "OME-XML PhysicalSizeX")
    density = _number(image.info.get("dpi", (0,))[0])
    if density and _plausible(_INCH_UM / density):
        return Scale(_INCH_UM / density, "resolution in the file")
    return None


def _plausible(mpp: float) -> bool:
    return _PLAUSIBLE_UM[0] <= mpp <= _PLAUSIBLE_UM[1]


def _number(value: Any) -> float:
    """A number in a property; 0 if there is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0
