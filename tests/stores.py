"""Stores of SpatialData as spatialdata-io leaves them of Visium, Visium HD and Xenium, drawn rather than measured."""

from pathlib import Path

import numpy as np
from sections import PANEL, visium_array


def tissue(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """An image (3, height, width), in which every square of 20 px has its own colour."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (3, -(-height // 20), -(-width // 20)), dtype=np.uint8)
    return small.repeat(20, axis=1).repeat(20, axis=2)[:, :height, :width]


def image_element(pixels: np.ndarray, transformations: dict, *, channels=None, levels=(2,)):
    from spatialdata.models import Image2DModel

    return Image2DModel.parse(
        pixels,
        dims=("c", "y", "x"),
        c_coords=channels,
        scale_factors=list(levels) or None,
        transformations=transformations,
    )


def table_element(counts, region: str, instances, *, key: str, names=None, obs=None, obsm=None, var=None):
    import anndata
    import pandas as pd
    from scipy import sparse
    from spatialdata.models import TableModel

    names = [f"r{i}" for i in range(len(counts))] if names is None else names
    data = anndata.AnnData(
        X=sparse.csr_matrix(counts.astype(np.float32)),
        obs=pd.DataFrame(
            {**(obs or {}), key: instances, "region": pd.Categorical([region] * len(counts))}, index=names
        ),
        var=pd.DataFrame(index=PANEL) if var is None else var,
        obsm=obsm or {},
    )
    return TableModel.parse(data, region=region, region_key="region", instance_key=key)


def write(path: Path, *, old: bool = False, **elements) -> Path:
    """``old``: in Zarr 2, as spatialdata did before 0.6."""
    from spatialdata import SpatialData
    from spatialdata._io.format import SpatialDataContainerFormatV01

    SpatialData(**elements).write(path, **({"sdata_formats": SpatialDataContainerFormatV01()} if old else {}))
    return path


def write_visium(path: Path, *, name: str = "S1", full: bool = True, shift: float = 0.0, old: bool = False):
    """A section of Visium whose spots are 100 px apart; the last is not in tissue. Returns counts and centres.

    ``shift``: by which the image, and not the spots, is moved along x and y in the coordinate system that both are in.
    """
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity, Scale, Translation

    names, array, xy = visium_array()
    counts = np.random.default_rng(1).poisson(2, (len(names), len(PANEL)))
    hires = Scale([0.1, 0.1], axes=("y", "x"))
    systems = {name: Identity(), f"{name}_downscaled_hires": hires}
    circles = ShapesModel.parse(xy, geometry=0, radius=27.5, index=np.arange(len(xy)), transformations=systems)
    places = {"in_tissue": np.arange(len(xy)) < len(xy) - 1, "array_row": array[:, 0], "array_col": array[:, 1]}
    pixels = tissue(500, 700)
    own = {name: Translation([shift, shift], axes=("x", "y")) if shift else Identity()}
    images = {f"{name}_full_image": image_element(pixels, own)} if full else {}
    small = {f"{name}_downscaled_hires": Identity(), name: hires.inverse()}
    images[f"{name}_hires_image"] = image_element(pixels[:, ::10, ::10], small, levels=())
    obs = {**places, "in_tissue": places["in_tissue"].astype(int)}
    table = table_element(counts, name, np.arange(len(xy)), key="spot_id", names=names, obs=obs)
    write(path, images=images, shapes={name: circles}, tables={"table": table}, old=old)
    return counts, xy


def write_visium_hd(path: Path, *, name: str = "HD", sizes=(8, 16), mpp: float = 0.5):
    """Bins of several sizes over 128 um of tissue; the counts of a larger bin are the sum of the smaller ones."""
    import geopandas
    import shapely
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    side = 128
    smallest = np.random.default_rng(2).poisson(1, (side // sizes[0], side // sizes[0], len(PANEL)))
    shapes, tables, measured = {}, {}, {}
    for um in sizes:
        step = um // sizes[0]
        n = side // um
        counts = smallest.reshape(n, step, n, step, -1).sum((1, 3)).reshape(n * n, -1)
        row, col = np.divmod(np.arange(n * n), n)
        low = np.stack([col, row], axis=1) * um / mpp
        squares = geopandas.GeoDataFrame(geometry=shapely.box(*low.T, *(low + um / mpp).T))
        region = f"{name}_square_{um:03}um"
        shapes[region] = ShapesModel.parse(squares, transformations={name: Identity()})
        places = {"in_tissue": 1, "array_row": row, "array_col": col}
        names = [f"s_{um:03}um_{r:05}_{c:05}-1" for r, c in zip(row, col, strict=True)]
        tables[f"square_{um:03}um"] = table_element(
            counts, region, np.arange(n * n), key="location_id", names=names, obs=places
        )
        measured[um] = counts
    pixels = round(side / mpp)
    images = {f"{name}_full_image": image_element(tissue(pixels, pixels), {name: Identity()})}
    write(path, images=images, shapes=shapes, tables=tables)
    return measured


def write_xenium(path: Path, *, affine=None, cells: int = 300, circles: bool = True, he: bool = True):
    """Cells with outlines in micrometres, a fluorescence image, and H&E that a matrix (3, 3) takes to its pixels.

    Returns counts and centres in micrometres.
    """
    import geopandas
    import shapely
    from spatialdata.models import Labels2DModel, ShapesModel
    from spatialdata.transformations import Affine, Identity, Scale

    rng = np.random.default_rng(3)
    pixel_size = 0.2125
    um = rng.uniform(10, 190, (cells, 2))
    radii = rng.uniform(2, 6, cells)
    counts = rng.poisson(1, (cells, len(PANEL)))
    ids = np.array([f"aaaa{i:04}-1" for i in range(cells)])
    to_pixels = {"global": Scale([1 / pixel_size] * 2, axes=("x", "y"))}
    outlines = geopandas.GeoDataFrame(geometry=shapely.buffer(shapely.points(um), radii), index=ids)
    outlines.index.name = "cell_id"
    shapes = {"cell_boundaries": ShapesModel.parse(outlines, transformations=to_pixels)}
    if circles:
        shapes["cell_circles"] = ShapesModel.parse(um, geometry=0, radius=radii, index=ids, transformations=to_pixels)
    side = round(200 / pixel_size)
    ifluo = rng.integers(0, 3000, (4, side // 4, side // 4), dtype=np.uint16)
    images = {"morphology_focus": image_element(ifluo, {"global": Scale([4.0, 4.0], axes=("x", "y"))}, levels=())}
    if he:
        where = (
            Identity() if affine is None else Affine(np.asarray(affine), input_axes=("x", "y"), output_axes=("x", "y"))
        )
        images["he_image"] = image_element(tissue(1000, 1000), {"global": where}, channels=list("rgb"))
    obs = {"cell_id": ids, "transcript_counts": counts.sum(axis=1)}
    labels = {}
    if circles:
        table = table_element(counts, "cell_circles", ids, key="cell_id", names=ids, obs=obs, obsm={"spatial": um})
    else:
        # as spatialdata-io does since 0.6
        labels["cell_labels"] = Labels2DModel.parse(
            np.zeros((side, side), np.uint32), dims=("y", "x"), transformations={"global": Identity()}
        )
        numbers = np.arange(1, cells + 1)
        table = table_element(counts, "cell_labels", numbers, key="cell_labels", names=ids, obs=obs)
    write(path, images=images, labels=labels, shapes=shapes, tables={"table": table})
    return counts, um
