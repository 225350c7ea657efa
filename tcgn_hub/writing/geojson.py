"""The tiles of a slide as GeoJSON, for QuPath 0.4 and later."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np

from tcgn_hub.errors import OutputError
from tcgn_hub.files import write_text
from tcgn_hub.images.quality import MEASURES
from tcgn_hub.result import Result, SlideContext, writer
from tcgn_hub.text import printable
from tcgn_hub.writing.tables import rows_of, scores_of

_COMPACT = (",", ":")
_OWN = ("ood", "predicted_depth", "tissue_share", "quality", *MEASURES)
_OURS = uuid5(NAMESPACE_URL, "tcgn_hub")


def to_geojson(result: Result) -> Iterator[str]:
    """The parts of a FeatureCollection with one square per tile, in the frame of QuPath.

    These are pixels at full resolution, from the upper left corner of what was scanned, which the member ``tcgn`` gives
    as ``origin_px`` where the slide is larger than that (``openslide.bounds-x`` and ``-y``).

    Each is a tile of QuPath, with genes as measurements, to four decimals; and ``ood``, its distance from the training
    tissue, ``predicted_depth``, ``tissue_share``, ``quality`` with what it follows from, and the scores of gene sets,
    where these are known. Where genes were asked for, it is these; otherwise, as QuPath reads every measurement of
    every tile, those that are significant, and all where that is not known or withheld, or none is. A tile has an
    ``id`` that follows from the names of slide and tile, and is the same in every run. The member ``tcgn`` holds what
    `Result.metadata` and, of the genes that are there, `Result.gene_metadata` give, and how many are not,
    ``genes_left_out``; QuPath passes over it.

    Raises:
        OutputError: The result is of patches, which have no place on a slide.
    """
    if result.slide is None:
        raise OutputError("GeoJSON places tiles on a slide; write patches as .csv, .json, .parquet or .h5ad.")
    half = result.slide.tile_px / 2
    corners = np.array([(-half, -half), (half, -half), (half, half), (-half, half), (-half, -half)])
    own = {key: result.obs[key] for key in _OWN if key in result.obs}
    own |= scores_of(result)
    columns = _columns(result)
    genes = [result.genes[i] for i in columns]
    names = [*own, *genes]
    metadata = json.dumps(_metadata(result, genes), separators=_COMPACT)
    yield f'{{"type":"FeatureCollection","tcgn":{metadata},"features":['
    before = ""
    for rows in rows_of(result):
        rings = np.round(result.obsm["spatial"][rows, None] - result.slide.origin + corners, 2).tolist()
        values = np.column_stack([*(numbers[rows] for numbers in own.values()), result.X[rows][:, columns]])
        measurements = np.round(values.astype(np.float64), 4).tolist()
        for name, ring, row in zip(result.obs["name"][rows], rings, measurements, strict=True):
            known = {key: value for key, value in zip(names, row, strict=True) if value == value}
            feature = {
                "type": "Feature",
                "id": _id(result.slide, name),
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {"objectType": "tile", "name": name, "measurements": known},
            }
            yield before + json.dumps(feature, separators=_COMPACT)
            before = ","
    yield "]}\n"


def _columns(result: Result) -> list[int]:
    """The columns of the genes that are written."""
    significant = result.var.get("significant")
    if result.uns.get("asked") or significant is None or not significant.any() or result.withheld():
        return list(range(len(result.genes)))
    return np.flatnonzero(significant).tolist()


def _metadata(result: Result, genes: list[str]) -> dict[str, Any]:
    known = result.gene_metadata()
    return {
        **result.metadata(),
        "genes_left_out": len(result.genes) - len(genes),
        **{key: by_gene and {gene: by_gene[gene] for gene in genes} for key, by_gene in known.items()},
    }


def _id(slide: SlideContext, tile: str) -> str:
    return str(uuid5(_OURS, printable(f"{slide.path.name}/{slide.series}/{tile}")))


@writer(".geojson")
def write_geojson(path: Path, result: Result) -> None:
    """Write `to_geojson`."""
    write_text(path, to_geojson(result))
