"""Sections as Space Ranger leaves them in its folder ``outs``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tcgn_hub.data.hdf5 import check_heaps
from tcgn_hub.data.readers.genes import tidy
from tcgn_hub.data.readers.parts import PITCH_VISIUM, array_mpp, image_mpp, images_in, matched
from tcgn_hub.data.readers.tables import open_text
from tcgn_hub.data.sections import Section
from tcgn_hub.data.spots import read_spots
from tcgn_hub.errors import SectionError
from tcgn_hub.extras import require
from tcgn_hub.files import read_json

NEIGHBOURS = ((0, 2), (1, 1), (1, -1))
"""From a spot to its neighbours, in rows and columns of Visium's array."""

_POSITIONS = ("tissue_positions.csv", "tissue_positions_list.csv", "tissue_positions.parquet")


def _outs(folder: Path) -> Path:
    return folder / "outs" if (folder / "outs" / "spatial").is_dir() else folder


def is_visium(folder: Path) -> bool:
    """Whether a folder is the ``outs`` of Space Ranger, or holds it."""
    return (_outs(folder) / "spatial").is_dir()


def visium_name(folder: Path) -> str:
    """The name of the run: that of the folder, or of the one that holds ``outs``."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "outs" else folder.name


def read_visium(
    folder: str | Path,
    *,
    name: str | None = None,
    patient: str | None = None,
    image: str | Path | None = None,
    mpp: float | None = None,
) -> Section:
    """Read the spots in tissue that have counts, of Space Ranger 1 or later.

    ``folder``: ``outs``, or the folder of the run that holds it; ``name``: name of the section; that of the run if
    None; ``patient``: patient; the name of the section if None; ``image``: the full-resolution image, which Space
    Ranger does not copy; if None, what is named ``image`` or ``fullres`` in ``outs`` or in the folder of the run, or
    the only image there; ``mpp``: micrometres per pixel of the image; if None, what Space Ranger says of Visium HD,
    otherwise by the distance of the spots, 100 um, or what the image states. The diameter in ``scalefactors_json.json``
    is not used: it is that of a spot of 65 um, not of the 55 um that are printed.
    """
    outs = _outs(Path(folder))
    name = name or visium_name(Path(folder))
    where = next((outs / "spatial" / file for file in _POSITIONS if (outs / "spatial" / file).is_file()), None)
    if where is None:
        raise SectionError(f"{outs / 'spatial'} has no file of positions ({', '.join(_POSITIONS)}).")
    image = Path(image) if image else _image(outs)
    tiles = read_spots(where)
    position = {spot: i for i, spot in enumerate(tiles.names)}
    matrix, barcodes, ids, symbols, left_out, source = _counts(outs)
    keep, lone = matched(barcodes, position, counts=source, spots=where)
    spots = [barcodes[i] for i in keep]
    # Space Ranger names a gene without symbol by its id
    names = [symbol or gene for symbol, gene in zip(symbols, ids, strict=True)]
    genes, counts, summed = tidy(matrix[keep], names, rows=spots, source=source)
    if mpp is None:
        array = np.stack([tiles.array_row, tiles.array_col], axis=1)
        mpp = _stated(outs) or array_mpp(array, tiles.xy, steps=NEIGHBOURS, pitch_um=PITCH_VISIUM)
    return Section(
        name=name,
        patient=patient or name,
        image=image,
        spots=spots,
        xy=tiles.xy[[position[spot] for spot in spots]],
        genes=genes,
        counts=counts,
        mpp=mpp or image_mpp(image, name),
        left_out=lone | left_out | summed,
    )


def _image(outs: Path) -> Path:
    # the folder above one of another name may hold the images of other sections
    for folder in (outs, outs.parent) if outs.resolve().name == "outs" else (outs,):
        images = images_in(folder, "image", "fullres")
        if len(images) == 1:
            return images[0]
        if images:
            raise SectionError(
                f"{folder} holds {len(images)} images, such as {images[0].name}; name the full-resolution one in a"
                " sample sheet (a CSV with the columns section, patient, data, image)."
            )
    raise SectionError(
        f"{outs} has no full-resolution image, which Space Ranger does not copy; name it in a sample sheet (a CSV with"
        " the columns section, patient, data, image)."
    )


def _stated(outs: Path) -> float | None:
    """Scale that Space Ranger states for Visium HD, whose bins are no array of 100 um."""
    file = outs / "spatial" / "scalefactors_json.json"
    try:
        value = read_json(file).get("microns_per_pixel")
        return None if value is None else float(value)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError) as err:
        raise SectionError(f"{file} cannot be read ({err}).") from err


def _counts(outs: Path) -> tuple[Any, list[str], list[str], list[str], dict[str, int], Path]:
    """Counts as a sparse matrix (barcodes, genes), barcodes, ids, symbols, what is left out, and their file."""
    h5, folder = outs / "filtered_feature_bc_matrix.h5", outs / "filtered_feature_bc_matrix"
    if h5.is_file():
        source, (matrix, barcodes, ids, symbols, kinds) = h5, _read_h5(h5)
    elif folder.is_dir():
        source, (matrix, barcodes, ids, symbols, kinds) = folder, _read_mtx(folder)
    else:
        raise SectionError(f"{outs} has neither {h5.name} nor the folder {folder.name}, one of which holds the counts.")
    if matrix.shape != (len(barcodes), len(ids)) or not len(ids) == len(symbols) == len(kinds):
        raise SectionError(
            f"{source} holds a matrix of {matrix.shape[1]} genes and {matrix.shape[0]} spots, but names {len(ids)}"
            f" genes and {len(barcodes)} spots; it may be cut short."
        )
    genes = [i for i, kind in enumerate(kinds) if kind == "Gene Expression"]
    left_out = {"features that are no genes": len(ids) - len(genes)} if len(genes) < len(ids) else {}
    return matrix[:, genes], barcodes, [ids[i] for i in genes], [symbols[i] for i in genes], left_out, source


def _read_h5(path: Path) -> tuple[Any, list[str], list[str], list[str], list[str]]:
    h5py = require("h5py", extra="h5ad", to="read counts of Space Ranger")
    sparse = require("scipy.sparse", extra="h5ad", to="read counts of Space Ranger")
    try:
        check_heaps(path)
        with h5py.File(path, "r") as file:
            group = file["matrix"]
            barcodes, ids, symbols, kinds = (
                [text.decode() for text in group[key][()]]
                for key in ("barcodes", "features/id", "features/name", "features/feature_type")
            )
            # columns of the file are barcodes
            shape = int(group["shape"][1]), int(group["shape"][0])
            matrix = sparse.csr_matrix((group["data"][()], group["indices"][()], group["indptr"][()]), shape=shape)
            # indices that point outside of the matrix would be followed
            matrix.check_format(full_check=True)
    except Exception as err:  # of damage h5py says whatever comes of it
        raise SectionError(f"{path} is no matrix of Space Ranger that can be read ({err}).") from err
    return matrix, barcodes, ids, symbols, kinds


def _read_mtx(folder: Path) -> tuple[Any, list[str], list[str], list[str], list[str]]:
    scipy_io = require("scipy.io", extra="h5ad", to="read counts of Space Ranger")

    def part(name: str) -> Path:
        found = [folder / f"{name}{end}" for end in (".gz", "") if (folder / f"{name}{end}").is_file()]
        if not found:
            raise SectionError(f"{folder} has no {name}.gz.")
        return found[0]

    with open_text(part("barcodes.tsv")) as handle:
        barcodes = handle.read().split()
    with open_text(part("features.tsv")) as handle:
        features = [line.rstrip("\r\n").split("\t") for line in handle]
    if any(len(feature) < 2 for feature in features):
        raise SectionError(f"{part('features.tsv')} has a line without the symbol of a gene.")
    try:
        matrix = scipy_io.mmread(str(part("matrix.mtx"))).tocsr().T.tocsr()
    except Exception as err:  # of damage SciPy says whatever comes of it
        raise SectionError(f"{part('matrix.mtx')} is no matrix that can be read ({err}).") from err
    kinds = [feature[2] if len(feature) > 2 else "Gene Expression" for feature in features]
    return matrix, barcodes, [feature[0] for feature in features], [feature[1] for feature in features], kinds
