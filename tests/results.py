"""Results without any model, for the tests of what is made of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tcgn_hub.result import Result, SlideContext, gene_table
from tcgn_hub.units import UNITS
from tcgn_hub.weights.info import WeightsInfo
from tcgn_hub.weights.typical import Typical, describe_predictions

GENES = ["GNAS", "FASN", "HLA-DRA", "ACTB"]
HELD_OUT = {"pcc": [0.42, 0.31, 0.55, 0.01], "significant": ["GNAS", "FASN", "HLA-DRA"]}
DOWNSAMPLE, MPP, PATCH_UM = 16.0, 0.5, 128.0


def typical() -> Typical:
    """Training tissue in which GNAS, FASN and HLA-DRA rise together, ACTB is always 0.5, and depth rises with them."""
    rng = np.random.default_rng(2)
    along = rng.normal(size=(200, 1))
    values = 1 + 0.2 * along + rng.normal(scale=0.1, size=(200, 4))
    values[:, 3] = 0.5
    return describe_predictions(values, 3 + 0.1 * along[:, 0])


def _uns(held_out, units, failed, described=False):
    info = WeightsInfo(
        name="tcgn_base.test",
        genes=tuple(GENES),
        units=units,
        sha256="0" * 64,
        held_out=held_out or {},
        typical=typical().to_json() if described else None,
    )
    return {"weights": info, "failed": failed, "tta": 1, "backend": "torch", "precision": "float32", "compiled": False}


def quality(count: int) -> dict[str, np.ndarray]:
    """Patches of which the first half is out of focus and the last one under ink."""
    focus = np.where(np.arange(count) < count // 2, 0.25, 1.5)
    pen = np.where(np.arange(count) == count - 1, 0.5, 0)
    columns = {"focus": focus, "pen": pen, "fold": 0 * pen, "saturation": 0 * pen + 0.25, "stain_distance": 0 * pen + 2}
    return {
        key: values.astype(np.float32)
        for key, values in {"quality": np.minimum(focus, 1 - 2 * pen).clip(0, 1), **columns}.items()
    }


def make(
    *,
    height: int = 300,
    width: int = 400,
    name: str = "slide 1.svs",
    stride_um: float = PATCH_UM,
    held_out: dict | None = HELD_OUT,
    units: str = UNITS,
    failed: dict | None = None,
    sure: bool = False,
    described: bool = False,
    **slide,
) -> Result:
    """A slide with one ellipse of tissue; GNAS rises from left to right, FASN is the same everywhere.

    Args:
        sure: Whether ``ood``, ``tta_std`` and the quality are known.
        described: Whether it is known what the weights predict for `typical` tissue.
        **slide: Of `SlideContext`.
    """
    rng = np.random.default_rng(0)
    image = Image.new("RGB", (width, height), (244, 243, 245))
    shape = Image.new("1", (width, height))
    ellipse = (width * 0.1, height * 0.12, width * 0.85, height * 0.9)
    ImageDraw.Draw(image).ellipse(ellipse, fill=(214, 140, 190))
    ImageDraw.Draw(shape).ellipse(ellipse, fill=1)
    mask = np.array(shape)
    for x, y in rng.integers(0, (width, height), (width * height // 60, 2)):
        if mask[y, x]:
            ImageDraw.Draw(image).ellipse((x - 1, y - 1, x + 1, y + 1), fill=(92, 52, 130))
    step = stride_um / MPP
    grid = np.indices((int(height * DOWNSAMPLE / step), int(width * DOWNSAMPLE / step))).reshape(2, -1).T
    xy = (grid[:, ::-1] + 0.5) * step
    on = mask[tuple((xy[:, ::-1] / DOWNSAMPLE).astype(int).T)]
    grid, xy = grid[on], xy[on]
    values = rng.uniform(0, 2, (len(xy), len(GENES))).astype(np.float32)
    values[:, 0] = xy[:, 0] / xy[:, 0].max()
    values[:, 1] = 0.5
    names = np.array([f"{row}x{col}" for row, col in grid], object)
    known = {"ood": np.linspace(0.1, 1.4, len(xy)).astype(np.float32), **quality(len(xy))} if sure else {}
    known |= {"tissue_share": np.linspace(0.5, 1, len(xy)).astype(np.float32)} if sure else {}
    context = SlideContext(
        path=Path("slides") / name,
        size=(int(width * DOWNSAMPLE), int(height * DOWNSAMPLE)),
        mpp=MPP,
        scale_source="openslide.mpp-x",
        patch_um=PATCH_UM,
        trained_um=PATCH_UM,
        stride_um=stride_um,
        thumbnail=np.array(image),
        thumbnail_downsample=DOWNSAMPLE,
        mask=mask,
    )
    uns = _uns(held_out, units, {"9/9": "the tile is damaged"} if failed is None else failed, described)
    modules = {"modules": uns["weights"].predicted_in_training.modules(values)} if described else {}
    if described:
        known["predicted_depth"] = uns["weights"].predicted_in_training.depth(modules["modules"])
    return Result(
        X=values,
        obs={"name": names, "array_row": grid[:, 0], "array_col": grid[:, 1], **known},
        var=gene_table(uns["weights"], range(len(GENES))),
        uns={**uns, "slide": replace(context, **slide), "tta": 8 if sure else 1},
        layers={"tta_std": (values / 10).astype(np.float32)} if sure else {},
        obsm={"spatial": xy, **modules, "features": rng.normal(size=(len(xy), 12)).astype(np.float32)},
    )


def make_patches(
    count: int = 3,
    *,
    held_out: dict | None = HELD_OUT,
    units: str = UNITS,
    sure: bool = False,
    described: bool = False,
) -> Result:
    """Patches; of those that are sure the last is out of distribution."""
    values = np.random.default_rng(1).uniform(0, 2, (count, len(GENES))).astype(np.float32)
    uns = _uns(held_out, units, {"gone.png": "gone.png does not exist."}, described)
    known = {"ood": np.linspace(0.5, 1.25, count), **quality(count)} if sure else {}
    if described:
        tissue = uns["weights"].predicted_in_training
        known["predicted_depth"] = tissue.depth(tissue.modules(values))
    return Result(
        X=values,
        obs={
            "name": np.array([f"patches/{i}, №1.png" for i in range(count)], object),
            "x": np.full(count, 150.0),
            "y": np.full(count, 112.5),
            "mpp": np.full(count, 0.6875),
            "scale_source": np.array(["--mpp"] * count, object),
            "patch_um": np.full(count, 154.0),
            "trained_um": np.full(count, 154.0),
            "patch_px": np.full(count, 224),
            **known,
        },
        var=gene_table(uns["weights"], range(len(GENES))),
        uns=uns,
        layers={"tta_std": values / 10} if sure else {},
    )


def some(result: Result, index) -> Result:
    """The tiles of an index, in its order."""
    return replace(
        result,
        X=result.X[index],
        **{
            key: {name: values[index] for name, values in getattr(result, key).items()}
            for key in ("obs", "layers", "obsm")
        },
    )
