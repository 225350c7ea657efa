"""What all pictures are drawn on."""

from __future__ import annotations

import io
import math
from typing import Any

from tcgn_hub.extras import require

GREY = "#444444"


def matplotlib(module: str) -> Any:
    """A module of matplotlib."""
    return require(f"matplotlib.{module}", extra="plot", to="draw figures")


def round_length(longest: float) -> float:
    """1, 2 or 5 times a power of ten, at most ``longest``: what a scale bar is to show."""
    power = 10.0 ** math.floor(math.log10(longest))
    return max(step * power for step in (0.5, 1, 2, 5) if step * power <= longest)


class Canvas:
    """A white picture, on which things are put at places given from the lower left, in units of ``unit`` inches.

    ``layout`` is that of matplotlib, for axes that find their places themselves.
    """

    def __init__(self, width: float, height: float, *, dpi: int, unit: float = 1.0, layout: str | None = None) -> None:
        self.width, self.height = width, height
        size = (width * unit, height * unit)
        self.figure = matplotlib("figure").Figure(figsize=size, dpi=dpi, facecolor="white", layout=layout)

    def box(self, left: float, bottom: float, width: float, height: float) -> Any:
        """Axes without ticks."""
        place = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(place)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(color="#bbbbbb", linewidth=0.8)
        return axes

    def text(self, left: float, bottom: float, text: str, **style: Any) -> None:
        """A text."""
        # a dollar sign in a name is no formula
        self.figure.text(left / self.width, bottom / self.height, text, parse_math=False, **style)

    def png(self) -> bytes:
        """The picture as the bytes of a file."""
        content = io.BytesIO()
        matplotlib("backends.backend_agg").FigureCanvasAgg(self.figure).print_png(content)
        return content.getvalue()
