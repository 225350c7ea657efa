"""load() and the `Predictor`: weights that were read once, and all that can be asked of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tcgn_hub.errors import PanelError
from tcgn_hub.panels import load_panel
from tcgn_hub.prediction.backends import Backend
from tcgn_hub.prediction.ood import TissueModel
from tcgn_hub.weights.info import WeightsInfo

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Predictor", "load"]


class Predictor:
    """Weights that were loaded, and what they say of patches, tiles and slides.

    Args:
        backend: What computes.
        info: What is known of the weights.

    Attributes:
        backend: What computes: `tcgn_hub.prediction.backends.torch.TorchBackend`, or that of ONNX Runtime.
        info: What is known of the weights; patches should cover ``info.patch_um`` micrometres.
    """

    def __init__(self, backend: Backend, info: WeightsInfo) -> None:
        self.backend, self.info = backend, info
        self._tissue = None if info.ood is None else TissueModel.from_json(info.ood)

    def run(self, pixels: np.ndarray, *, tta: int = 1, features: bool = False) -> dict[str, np.ndarray]:
        """What the weights say of a batch of patches.

        Args:
            pixels: RGB patches, uint8, shape (B, H, W, 3), of the side that the weights were trained on.
            tta: Over how many rotations and reflections to average, 1 to 8.
            features: Whether to return the features.

        Returns:
            ``values``, float32, shape (B, genes); ``tta_std`` likewise, if ``tta`` is above 1; ``ood``, shape (B,), if
            the weights describe their training tissue; and ``features``, shape (B, 1280), if asked for.
        """
        x: Any = self.backend.prepare(pixels)
        first, pooled = self.backend.forward(x)
        out = {"values": first}
        if tta > 1:
            seen = np.stack([first, *(self.backend.forward(x, index)[0] for index in range(1, tta))])
            out = {"values": seen.mean(axis=0), "tta_std": seen.std(axis=0, ddof=1)}
        if self._tissue is not None:
            out["ood"] = self._tissue.distance(pooled)
        if features:
            out["features"] = pooled
        return out

    def columns(self, genes: str | Path | Sequence[str] | None = None, *, significant_only: bool = False) -> list[int]:
        """Which outputs are asked for.

        Raises:
            PanelError: A gene is not among the outputs, none is left, or significance was asked for but not measured.
        """
        info = self.info
        index = {gene: i for i, gene in enumerate(info.genes)}
        wanted = list(info.genes) if genes is None else load_panel(genes)
        unknown = [gene for gene in wanted if gene not in index]
        if unknown:
            raise PanelError(
                f"{', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}: not among the {len(index)} genes that"
                f" {info.name} predicts."
            )
        if significant_only:
            if info.significant is None:
                raise PanelError(
                    f"Which genes {info.name} predicts better than chance was not measured; ask for all of them."
                )
            wanted = [gene for gene in wanted if gene in info.significant]
            if not wanted:
                raise PanelError(f"{info.name} predicts none of these genes better than chance.")
        return [index[gene] for gene in wanted]


def load(
    tag: str | None = None,
    *,
    path: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    backend: str | None = None,
) -> Predictor:
    """Weights, ready to predict."""
    from tcgn_hub.models.loading import load_model
    from tcgn_hub.prediction.backends.torch import TorchBackend

    model, info = load_model(path or tag, device=device)
    return Predictor(TorchBackend(model), info)
