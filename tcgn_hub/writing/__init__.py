"""Results as files. Knows nothing of models.

To import it lets `tcgn_hub.result.Result.write` write .csv, .json, .parquet, .txt, .geojson and .h5ad; the packages
that these need are imported when they are written.
"""

from tcgn_hub.writing import anndata, geojson, tables

__all__ = ["anndata", "geojson", "tables"]
