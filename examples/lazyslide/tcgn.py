"""A card of TCGN for LazySlide's zoo, as `lazyslide_models/tile_prediction/tcgn.py` would hold it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lazyslide_models import ModelTask, TilePredictionModel, register


@register(
    key="tcgn",
    task=ModelTask.tile_prediction,
    is_gated=False,
    license="Apache-2.0",
    license_url="https://www.apache.org/licenses/LICENSE-2.0",
    commercial=True,
    description="Expression of 785 genes from H&E tiles of 154 µm, trained on breast cancer (her2st).",
    paper_url="https://doi.org/10.1016/j.media.2023.103040",
    bib_key="Xiao2024-tcgn",
    param_size="22.5M",
    flops="3.95G",
    # further facts that the zoo keeps as they are
    mpp=0.5,
    tile_px=308,
    units="log10(1 + 10^4 count / sum of the panel's counts)",
)
class TCGN(TilePredictionModel):
    """TCGN (convolution, a learned graph of patches, and a transformer) by `tcgn_hub`, whose weights are read.

    The model wants tiles of 154 µm, 308 px at 0.5 µm/px, of any size in pixels; it resizes them to 224 px itself::

        zs.pp.tile_tissues(wsi, 308, mpp=0.5)
        zs.tl.tile_prediction(wsi, "tcgn")

    ``predict`` gives one array a gene, float32, in the units of the card. The default weights know six sections of two
    patients with breast cancer, and are for research alone; which genes they predict better than chance on held-out
    tissue is in ``predictor.info.significant``.

    Args:
        model_path: A model directory or file that `tcgn_hub` wrote, instead of the default weights.
        token: Has no meaning: the weights are not gated.
        genes: The genes to give a column each, by symbol, alias or Ensembl id; all if None.

    Raises:
        ImportError: `tcgn_hub` is not installed.
    """

    columns = None  # known once weights are read

    def __init__(self, model_path: Any = None, token: str | None = None, genes: Sequence[str] | None = None) -> None:
        try:
            import tcgn_hub
        except ImportError as err:
            raise ImportError("To use TCGN, you need to install tcgn_hub: pip install tcgn_hub") from err

        self.predictor = tcgn_hub.load(path=model_path)
        asked = self.predictor.info.columns(None if genes is None else list(genes)).values()
        self.columns = tuple(self.predictor.columns[i] for i in asked)

    @property
    def model(self) -> Any:
        """The network, a `torch.nn.Module` in eval mode on the device of the predictor."""
        return self.predictor.model

    def to(self, device: Any) -> TCGN:
        """Compute there from now on."""
        self.predictor.to(device)
        return self

    def try_compile(self, **compile_kws: Any) -> None:
        """Compile ahead of time, which is kept for later processes; options of `torch.compile` have no meaning."""
        self.predictor.try_compile(**compile_kws)

    def get_transform(self) -> Callable[[Any], Any]:
        """Tiles as they are: the predictor resizes and normalises."""
        return self.predictor.get_transform()

    def predict(self, image: Any) -> dict[str, Any]:
        """Values of a batch (B, 3, H, W), uint8, or float from 0 to 1: a float32 array of shape (B,) for each gene."""
        values = self.predictor.predict(image)
        return {gene: values[gene] for gene in self.columns}
