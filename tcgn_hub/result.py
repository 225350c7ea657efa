"""What comes out: predictions, what they rest on, and how well they do. NumPy alone; `tcgn_hub.writing` writes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tcgn_hub.correlation import spearman
from tcgn_hub.errors import OutputError, PanelError
from tcgn_hub.extras import require
from tcgn_hub.units import UNITS, mean_in_linear
from tcgn_hub.weights.info import WeightsInfo

if TYPE_CHECKING:
    from anndata import AnnData
    from pandas import DataFrame

__all__ = ["Evaluation", "Explanation", "Gallery", "LearnedGraph", "Measured", "Result", "SlideContext", "writer"]

_WRITERS: dict[str, Callable[[Path, Result], None]] = {}


def writer(suffix: str) -> Callable[[Callable[[Path, Result], None]], Callable[[Path, Result], None]]:
    """Let `Result.write` write files of a suffix by a function of ``(path, result)``."""

    def register(function: Callable[[Path, Result], None]) -> Callable[[Path, Result], None]:
        _WRITERS[suffix] = function
        return function

    return register


def gene_table(info: WeightsInfo, columns: Sequence[int]) -> dict[str, np.ndarray]:
    """`Result.var` of some outputs of weights."""
    genes = [info.genes[i] for i in columns]
    var: dict[str, np.ndarray] = {"gene": np.array(genes, dtype=object)}
    if info.significant is not None:
        var["significant"] = np.array([gene in info.significant for gene in genes], bool)
    if info.pcc is not None:
        pcc = (info.pcc[gene] for gene in genes)
        var["held_out_pcc"] = np.array([np.nan if value is None else value for value in pcc], np.float64)
    if info.interval_radius is not None:
        var["interval_radius"] = np.array([info.interval_radius[gene] for gene in genes], np.float64)
    return var


@dataclass(frozen=True, eq=False)
class SlideContext:
    """The slide whose tiles a `Result` is of.

    Attributes:
        path: The file.
        size: (width, height) in pixels at full resolution.
        mpp: Micrometres per pixel at full resolution.
        scale_source: Where ``mpp`` comes from, such as 'openslide.mpp-x' or '--mpp'.
        patch_um: Side of a tile in micrometres.
        stride_um: Distance of neighbouring tiles in micrometres; None where spots were given.
        thumbnail: Overview, uint8, shape (h, w, 3).
        thumbnail_downsample: Full-resolution pixels per pixel of the thumbnail.
        mask: Where the tissue is, bool, of the shape of the thumbnail; None where it was not looked for.
    """

    path: Path
    size: tuple[int, int]
    mpp: float
    scale_source: str
    patch_um: float
    stride_um: float | None
    thumbnail: np.ndarray
    thumbnail_downsample: float
    mask: np.ndarray | None = None

    @property
    def tile_px(self) -> float:
        """Side of a tile in pixels at full resolution."""
        return self.patch_um / self.mpp


@dataclass(eq=False)
class Result:
    """Predicted expression of genes in patches, or in the tiles of a slide, shaped as AnnData is.

    Attributes:
        X: Predictions in `units`, float32, shape (n, genes).
        obs: Arrays of n by name. Of all: ``name`` and ``ood`` (distance from the training tissue, above 1 it is out of
            distribution; only where the weights describe it). Of patches: ``mpp``, ``scale_source``, ``patch_um`` and
            ``patch_px`` (side of what was predicted). Of tiles: ``array_row`` and ``array_col``.
        var: Arrays of one value a gene: ``gene``; ``significant`` (bool), ``held_out_pcc`` and ``interval_radius``
            (NaN where unknown), each only if the weights state it.
        uns: ``weights`` (`WeightsInfo`), ``failed`` (what could not be predicted, and why), ``slide`` (`SlideContext`,
            of tiles), ``tta``, ``backend`` and ``precision``.
        layers: ``tta_std``, standard deviation over the rotations and reflections that X is the mean of, if several.
        obsm: ``spatial``, centres as (x, y) in pixels at full resolution, of tiles; ``features``, if asked for.
    """

    X: np.ndarray
    obs: dict[str, np.ndarray]
    var: dict[str, np.ndarray]
    uns: dict[str, Any]
    layers: dict[str, np.ndarray] = field(default_factory=dict)
    obsm: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.X)

    @property
    def names(self) -> list[str]:
        """Names of the patches or tiles."""
        return list(self.obs["name"])

    @property
    def genes(self) -> list[str]:
        """Symbols of the columns."""
        return list(self.var["gene"])

    @property
    def info(self) -> WeightsInfo:
        """What is known of the weights."""
        return self.uns["weights"]

    @property
    def units(self) -> str:
        """Units of the values."""
        return self.info.units

    @property
    def slide(self) -> SlideContext | None:
        """The slide; None of patches."""
        return self.uns.get("slide")

    @property
    def failed(self) -> dict[str, str]:
        """What could not be predicted, and why; it is not among ``names``."""
        return self.uns["failed"]

    @property
    def is_ood(self) -> np.ndarray | None:
        """Which patches are out of distribution, bool, shape (n,); None if that is not known."""
        return self.obs["ood"] > 1 if "ood" in self.obs else None

    def column(self, gene: str) -> int:
        """Column of a gene.

        Raises:
            PanelError: It was not predicted.
        """
        try:
            return self.genes.index(gene)
        except ValueError as err:
            of = f" for {self.slide.path}" if self.slide else ""
            raise PanelError(f"{gene} is not among the genes predicted{of}.") from err

    def significance(self, gene: str) -> str:
        """'yes', 'no' or 'unknown': whether a gene was predicted better than chance on held-out tissue."""
        if "significant" not in self.var:
            return "unknown"
        return "yes" if self.var["significant"][self.column(gene)] else "no"

    def pcc(self, gene: str) -> float | None:
        """Held-out Pearson correlation of a gene; None if it was not measured."""
        pcc = self.var["held_out_pcc"][self.column(gene)] if "held_out_pcc" in self.var else np.nan
        return None if np.isnan(pcc) else float(pcc)

    def interval(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Where a measurement would lie, in ``info.interval_level`` of the cases: lower and upper ends, each like X.

        NaN for genes whose errors are not known; None if those of no gene are. See `tcgn_hub.evaluation.conformal` for
        what it promises.
        """
        if "interval_radius" not in self.var:
            return None
        radius = self.var["interval_radius"].astype(np.float32)
        low, high = self.X - radius, self.X + radius
        # this measure is never below 0
        return (np.maximum(low, 0) if self.units == UNITS else low), high

    def bulk(self) -> np.ndarray:
        """Mean over patches or tiles in linear space, float32, shape (genes,), in the units of the values.

        Raises:
            OutputError: The units are not the logarithm whose inverse is known here.
        """
        if self.units != UNITS:
            raise OutputError(f"The mean is taken of values in {UNITS}, but these are in {self.units}.")
        return mean_in_linear(self.X).astype(np.float32)

    def to_dataframe(self) -> DataFrame:
        """A row a patch or tile, a column a gene.

        Raises:
            ExtraError: pandas is not installed.
        """
        pandas = require("pandas", extra="parquet", to="make a data frame")
        return pandas.DataFrame(self.X, index=self.names, columns=self.genes)

    def to_anndata(self) -> AnnData:
        """The same as AnnData, in the conventions of scverse.

        Raises:
            ExtraError: anndata is not installed.
        """
        return to_anndata(self)

    def write(self, path: str | Path) -> None:
        """Write a file, by its suffix.

        Raises:
            OutputError: No format has this suffix, or the file cannot be written.
            ExtraError: A package that the format needs is not installed.
        """
        path = Path(path)
        if path.suffix.lower() not in _WRITERS:
            raise OutputError(f"{path} is of no format that is known; give one of {', '.join(sorted(_WRITERS))}.")
        _WRITERS[path.suffix.lower()](path, self)


@dataclass(frozen=True)
class LearnedGraph:
    """The graph that one of the two graph blocks builds of a patch.

    Attributes:
        stage: Name of the stage whose map it is built from, 'stages.0' or 'stages.1'.
        side: Nodes along a side; node ``i`` is the square in row ``i // side``, column ``i % side``.
        edges: (from, to) of each edge, strongest first, int, shape (E, 2).
        weights: Attention of each edge, the mean over heads, float32, shape (E,).
    """

    stage: str
    side: int
    edges: np.ndarray
    weights: np.ndarray

    @property
    def loops(self) -> np.ndarray:
        """Which edges join a node with itself, bool, shape (E,)."""
        return self.edges[:, 0] == self.edges[:, 1]

    @property
    def degree(self) -> np.ndarray:
        """Edges that begin or end at each node, self-loops left out, int, shape (side * side,)."""
        return np.bincount(self.edges[~self.loops].ravel(), minlength=self.side**2)

    @property
    def lengths(self) -> np.ndarray:
        """Distance of the ends of each edge as a share of the side of the patch, shape (E,)."""
        at = np.stack(np.divmod(self.edges, self.side), axis=-1)
        return np.linalg.norm(at[:, 0] - at[:, 1], axis=1) / self.side

    def summary(self, patch_um: float) -> dict[str, float]:
        """Numbers that describe it.

        Args:
            patch_um: Side of the patch in micrometres.

        Returns:
            ``edges``; ``self_loops`` among them; ``nodes_without_edges``, self-loops aside; ``median_degree`` and
            ``max_degree``; ``median_length_um`` and ``max_length_um`` of edges that are no self-loops, 0 without any.
        """
        degree, lengths = self.degree, self.lengths[~self.loops] * patch_um
        return {
            "edges": len(self.edges),
            "self_loops": int(self.loops.sum()),
            "nodes_without_edges": int((degree == 0).sum()),
            "median_degree": float(np.median(degree)),
            "max_degree": int(degree.max()),
            "median_length_um": float(np.median(lengths)) if len(lengths) else 0.0,
            "max_length_um": float(lengths.max()) if len(lengths) else 0.0,
        }


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a prediction for one patch rests on.

    Attributes:
        result: The prediction for the patch, of the genes that are explained, with their ``tta_std`` over all eight
            rotations and reflections.
        patch: What the model saw, uint8, shape (224, 224, 3).
        maps: Of each layer that was asked for, see `tcgn_hub.prediction.explain.activation_maps`; float32, shape (genes,
            side, side).
        graphs: The learned graphs, of the first and the second block.
        occlusion: See `tcgn_hub.prediction.explain.occlusion_maps`, float32, shape (genes, 14, 14); None unless asked
            for.
    """

    result: Result
    patch: np.ndarray
    maps: dict[str, np.ndarray]
    graphs: list[LearnedGraph]
    occlusion: np.ndarray | None = None

    @property
    def patch_um(self) -> float:
        """Side of the patch in micrometres."""
        return float(self.result.obs["patch_um"][0])

    def agreement(self) -> np.ndarray | None:
        """Rank correlation of the coarsest map with occlusion, shape (genes,); None without occlusion.

        Near 1 both find the same tissue; near 0 neither should be believed.
        """
        if self.occlusion is None:
            return None
        coarse = min(self.maps.values(), key=lambda maps: maps.shape[1])
        side = min(coarse.shape[1], self.occlusion.shape[1])
        return spearman(*(_pooled(maps, side).reshape(len(maps), -1).T for maps in (coarse, self.occlusion)))


@dataclass(frozen=True)
class Gallery:
    """The tiles of a slide in which a gene is predicted highest and lowest, and what their predictions rest on.

    Attributes:
        gene: Its symbol.
        tiles: Their indices in the prediction, the highest first and then the lowest, int, shape (n,).
        highest: How many of them are the highest.
        values: Predictions in the units of the prediction, shape (n,).
        patches: What the model saw, uint8, shape (n, 224, 224, 3).
        maps: Grad-CAM on the last convolution, float32, shape (n, 7, 7).
    """

    gene: str
    tiles: np.ndarray
    highest: int
    values: np.ndarray
    patches: np.ndarray
    maps: np.ndarray


@dataclass(frozen=True)
class Measured:
    """One section held out: what was measured, and what was predicted for it.

    Attributes:
        name: Name of the section.
        patient: Patient the tissue is from.
        xy: Spot centres in any unit, shape (n, 2); NaN where unknown.
        targets: Measurements, shape (n, genes); NaN in the columns of genes not measured, and in the rows of spots
            without counts, which are left out.
        predicted: Predictions of the model in the same units, shape (n, genes).
        baselines: Predictions of 'ridge' and 'mean', each of shape (n, genes); either may be missing.
        counts: Raw counts of the panel's genes for the noise ceiling, shape (n, genes); None if there are none.
    """

    name: str
    patient: str
    xy: np.ndarray
    targets: np.ndarray
    predicted: np.ndarray
    baselines: dict[str, np.ndarray]
    counts: np.ndarray | None = None


@dataclass(frozen=True)
class Evaluation:
    """What is known of a model from sections held out.

    Attributes:
        summary: What to write as JSON, see `summarise`; null where something is unknown.
        per_gene: One row a gene, with ``gene``, ``pcc``, ``pcc_low``, ``pcc_high``, ``spearman``, ``rmse``, ``nrmse``,
            ``pcc_ridge``, ``rmse_mean``, ``ceiling``, ``p``, ``significant`` and ``interval_radius`` of the prediction
            interval; None where something is unknown.
        pcc: Of each section the correlations of 'TCGN' and 'ridge' and the 'ceiling', each of shape (genes,), with NaN
            where they are unknown.
    """

    summary: dict[str, Any]
    per_gene: list[dict[str, Any]]
    pcc: dict[str, dict[str, np.ndarray]]


def _pooled(maps: np.ndarray, side: int) -> np.ndarray:
    """Maps (genes, a, a) as means over squares, (genes, side, side)."""
    step = maps.shape[1] // side
    return maps.reshape(len(maps), side, step, side, step).mean((2, 4))
