"""Sections as Space Ranger leaves them in its folder ``outs``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from tcgn_hub.data.hdf5 import check_heaps
from tcgn_hub.data.readers.genes import tidy
from tcgn_hub.data.readers.parts import given, images_in, matched
from tcgn_hub.data.scales import BY_DISTANCE, PITCH_VISIUM, check_positions, settled, visium_pitch_px
from tcgn_hub.data.sections import Section
from tcgn_hub.data.spots import POSITIONS, binned_folders, read_spots
from tcgn_hub.data.tables import open_text
from tcgn_hub.errors import ImageError, SectionError
from tcgn_hub.extras import require
from tcgn_hub.files import read_json
from tcgn_hub.images.readers import size_and_scale
from tcgn_hub.text import some


def _outs(folder: Path) -> Path:
    return (
        folder / "outs" if any((folder / "outs" / name).is_dir() for name in ("spatial", "binned_outputs")) else folder
    )


def _of_bins(outs: Path) -> Path | None:
    """The ``outs`` of Visium HD that one of its folders of bins is from, None if it is no such folder."""
    outs = _absolute(outs)
    return outs.parent.parent if outs.parent.name == "binned_outputs" else None


def _absolute(folder: Path) -> Path:
    # a link is called what the user has called it
    return Path(os.path.abspath(folder))


def is_visium(folder: Path) -> bool:
    """Whether a folder is the ``outs`` of Space Ranger, or holds it."""
    outs = _outs(folder)
    return (outs / "spatial").is_dir() or (outs / "binned_outputs").is_dir()


def visium_name(folder: Path) -> str:
    """The name of the run: that of the folder, or of the one that holds ``outs``; and of Visium HD that of the bins."""
    folder = _absolute(folder)
    above = _of_bins(folder)
    if above is not None:
        return f"{visium_name(above)}_{folder.name}"
    return folder.parent.name if folder.name == "outs" else folder.name


def read_visium(
    folder: str | Path,
    *,
    name: str | None = None,
    patient: str | None = None,
    image: str | Path | None = None,
    mpp: float | None = None,
    force_scale: bool = False,
) -> Section:
    """Read the spots in tissue that have counts, of Space Ranger 1 or later.

    ``folder``: ``outs``, or the folder of the run that holds it; of Visium HD, one of the folders in its
    ``binned_outputs``; ``name``: name of the section; that of the run if None; ``patient``: patient; the name of the
    run if None; ``image``: the full-resolution image, which Space Ranger does not copy; if None, what is named
    ``image`` or ``fullres`` in ``outs`` or in the folder of the run, or the only image there; ``mpp``: micrometres per
    pixel of the image; if None, what Space Ranger says of Visium HD, otherwise by the distance of the spots, 100 um, or
    what the image states. The diameter in ``scalefactors_json.json`` is not used for it: it is that of a spot of 65 um,
    not of the 55 um that are printed. ``force_scale``: go by the first of these although another is more than 40 % off.
    """
    outs = _outs(Path(folder))
    run = _of_bins(outs)
    name = name or visium_name(Path(folder))
    where = next((outs / "spatial" / file for file in POSITIONS if (outs / "spatial" / file).is_file()), None)
    if where is None:
        bins = [str(one) for one in binned_folders(outs)]
        if bins:
            raise SectionError(f"{outs} is of Visium HD, which has a folder for each size of bins; give {some(bins)}.")
        raise SectionError(f"{outs / 'spatial'} has no file of positions ({', '.join(POSITIONS)}).")
    image = Path(image) if image else _image(outs, run)
    tiles = read_spots(where)
    position = {spot: i for i, spot in enumerate(tiles.names)}
    matrix, barcodes, ids, symbols, left_out, source = _counts(outs)
    keep, lone = matched(barcodes, position, counts=source, spots=where)
    spots = [barcodes[i] for i in keep]
    # Space Ranger names a gene without symbol by its id
    names = [symbol or gene for symbol, gene in zip(symbols, ids, strict=True)]
    genes, counts, summed = tidy(matrix[keep], names, rows=spots, source=source)
    factors = _factors(outs)
    said = [given(mpp), given(_stated(factors, outs), f"microns_per_pixel of {outs / _FACTORS}")]
    pitch = visium_pitch_px(np.stack([tiles.array_row, tiles.array_col], axis=1), tiles.xy)
    check_positions(name, image, pitch, factors, _pictures(outs), said=said, force=force_scale)
    by_distance = given(None if pitch is None else PITCH_VISIUM / pitch, BY_DISTANCE)
    scale, doubts = settled(name, [*said, by_distance], image, force=force_scale)
    return Section(
        name=name,
        patient=patient or (name if run is None else visium_name(run)),
        image=image,
        spots=spots,
        xy=tiles.xy[[position[spot] for spot in spots]],
        genes=genes,
        counts=counts,
        mpp=scale,
        left_out=lone | left_out | summed,
        doubts=doubts,
    )


def _image(outs: Path, run: Path | None) -> Path:
    # the folder above one of another name may hold the images of other sections
    folders = [outs] if run is None else [outs, run]
    if _absolute(folders[-1]).name == "outs":
        folders.append(_absolute(folders[-1]).parent)
    for folder in folders:
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


_FACTORS = Path("spatial", "scalefactors_json.json")


def _factors(outs: Path) -> dict[str, Any]:
    file = outs / _FACTORS
    try:
        return dict(read_json(file))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as err:
        raise SectionError(f"{file} cannot be read ({err}).") from err


def _stated(factors: dict[str, Any], outs: Path) -> float | None:
    """Scale that Space Ranger states for Visium HD, whose bins are no array of 100 um."""
    value = factors.get("microns_per_pixel")
    try:
        return None if value is None else float(value)
    except (ValueError, TypeError) as err:
        raise SectionError(f"{outs / _FACTORS} cannot be read ({err}).") from err


def _pictures(outs: Path) -> dict[str, tuple[int, int]]:
    """(width, height) of the smaller pictures of Space Ranger."""
    found = {}
    for name in ("hires", "lowres"):
        try:
            found[name] = size_and_scale(outs / "spatial" / f"tissue_{name}_image.png")[0]
        except ImageError:  # they are not needed
            continue
    return found


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
    sparse = require("scipy.sparse", extra="h5ad", to="read counts of Space Ranger")
    pandas = require("pandas", extra="h5ad", to="read counts of Space Ranger")

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
        # SciPy's reader ends the process on some damaged files
        with open_text(part("matrix.mtx")) as handle:
            if not handle.readline().startswith("%%MatrixMarket matrix coordinate"):
                raise ValueError("it is not in the format MatrixMarket")
            sizes = next(line for line in handle if not line.startswith("%"))
            rows, columns, count = map(int, sizes.split())
            cells = {"gene": np.int64, "spot": np.int64, "count": np.float64}
            entries = pandas.read_csv(handle, sep=r"\s+", header=None, names=list(cells), dtype=cells, engine="c")
        if len(entries) != count:
            raise ValueError(f"it announces {count} counts and holds {len(entries)}")
        places = entries["spot"].to_numpy() - 1, entries["gene"].to_numpy() - 1
        matrix = sparse.coo_matrix((entries["count"].to_numpy(), places), shape=(columns, rows)).tocsr()
    except Exception as err:  # of damage SciPy says whatever comes of it
        raise SectionError(f"{part('matrix.mtx')} is no matrix that can be read ({err}).") from err
    kinds = [feature[2] if len(feature) > 2 else "Gene Expression" for feature in features]
    return matrix, barcodes, [feature[0] for feature in features], [feature[1] for feature in features], kinds
