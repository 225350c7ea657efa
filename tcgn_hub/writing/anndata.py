"""Results as .h5ad."""

from __future__ import annotations

import io
from pathlib import Path

from tcgn_hub.extras import require
from tcgn_hub.files import write_bytes
from tcgn_hub.result import Result, writer


@writer(".h5ad", needs="anndata", extra="h5ad")
def write_h5ad(path: Path, result: Result) -> None:
    """Write `Result.to_anndata`."""
    write_elem = require("anndata.io", extra="h5ad", to="write .h5ad files").write_elem
    h5py = require("h5py", extra="h5ad", to="write .h5ad files")
    # HDF5 ends the process if the disk fills while it writes, so it writes to memory
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        write_elem(file, "/", result.to_anndata(copy=False), dataset_kwargs={"compression": "gzip"})
    write_bytes(path, content.getvalue())
