"""Small files as users have them, and what becomes of each: `python tests/cases.py` prints the table."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import multiprocessing
import operator
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import tifffile
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SVS = ROOT / "examples" / "cmu_small_region.svs"
MPP = 0.499  # of the example slide
WIDTH, HEIGHT = 640, 512  # of the pictures, which are taken to be 0.5 um/px
OFFSET, WHOLE = (1500, 1200), (3000, 2500)  # of the scan on the slide of Leica, in pixels
CM = {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
TILE = {"tile": (128, 128)}
GENES = [f"GENE{i}" for i in range(30)]


def section() -> np.ndarray:
    """The example slide as RGB, uint8, shape (2967, 2220, 3)."""
    with openslide.OpenSlide(str(SVS)) as scan:
        return np.array(scan.read_region((0, 0), 0, scan.dimensions).convert("RGB"))


def tissue(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A part of the example slide that is all tissue, uint8, shape (height, width, 3)."""
    with openslide.OpenSlide(str(SVS)) as scan:
        return np.array(scan.read_region((500, 800), 0, (width, height)).convert("RGB"))


def microns(x: float, unit: str | None = "µm", *, y: float | None = None, axes: str = "YXS", **more: Any) -> dict:
    """What tifffile is to write as OME-XML: pixels of so many units."""
    facts: dict[str, Any] = {"axes": axes, "PhysicalSizeX": x, "PhysicalSizeY": x if y is None else y}
    if unit is not None:
        facts |= {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    return facts | more


# writing them


def write_planes(out: Path) -> None:
    """Colour as three grey pages, and as it usually is."""
    pixels = tissue()
    tifffile.imwrite(
        out / "planes.ome.tif",
        np.moveaxis(pixels, -1, 0),
        photometric="minisblack",
        ome=True,
        metadata=microns(0.5, axes="CYX", Channel={"Name": ["Red", "Green", "Blue"]}),
        **CM,
        **TILE,
    )
    tifffile.imwrite(out / "planes_as_rgb.tif", pixels, photometric="rgb", **CM, **TILE)


def write_macro_first(out: Path) -> None:
    """The overview comes first, the scan second."""
    pixels = tissue()
    with tifffile.TiffWriter(out / "macro_first.ome.tif", bigtiff=True, ome=True) as file:
        file.write(pixels[::8, ::8].copy(), photometric="rgb", metadata=microns(4.0, Name="macro"), **TILE)
        file.write(pixels, subifds=1, photometric="rgb", metadata=microns(0.5, Name="scan"), **TILE)
        file.write(pixels[::4, ::4].copy(), subfiletype=1, photometric="rgb", **TILE)


def write_ome(out: Path) -> None:
    """Scale in OME-XML alone."""
    pixels = tissue()
    tifffile.imwrite(out / "ome_um.ome.tif", pixels, ome=True, photometric="rgb", metadata=microns(0.5), **TILE)
    tifffile.imwrite(out / "ome_nm.ome.tif", pixels, ome=True, photometric="rgb", metadata=microns(500, "nm"), **TILE)
    tifffile.imwrite(out / "ome_strip.ome.tif", pixels, ome=True, photometric="rgb", metadata=microns(0.5))


CODECS = ("jpeg2000", "webp", "jpegxr", "lerc", "lzma", "png")


def write_codecs(out: Path) -> None:
    """Compressions that OpenSlide lacks."""
    for codec in CODECS:
        tifffile.imwrite(out / f"tiled_{codec}.tif", tissue(), photometric="rgb", compression=codec, **CM, **TILE)


def write_sixteen(out: Path) -> None:
    """Sixteen bits, in strips and in tiles."""
    pixels = tissue().astype(np.uint16) * 257
    tifffile.imwrite(out / "u16_strip.tif", pixels, photometric="rgb", **CM)
    tifffile.imwrite(out / "u16_tiled.tif", pixels, photometric="rgb", **CM, **TILE)


def write_aniso(out: Path) -> None:
    """Pixels that are 0.5 um wide and 1.0 um high."""
    options: dict[str, Any] = {"photometric": "rgb", "resolution": (2e4, 1e4), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(out / "aniso.tif", tissue()[::2], **options, **TILE)


def write_scn(out: Path, pixels: np.ndarray | None = None) -> Path:
    """A scan of Leica that lies off the origin of a larger slide (``openslide.bounds-x``)."""
    pixels = tissue() if pixels is None else pixels
    nm, (h, w) = 500, pixels.shape[:2]
    whole = [side * nm for side in WHOLE]
    device = '<creationDate>2020-01-01T00:00:00Z</creationDate><device model="Leica SCN400" version="1"/>'

    def image(name: str, width: int, height: int, levels: list[tuple[int, int]], first: int, power: float, view: str):
        dimensions = "".join(
            f'<dimension r="{i}" ifd="{first + i}" sizeX="{x}" sizeY="{y}"/>' for i, (x, y) in enumerate(levels)
        )
        return (
            f'<image name="{name}" uuid="{name}">{device}<pixels sizeX="{width}" sizeY="{height}">{dimensions}</pixels>'
            f'<view {view} spacingZ="0"/><scanSettings><objectiveSettings><objective>{power}</objective>'
            "</objectiveSettings><illuminationSettings><numericalAperture>0.4</numericalAperture>"
            "<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>"
        )

    macro = f'sizeX="{whole[0]}" sizeY="{whole[1]}" offsetX="0" offsetY="0"'
    main = f'sizeX="{w * nm}" sizeY="{h * nm}" offsetX="{OFFSET[0] * nm}" offsetY="{OFFSET[1] * nm}"'
    xml = (
        '<?xml version="1.0" encoding="utf-8"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="x">'
        f'<collection name="c" uuid="y" sizeX="{whole[0]}" sizeY="{whole[1]}"><barcode></barcode>'
        + image("macro", 300, 250, [(300, 250)], 0, 0.6, macro)
        + image("main", w, h, [(w, h), (w // 4, h // 4)], 1, 20, main)
        + "</collection></scn>"
    )
    jpeg = {"photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": 95}, "metadata": None} | TILE
    with tifffile.TiffWriter(out / "offset.scn", bigtiff=True) as file:
        for level, text in ((np.full((250, 300, 3), 240, np.uint8), xml), (pixels, ""), (pixels[::4, ::4].copy(), "")):
            file.write(level, description=text, software="x", **jpeg)
    return out / "offset.scn"


def write_mac(out: Path) -> None:
    """What macOS leaves beside files."""
    folder = out / "mac"
    folder.mkdir()
    tifffile.imwrite(folder / "slide.tif", tissue(), photometric="rgb", **CM, **TILE)
    (folder / "._slide.tif").write_bytes(b"\0\5\26\7" + b"\0" * 78)


def write_h5ad(out: Path) -> None:
    """Spots of a section like those of Visium, hexagons of 100 um, 71 of 168 in tissue, and what goes wrong of them."""
    import anndata
    import pandas as pd
    from scipy import sparse

    whole = section()
    height, width = whole.shape[:2]
    pitch = 100 / MPP
    places = [(row, col) for row in range(16) for col in range(row % 2, 22, 2)]
    xy = np.array([(col * pitch / 2 + 100, row * pitch * 3**0.5 / 2 + 100) for row, col in places])
    inside = (xy < (width - 20, height - 20)).all(axis=1)
    places, xy = list(itertools.compress(places, inside)), xy[inside]
    dark = np.array([255 - whole[max(0, y - 40) : y + 40, max(0, x - 40) : x + 40].mean() for x, y in xy.astype(int)])
    on = (dark > 25).astype(int)
    rates = 2 + dark[:, None] / 20 * np.linspace(0.3, 2, len(GENES))[None]
    counts = sparse.csr_matrix(np.random.default_rng(0).poisson(rates).astype(np.float32))
    for name, scale in (("section.tif", {}), ("section_scale.tif", {"resolution": (1e4 / MPP,) * 2})):
        tifffile.imwrite(
            out / name, whole, photometric="rgb", resolutionunit="CENTIMETER" if scale else "NONE", **scale
        )

    def spots(positions: np.ndarray = xy, in_tissue: Any = on, library: str = "S1") -> Any:
        obs = {"in_tissue": in_tissue, "array_row": [r for r, _ in places], "array_col": [c for _, c in places]}
        data = anndata.AnnData(
            counts.copy(),
            obs=pd.DataFrame(obs, index=[f"SPOT{i:04d}-1" for i in range(len(xy))]),
            var=pd.DataFrame({"gene_ids": [f"ENSG{i:011d}" for i in range(len(GENES))]}, index=GENES),
        )
        data.obsm["spatial"] = positions
        factors = {
            "spot_diameter_fullres": 65 / MPP,
            "tissue_hires_scalef": 2000 / height,
            "tissue_lowres_scalef": 600 / height,
            "fiducial_diameter_fullres": 105 / MPP,
        }
        images = {"lowres": whole[::5, ::5].copy()}
        data.uns["spatial"] = {library: {"images": images, "scalefactors": factors, "metadata": {}}}
        return data

    kinds = {"int": on, "text": on.astype(str), "float": on.astype(float), "bool": on.astype(bool)}
    kinds |= {"category": pd.Categorical(on.astype(str)), "words": np.where(on, "True", "False")}
    for name, column in kinds.items():
        spots(in_tissue=column).write_h5ad(out / f"in_tissue_{name}.h5ad")
    second = spots(library="S2")
    second.obs_names = [f"{name}-S2" for name in second.obs_names]
    both = anndata.concat([spots(), second], label="library_id", keys=["S1", "S2"], uns_merge="unique", merge="same")
    both.obs["in_tissue"] = np.r_[on, on]
    both.write_h5ad(out / "two_sections.h5ad")
    spots(xy * 2000 / height).write_h5ad(out / "positions_hires.h5ad")
    spots(xy * 600 / height).write_h5ad(out / "positions_lowres.h5ad")


def write_dicom(out: Path, name: str = "slide", *, suffix: str = ".dcm") -> Path:
    """One slide as four DICOM instances: two levels, label, overview."""
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit, generate_uid

    folder = out / "dicom" / name
    folder.mkdir(parents=True, exist_ok=True)
    study, series, frame = (generate_uid() for _ in range(3))

    def instance(number: int, pixels: np.ndarray, kind: str, mpp: float, derived: bool = False) -> None:
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
        meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = generate_uid(), JPEGBaseline8Bit
        d = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        d.SOPClassUID, d.SOPInstanceUID, d.Modality = (
            meta.MediaStorageSOPClassUID,
            meta.MediaStorageSOPInstanceUID,
            "SM",
        )
        d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID, d.InstanceNumber = study, series, frame, number
        d.PatientID = d.PatientName = "x"
        d.ContainerIdentifier = "s1"
        d.ImageType = ["DERIVED" if derived else "ORIGINAL", "PRIMARY", kind, "RESAMPLED" if derived else "NONE"]
        rows, cols = pixels.shape[:2]
        down, across = (256, 256) if kind == "VOLUME" else (rows, cols)
        frames = []
        for y, x in itertools.product(range(0, rows, down), range(0, cols, across)):
            full = np.full((down, across, 3), 255, np.uint8)
            part = pixels[y : y + down, x : x + across]
            full[: part.shape[0], : part.shape[1]] = part
            buffer = io.BytesIO()
            Image.fromarray(full).save(buffer, "jpeg", quality=95, subsampling=0)
            frames.append(buffer.getvalue())
        d.SamplesPerPixel, d.PhotometricInterpretation, d.PlanarConfiguration = 3, "YBR_FULL_422", 0
        d.BitsAllocated = d.BitsStored = 8
        d.HighBit, d.PixelRepresentation = 7, 0
        d.Rows, d.Columns = down, across
        d.TotalPixelMatrixColumns, d.TotalPixelMatrixRows, d.TotalPixelMatrixFocalPlanes = cols, rows, 1
        d.ImagedVolumeWidth, d.ImagedVolumeHeight, d.ImagedVolumeDepth = cols * mpp / 1000, rows * mpp / 1000, 0.001
        d.DimensionOrganizationType, d.NumberOfOpticalPaths, d.NumberOfFrames = "TILED_FULL", 1, len(frames)
        measures, group, path = Dataset(), Dataset(), Dataset()
        measures.PixelSpacing, measures.SliceThickness = [mpp / 1000] * 2, 0.001
        group.PixelMeasuresSequence = [measures]
        d.SharedFunctionalGroupsSequence = [group]
        path.OpticalPathIdentifier, path.ObjectiveLensPower = "1", 20
        d.OpticalPathSequence = [path]
        d.PixelData = encapsulate(frames, has_bot=True)
        d["PixelData"].is_undefined_length = True
        d.save_as(folder / f"{name}_{number}_{kind.lower()}{suffix}", enforce_file_format=True)

    pixels = tissue()
    half, small = (
        np.asarray(Image.fromarray(pixels).resize((WIDTH // n, HEIGHT // n), Image.Resampling.BOX)) for n in (2, 8)
    )
    instance(1, pixels, "VOLUME", 0.5)
    instance(2, half, "VOLUME", 1.0, derived=True)
    instance(3, np.full((64, 64, 3), 200, np.uint8), "LABEL", 20.0)
    instance(4, small, "OVERVIEW", 4.0)
    return folder


def write_named(out: Path) -> None:
    """A patch whose name a terminal of Windows has no letters for."""
    tifffile.imwrite(out / "срез.tif", tissue(), photometric="rgb", **CM)


def write_all(out: Path) -> Path:
    """All of them."""
    for write in (
        *(write_planes, write_macro_first, write_dicom, write_scn, write_ome, write_codecs, write_sixteen),
        *(write_h5ad, write_mac, write_aniso, write_named),
    ):
        write(out)
    return out


# what becomes of them


@dataclass
class Files:
    """The folder they are in, and weights to predict them with."""

    folder: Path
    weights: Path

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    @cached_property
    def predictor(self) -> Any:
        import tcgn_hub

        return tcgn_hub.load(path=self.weights, device="cpu")

    def values(self, name: str, **options: Any) -> np.ndarray:
        """Values of the patch in the centre of a picture."""
        return self.predictor.patches([self / name], **options).X[0]


@dataclass(frozen=True)
class Case:
    """A kind of file, what is right, and what the package makes of it."""

    file: str
    kind: str
    right: str
    outcome: Callable[[Files], str]
    expected: str = field(default="", repr=False)  # pattern of the outcome; `right` itself if there is none

    def today(self, files: Files) -> tuple[str, bool]:
        """What the package makes of it, and whether that is right."""
        try:
            said = self.outcome(files)
        except Exception as err:  # noqa: BLE001 - it is what the table is to show
            said = f"{type(err).__name__}: {err}"
        said = said.replace(f"{files.folder}/", "")
        fits = re.search(self.expected, said) is not None if self.expected else said == self.right
        return said, fits


CASES: list[Case] = []


def case(file: str, kind: str, right: str, expected: str = "") -> Callable[[Callable[[Files], str]], Any]:
    """Register what computes the outcome of a kind."""

    def add(outcome: Callable[[Files], str]) -> Callable[[Files], str]:
        CASES.append(Case(file, kind, right, outcome, expected))
        return outcome

    return add


def _described(path: Path, **options: Any) -> str:
    """Size and scale of an image."""
    from tcgn_hub.images.readers import open_slide

    with open_slide(path, **options) as slide:
        scale = f"{slide.scale.mpp:.4g} um/px" if slide.scale else "no scale"
        return f"{slide.size[0]} x {slide.size[1]} px, {scale}"


def _refusal(call: Callable[..., Any], *args: Any, **options: Any) -> str:
    """The sentence by which something is refused; what it gives if it is not."""
    from tcgn_hub.errors import TcgnError

    try:
        return f"gives {call(*args, **options)}"
    except TcgnError as err:
        return f"refused: {err}"


FULL = f"{WIDTH} x {HEIGHT} px, 0.5 um/px"


@case("planes.ome.tif", "colour in grey planes", "the values of planes_as_rgb.tif")
def _planes(files: Files) -> str:
    apart = np.abs(files.values("planes.ome.tif") - files.values("planes_as_rgb.tif")).max()
    return "the values of planes_as_rgb.tif" if apart == 0 else f"{apart:.3f} off the values of planes_as_rgb.tif"


@case(
    "macro_first.ome.tif",
    "overview before the scan",
    f"{FULL}; image 1 is taken, which is said; --series 0 gives the overview",
    rf"^{FULL}; image 1 of 0 to 1 is taken.*; by --series 0 80 x 64 px, 4 um/px$",
)
def _macro_first(files: Files) -> str:
    from tcgn_hub.images.readers import open_slide

    with open_slide(files / "macro_first.ome.tif") as slide:
        said = slide.chosen
    path = files / "macro_first.ome.tif"
    return f"{_described(path)}; {said}; by --series 0 {_described(path, series=0)}"


@case("dicom/slide/", "one slide as four DICOM instances", f"1 slide, {FULL}")
def _dicom(files: Files) -> str:
    from tcgn_hub.images.finding import find_images

    found = find_images([files / "dicom/slide"])
    return f"{len(found)} slide{'s' * (len(found) > 1)}, {_described(found[0])}"


@case(
    "offset.scn",
    "scan off the origin of its slide",
    "GeoJSON in QuPath's frame, which it states; h5ad fits its picture",
)
def _offset(files: Files) -> str:
    import json

    from tcgn_hub.writing.geojson import to_geojson

    result = files.predictor.slide(files / "offset.scn", workers=0, stride_um=154)
    written = json.loads("".join(to_geojson(result)))
    corner = np.array(written["features"][0]["geometry"]["coordinates"][0][0])
    centre = corner + result.slide.tile_px / 2 + OFFSET
    if written["tcgn"].get("origin_px") != list(OFFSET) or not np.allclose(centre, result.obsm["spatial"][0]):
        return f"corner {corner}, stated origin {written['tcgn'].get('origin_px')}"
    data = result.to_anndata()
    picture = data.uns["spatial"]["offset"]
    factor = picture["scalefactors"]["tissue_hires_scalef"]
    x, y = (data.obsm["spatial"][0] * factor).astype(int)
    shown = picture["images"]["hires"][y, x]
    return "GeoJSON in QuPath's frame, which it states; h5ad " + ("fits its picture" if shown.min() < 240 else "is off")


@case("(spawn)", "processes that are spawned", "the same pixels")
def _spawned(files: Files) -> str:
    from tcgn_hub.images.readers import open_slide
    from tcgn_hub.images.tiles import TileReader

    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(open_slide(path)) for path in (SVS, files / "planes.ome.tif")]
        readers = [TileReader(slide, np.array([[300.0, 250.0]]), 100.0) for slide in opened]
        here = [reader[0] for reader in readers]
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            there = pool.starmap(operator.getitem, [(reader, 0) for reader in readers])
    same = all(np.array_equal(one[1], other[1]) for one, other in zip(here, there, strict=True))
    return "the same pixels" if same else "other pixels"


@case("(daemon)", "a worker that is a daemon", "reads its tiles itself, same values")
def _daemonic(files: Files) -> str:
    options = {"stride_um": 154, "min_tissue": 0}
    want = files.predictor.slide(files / "planes.ome.tif", workers=0, **options)
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    config["daemon"] = True
    try:
        got = files.predictor.slide(files / "planes.ome.tif", workers=2, **options)
    finally:
        del config["daemon"]
    return "reads its tiles itself, " + ("same values" if np.array_equal(got.X, want.X) else "other values")


@case("ome_um, ome_nm, ome_strip.ome.tif", "scale in OME-XML alone", f"{FULL} of each")
def _ome(files: Files) -> str:
    said = {_described(files / f"ome_{kind}.ome.tif") for kind in ("um", "nm", "strip")}
    return f"{' or '.join(sorted(said))} of each"


@case(f"tiled_{{{','.join(CODECS)}}}.tif", "codecs that OpenSlide lacks", "read, every one")
def _codecs(files: Files) -> str:
    from tcgn_hub.images.readers import open_slide

    wrong = []
    for codec in CODECS:
        with open_slide(files / f"tiled_{codec}.tif") as slide:
            pixels = slide.read(0, 0, *slide.size)
        if np.abs(pixels.astype(int) - tissue()).mean() > 4:
            wrong.append(codec)
    return f"wrong pixels of {', '.join(wrong)}" if wrong else "read, every one"


@case("u16_strip.tif", "sixteen bits in strips", "the values of u16_tiled.tif and of eight bits")
def _sixteen(files: Files) -> str:
    values = [files.values(name) for name in ("u16_strip.tif", "u16_tiled.tif", "planes_as_rgb.tif")]
    same = all(np.array_equal(values[0], other) for other in values[1:])
    return "the values of u16_tiled.tif and of eight bits" if same else "other values"


@case("in_tissue_{int,text,float,bool,category,words}.h5ad", "in_tissue in any type", "71 spots in both readers")
def _in_tissue(files: Files) -> str:
    from tcgn_hub.data.readers.h5ad import read_h5ad
    from tcgn_hub.data.spots import read_spots

    found = set()
    for path in sorted(files.folder.glob("in_tissue_*.h5ad")):
        found |= {len(read_spots(path)), len(read_h5ad(path, image=files / "section.tif").spots)}
    return f"{' or '.join(map(str, sorted(found)))} spots in both readers"


@case(
    "two_sections.h5ad",
    "two sections in one file",
    "refused in both readers, naming S1 and S2 and how to choose; 71 spots with the library S1",
    r"^refused: .*2 sections \(S1, S2\).*library.*; refused: .*2 sections \(S1, S2\).*library.*; 71 spots of S1$",
)
def _two_sections(files: Files) -> str:
    from tcgn_hub.data.readers import read_sections
    from tcgn_hub.data.spots import read_spots

    path = files / "two_sections.h5ad"
    said = [_refusal(read_spots, path), _refusal(read_sections, path)]
    return "; ".join([*said, f"{len(read_spots(path, library='S1'))} spots of S1"])


@case(
    "positions_{hires,lowres}.h5ad beside section.tif, section_scale.tif",
    "positions of a smaller picture",
    "refused, all four, and taken with force_scale",
    r"^refused, all four: .*(positions|obsm).*; with force_scale [\d.]+ um/px$",
)
def _positions(files: Files) -> str:
    from tcgn_hub.data.readers.h5ad import read_h5ad

    said = [
        _refusal(read_h5ad, files / f"positions_{kind}.h5ad", image=files / image)
        for kind in ("hires", "lowres")
        for image in ("section.tif", "section_scale.tif")
    ]
    taken = [text for text in said if not text.startswith("refused")]
    if taken:
        return f"{len(taken)} of 4 are taken"
    forced = read_h5ad(files / "positions_hires.h5ad", image=files / "section_scale.tif", force_scale=True)
    return f"refused, all four: {said[0].removeprefix('refused: ')}; with force_scale {forced.mpp:.3f} um/px"


@case("mac/", "what macOS leaves beside files", f"1 slide, {FULL}")
def _mac(files: Files) -> str:
    from tcgn_hub.images.finding import find_images

    found = find_images([files / "mac"])
    return f"{len(found)} slide{'s' * (len(found) > 1)}, {_described(found[0])}"


@case(
    "aniso.tif",
    "pixels that are not square",
    "refused, with both sides",
    r"^refused: .*aniso\.tif.* 0\.5 x 1 um .*not square",
)
def _aniso(files: Files) -> str:
    return _refusal(_described, files / "aniso.tif")


@case("(timm)", "num_classes=0, global_pool=''", "(1, 64, 7, 7), as after reset_classifier(0, '')")
def _timm(files: Files) -> str:
    import timm
    import torch

    import tcgn_hub  # noqa: F401

    state = {"file": str(files.weights / "model.safetensors"), "num_classes": len(files.predictor.info.genes)}
    options: dict[str, Any] = {"pretrained": True, "pretrained_cfg_overlay": state}
    bare = timm.create_model("test_tcgn", num_classes=0, global_pool="", **options).eval()
    reset = timm.create_model("test_tcgn", num_classes=state["num_classes"], **options).eval()
    reset.reset_classifier(0, "")
    with torch.inference_mode():
        got, want = (model(torch.ones(1, 3, 224, 224)) for model in (bare, reset))
    return f"{tuple(got.shape)}, {'as' if torch.equal(got, want) else 'not as'} after reset_classifier(0, '')"


@case(
    "срез.tif", "a terminal in cp1252", r"exit code 0, the name escaped", r"exit code 0, .*\\u0441\\u0440\\u0435\\u0437"
)
def _cp1252(files: Files) -> str:
    from tcgn_hub.cli.main import main

    written = io.BytesIO()
    streams = [io.TextIOWrapper(written, encoding="cp1252", write_through=True) for _ in range(2)]
    arguments = ["predict", str(files / "срез.tif"), "--weights", str(files.weights), "--top", "1"]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code
    text = " ".join(written.getvalue().decode("cp1252").split())
    return f"exit code {code or 0}, {text}"


def main() -> int:
    """Print the table; 1 if anything in it is wrong."""
    from tiny import write_tiny_weights

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    print("| file | kind | right | today | |\n|---|---|---|---|---|")
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "files").mkdir()
        files = Files(write_all(Path(folder) / "files"), write_tiny_weights(Path(folder) / "tiny"))
        for known in CASES:
            said, fits = known.today(files)
            wrong += not fits
            cells = (known.file, known.kind, known.right, said, "right" if fits else "**wrong**")
            print("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
