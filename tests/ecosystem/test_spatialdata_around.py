"""The programs around SpatialData, unmodified: what spatialdata-io makes of an assay is read, and what is written is
taken by napari-spatialdata and sopa."""

import os
import warnings
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from results import DOWNSAMPLE, MPP, make
from sections import PANEL, write_visium

import tcgn_hub
import tcgn_hub.writing  # the formats

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
warnings.filterwarnings("ignore")


@pytest.fixture(scope="module", params=["link", "copy"])
def store(request, tmp_path_factory):
    """A store, and the result that is in it."""
    import spatialdata

    folder = tmp_path_factory.mktemp("store")
    result = make(sure=True, described=True)
    width, height = result.slide.size
    pixels = result.slide.thumbnail.repeat(16, axis=0).repeat(16, axis=1)
    tifffile.imwrite(folder / "slide.tif", pixels, tile=(256, 256), photometric="rgb", compression="zlib")
    assert pixels.shape == (height, width, 3)
    result = replace(result, uns={**result.uns, "slide": replace(result.slide, path=folder / "slide.tif")})
    result.write(folder / "slide.zarr", image=request.param)
    return spatialdata.read_zarr(folder / "slide.zarr"), result


# ------------------------------------------------------------------------------------------------------ spatialdata-io


def test_visium_by_spatialdata_io_is_what_space_ranger_left(tmp_path):
    from spatialdata_io import visium

    outs = tmp_path / "run" / "outs"
    write_visium(outs)
    data = visium(outs, dataset_id="run", fullres_image_file=outs / "image.tif")
    data.write(tmp_path / "run.zarr")
    (ours,) = tcgn_hub.read_sections(tmp_path / "run")
    (theirs,) = tcgn_hub.read_sections(tmp_path / "run.zarr")
    assert theirs.spots == ours.spots
    assert theirs.genes == ours.genes == PANEL
    np.testing.assert_allclose(theirs.xy, ours.xy)
    np.testing.assert_array_equal(theirs.counts.toarray(), ours.counts.toarray())
    assert theirs.mpp == pytest.approx(ours.mpp)
    assert theirs.image.name == "run_full_image"


def test_an_aligned_image_of_xenium(tmp_path):
    """The image and the matrix of Xenium Explorer by spatialdata-io, the cells drawn."""
    import stores
    from spatialdata import read_zarr
    from spatialdata_io import xenium_aligned_image

    matrix = [[0.0, -1.2, 950.0], [1.2, 0.0, -20.0], [0, 0, 1]]
    stores.write_xenium(tmp_path / "expected.zarr", affine=matrix)
    stores.write_xenium(tmp_path / "cells.zarr", he=False)
    tifffile.imwrite(tmp_path / "run_he_image.ome.tif", stores.tissue(1000, 1000), photometric="minisblack")
    np.savetxt(tmp_path / "run_he_imagealignment.csv", matrix, delimiter=",")
    data = read_zarr(tmp_path / "cells.zarr")
    data["he_image"] = xenium_aligned_image(
        tmp_path / "run_he_image.ome.tif", tmp_path / "run_he_imagealignment.csv", dims=("c", "y", "x")
    )
    data.write(tmp_path / "x.zarr")
    (expected,) = tcgn_hub.read_sections(tmp_path / "expected.zarr", bin_um=40)
    (found,) = tcgn_hub.read_sections(tmp_path / "x.zarr", bin_um=40)
    assert found.spots == expected.spots
    np.testing.assert_allclose(found.xy, expected.xy)
    assert found.mpp == pytest.approx(expected.mpp)
    np.testing.assert_array_equal(found.counts.toarray(), expected.counts.toarray())


# ---------------------------------------------------------------------------------------------------------------- sopa


def test_sopa_takes_the_store_and_looks_at_its_tissue_alone(store):
    import sopa
    from sopa.io.standardize import sanity_check
    from spatialdata import transform

    data, result = store
    sanity_check(data)
    width = 20 if data["wsi"].__class__.__name__ == "DataArray" else 320
    sopa.make_image_patches(data, patch_width=width, patch_overlap=0, key_added="patches")
    scale = DOWNSAMPLE if width == 20 else 1.0
    centres = data["patches"].geometry.centroid
    at = np.stack([centres.y, centres.x], axis=1) * scale / DOWNSAMPLE
    on = result.slide.mask[tuple(np.clip(at.astype(int), 0, np.array(result.slide.mask.shape) - 1).T)]
    everywhere = np.prod(-(-np.array(result.slide.mask.shape) // 20))
    assert len(on) < everywhere
    assert on.mean() > 0.75  # those at the edge touch it
    sopa.segmentation.tissue(data, key_added="sopa_tissue")  # the image by its attribute
    theirs, ours = (
        transform(data[name], to_coordinate_system="microns").geometry.area.sum()
        for name in ("sopa_tissue", "region_of_interest")
    )
    assert theirs == pytest.approx(ours, rel=0.2)


# --------------------------------------------------------------------------------------------------- napari-spatialdata


def test_napari_spatialdata_loads_every_element(store):
    from napari.components import ViewerModel
    from napari.utils.events import EventedList
    from napari_spatialdata._viewer import SpatialDataViewer

    data, result = store
    viewer = ViewerModel()
    loader = SpatialDataViewer(viewer, EventedList([data]))
    loader.add_sdata_image(data, "wsi", "microns", False)
    for name in ("tiles", "region_of_interest"):
        loader.add_sdata_shapes(data, name, "microns", False)
    image, tiles, _ = viewer.layers
    assert image.rgb
    # of the tiles the table comes along, and they lie on the image
    assert list(tiles.metadata["adata"].var_names) == result.genes
    um = np.array([tiles.data_to_world(square.mean(axis=0)) for square in (square[:4] for square in tiles.data)])
    np.testing.assert_allclose(um[:, ::-1], result.obsm["spatial"] * MPP, rtol=1e-5)
    extent = image.extent.world
    np.testing.assert_allclose(extent[1], np.array(result.slide.size)[::-1] * MPP, rtol=0.01)
