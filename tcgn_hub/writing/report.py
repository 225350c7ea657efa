"""A slide as one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path

from tcgn_hub.files import write_text
from tcgn_hub.result import Gallery, GeneSummary, Result
from tcgn_hub.writing.explanations import draw_gallery
from tcgn_hub.writing.figures import draw_gene, draw_mask, slide_of

_OVERVIEW_SIDE, _FIGURE_SIDE = 1000, 700


def write_report(
    path: str | Path,
    result: Result,
    *,
    genes: Sequence[str] | None = None,
    top: int = 12,
    galleries: Sequence[Gallery] = (),
) -> None:
    """Write a page with the slide, its tissue, maps of some genes, a table of all genes, and what was run.

    ``genes`` are mapped in this order; if None, the ``top`` of highest held-out correlation among those marked
    significant, or, where significance was not measured, the ``top`` that vary most over the tiles. ``galleries`` are
    shown below the maps, see `tcgn_hub.prediction.predictor.Predictor.galleries`. A gene that was not predicted is a
    PanelError.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    slide, table, info = slide_of(result), result.summary(), result.info
    if genes is not None:
        title = "Maps of the genes asked for"
    else:
        title, genes = _choose(table, top)
    environment = Environment(loader=PackageLoader("tcgn_hub.writing", "."), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("report.html.jinja").stream(
        slide=slide.path.name,
        overview=_base64(_overview(result)),
        mask=_base64(draw_mask(result, side=_FIGURE_SIDE)),
        maps_title=title,
        maps=[(gene, _base64(draw_gene(result, gene, side=_FIGURE_SIDE))) for gene in genes],
        galleries=[(gallery.gene, _base64(draw_gallery(result, gallery))) for gallery in galleries],
        run=_run(result),
        failed=list(result.failed.items()),
        tiles=len(result),
        units=result.units,
        has_interval="interval_radius" in result.var,
        level=info.interval_level,
        measured=info.pcc is not None,
        has_tta="tta_std" in result.layers,
        genes=table,
    )
    write_text(path, page)


def mapped_genes(result: Result, *, top: int = 12) -> list[str]:
    """The genes that a report maps if none are asked for."""
    return _choose(result.summary(), top)[1]


def _choose(table: Sequence[GeneSummary], top: int) -> tuple[str, list[str]]:
    """The genes to map, and the title that says which they are."""
    if all(gene.significant == "unknown" for gene in table):
        rows = sorted(table, key=lambda gene: -gene.sd)[:top]
        return "Maps of the genes that vary most (their significance was not measured)", [row.gene for row in rows]
    significant = [gene for gene in table if gene.significant == "yes"]
    rows = sorted(significant, key=lambda gene: math.inf if math.isnan(gene.pcc) else -gene.pcc)[:top]
    title = "Maps of significant genes, by held-out PCC" if rows else "None of the genes is marked significant"
    return title, [row.gene for row in rows]


def _run(result: Result) -> list[tuple[str, str]]:
    """What was run on what, to read."""
    known, slide = result.metadata(), slide_of(result)
    significant, ood = result.gene_metadata()["significant"], known["out_of_distribution"]
    return [
        ("Slide", str(slide.path)),
        ("Size", f"{known['width_px']} x {known['height_px']} px"),
        ("Scale", f"{slide.mpp:.4g} µm/px, from {slide.scale_source}"),
        ("Patch", f"{slide.patch_um:g} µm, {slide.tile_px:.4g} px"),
        ("Stride", "spots were given" if slide.stride_um is None else f"{slide.stride_um:g} µm"),
        ("Tiles", str(len(result))),
        ("Failed tiles", str(len(result.failed))),
        ("Weights", known["weights"]),
        ("sha256", known["sha256"]),
        ("Units", known["units"]),
        (
            "Genes marked significant",
            "not measured" if significant is None else f"{sum(significant.values())} of {len(significant)}",
        ),
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


def _base64(png: bytes) -> str:
    return base64.b64encode(png).decode()
