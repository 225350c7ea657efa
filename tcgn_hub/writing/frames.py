"""A slide as a table of tiles and a table of genes, and the facts of the run that go with both."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tcgn_hub.version import __version__
from tcgn_hub.extras import require
from tcgn_hub.files import writing

if TYPE_CHECKING:
    from tcgn_hub.prediction.patches import OfModel
    from tcgn_hub.prediction.slides import SlidePrediction

__all__ = [
    "GeneSummary",
    "bulk_facts_json",
    "facts_json",
    "gene_facts",
    "significance",
    "run_facts",
    "summarise",
    "to_csv",
    "write_parquet",
]


def run_facts(prediction: SlidePrediction) -> dict[str, Any]:
    """What was run on what, as values that JSON can hold.

    ``stride_um`` is None where spots were given, ``interval_level`` and ``unlike_training_tissue`` (tiles) where the
    weights state no errors and features; ``failed`` maps the tiles that could not be read to the reasons.
    """
    return {
        "slide": prediction.slide.name,
        "width_px": int(prediction.size[0]),
        "height_px": int(prediction.size[1]),
        "mpp": float(prediction.mpp),
        "scale_source": prediction.scale_source,
        "patch_um": float(prediction.patch_um),
        "stride_um": None if prediction.stride_um is None else float(prediction.stride_um),
        "tiles": len(prediction.tiles),
        "failed": dict(prediction.failed),
        "weights": prediction.model.name,
        "sha256": prediction.model.sha256,
        "units": prediction.units,
        "interval_level": None if prediction.model.interval_radius is None else prediction.model.level,
        "unlike_training_tissue": None if prediction.unlike is None else int(prediction.unlike.sum()),
        "tcgn_hub": __version__,
    }


def gene_facts(prediction: SlidePrediction) -> dict[str, Any]:
    """What a table of values does not say of its genes, as values that JSON can hold.

    ``significant`` is as of `significance`. ``interval_radius`` is half of the width of the prediction interval of a tile, in
    the units of the values: null for genes it is not known of, and null as a whole for weights that state none.
    """
    widths = prediction.model.interval_radius
    return {
        "significant": {gene: significance(prediction, gene) for gene in prediction.genes},
        "interval_radius": widths
        and {gene: None if math.isnan(widths[gene]) else widths[gene] for gene in prediction.genes},
    }


def facts_json(prediction: SlidePrediction) -> str:
    """What `to_csv` does not say: the facts of the run, and `gene_facts`."""
    return json.dumps({"runs": [run_facts(prediction)], **gene_facts(prediction)}, indent=1) + "\n"


def bulk_facts_json(predictions: Sequence[SlidePrediction]) -> str:
    """What a table of means over tiles does not say; intervals of tiles do not hold for means."""
    runs = [run_facts(prediction) for prediction in predictions]
    return json.dumps({"runs": runs, "significant": gene_facts(predictions[0])["significant"]}, indent=1) + "\n"


def significance(prediction: OfModel, gene: str) -> str:
    """'yes', 'no' or 'unknown': whether a gene was predicted better than chance on held-out tissue."""
    return {True: "yes", False: "no", None: "unknown"}[prediction.significant(gene)]


@dataclass(frozen=True)
class GeneSummary:
    """A gene over the tiles of a slide.

    Attributes:
        gene: Its symbol.
        significant: 'yes', 'no' or 'unknown'.
        pcc: Held-out Pearson correlation, NaN if it was not measured.
        mean: Mean over the tiles, in the units of the prediction.
        sd: Standard deviation over the tiles.
        min: Lowest tile.
        max: Highest tile.
        interval_radius: Of the prediction interval of a tile, in the same units; NaN if it is not known.
        spread: Standard deviation over rotations and reflections, mean over the tiles; NaN without them.
    """

    gene: str
    significant: str
    pcc: float
    mean: float
    sd: float
    min: float
    max: float
    interval_radius: float
    spread: float


def summarise(prediction: SlidePrediction) -> list[GeneSummary]:
    """Every gene, in the order of the prediction."""
    # a mean of many float32 values loses digits that a mean of float64 keeps
    values = prediction.values.astype(np.float64)
    columns = [f(axis=0).tolist() for f in (values.mean, values.std, values.min, values.max)]
    widths = prediction.model.interval_radius or {}
    spread = np.full(len(prediction.genes), np.nan) if prediction.spread is None else prediction.spread.mean(axis=0)
    return [
        GeneSummary(
            gene=gene,
            significant=significance(prediction, gene),
            pcc=math.nan if (pcc := prediction.pcc(gene)) is None else pcc,
            mean=mean,
            sd=sd,
            min=low,
            max=high,
            interval_radius=widths.get(gene, math.nan),
            spread=own_spread,
        )
        for gene, mean, sd, low, high, own_spread in zip(prediction.genes, *columns, spread.tolist(), strict=True)
    ]


def to_csv(prediction: SlidePrediction) -> str:
    """One row per tile: its name, centre in pixels at full resolution, place in the array, and a column per gene.

    Before the genes is ``tissue_distance``, how unlike the training tissue a tile is, where that is known.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    distance = [] if prediction.distance is None else prediction.distance[:, None].tolist()
    writer.writerow(
        ["tile", "x", "y", "array_row", "array_col", *(["tissue_distance"] if distance else []), *prediction.genes]
    )
    for i, (tile, (x, y), row, col, values) in enumerate(
        zip(
            prediction.tiles,
            prediction.xy.tolist(),
            prediction.array_row.tolist(),
            prediction.array_col.tolist(),
            prediction.values.tolist(),
            strict=True,
        )
    ):
        numbers = [*(distance[i] if distance else []), *values]
        writer.writerow([tile, f"{x:.10g}", f"{y:.10g}", row, col, *(f"{number:.6g}" for number in numbers)])
    return text.getvalue()


def write_parquet(path: str | Path, prediction: SlidePrediction) -> None:
    """The table of `to_csv` as Parquet; genes are float32, and the schema's metadata hold `run_facts` and `gene_facts`.

    Raises:
        ExtraError: pyarrow is not installed.
        OutputError: The file cannot be written.
    """
    pa = require("pyarrow", extra="parquet", to="write .parquet files")
    parquet = require("pyarrow.parquet", extra="parquet", to="write .parquet files")
    columns = {
        "tile": pa.array(prediction.tiles, pa.string()),
        "x": pa.array(prediction.xy[:, 0], pa.float64()),
        "y": pa.array(prediction.xy[:, 1], pa.float64()),
        "array_row": pa.array(prediction.array_row, pa.int64()),
        "array_col": pa.array(prediction.array_col, pa.int64()),
    }
    if prediction.distance is not None:
        columns["tissue_distance"] = pa.array(prediction.distance, pa.float32())
    genes = [pa.array(column) for column in prediction.values.T.astype(np.float32, order="C")]
    table = pa.Table.from_arrays([*columns.values(), *genes], names=[*columns, *prediction.genes])
    table = table.replace_schema_metadata({"tcgn": json.dumps({**run_facts(prediction), **gene_facts(prediction)})})
    with writing(path) as part:
        parquet.write_table(table, part)
