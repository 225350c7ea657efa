"""The tiles of a slide as GeoJSON, for QuPath 0.4 and later."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tcgn_hub.errors import OutputError
from tcgn_hub.files import write_text
from tcgn_hub.result import Result, writer
from tcgn_hub.writing.tables import rows_of, table_metadata

_COMPACT = (",", ":")


def to_geojson(result: Result) -> Iterator[str]:
    """The parts of a FeatureCollection with one square per tile, in the frame of QuPath.

    These are pixels at full resolution, from the upper left corner of what was scanned, which the member ``tcgn`` gives
    as ``origin_px`` where the slide is larger than that (``openslide.bounds-x`` and ``-y``).

    Each is a tile of QuPath, with its genes as measurements, to four decimals; and ``ood``, its distance from the
    training tissue, and ``predicted_depth``, where these are known. The member ``tcgn`` holds what
    `tcgn_hub.writing.tables.table_metadata` gives; QuPath passes over it.

    Raises:
        OutputError: The result is of patches, which have no place on a slide.
    """
    if result.slide is None:
        raise OutputError("GeoJSON places tiles on a slide; write patches as .csv, .json, .parquet or .h5ad.")
    half = result.slide.tile_px / 2
    corners = np.array([(-half, -half), (half, -half), (half, half), (-half, half), (-half, -half)])
    own = {key: result.obs[key] for key in ("ood", "predicted_depth") if key in result.obs}
    names = [*own, *result.genes]
    metadata = json.dumps(table_metadata(result), separators=_COMPACT)
    yield f'{{"type":"FeatureCollection","tcgn":{metadata},"features":['
    before = ""
    for rows in rows_of(result):
        rings = np.round(result.obsm["spatial"][rows, None] - result.slide.origin + corners, 2).tolist()
        values = np.column_stack([*(known[rows] for known in own.values()), result.X[rows]])
        measurements = np.round(values.astype(np.float64), 4).tolist()
        for name, ring, row in zip(result.obs["name"][rows], rings, measurements, strict=True):
            feature = {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {"objectType": "tile", "name": name, "measurements": dict(zip(names, row, strict=True))},
            }
            yield before + json.dumps(feature, separators=_COMPACT)
            before = ","
    yield "]}\n"


@writer(".geojson")
def write_geojson(path: Path, result: Result) -> None:
    """Write `to_geojson`."""
    write_text(path, to_geojson(result))
