"""A slide as GeoJSON, for QuPath 0.4 and later."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from tcgn_hub.writing.frames import gene_facts, run_facts

if TYPE_CHECKING:
    from tcgn_hub.prediction.slides import SlidePrediction

__all__ = ["to_geojson"]


def to_geojson(prediction: SlidePrediction) -> str:
    """A FeatureCollection with one square per tile, in pixels at full resolution.

    Each is a tile of QuPath, with its genes as measurements, to four decimals; and ``tissue_distance``, how unlike the
    training tissue it is, where that is known. The member ``tcgn`` holds `run_facts` and `gene_facts`; QuPath passes
    over it.
    """
    half = prediction.tile_px / 2
    corners = np.array([(-half, -half), (half, -half), (half, half), (-half, half), (-half, -half)])
    rings = np.round(prediction.xy[:, None] + corners, 2).tolist()
    names, columns = list(prediction.genes), prediction.values
    if prediction.distance is not None:
        names, columns = ["tissue_distance", *names], np.column_stack([prediction.distance, columns])
    values = np.round(columns.astype(np.float64), 4).tolist()
    features: list[dict[str, Any]] = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {
                "objectType": "tile",
                "name": tile,
                "measurements": dict(zip(names, row, strict=True)),
            },
        }
        for tile, ring, row in zip(prediction.tiles, rings, values, strict=True)
    ]
    facts = {**run_facts(prediction), **gene_facts(prediction)}
    document = {"type": "FeatureCollection", "tcgn": facts, "features": features}
    return json.dumps(document, separators=(",", ":")) + "\n"
