"""A slide as one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from tcgn_hub.files import write_text
from tcgn_hub.writing.explanations import draw_gallery
from tcgn_hub.writing.figures import draw_gene, draw_mask
from tcgn_hub.writing.frames import GeneSummary, run_facts, summarise

if TYPE_CHECKING:
    from tcgn_hub.prediction.explain import Gallery
    from tcgn_hub.prediction.slides import SlidePrediction

__all__ = ["mapped_genes", "write_report"]

_OVERVIEW_SIDE, _FIGURE_SIDE = 1000, 700

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{slide}: predicted gene expression</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff; max-width: 1120px;
  margin: 2rem auto; padding: 0 1.5rem; }}
h1 {{ font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid #ccc; padding-bottom: .2rem; }}
.notice {{ border-left: 4px solid #b35900; background: #fdf5ec; padding: .6rem 1rem; margin: 1rem 0; }}
.pictures {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 460px), 1fr)); gap: 1.2rem; }}
figure {{ margin: 0; break-inside: avoid; }}
img {{ display: block; max-width: 100%; max-height: 800px; margin: 0 auto; }}
figcaption {{ font-size: .85rem; color: #444; text-align: center; }}
table {{ border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top; overflow-wrap: anywhere; }}
thead th {{ border-bottom: 1px solid #888; }}
tbody tr {{ border-bottom: 1px solid #eee; break-inside: avoid; }}
.facts th {{ font-weight: 600; white-space: nowrap; }}
.genes {{ width: 100%; }}
.genes .number {{ text-align: right; }}
@media print {{
  body {{ margin: 0; max-width: none; padding: 0; font-size: 10pt; }}
  .pictures {{ grid-template-columns: 1fr 1fr; }}
  img {{ max-height: 11cm; }}
  thead {{ display: table-header-group; }}
  h2 {{ break-after: avoid; }}
  .notice {{ background: none; }}
}}
</style>
</head>
<body>
<h1>Predicted gene expression of {slide}</h1>
<p class="notice"><strong>For research use, not for diagnosis.</strong> The values are predicted from the image; nothing
was measured. Genes not marked significant could not be predicted better than chance on held-out tissue, or this was not
measured for these weights.</p>
<h2>Slide</h2>
<div class="pictures">
{slide_pictures}
</div>
<h2>{maps_title}</h2>
<div class="pictures">
{maps}
</div>
{galleries}
<h2>Run</h2>
<table class="facts">
<tbody>
{facts}
</tbody>
</table>
{failed}
<h2>Genes</h2>
<p>Over {tiles} tiles, in {units}.{sure_text}</p>
<table class="genes">
<thead><tr><th>gene</th><th class="number">mean</th><th class="number">sd</th><th class="number">min</th>
<th class="number">max</th>{sure_titles}<th>significant</th><th class="number">held-out PCC</th></tr></thead>
<tbody>
{genes}
</tbody>
</table>
</body>
</html>
"""


def write_report(
    path: str | Path,
    prediction: SlidePrediction,
    *,
    genes: Sequence[str] | None = None,
    top: int = 12,
    galleries: Sequence[Gallery] = (),
) -> None:
    """Write a page with the slide, its tissue, maps of some genes, a table of all genes, and the facts of the run.

    Args:
        path: Where to write it.
        prediction: The slide.
        genes: Genes to map, in this order. If None, the ``top`` of highest held-out correlation among those marked
            significant; where significance was not measured, the ``top`` that vary most over the tiles.
        top: How many genes to map if ``genes`` is None.
        galleries: Highest and lowest tiles of genes, see `tcgn_hub.prediction.explain.galleries`, to show below the maps.

    Raises:
        ExtraError: matplotlib is not installed.
        PanelError: One of ``genes`` was not predicted.
        OutputError: The file cannot be written.
    """
    table = summarise(prediction)
    facts = run_facts(prediction)
    if genes is not None:
        title = "Maps of the genes asked for"
    else:
        title, genes = _choose(table, top)
    maps = [_picture(draw_gene(prediction, gene, side=_FIGURE_SIDE), f"Map of {gene}") for gene in genes]
    slide_pictures = [
        _picture(_overview(prediction), "Overview of the slide", "overview"),
        _picture(draw_mask(prediction, side=_FIGURE_SIDE), "Outline of the tissue"),
    ]
    sure = {
        key: title
        for key, title in (("interval_radius", "interval"), ("spread", "spread"))
        if not all(math.isnan(getattr(row, key)) for row in table)
    }
    page = _PAGE.format(
        slide=escape(facts["slide"]),
        slide_pictures="\n".join(slide_pictures),
        maps_title=escape(title),
        maps="\n".join(maps),
        galleries=_galleries(prediction, galleries),
        facts="\n".join(_fact_row(name, value) for name, value in _facts(prediction)),
        failed=_failed(prediction.failed),
        tiles=facts["tiles"],
        units=escape(facts["units"]),
        sure_titles="".join(f'<th class="number">{title}</th>' for title in sure.values()),
        sure_text=_sure_text(prediction),
        genes="\n".join(_gene_row(row, sure) for row in table),
    )
    write_text(path, page)


def mapped_genes(prediction: SlidePrediction, *, top: int = 12) -> list[str]:
    """The genes that a report maps if none are asked for."""
    return _choose(summarise(prediction), top)[1]


def _galleries(prediction: SlidePrediction, galleries: Sequence[Gallery]) -> str:
    if not galleries:
        return ""
    figures = [
        _picture(draw_gallery(prediction, gallery), f"Highest and lowest tiles of {gallery.gene}")
        for gallery in galleries
    ]
    return "\n".join(["<h2>What the predictions rest on</h2>", *figures])


def _choose(table: Sequence[GeneSummary], top: int) -> tuple[str, list[str]]:
    """The genes to map, and the title that says which they are."""
    if all(gene.significant == "unknown" for gene in table):
        rows = sorted(table, key=lambda gene: -gene.sd)[:top]
        return "Maps of the genes that vary most (their significance was not measured)", [row.gene for row in rows]
    significant = [gene for gene in table if gene.significant == "yes"]
    rows = sorted(significant, key=lambda gene: math.inf if math.isnan(gene.pcc) else -gene.pcc)[:top]
    title = "Maps of the most significant genes, by held-out PCC" if rows else "None of the genes is marked significant"
    return title, [row.gene for row in rows]


def _facts(prediction: SlidePrediction) -> list[tuple[str, str]]:
    facts = run_facts(prediction)
    stride = facts["stride_um"]
    return [
        ("Slide", str(prediction.slide)),
        ("Size", f"{facts['width_px']} x {facts['height_px']} px"),
        ("Scale", f"{facts['mpp']:.4g} µm/px, from {facts['scale_source']}"),
        ("Field", f"{facts['patch_um']:g} µm, {prediction.tile_px:.4g} px"),
        ("Stride", "spots were given" if stride is None else f"{stride:g} µm"),
        ("Tiles", str(facts["tiles"])),
        ("Failed tiles", str(len(facts["failed"]))),
        ("Weights", facts["weights"]),
        ("sha256", facts["sha256"]),
        ("Units", facts["units"]),
        ("Genes marked significant", _count_significant(prediction)),
        ("Unlike the training tissue", _count_unlike(prediction)),
        ("tcgn_hub", facts["tcgn_hub"]),
    ]


def _count_significant(prediction: SlidePrediction) -> str:
    if prediction.model.significant is None:
        return "not measured"
    return f"{sum(map(prediction.model.significant.__contains__, prediction.genes))} of {len(prediction.genes)}"


def _count_unlike(prediction: SlidePrediction) -> str:
    if prediction.unlike is None:
        return "not known: the weights do not describe their training tissue"
    return f"{int(prediction.unlike.sum())} of {len(prediction.tiles)} tiles"


def _fact_row(name: str, value: str) -> str:
    return f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>"


def _failed(failed: dict[str, str]) -> str:
    if not failed:
        return ""
    rows = "\n".join(_fact_row(tile, why) for tile, why in failed.items())
    return f'<h2>Tiles that could not be read</h2>\n<table class="facts"><tbody>\n{rows}\n</tbody></table>'


def _sure_text(prediction: SlidePrediction) -> str:
    model = prediction.model
    text = ""
    if model.interval_radius is not None:
        text += (
            f" Interval: a measurement lies within so much of the value of a tile in {model.level:.0%} of the cases on"
            " held-out tissue."
        )
    elif model.pcc is None:
        text += " No intervals: these weights state no errors on held-out tissue."
    if prediction.spread is not None:
        text += " Spread: standard deviation over rotations and reflections of a tile, mean over the tiles."
    return text


def _gene_row(gene: GeneSummary, sure: Mapping[str, str]) -> str:
    numbers = "".join(f'<td class="number">{value:.3f}</td>' for value in (gene.mean, gene.sd, gene.min, gene.max))
    for key, before in (("interval_radius", "± "), ("spread", "")):
        if key in sure:
            value = getattr(gene, key)
            numbers += f'<td class="number">{"unknown" if math.isnan(value) else f"{before}{value:.3f}"}</td>'
    pcc = "unknown" if math.isnan(gene.pcc) else f"{gene.pcc:.3f}"
    return f'<tr><td>{escape(gene.gene)}</td>{numbers}<td>{gene.significant}</td><td class="number">{pcc}</td></tr>'


def _overview(prediction: SlidePrediction) -> bytes:
    from PIL import Image

    image = Image.fromarray(prediction.thumbnail)
    image.thumbnail((_OVERVIEW_SIDE, _OVERVIEW_SIDE))
    content = io.BytesIO()
    image.save(content, "png")
    return content.getvalue()


def _picture(png: bytes, text: str, caption: str = "") -> str:
    """A figure with the picture inside."""
    data = base64.b64encode(png).decode()
    caption = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img alt="{escape(text)}" src="data:image/png;base64,{data}">{caption}</figure>'
