"""A slide as one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tcgn_hub.correlation import pearson, standardised
from tcgn_hub.files import write_text
from tcgn_hub.result import Gallery, Result
from tcgn_hub.text import counted, some
from tcgn_hub.weights.typical import Typical
from tcgn_hub.writing.explanations import draw_gallery
from tcgn_hub.writing.figures import (
    draw_gene,
    draw_mask,
    draw_scatter,
    draw_signature,
    draw_values,
    layer_values,
    slide_of,
)
from tcgn_hub.writing.picker import picker
from tcgn_hub.writing.tables import facts, poor_text

_OVERVIEW_SIDE, _FIGURE_SIDE = 1000, 700
_QUALITY = 82
_SAME = 0.95  # correlation of two maps above which they are one picture
_COMPARED = 5000  # tiles at most by which maps are compared
_LEAST_COMPARED = 4
_NAMED = 24  # genes beneath a map
_SETS = 12  # maps of gene sets at most
_MEASURED = 6  # genes whose measurement is shown, where there is one


@dataclass(frozen=True)
class _Picture:
    """A picture of the page."""

    png: bytes
    text: str  # what it shows, for who cannot see it
    caption: str = ""
    dull: bool = False  # whether to show it in grey

    @property
    def source(self) -> str:
        """As the page holds it: JPEG, which is a tenth of a PNG where the slide shines through."""
        from PIL import Image

        content = io.BytesIO()
        image = Image.open(io.BytesIO(self.png)).convert("RGB")
        image.save(content, "jpeg", quality=_QUALITY, optimize=True)
        return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


@dataclass
class _Map:
    """A map that stands for several genes or gene sets."""

    name: str  # of the gene, or the gene set
    same: list[str] = field(default_factory=list)  # others of the same map
    inverse: list[str] = field(default_factory=list)  # others whose map is its negative

    @property
    def caption(self) -> str:
        """The others."""
        named = [("the same map: ", self.same), ("the inverse: ", self.inverse)]
        return "; ".join(text + some(genes, _NAMED) for text, genes in named if genes)


def write_report(
    path: str | Path,
    result: Result,
    *,
    genes: Sequence[str] | None = None,
    top: int = 12,
    layer: str = "value",
    galleries: Sequence[Gallery] = (),
) -> None:
    """Write a page with the slide, its tissue, maps, a table of all genes, and what was run.

    The maps are of the depth that the weights predict, of their own axes, of gene sets that are scored, and of genes:
    ``genes`` in this order, or ``top`` of those with the best skill given depth on held-out tissue, the significant
    ones first; where that was not measured, by held-out correlation, or by how much they vary over the tiles. Of maps
    that correlate above 0.95 or below -0.95 one is drawn, and the others are named. ``layer`` is what maps of genes
    show, see `tcgn_hub.writing.figures.draw_gene`. Of the first genes what was measured is shown beside, where
    ``result.layers['measured']`` has it. ``galleries`` are shown below the maps, see
    `tcgn_hub.prediction.predictor.Predictor.galleries`. A gene that was not predicted is a PanelError.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    slide, info = slide_of(result), result.info
    title, ranked = _ranked(result)
    maps = _maps(result, ranked if genes is None else genes, layer)
    drawn = maps[: top if genes is None else None]
    alike = maps if genes is None else _maps(result, ranked, layer)
    table = {gene.gene: gene for gene in result.summary()}
    environment = Environment(loader=PackageLoader("tcgn_hub.writing", "."), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("report.html.jinja").stream(
        slide=slide.path.name,
        facts=facts(result),
        pictures=[
            _Picture(_overview(result), "Overview of the slide", "overview"),
            _Picture(draw_mask(result, side=_FIGURE_SIDE), "Outline of the tissue"),
            *_quality(result),
        ],
        axes=_axes(result),
        gene_sets=_gene_sets(result),
        picker=picker(result, ranked, layer=layer),
        maps_title=title if genes is None else "Maps of the genes asked for",
        given_depth=layer == "given_depth",
        maps=[_map(result, shown, layer) for shown in drawn],
        beside=[shown for gene in [m.name for m in drawn[:_MEASURED]] for shown in _measured(result, gene)],
        different=f"{len(alike)} different maps of {len(ranked)} genes; of those that correlate above {_SAME} or below"
        f" -{_SAME} one is drawn",
        galleries=[
            _Picture(draw_gallery(result, gallery), f"Highest and lowest tiles of {gallery.gene}")
            for gallery in galleries
        ],
        run=_run(result),
        failed=list(result.failed.items()),
        tiles=len(result),
        units=result.units,
        has_z="trained_sd" in result.var,
        has_interval="interval_radius" in result.var,
        level=info.interval_level,
        measured=info.pcc is not None,
        has_given="held_out_pcc_given_depth" in result.var,
        has_tta="tta_std" in result.layers,
        genes=[table[gene] for gene in ranked],
        map_of={
            **{gene: shown.name for shown in alike for gene in (shown.name, *shown.same)},
            **{gene: f"inverse of {shown.name}" for shown in alike for gene in shown.inverse},
        },
    )
    write_text(path, page)


def mapped_genes(result: Result, *, top: int = 12, layer: str = "value") -> list[str]:
    """The genes that a report maps if none are asked for."""
    return [shown.name for shown in _maps(result, _ranked(result)[1], layer)[:top]]


def _ranked(result: Result) -> tuple[str, list[str]]:
    """All genes, those first whose maps say most, and a title that says by what."""
    for key, by in (("held_out_pcc_given_depth", "skill given depth"), ("held_out_pcc", "held-out PCC")):
        if key in result.var:
            score, title = result.var[key], f"Maps of genes, by {by}"
            break
    else:
        score = np.array([gene.sd for gene in result.summary()])
        title = "Maps of the genes that vary most (their skill was not measured)"
    flag = result.var.get("significant", np.zeros(len(score), bool))
    if "significant" in result.var:
        title += ", significant ones first" if flag.any() else "; none is marked significant"
    # NaN last
    order = np.lexsort((-np.nan_to_num(score, nan=-np.inf), ~flag))
    return title, [result.genes[i] for i in order]


def _maps(result: Result, genes: Sequence[str], layer: str) -> list[_Map]:
    """The maps that differ, each under the first of the genes that it is of."""
    some_tiles = slice(None, None, -(-len(result) // _COMPARED))
    columns = [result.column(gene) for gene in genes]
    return _differing(layer_values(result, layer, some_tiles)[:, columns], genes)


def _differing(maps: np.ndarray, names: Sequence[str]) -> list[_Map]:
    """The maps, shape (n, names), that differ, each under the first of the names that it is of."""
    values = standardised(maps)
    enough = len(values) >= _LEAST_COMPARED
    taken, differing = np.zeros(len(names), bool), []
    for i, name in enumerate(names):
        if taken[i]:
            continue
        shown = _Map(name)
        r = values[:, i] @ values / len(values)
        taken[i] = True
        for j in np.flatnonzero(enough & (np.abs(r) > _SAME) & ~taken).tolist():
            taken[j] = True
            (shown.same if r[j] > 0 else shown.inverse).append(names[j])
        differing.append(shown)
    return differing


def _map(result: Result, shown: _Map, layer: str) -> _Picture:
    dull = result.significance(shown.name) == "no"
    caption = "; ".join(part for part in ("not significant" if dull else "", shown.caption) if part)
    png = draw_gene(result, shown.name, layer=layer, side=_FIGURE_SIDE)
    what = f"Map of {shown.name}" + (", given depth" if layer == "given_depth" else "")
    return _Picture(png, what, caption, dull)


def _measured(result: Result, gene: str) -> list[_Picture]:
    """A map of what was measured, and it against what is predicted; none where it was not."""
    column = result.column(gene)
    if "measured" not in result.layers:
        return []
    measured, predicted, depth = result.layers["measured"][:, column], result.X[:, column], result.obs["measured_depth"]
    known = np.isfinite(measured)
    if known.sum() < _LEAST_COMPARED or not np.ptp(measured[known]):
        return []
    pair, given = np.stack([predicted, measured], axis=1)[known].astype(np.float64), depth[known, None]
    r = pearson(pair[:, :1], pair[:, 1:])[0]
    line = np.concatenate([np.ones_like(given), given], axis=1)
    left = pair - line @ np.linalg.lstsq(line, pair, rcond=None)[0]
    partial = pearson(left[:, :1], left[:, 1:])[0]
    text = f"PCC {r:.2f} over {counted(int(known.sum()), 'spot')}, {partial:.2f} given depth"
    png = draw_values(result, measured, f"{gene}, measured", text, result.units, side=_FIGURE_SIDE)
    scatter = draw_scatter(pair[:, 0], pair[:, 1], gene, text, result.units)
    return [_Picture(png, f"Measured {gene}"), _Picture(scatter, f"Measured against predicted {gene}")]


def _axes(result: Result) -> dict[str, Any] | None:
    """Depth and the axes of the weights; None if they do not describe them."""
    typical, depth = result.info.predicted_in_training, result.depth
    if typical is None or "modules" not in result.obsm:
        return None
    modules, count, pictures = result.obsm["modules"], len(typical.shares), []
    if depth is not None:
        pcc = result.info.held_out.get("depth_pcc")
        subtitle = "predicted" + ("" if pcc is None else f"; PCC {pcc:.2f} with what was measured on held-out tissue")
        limits = None if typical.depth is None else typical.depth.limits()
        label = "log10 of the panel's counts"
        png = draw_values(result, depth, "Depth", subtitle, label, limits=limits, side=_FIGURE_SIDE)
        pictures.append(_Picture(png, "Map of predicted depth"))
    for i, share in enumerate(typical.shares):
        subtitle = f"{share:.0%} of the variance of the standardised predictions"
        png = draw_values(
            result,
            modules[:, i],
            f"Axis {i + 1} of {count}",
            subtitle,
            "standard deviations over the training spots",
            limits=Typical.module_limits(),
            side=_FIGURE_SIDE,
        )
        rising, falling = typical.leading(i, result.info.genes)
        named = ("rise with it", rising), ("fall with it", falling)
        parts = [f"{what}: {', '.join(genes)}" for what, genes in named if genes]
        if depth is not None and len(result) >= _LEAST_COMPARED:
            parts.append(f"correlation with predicted depth {pearson(modules[:, [i]], depth[:, None])[0]:.2f}")
        pictures.append(_Picture(png, f"Map of axis {i + 1}", "; ".join(parts)))
    of = f"effective rank {typical.effective_rank:.1f} of {len(result.info.genes)} genes on the training tissue"
    return {"title": f"Depth, and what the model tells apart: {count} axes ({of})", "pictures": pictures}


def _quality(result: Result) -> list[_Picture]:
    """A map of the quality of the tiles; none where it is not known."""
    if "quality" not in result.obs:
        return []
    subtitle = "least of focus, ink, folds and saturation; 1 is what real tissue has"
    png = draw_values(
        result, result.obs["quality"], "Quality of the tiles", subtitle, "quality", side=_FIGURE_SIDE, span=(0.0, 1.0)
    )
    left = f"; {counted(len(result.left_out), 'tile')} left out" if result.left_out else ""
    return [_Picture(png, "Quality of the tiles", f"poor: {poor_text(result) or 'none'}{left}")]


def _gene_sets(result: Result) -> dict[str, Any] | None:
    """Maps of the scores of gene sets, and what each rests on; None if there are none."""
    if not result.signatures:
        return None
    scores = result.obsm["signatures"]
    known = scores[np.isfinite(scores[:, 0])]
    names = [signature.name for signature in result.signatures]
    maps = _differing(known[:: -(-len(known) // _COMPARED) or 1], names) if len(known) else []
    pictures = []
    for shown in maps[:_SETS]:
        png = draw_signature(result, shown.name, side=_FIGURE_SIDE)
        assert png is not None  # some tiles have scores
        pictures.append(_Picture(png, f"Map of the gene set {shown.name}", shown.caption))
    rows = [
        (signature.name, f"{str(signature).removeprefix(signature.name + ': ')}: {some(signature.genes, _NAMED)}")
        for signature in result.signatures
    ]
    refused = [str(signature) for signature in result.uns["signatures_refused"]]
    return {"pictures": pictures, "rows": rows, "refused": some(refused, _NAMED)}


def _run(result: Result) -> list[tuple[str, str]]:
    """What was run on what, to read."""
    known, slide = result.metadata(), slide_of(result)
    significant, ood = result.gene_metadata()["significant"], known["out_of_distribution"]
    marked = "not measured" if significant is None else f"{sum(significant.values())} of {len(significant)}"
    return [
        ("Slide", str(slide.path)),
        ("Size", f"{known['width_px']} x {known['height_px']} px"),
        ("Scale", f"{slide.mpp:.4g} µm/px, from {slide.scale_source}"),
        ("Patch", f"{slide.patch_um:g} µm, {slide.tile_px:.4g} px"),
        ("Stride", "spots were given" if slide.stride_um is None else f"{slide.stride_um:g} µm"),
        ("Tiles", str(len(result))),
        ("Failed tiles", str(len(result.failed))),
        ("Tiles of poor quality", "not known" if result.poor is None else poor_text(result) or "none"),
        ("Tiles left out for their quality", str(len(result.left_out))),
        ("Weights", known["weights"]),
        ("sha256", known["sha256"]),
        ("Units", known["units"]),
        ("Genes marked significant", f"withheld: {result.withheld()}" if result.withheld() else marked),
        (
            "Out of distribution",
            "not known: the weights do not describe their training tissue"
            if ood is None
            else f"{ood} of {len(result)} tiles",
        ),
        ("tcgn_hub", known["tcgn_hub"]),
    ]


def _overview(result: Result) -> bytes:
    from PIL import Image

    image = Image.fromarray(slide_of(result).thumbnail)
    image.thumbnail((_OVERVIEW_SIDE, _OVERVIEW_SIDE))
    content = io.BytesIO()
    image.save(content, "png")
    return content.getvalue()
