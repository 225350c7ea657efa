"""How large a pixel is: what files say of it, what users say, and what is too odd to believe."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tcgn_hub.errors import ImageError
from tcgn_hub.text import option

NOMINAL_PATCH_UM = 56.0
"""Side of the paper's patch if 20x were 0.5 um/px: 112 px."""

_PLAUSIBLE_UM = (0.05, 10.0)
_SQUARE = 0.02  # by how much the sides of a pixel may differ
_WORTH_SAYING, _REFUSED = 0.05, 0.4  # by how much what is given may differ from what the file states

LENGTHS_UM = {
    **{"ym": 1e-18, "zm": 1e-15, "am": 1e-12, "fm": 1e-9, "pm": 1e-6, "nm": 1e-3, "um": 1.0, "mm": 1e3, "cm": 1e4},
    **{"dm": 1e5, "m": 1e6, "dam": 1e7, "hm": 1e8, "km": 1e9, "angstrom": 1e-4, "thou": 25.4, "mil": 25.4},
    **{"li": 25400 / 12, "in": 25400.0, "inch": 25400.0, "ft": 304800.0, "yd": 914400.0, "mi": 1.609344e9},
    **{"pt": 25400 / 72, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometre": 1.0, "nanometer": 1e-3},
    **{"millimeter": 1e3, "centimeter": 1e4, "meter": 1e6},
}
"""Micrometres in the units of length of OME-XML and ImageJ; those of pixels and of the stage have none."""


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


def chosen_scale(given: Scale | None, stated: Scale | None, *, force: bool = False) -> tuple[Scale | None, str]:
    """The scale to go by, which is the one given, if any; and what to say where the file states another one.

    Raises:
        ImageError: They differ by more than 40 %, and that is not forced.
    """
    if given is None or stated is None:
        return given or stated, ""
    apart = max(given.mpp / stated.mpp, stated.mpp / given.mpp) - 1
    if apart <= _WORTH_SAYING:
        return given, ""
    word = option(given.source.removeprefix("--"))
    said = f"the file states {stated.mpp:.4g} um/px ({stated.source}), but {given.mpp:.4g} is given ({word})"
    if apart > _REFUSED and not force:
        raise ImageError(
            f"{said}; leave {word} out, or, if the file is wrong, insist on it by {option('force_scale', True)}"
        )
    return given, said


def square_scale(x: float, y: float, source: str, *, nominal: bool = False) -> Scale | None:
    """The scale of pixels of so many micrometres; ``y`` is 0 if it is not known, and None comes of what is no scale.

    Raises:
        ImageError: The pixels are not square.
    """
    if not _plausible(x):
        return None
    if y > 0 and math.isfinite(y):
        if max(x / y, y / x) - 1 > _SQUARE:
            raise ImageError(f"its pixels are {x:.4g} x {y:.4g} um ({source}), not square; resample the image first")
        x = (x + y) / 2
    return Scale(x, source, nominal)


def scale_of_properties(properties: Mapping[str, Any]) -> Scale | None:
    """Scale in the properties of OpenSlide."""
    x, y = (_number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy")
    scale = square_scale(x, y, "openslide.mpp-x")
    if scale is None:
        scale = scale_of_density(
            *(_number(properties.get(f"tiff.{axis}Resolution")) for axis in "XY"),
            unit=str(properties.get("tiff.ResolutionUnit")),
            source="tiff.XResolution",
        )
    power = _number(properties.get("openslide.objective-power"))
    if scale is None and power > 0:
        scale = square_scale(10 / power, 0, "openslide.objective-power", nominal=True)
    return scale


def scale_of_density(x: float, y: float, *, unit: str, source: str) -> Scale | None:
    """Scale of so many pixels in a unit of length; those of screens and printers are too odd to believe."""
    um = length_um(unit)
    if not um or not x > 0:
        return None
    return square_scale(um / x, um / y if y > 0 else 0, source)


def scale_of_size(attributes: Mapping[str, Any]) -> Scale | None:
    """Scale in the attributes of ``Pixels`` in OME-XML, whose unit is the micrometre unless another one is stated."""
    sizes = [_number(attributes.get(f"PhysicalSize{axis}")) for axis in "XY"]
    units = [attributes.get(f"PhysicalSize{axis}Unit") for axis in "XY"]
    if sizes[0] == sizes[1]:
        # a unit that is stated once is that of both
        units = [units[0] or units[1], units[1] or units[0]]
    x, y = (size * (length_um(str(unit or "um")) or 0) for size, unit in zip(sizes, units, strict=True))
    return square_scale(x, y, "OME-XML PhysicalSizeX")


def length_um(unit: str) -> float | None:
    """Micrometres in a unit of length; None of what is none."""
    # either sign for micro, as ImageJ writes it, or as UTF-8 that was taken for Latin-1
    name = re.sub(r"^(\\u00[bB]5|Â?µ|Î?¼|μ)", "u", unit.strip())
    name = {"Å": "angstrom", "Ã…": "angstrom", "\\u00C5": "angstrom", "µ": "um", "u": "um", '"': "in"}.get(name, name)
    if name in LENGTHS_UM:
        return LENGTHS_UM[name]
    return LENGTHS_UM.get(re.sub(r"metre(s?)$", r"meter\1", name.lower()).removesuffix("s"))


def _plausible(mpp: float) -> bool:
    return _PLAUSIBLE_UM[0] <= mpp <= _PLAUSIBLE_UM[1]


def _number(value: Any) -> float:
    """A number in a property; 0 if there is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0
