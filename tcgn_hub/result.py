"""What comes out: predictions, what they rest on, and how well they do. NumPy alone; `tcgn_hub.writing` writes it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tcgn_hub.correlation import effective_rank, pearson, spearman
from tcgn_hub.errors import OutputError, PanelError
from tcgn_hub.extras import require
from tcgn_hub.images.lazy import pyramid
from tcgn_hub.images.quality import poor_by
from tcgn_hub.images.tissue import outlines
from tcgn_hub.panels import ensembl_ids
from tcgn_hub.panels.gene_sets import MIN_SHARE, GeneSets, Signature, enough, load_gene_sets, mean_scores, signatures_of
from tcgn_hub.rows import AT_ONCE, blocks, forget, take_columns
from tcgn_hub.text import counted, option, printable
from tcgn_hub.units import UNITS, from_linear, to_linear
from tcgn_hub.version import __version__
from tcgn_hub.weights.info import WeightsInfo

if TYPE_CHECKING:
    from anndata import AnnData
    from pandas import DataFrame
    from spatialdata import SpatialData

_HIRES, _LOWRES = 2000, 600  # longest sides of overviews, as Space Ranger makes them
_COMPARED = 5000  # tiles at most by which maps are compared
_LEAST_COMPARED = 4

OURS = "TCGN"
"""What the weights that are measured are called beside other methods."""

Write = Callable[..., None]
_WRITERS: dict[str, tuple[Write, str, str]] = {}


def writer(suffix: str, *, needs: str = "", extra: str = "") -> Callable[[Write], Write]:
    """Let `Result.write` write files of a suffix by a function of ``(path, result)``, and options of this format."""

    def register(function: Write) -> Write:
        _WRITERS[suffix] = function, needs, extra
        return function

    return register


def format_of(path: str | Path, format: str | None = None) -> str:
    """The suffix, such as '.csv', that says how `Result.write` will write a file; to be asked before predicting."""
    suffix = f".{format.lstrip('.')}" if format else Path(path).suffix
    if suffix.lower() not in _WRITERS:
        raise OutputError(f"{path} is of no format that is known; let it end in {', '.join(sorted(_WRITERS))}.")
    _, needs, extra = _WRITERS[suffix.lower()]
    if needs:
        require(needs, extra=extra, to=f"write {suffix.lower()} files")
    return suffix.lower()


def gene_table(info: WeightsInfo, columns: Sequence[int]) -> dict[str, np.ndarray]:
    """`Result.var` of some outputs of weights."""
    genes = [info.genes[i] for i in columns]
    var: dict[str, np.ndarray] = {"gene": np.array(genes, dtype=object)}
    var["gene_ids"] = np.array(ensembl_ids(genes), dtype=object)
    if info.significant is not None:
        var["significant"] = np.array([gene in info.significant for gene in genes], bool)
    for key, known in (("held_out_pcc", info.pcc), ("held_out_pcc_given_depth", info.pcc_given_depth)):
        if known is not None:
            pcc = (known[gene] for gene in genes)
            var[key] = np.array([np.nan if value is None else value for value in pcc], np.float64)
    if info.interval_radius is not None:
        var["interval_radius"] = np.array([info.interval_radius[gene] for gene in genes], np.float64)
    typical = info.predicted_in_training
    if typical is not None:
        var |= {f"trained_{key}": getattr(typical, key)[list(columns)] for key in ("mean", "sd", "low", "high")}
    if typical is not None and typical.depth is not None:
        var["depth_slope"] = typical.depth.slope[list(columns)]
    return var


def scorable(
    info: WeightsInfo, sets: GeneSets, genes: Sequence[str] | None = None, *, min_share: float = MIN_SHARE
) -> tuple[list[Signature], list[Signature]]:
    """The gene sets that `Result.score` scores, and those of which it refuses to; to be asked before predicting.

    Args:
        info: What is known of the weights.
        sets: See `tcgn_hub.panels.gene_sets.load_gene_sets`.
        genes: Symbols of those that are predicted; all of the weights if None.
        min_share: As of `Result.score`.

    Raises:
        PanelError: As of `Result.score`.
    """
    typical = info.predicted_in_training
    if info.significant is None:
        raise PanelError(f"Which genes {info.name} predicts better than chance was not measured, so nothing is scored.")
    if typical is None or typical.given_depth_sd is None:
        raise PanelError(
            f"{info.name} does not state what depth it predicts for its training tissue, which scores need."
        )
    varied = {gene for gene, sd in zip(info.genes, typical.given_depth_sd, strict=True) if sd > 0}
    usable = varied.intersection(info.significant, info.genes if genes is None else genes)
    of = info.name
    if genes is not None and len(genes) < len(info.genes):
        of = f"Of the {counted(len(genes), 'gene')} asked for {of}"
    return enough(signatures_of(load_gene_sets(sets), info.genes, usable), min_share, of=of)


@dataclass(frozen=True, eq=False)
class SlideContext:
    """The slide whose tiles a `Result` is of.

    Attributes:
        path: The file.
        size: (width, height) in pixels at full resolution.
        mpp: Micrometres per pixel at full resolution.
        scale_source: Where ``mpp`` comes from, such as 'openslide.mpp-x' or '--mpp'.
        patch_um: Side of a tile in micrometres.
        trained_um: The same of the patches that the weights were trained on.
        stride_um: Distance of neighbouring tiles in micrometres; None where spots were given.
        series: Which of the images in the file it is, 0 the first.
        origin: Upper left corner of what was scanned, (x, y) in pixels at full resolution. QuPath counts from there.
        thumbnail: Overview, uint8, shape (h, w, 3).
        thumbnail_downsample: Full-resolution pixels per pixel of the thumbnail.
        mask: Where the tissue is, bool, of the shape of the thumbnail; None where it was not looked for.
    """

    path: Path
    size: tuple[int, int]
    mpp: float
    scale_source: str
    patch_um: float
    trained_um: float
    stride_um: float | None
    thumbnail: np.ndarray
    thumbnail_downsample: float
    mask: np.ndarray | None = None
    series: int = 0
    origin: tuple[int, int] = (0, 0)

    @property
    def tile_px(self) -> float:
        """Side of a tile in pixels at full resolution."""
        return self.patch_um / self.mpp


@dataclass(frozen=True)
class GeneSummary:
    """A gene over the patches, or the tiles of a slide."""

    gene: str  # its symbol
    significant: str  # see `Result.significance`
    pcc: float  # held-out Pearson correlation, NaN if it was not measured
    pcc_given_depth: float  # the same with the depth of the spots held fixed
    mean: float  # mean in the units of the prediction
    z: float  # `Result.deviation`, NaN if it is not known
    sd: float  # standard deviation
    min: float  # lowest
    max: float  # highest
    interval_radius: float  # half of the width of the prediction interval of a tile, NaN if it is not known
    tta_std: float  # standard deviation over rotations and reflections, mean over the tiles; NaN without them


@dataclass(eq=False)
class Result:
    """Predicted expression of genes in patches, or in the tiles of a slide, shaped as AnnData is.

    Attributes:
        X: Predictions in `units`, float32, shape (n, genes).
        obs: Arrays of n by name. Of all: ``name``, ``ood`` (distance from the training tissue, above 1 it is out of
            distribution) and ``predicted_depth``, see `depth`, each only where the weights describe it; ``quality``,
            and ``focus``, ``pen``, ``fold``, ``saturation`` and ``stain_distance``, see `poor`. Of patches: ``x`` and
            ``y`` (centre of what was predicted in pixels of the picture), ``mpp``, ``scale_source``, ``patch_um`` and
            ``patch_px`` (its side), and ``trained_um`` (what the weights were trained on). Of tiles: ``array_row`` and
            ``array_col``, and ``tissue_share`` (NaN where no tissue was looked for); the scale is the same of all, in
            ``uns``.
        var: Arrays of one value a gene: ``gene``; ``gene_ids``, its Ensembl id, see `tcgn_hub.panels.ensembl_ids`, ""
            where unknown; ``significant`` (bool), ``held_out_pcc``, ``held_out_pcc_given_depth`` and
            ``interval_radius`` (NaN where unknown); and of what is predicted for the training tissue ``trained_mean``,
            ``trained_sd``, ``trained_low`` and ``trained_high`` (1 % lie below, and above), and ``depth_slope``, by
            which it rises with predicted depth. All but the first two only if the weights state it.
        uns: ``weights`` (`WeightsInfo`), ``failed`` (what could not be predicted, and why), ``left_out``, ``slide``
            (`SlideContext`, of tiles), ``asked`` (whether genes were, all of which a GeoJSON then holds),
            ``signatures`` and ``signatures_refused`` (lists of `tcgn_hub.panels.gene_sets.Signature`, of `score`),
            ``tta``, ``backend``, ``precision`` and ``compiled`` (how it was computed).
        layers: ``tta_std``, standard deviation over the rotations and reflections that X is the mean of, if several;
            ``measured``, with ``measured_depth`` in ``obs``, where it is known, see `tcgn_hub.data.sections.beside`.
        obsm: ``spatial``, centres as (x, y) in pixels at full resolution, of tiles; ``modules``, places along the few
            axes that the weights tell tissue apart by, see `tcgn_hub.weights.typical.Typical.modules`, if they describe
            them; ``features``, if asked for; ``signatures``, see `score`, shape (n, signatures).
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
    def left_out(self) -> dict[str, str]:
        """What was predicted and left out for its quality, by name the quality and why; it is not among ``names``."""
        return self.uns.get("left_out", {})

    @property
    def notes(self) -> dict[str, list[str]]:
        """What was done that the user may not expect, and the names of the images that it was done with."""
        return self.uns.get("notes", {})

    @property
    def is_ood(self) -> np.ndarray | None:
        """Which patches are out of distribution, bool, shape (n,); None if that is not known."""
        return self.obs["ood"] > 1 if "ood" in self.obs else None

    @property
    def poor(self) -> dict[str, int] | None:
        """How many patches or tiles are of a quality below `tcgn_hub.images.quality.POOR`, by what of it is worst.

        ``quality``, from 0 to 1, is the least of ``focus`` (1 or more is what 99 % of training tissue has), 1 less
        eight times ``pen``, 1 less four times ``fold`` (shares of the patch under ink, and where tissue lies double),
        and ``saturation`` (of colour, from 0 to 1) over the one that 99 % of training tissue reach. ``stain_distance``,
        how far the hue of the stains is from that of her2st, 1 its usual limit, is no part of it. None if it is not
        known.
        """
        if "quality" not in self.obs:
            return None
        return {reason: count for reason, tiles in poor_by(self.obs).items() if (count := int(tiles.sum()))}

    @property
    def depth(self) -> np.ndarray | None:
        """Log10 of the panel's counts of a spot as predicted, float32, shape (n,); None if the weights cannot say.

        See `tcgn_hub.weights.typical.Depth`; how well is ``held_out['depth_pcc']`` of `info`, if it was measured.
        """
        return self.obs.get("predicted_depth")

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

    def significance(self, gene: str, row: int | None = None) -> str:
        """'yes', 'no', 'unknown' or 'withheld': whether a gene is predicted better than chance on tissue like this.

        ``WeightsInfo.significance`` says on which tissue that was measured; on other tissue it is `withheld`.

        Args:
            gene: Its symbol.
            row: Of which patch or tile; of all of them if None.
        """
        if "significant" not in self.var:
            return "unknown"
        column = self.column(gene)
        if self.withheld(row):
            return "withheld"
        return "yes" if self.var["significant"][column] else "no"

    def withheld(self, row: int | None = None) -> str:
        """Why nothing is said of significance: the tissue is unlike that of the weights. Empty where it is said.

        Args:
            row: Of which patch or tile; of all of them if None: most are out of distribution.
        """
        if "ood" not in self.obs or not len(self):
            return ""
        unlike = "unlike the tissue that the weights were trained on"
        if row is not None and self.obs["ood"][row] > 1:
            return f"this {'tile' if self.slide else 'patch'} is {unlike}"
        if row is not None and self.slide is None:
            return ""
        count = int((self.obs["ood"] > 1).sum())
        what = "tiles" if self.slide else "patches"
        return f"{count} of {len(self)} {what} are {unlike}" if 2 * count > len(self) else ""

    def pcc(self, gene: str, *, given_depth: bool = False) -> float | None:
        """Held-out Pearson correlation of a gene; None if it was not measured.

        Args:
            gene: Its symbol.
            given_depth: Whether the depth of the spots was held fixed.
        """
        key = "held_out_pcc_given_depth" if given_depth else "held_out_pcc"
        pcc = self.var[key][self.column(gene)] if key in self.var else np.nan
        return None if np.isnan(pcc) else float(pcc)

    def z(self, rows: slice = slice(None)) -> np.ndarray | None:
        """Values in standard deviations from the mean of what is predicted for the training tissue, like X.

        NaN for genes whose prediction never differed there; None if the weights do not describe it.

        Args:
            rows: Of which patches or tiles.
        """
        if "trained_sd" not in self.var:
            return None
        sd = np.where(self.var["trained_sd"] > 0, self.var["trained_sd"], np.nan).astype(np.float32)
        return (self.X[rows] - self.var["trained_mean"]) / sd

    def given_depth(self, rows: slice = slice(None)) -> np.ndarray | None:
        """Values at the mean depth of the training tissue, float32, like X; None if the weights predict no depth.

        That is the value less what predictions for the training tissue rise by with `depth`, over what it is above its
        mean there. It is in the units of the values but, unlike these, may be below 0.

        Args:
            rows: Of which patches or tiles.
        """
        depth, typical = self.depth, self.info.predicted_in_training
        if depth is None or typical is None or typical.depth is None:
            return None
        above = depth[rows, None] - np.float32(typical.depth.mean)
        return (self.X[rows] - above * self.var["depth_slope"]).astype(np.float32)

    def deviation(self) -> np.ndarray | None:
        """The mean of `z` over the patches or tiles, float64, shape (genes,); None if it is not known."""
        if "trained_sd" not in self.var:
            return None
        sd = np.where(self.var["trained_sd"] > 0, self.var["trained_sd"], np.nan).astype(np.float64)
        return (_mean(self.X) - self.var["trained_mean"]) / sd

    def spread(self) -> dict[str, float] | None:
        """For how many genes the patches or tiles differ by more than an interval reaches: ``genes`` of ``of``.

        With ``median_sd``, of the genes' standard deviations, which are compared, and ``median_interval_radius``. None
        of fewer than two, or where no interval is known.
        """
        radius = self.var.get("interval_radius")
        if len(self) < 2 or radius is None or np.isnan(radius).all():
            return None
        known = ~np.isnan(radius)
        sd, radius = self._sd()[known], radius[known]
        return {
            "genes": int((sd > radius).sum()),
            "of": int(known.sum()),
            "median_sd": float(np.median(sd)),
            "median_interval_radius": float(np.median(radius)),
        }

    def _sd(self) -> np.ndarray:
        """Standard deviation of each gene over the patches or tiles."""
        return _mean(self.X, around=_mean(self.X)) ** 0.5

    def interval(self, rows: slice = slice(None)) -> tuple[np.ndarray, np.ndarray] | None:
        """Where a measurement would lie, in ``info.interval_level`` of the cases: lower and upper ends, each like X.

        NaN for genes whose errors are not known; None if those of no gene are. See `tcgn_hub.evaluation.conformal` for
        what it promises.

        Args:
            rows: Of which patches or tiles.
        """
        if "interval_radius" not in self.var:
            return None
        radius = self.var["interval_radius"].astype(np.float32)
        low, high = self.X[rows] - radius, self.X[rows] + radius
        if self.units == UNITS:
            np.maximum(low, 0, out=low)  # this measure is never below 0
        return low, high

    def bulk(self) -> np.ndarray:
        """Mean over patches or tiles in linear space, float32, shape (genes,), in the units of the values.

        Raises:
            OutputError: The units are not the logarithm whose inverse is known here.
        """
        if self.units != UNITS:
            raise OutputError(f"The mean is taken of values in {UNITS}, but these are in {self.units}.")
        return from_linear(_mean(self.X, of=to_linear)).astype(np.float32)

    def summary(self) -> list[GeneSummary]:
        """Every gene over the patches or tiles, in the order of `genes`."""
        nan = np.full(len(self.genes), math.nan)
        tta_std, deviation = self.layers.get("tta_std"), self.deviation()
        columns = {
            "pcc": self.var.get("held_out_pcc", nan),
            "pcc_given_depth": self.var.get("held_out_pcc_given_depth", nan),
            "mean": _mean(self.X),
            "z": nan if deviation is None else deviation,
            "sd": self._sd(),
            "min": np.min([part.min(axis=0) for part in blocks(self.X)], axis=0),
            "max": np.max([part.max(axis=0) for part in blocks(self.X)], axis=0),
            "interval_radius": self.var.get("interval_radius", nan),
            "tta_std": nan if tta_std is None else _mean(tta_std),
        }
        return [
            GeneSummary(gene, self.significance(gene), **dict(zip(columns, values, strict=True)))
            for gene, *values in zip(self.genes, *(column.tolist() for column in columns.values()), strict=True)
        ]

    def score(self, sets: GeneSets, *, min_share: float = MIN_SHARE) -> Result:
        """The same with a score of each gene set, ``obsm['signatures']``, and what it rests on, ``uns['signatures']``.

        The score is the mean, as decoupler computes it, of those genes of the set that are predicted here and are
        significant: of what they are `given_depth`, in standard deviations from the mean of the training tissue. It
        does not depend on other genes, sets or tiles. It is NaN where significance is `withheld`.

        Args:
            sets: A GMT or JSON file, or genes by the names of sets, see `tcgn_hub.panels.gene_sets.load_gene_sets`.
            min_share: Share of a set that a score has to rest on, with at least five genes, or all of a smaller set.
                Sets of which there is less are left out, and listed in ``uns['signatures_refused']``.

        Raises:
            PanelError: The sets cannot be read, none has enough genes, or the weights do not state which genes are
                significant and what they predict for their training tissue.
            ExtraError: decoupler is not installed.
        """
        scored, refused = scorable(self.info, sets, self.genes, min_share=min_share)
        typical = self.info.predicted_in_training
        assert typical is not None
        assert typical.given_depth_sd is not None
        used = [gene for gene in self.genes if any(gene in signature.genes for signature in scored)]
        columns, outputs = [self.column(gene) for gene in used], [self.info.genes.index(gene) for gene in used]
        mean, sd = typical.mean[outputs], typical.given_depth_sd[outputs]
        scores = np.empty((len(self), len(scored)), np.float32)
        for start in range(0, len(self), AT_ONCE):
            rows = slice(start, start + AT_ONCE)
            given = self.given_depth(rows)
            assert given is not None
            scores[rows] = mean_scores((given[:, columns] - mean) / sd, used, scored)
            forget(self.X)
        if self.slide is not None and self.withheld():
            scores[:] = np.nan
        elif self.is_ood is not None:
            scores[self.is_ood] = np.nan
        uns = {**self.uns, "signatures": scored, "signatures_refused": refused}
        return replace(self, obsm={**self.obsm, "signatures": scores}, uns=uns)

    @property
    def signatures(self) -> list[Signature]:
        """The gene sets that are scored, in the order of ``obsm['signatures']``."""
        return self.uns.get("signatures", [])

    def different_signatures(self) -> float | None:
        """How many different maps the scores are worth, see `tcgn_hub.correlation.effective_rank`.

        None of fewer than two signatures, or too few patches or tiles that have scores.
        """
        if len(self.signatures) < 2:
            return None
        scores = self.obsm["signatures"]
        known = np.flatnonzero(np.isfinite(scores[:, 0]))
        known = known[:: -(-len(known) // _COMPARED) or 1]
        rank = effective_rank(scores[known]) if len(known) >= _LEAST_COMPARED else math.nan
        return None if math.isnan(rank) else rank

    def select(self, genes: Sequence[str]) -> Result:
        """The same of some genes, in this order.

        Raises:
            PanelError: One was not predicted.
        """
        columns = [self.column(gene) for gene in genes]
        return replace(
            self,
            X=take_columns(self.X, columns),
            var={key: values[columns] for key, values in self.var.items()},
            layers={key: take_columns(values, columns) for key, values in self.layers.items()},
            uns={**self.uns, "asked": True},
        )

    def top(self, count: int | None = None) -> Result:
        """The same of some genes, in order of `deviation` from the training tissue, whichever way, the farthest first.

        Where that is not known, in order of their means, the highest first.

        Args:
            count: How many; all if None.
        """
        deviation = self.deviation()
        # what is not known comes last
        by = _mean(self.X) if deviation is None else np.nan_to_num(np.abs(deviation), nan=-1)
        return self.select([self.genes[i] for i in np.argsort(-by, kind="stable")[:count]])

    def metadata(self) -> dict[str, Any]:
        """What was run on what, as values that JSON can hold; None where something is not known.

        Of a slide: ``slide``, ``series``, ``origin_px``, ``width_px``, ``height_px``, ``mpp``, ``scale_source``,
        ``patch_um``, ``trained_um``, ``stride_um`` (None where spots were given) and the number of ``tiles``; otherwise
        the number of ``patches``. Of both: ``failed``, ``left_out``, ``poor`` (how many are, by what), ``notes`` (of
        how many each is said), ``weights``, ``sha256``, ``units``, ``interval_level``, ``out_of_distribution`` (how
        many are), ``skill`` and ``significance`` (see `WeightsInfo`), ``significance_withheld`` (why; None where it is
        not), ``spread``, ``modules`` (of each axis the ``share`` of the variance, and which genes are ``rising`` and
        ``falling`` along it), ``trained_depth`` (mean of what `depth` is for the training tissue), ``signatures`` (of
        those that are ``scored`` and those ``refused``, by name, the ``genes`` that were used and the ``size`` of the
        set; `different_signatures` as ``different``; and how many patches or tiles are ``withheld``), ``tta``,
        ``backend``, ``precision``, ``compiled``, and the version of ``tcgn_hub``.
        """
        slide, is_ood, info = self.slide, self.is_ood, self.info
        typical = info.predicted_in_training
        place: dict[str, Any] = {"patches": len(self)}
        if slide is not None:
            place = {
                "slide": printable(slide.path.name),
                "series": slide.series,
                "origin_px": [int(at) for at in slide.origin],
                "width_px": int(slide.size[0]),
                "height_px": int(slide.size[1]),
                "mpp": float(slide.mpp),
                "scale_source": slide.scale_source,
                "patch_um": float(slide.patch_um),
                "trained_um": float(slide.trained_um),
                "stride_um": None if slide.stride_um is None else float(slide.stride_um),
                "tiles": len(self),
            }
        return {
            **place,
            "failed": dict(self.failed),
            "left_out": dict(self.left_out),
            "poor": self.poor,
            "notes": {note: len(names) for note, names in self.notes.items()},
            "weights": self.info.name,
            "sha256": self.info.sha256,
            "units": self.units,
            "interval_level": self.info.interval_level if "interval_radius" in self.var else None,
            "out_of_distribution": None if is_ood is None else int(is_ood.sum()),
            "skill": info.skill or None,
            "significance": None if info.significant is None else info.significance,
            "significance_withheld": self.withheld() or None,
            "spread": self.spread(),
            "modules": self._modules(),
            "trained_depth": None if typical is None or typical.depth is None else typical.depth.mean,
            "signatures": self._signatures(),
            **{key: self.uns.get(key) for key in ("tta", "backend", "precision", "compiled")},
            "tcgn_hub": __version__,
        }

    def _modules(self) -> list[dict[str, Any]] | None:
        """The axes of the weights, None if they do not describe them."""
        typical, genes = self.info.predicted_in_training, self.info.genes
        if typical is None:
            return None
        leading = [typical.leading(i, genes) for i in range(len(typical.shares))]
        return [
            {"share": share, "rising": rising, "falling": falling}
            for share, (rising, falling) in zip(typical.shares.tolist(), leading, strict=True)
        ]

    def _signatures(self) -> dict[str, Any] | None:
        """What scores rest on, None if there are none."""
        if "signatures" not in self.obsm:
            return None
        lists = ("scored", self.signatures), ("refused", self.uns["signatures_refused"])
        return {
            **{key: {s.name: {"genes": list(s.genes), "size": s.size} for s in some} for key, some in lists},
            "different": self.different_signatures(),
            "withheld": int(np.isnan(self.obsm["signatures"][:, 0]).sum()),
        }

    def gene_metadata(self) -> dict[str, dict[str, Any] | None]:
        """What is known of the genes, as values that JSON can hold.

        ``gene_ids``, ``significant``, ``held_out_pcc``, ``held_out_pcc_given_depth``, ``interval_radius``,
        ``trained_mean``, ``trained_sd`` and ``depth_slope`` by gene, None where a gene has none, and None as a whole
        where the weights state none, or where ``significant`` is `withheld`. The prediction interval is the value less
        and plus the radius, in the units of the values, and not below 0 where these are `tcgn_hub.units.UNITS`. What
        `given_depth` gives is the value less ``depth_slope`` times what ``predicted_depth`` is above ``trained_depth``.
        """
        told = self._told()
        return {
            key: dict(zip(self.genes, [None if v != v or v == "" else v for v in told[key].tolist()], strict=True))
            if key in told
            else None
            for key in (
                *("gene_ids", "significant", "held_out_pcc", "held_out_pcc_given_depth", "interval_radius"),
                *("trained_mean", "trained_sd", "depth_slope"),
            )
        }

    def _told(self) -> dict[str, np.ndarray]:
        """`var`, without what is withheld."""
        return {key: values for key, values in self.var.items() if key != "significant" or not self.withheld()}

    def to_dataframe(self) -> DataFrame:
        """A row a patch or tile, a column a gene.

        Raises:
            ExtraError: pandas is not installed.
        """
        pandas = require("pandas", extra="parquet", to="make a data frame")
        return pandas.DataFrame(self.X, index=self.names, columns=self.genes)

    def to_anndata(self, *, copy: bool = True) -> AnnData:
        """Patches or tiles as observations, genes as variables, in the conventions of scverse.

        ``X`` is float32 in `units`; ``layers`` has `z`, `given_depth`, ``tta_std``, and ``interval_low`` and
        ``interval_high``, the ends of the prediction intervals. ``obs`` and ``var`` hold what those of this object do,
        but no ``significant`` where it is `withheld`; and ``obs`` has `is_ood`, and of tiles ``slide``, its name, as a
        category, and ``in_tissue``, which is 1. ``uns['log1p']`` tells scanpy that the logarithms of
        `tcgn_hub.units.UNITS` are to the base of 10, which its fold changes need.
        ``obsm['spatial']`` are the centres as (x, y) in pixels at full resolution, ``obsm['modules']`` the places along
        the axes of the weights, ``obsm['X_tcgn']`` the features, and ``obsm['signatures']`` the scores of gene sets, a
        data frame, as decoupler has them. ``uns['spatial']`` holds the overview under the stem of the slide's name, so
        that scanpy and squidpy draw it without being told more. ``uns['tcgn']`` is `metadata`, with ``failed``,
        ``left_out``, ``modules`` and ``signatures`` as JSON, NaN where something is not known, and ``mask``, uint8 with
        1 where the tissue is, of ``mask_downsample`` full-resolution pixels per pixel. Each is there only where it is
        known.

        All of it is in memory, while an .h5ad of `write` is written some rows at a time.

        Args:
            copy: Whether the arrays are copies, as scanpy works in place.

        Raises:
            ExtraError: anndata is not installed.
        """
        array = np.array if copy else np.asarray
        adata = self.annotations(copy=copy)
        held = {place: array(rows_of(slice(None))) for place, rows_of in self.tables().items()}
        adata.X = held.pop("X")
        for place, values in held.items():
            kind, key = place.split("/", 1)
            getattr(adata, kind)[key] = values
        return adata

    def tables(self) -> dict[str, Callable[[slice], np.ndarray]]:
        """What gives some rows of each table of `to_anndata`, by its place there: ``X``, ``layers/z``, and so on.

        To go through large results without holding what follows from them, such as `z`, for all rows.
        """
        places: dict[str, Callable[[slice], np.ndarray]] = {"X": self.X.__getitem__}
        layers: dict[str, Callable[[slice], Any]] = {key: table.__getitem__ for key, table in self.layers.items()}
        layers |= {"z": self.z, "given_depth": self.given_depth}
        for i, end in enumerate(("interval_low", "interval_high")):
            layers[end] = partial(self._end, i)
        none = slice(0)
        places |= {f"layers/{key}": rows_of for key, rows_of in layers.items() if rows_of(none) is not None}
        obsm = {key: table for key, table in self.obsm.items() if key not in ("features", "signatures")}
        if "features" in self.obsm:
            obsm["X_tcgn"] = self.obsm["features"]
        return places | {f"obsm/{key}": table.__getitem__ for key, table in obsm.items()}

    def _end(self, which: int, rows: slice) -> np.ndarray | None:
        """Lower (0) or upper ends of the intervals."""
        ends = self.interval(rows)
        return None if ends is None else ends[which]

    def annotations(self, *, copy: bool = True) -> AnnData:
        """What `to_anndata` gives, without its `tables`.

        Args:
            copy: Whether the arrays are copies.

        Raises:
            ExtraError: anndata is not installed.
        """
        anndata = require("anndata", extra="h5ad", to="make AnnData")
        pandas = require("pandas", extra="h5ad", to="make AnnData")
        array = np.array if copy else np.asarray
        obs: dict[str, Any] = {key: array(values) for key, values in self.obs.items() if key != "name"}
        uns: dict[str, Any] = {"tcgn": {k: math.nan if v is None else v for k, v in self.metadata().items()}}
        # names of tiles may hold slashes, which HDF5 would take for groups
        uns["tcgn"] |= {key: json.dumps(uns["tcgn"][key]) for key in ("failed", "left_out")}
        uns["tcgn"]["modules"] = json.dumps(self._modules())
        if self.signatures:
            uns["tcgn"]["signatures"] = json.dumps(self._signatures())
        if self.is_ood is not None:
            obs["is_ood"] = self.is_ood
        if self.units == UNITS:
            uns["log1p"] = {"base": 10.0}
        if self.slide is not None:
            name = pandas.Categorical.from_codes(np.zeros(len(self), np.int8), [printable(self.slide.path.name)])
            obs = {"in_tissue": np.ones(len(self), np.int64), "slide": name, **obs}
            uns["spatial"] = {printable(self.slide.path.stem): _overview(self.slide)}
            if self.slide.mask is not None:
                uns["tcgn"]["mask"] = self.slide.mask.astype(np.uint8)
                uns["tcgn"]["mask_downsample"] = float(self.slide.thumbnail_downsample)
        names = anndata.utils.make_index_unique(pandas.Index(self.names, dtype=object))
        scores = {}
        if self.signatures:
            columns = [signature.name for signature in self.signatures]
            scores["signatures"] = pandas.DataFrame(self.obsm["signatures"], index=names, columns=columns, copy=copy)
        return anndata.AnnData(
            obs=pandas.DataFrame(obs, index=names, copy=copy),
            obsm=scores,
            var=pandas.DataFrame(
                {key: values for key, values in self._told().items() if key != "gene"},
                index=pandas.Index(self.genes, dtype=object),
            ),
            uns=uns,
        )

    def to_spatialdata(self, *, image: str = "slide") -> SpatialData:
        """The slide, its tiles and tissue, and what is predicted, as elements of SpatialData.

        ``images['wsi']`` is the slide in RGB; ``shapes['tiles']`` the square that was seen of each tile;
        ``shapes['region_of_interest']``, as sopa calls it, the tissue, unless that was not looked for.
        ``tables['table']`` is what `to_anndata` gives, with ``tile_id``, the index of the tile in the shapes, and
        without the overview. All are placed in ``global``, pixels at full resolution, and in ``microns``.
        ``attrs['tcgn']`` is `metadata`, with the path of the slide in full as ``slide_path``;
        ``attrs['tissue_segmentation_image']`` is what sopa looks for.

        Args:
            image: 'slide': all levels, which are read from the file of the slide as they are looked at, and copied
                where the object is written; 'overview': the small picture that the tissue was looked for on.

        Raises:
            OutputError: The result is of patches, which have no place on a slide.
            ImageError: The slide cannot be read any more.
            ExtraError: spatialdata is not installed.
        """
        return self.elements(self.to_anndata(), image=image)

    def elements(self, table: AnnData, *, image: str, lost: list[str] | None = None) -> SpatialData:
        """What `to_spatialdata` gives, with a table that may lack the `tables`.

        Args:
            table: As of `annotations`; it is changed.
            image: See `to_spatialdata`.
            lost: See `tcgn_hub.images.lazy.pyramid`.
        """
        slide = self.slide
        if slide is None:
            raise OutputError("SpatialData places tiles on a slide; write patches as .csv, .json, .parquet or .h5ad.")
        spatialdata, models, transformations, shapely, geopandas, xarray = (
            require(module, extra="spatialdata", to="make SpatialData")
            for module in (
                *("spatialdata", "spatialdata.models", "spatialdata.transformations", "shapely", "geopandas", "xarray"),
            )
        )

        def placed(downsample: float = 1.0) -> dict[str, Any]:
            scales = {"global": downsample, "microns": downsample * slide.mpp}
            return {
                name: transformations.Identity() if scale == 1 else transformations.Scale([scale] * 2, axes=("x", "y"))
                for name, scale in scales.items()
            }

        if image == "slide":
            scales = {}
            for i, level in enumerate(pyramid(slide.path, series=slide.series, lost=lost)):
                # centres of pixels, in those of the whole
                sides = zip("yx", level.shape[1:], slide.size[::-1], strict=True)
                centres = {axis: (np.arange(side) + 0.5) * (whole / side) for axis, side, whole in sides}
                array = xarray.DataArray(level, dims=("c", "y", "x"), coords={"c": list("rgb"), **centres})
                scales[f"scale{i}"] = xarray.Dataset({"image": array})
            pixels = xarray.DataTree.from_dict(scales)
            transformations.set_transformation(pixels, placed(), set_all=True)
        else:
            overview = slide.thumbnail.transpose(2, 0, 1)
            pixels = models.Image2DModel.parse(
                overview,
                dims=("c", "y", "x"),
                c_coords=list("rgb"),
                transformations=placed(slide.thumbnail_downsample),
            )
        half, xy = slide.tile_px / 2, self.obsm["spatial"]
        squares = {"tiles": shapely.box(*(xy - half).T, *(xy + half).T)}
        if slide.mask is not None:
            squares["region_of_interest"] = outlines(slide.mask, downsample=slide.thumbnail_downsample)
        shapes = {
            name: models.ShapesModel.parse(geopandas.GeoDataFrame(geometry=geometry), transformations=placed())
            for name, geometry in squares.items()
        }
        table.uns.pop("spatial")
        table.obs["tile_id"] = np.arange(len(self))
        table.obs["region"] = "tiles"
        table.obs["region"] = table.obs["region"].astype("category")
        table = models.TableModel.parse(table, region="tiles", region_key="region", instance_key="tile_id")
        return spatialdata.SpatialData(
            images={"wsi": pixels},
            shapes=shapes,
            tables={"table": table},
            attrs={
                "tcgn": {**self.metadata(), "slide_path": printable(slide.path.absolute())},
                "tissue_segmentation_image": "wsi",
            },
        )

    def write(self, path: str | Path, *, format: str | None = None, image: str | None = None) -> None:
        """Write a file, by its suffix: .csv, .geojson, .h5ad, .json, .parquet, .txt or .zarr; see `tcgn_hub.writing`.

        Args:
            path: The file; of .zarr the folder, a store of SpatialData.
            format: Suffix to take in place of its own.
            image: What a .zarr holds of the slide: 'link', which is the default, the overview and the path of the
                slide, or 'copy' all of its pixels.

        Raises:
            OutputError: No format has this suffix, it holds no image, or the file cannot be written.
            ExtraError: A package that the format needs is not installed.
        """
        suffix = format_of(path, format)
        if image is not None and suffix != ".zarr":
            raise OutputError(f"{option('image')} is of a .zarr, and {path} is none; leave it out.")
        _WRITERS[suffix][0](Path(path), self, **({} if image is None else {"image": image}))


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
        maps: Of each layer that was asked for, see `tcgn_hub.prediction.explain.activation_maps`; float32, shape
            (genes, side, side).
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
        """Side of the patch in micrometres; what it is taken for, that of the training patches, if it is not known."""
        shown, trained = (float(self.result.obs[key][0]) for key in ("patch_um", "trained_um"))
        return shown if shown == shown else trained

    @property
    def field(self) -> str:
        """How much the patch shows, and by what scale, in words."""
        obs = {key: values[0] for key, values in self.result.obs.items()}
        if obs["patch_um"] != obs["patch_um"]:
            return f"all of it, taken for {self.patch_um:.3g} µm"
        return f"central {self.patch_um:.3g} µm, {obs['mpp']:.4g} µm/px by {obs['scale_source']}"

    def agreement(self) -> np.ndarray | None:
        """Rank correlation of the coarsest map with occlusion, shape (genes,); None without occlusion.

        Near 1 both find the same tissue; near 0 neither should be believed.
        """
        if self.occlusion is None:
            return None
        coarse = min(self.maps.values(), key=lambda maps: maps.shape[1])
        side = min(coarse.shape[1], self.occlusion.shape[1])
        return spearman(*(_pooled(maps, side).reshape(len(maps), -1).T for maps in (coarse, self.occlusion)))

    def alike(self, *, above: float = 0.95) -> dict[tuple[str, ...], dict[str, tuple[float, float]]]:
        """Genes whose maps are one picture, and so no findings of their own.

        Args:
            above: The Pearson correlation over the positions of a map above which two genes are joined.

        Returns:
            Of each group of genes the maps, by their layer or 'occlusion', that join them, and the lowest and the
            highest correlation of two of them: the lowest is below ``above`` where others between them join two. A map
            of one value everywhere is like no other.
        """
        found: dict[tuple[str, ...], dict[str, tuple[float, float]]] = {}
        occlusion = {} if self.occlusion is None else {"occlusion": self.occlusion}
        for kind, maps in {**self.maps, **occlusion}.items():
            flat = maps.reshape(len(maps), -1).T
            r = np.array([pearson(flat, flat[:, [i]]) for i in range(len(maps))])
            for group in _joined(r > above):
                pairs = r[np.ix_(group, group)][np.triu_indices(len(group), 1)]
                genes = tuple(self.result.genes[i] for i in group)
                found.setdefault(genes, {})[kind] = float(pairs.min()), float(pairs.max())
        return found


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
    """One section held out: what was measured, and what was predicted for it."""

    name: str  # name of the section
    patient: str  # patient the tissue is from
    xy: np.ndarray  # spot centres in any unit, shape (n, 2); NaN where unknown
    # measurements, shape (n, genes); NaN in the columns of genes not measured, and in the rows of spots without
    # counts, which are left out
    targets: np.ndarray
    # predictions of the weights that are measured in the same units, shape (n, genes); None where only predictions
    # of others are
    predicted: np.ndarray | None
    # predictions of 'mean', 'depth', 'ridge' and 'ridge ENCODER', each of shape (n, genes); any may be missing
    baselines: dict[str, np.ndarray]
    # raw counts of the panel's genes, shape (n, genes); None if there are none
    counts: np.ndarray | None = None
    # predictions of other methods by their labels, each of shape (n, genes); NaN where a spot or a gene is missing
    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    # labels of those that are in the units of the targets, so that their errors mean something
    in_units: frozenset[str] = frozenset()
    # how well each method predicts the sections that it was fitted on, PCC by gene, shape (genes,), by its label
    train_pcc: dict[str, np.ndarray] = field(default_factory=dict)
    # variance of each gene's Pearson residuals on the training sections, shape (genes,); None without any
    train_variance: np.ndarray | None = None
    # depth as the weights predict it, shape (n,), and by what each gene goes with it, shape (genes,), see
    # `tcgn_hub.weights.typical.Depth`; None where they predict none
    predicted_depth: np.ndarray | None = None
    depth_slope: np.ndarray | None = None

    @property
    def methods(self) -> dict[str, np.ndarray]:
        """Every prediction by its label: the weights as 'TCGN', those of other methods, the baselines."""
        own = {} if self.predicted is None else {OURS: self.predicted}
        return {**own, **self.predictions, **self.baselines}


@dataclass(frozen=True)
class Evaluation:
    """What is known of a model from sections held out.

    Attributes:
        summary: What to write as JSON, see `tcgn_hub.evaluation.evaluate.summarise`; null where something is unknown.
        per_gene: One row a gene, with ``gene``, ``pcc`` and ``pcc_given_depth``, each with its ``_low`` and ``_high``,
            ``one_factor``, ``beyond_one_factor``, ``significant``, ``p``, ``ceiling``, ``ceiling_given_depth``,
            ``spearman``, ``rmse``, ``nrmse``, ``interval_radius`` of the prediction interval, and ``pcc LABEL`` and
            ``pcc_given_depth LABEL`` of every other method; None where something is unknown.
        pcc: Of each section the correlations of every method by its label, and the 'ceiling', each of shape (genes,),
            with NaN where they are unknown.
        given_depth: The same given depth.
    """

    summary: dict[str, Any]
    per_gene: list[dict[str, Any]]
    pcc: dict[str, dict[str, np.ndarray]]
    given_depth: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)


def _joined(linked: np.ndarray) -> list[list[int]]:
    """Groups of two and more that links (n, n), symmetric, join, each in ascending order."""
    label = np.arange(len(linked))
    for i, j in zip(*np.nonzero(np.triu(linked, 1)), strict=True):
        label[label == label[j]] = label[i]
    groups = [np.flatnonzero(label == name).tolist() for name in dict.fromkeys(label.tolist())]
    return [group for group in groups if len(group) > 1]


def _pooled(maps: np.ndarray, side: int) -> np.ndarray:
    """Maps (genes, a, a) as means over squares, (genes, side, side)."""
    step = maps.shape[1] // side
    return maps.reshape(len(maps), side, step, side, step).mean((2, 4))


def _overview(slide: SlideContext) -> dict[str, Any]:
    """A slide as ``uns['spatial']`` wants it."""
    hires, lowres = _shrunk(slide.thumbnail, _HIRES), _shrunk(slide.thumbnail, _LOWRES)
    scales = [
        max(image.shape[:2]) / (max(slide.thumbnail.shape[:2]) * slide.thumbnail_downsample)
        for image in (hires, lowres)
    ]
    return {
        "images": {"hires": hires, "lowres": lowres},
        "scalefactors": {
            "tissue_hires_scalef": scales[0],
            "tissue_lowres_scalef": scales[1],
            "spot_diameter_fullres": float(slide.tile_px),
            # there are no fiducials here, but readers expect the key
            "fiducial_diameter_fullres": float(slide.tile_px),
        },
        "metadata": {},
    }


def _shrunk(image: np.ndarray, longest: int) -> np.ndarray:
    """An image whose longest side is at most ``longest``."""
    from PIL import Image

    height, width = image.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return image.copy()
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def _mean(
    table: np.ndarray,
    *,
    around: np.ndarray | float | None = None,
    of: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Mean of each column, float64: of its values, of their squared distance ``around`` others, or ``of`` a function.

    No second table of many tiles is held.
    """
    total = np.zeros(table.shape[1:])
    for part in blocks(table):
        values = part if of is None else of(part)
        total += (values if around is None else (values - around) ** 2).sum(axis=0, dtype=np.float64)
    return total / len(table)
