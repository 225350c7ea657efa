"""A slide as AnnData in the conventions of scverse, so that scanpy and squidpy draw it without being told more."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tcgn_hub.extras import require
from tcgn_hub.files import write_bytes
from tcgn_hub.writing.frames import run_facts, summarise

if TYPE_CHECKING:
    from anndata import AnnData

    from tcgn_hub.prediction.slides import SlidePrediction

__all__ = ["to_anndata", "write_h5ad"]

_ENDS = ("interval_low", "interval_high")
_HIRES, _LOWRES = 2000, 600  # longest sides, as Space Ranger makes them


def to_anndata(prediction: SlidePrediction) -> AnnData:
    """Tiles as observations, genes as variables.

    ``X`` is float32 in the units of the model. ``var`` has ``significant`` ('yes', 'no', 'unknown') and ``held_out_pcc``
    (NaN if it was not measured); ``obs`` has ``in_tissue``, ``array_row`` and ``array_col``; ``obsm['spatial']`` are
    the centres as (x, y) in pixels at full resolution, and ``obsm['X_tcgn']`` the features, if there are any.
    ``layers`` has ``interval_low`` and ``interval_high``, the ends of the prediction intervals, and ``spread``, the
    standard deviation over rotations and reflections; ``obs['tissue_distance']`` how unlike the training tissue a tile
    is, above 1 too far to rely on; each only where it is known. ``uns['spatial']`` holds the overview under the stem
    of the slide's name. ``uns['tcgn']`` holds the facts of the run: ``failed`` as JSON, what is None in `run_facts` as
    NaN, and ``mask``, uint8 with 1 where the tissue is, of ``mask_downsample`` full-resolution pixels per pixel.

    Raises:
        ExtraError: anndata is not installed.
    """
    anndata = require("anndata", extra="h5ad", to="make AnnData")
    pd = require("pandas", extra="h5ad", to="make AnnData")
    genes = summarise(prediction)
    adata = anndata.AnnData(
        # a copy, because scanpy works in place
        X=np.array(prediction.values, np.float32),
        obs=pd.DataFrame(
            {
                "in_tissue": np.ones(len(prediction.tiles), np.int64),
                "array_row": np.asarray(prediction.array_row, np.int64),
                "array_col": np.asarray(prediction.array_col, np.int64),
            },
            index=anndata.utils.make_index_unique(pd.Index(prediction.tiles, dtype=object)),
        ),
        var=pd.DataFrame(
            {
                "significant": pd.Categorical([gene.significant for gene in genes], ["yes", "no", "unknown"]),
                "held_out_pcc": np.array([gene.pcc for gene in genes], np.float64),
            },
            index=pd.Index(prediction.genes, dtype=object),
        ),
        obsm={"spatial": np.array(prediction.xy, np.float64)},
        uns={"spatial": {prediction.slide.stem: _overview(prediction)}, "tcgn": _facts(prediction)},
    )
    ends = prediction.interval()
    layers = {"spread": prediction.spread} | ({} if ends is None else dict(zip(_ENDS, ends, strict=True)))
    for name, values in layers.items():
        if values is not None:
            adata.layers[name] = np.array(values, np.float32)
    if prediction.distance is not None:
        adata.obs["tissue_distance"] = np.array(prediction.distance, np.float32)
    if prediction.features is not None:
        adata.obsm["X_tcgn"] = np.array(prediction.features, np.float32)
    return adata


def write_h5ad(path: str | Path, prediction: SlidePrediction) -> None:
    """Write `to_anndata` as .h5ad.

    Raises:
        ExtraError: anndata is not installed.
        OutputError: The file cannot be written.
    """
    adata = to_anndata(prediction)
    write_elem = require("anndata.io", extra="h5ad", to="write .h5ad files").write_elem
    h5py = require("h5py", extra="h5ad", to="write .h5ad files")
    # HDF5 ends the process if the disk fills while it writes, so it writes to memory
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        write_elem(file, "/", adata, dataset_kwargs={"compression": "gzip"})
    write_bytes(path, content.getvalue())


def _overview(prediction: SlidePrediction) -> dict[str, Any]:
    hires, lowres = _shrunk(prediction.thumbnail, _HIRES), _shrunk(prediction.thumbnail, _LOWRES)
    scales = [
        max(image.shape[:2]) / (max(prediction.thumbnail.shape[:2]) * prediction.thumbnail_downsample)
        for image in (hires, lowres)
    ]
    return {
        "images": {"hires": hires, "lowres": lowres},
        "scalefactors": {
            "tissue_hires_scalef": scales[0],
            "tissue_lowres_scalef": scales[1],
            "spot_diameter_fullres": float(prediction.tile_px),
            # there are no fiducials here, but readers expect the key
            "fiducial_diameter_fullres": float(prediction.tile_px),
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


def _facts(prediction: SlidePrediction) -> dict[str, Any]:
    facts = run_facts(prediction)
    # names of tiles may hold slashes, which HDF5 would take for groups
    facts["failed"] = json.dumps(facts["failed"])
    for key in ("stride_um", "interval_level", "unlike_training_tissue"):
        if facts[key] is None:
            facts[key] = math.nan
    if prediction.mask is not None:
        facts["mask"] = prediction.mask.astype(np.uint8)
        facts["mask_downsample"] = float(prediction.thumbnail_downsample)
    return facts
