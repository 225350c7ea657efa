"""Results as files. Knows nothing of models.

All of its functions raise `tcgn_hub.errors.OutputError` where a file cannot be written, or a result of patches is given
where a slide is needed, and `tcgn_hub.errors.ExtraError` where a package is not installed.

To import it lets `tcgn_hub.result.Result.write` write .csv, .json, .parquet, .txt, .geojson, .h5ad and .zarr; the
packages that these need are imported when they are written.
"""

from tcgn_hub.writing import anndata, geojson, spatialdata, tables

__all__ = ["anndata", "geojson", "spatialdata", "tables"]
