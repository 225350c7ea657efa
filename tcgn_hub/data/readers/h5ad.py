"""Sections as AnnData in .h5ad files, alone or in the layout of HEST-1k (Jaume et al., NeurIPS 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tcgn_hub.data.hdf5 import check_heaps
from tcgn_hub.data.readers.genes import tidy
from tcgn_hub.data.readers.parts import PITCH_VISIUM, array_mpp, image_mpp, images_in
from tcgn_hub.data.readers.tables import number, read_rows
from tcgn_hub.data.readers.visium import NEIGHBOURS
from tcgn_hub.data.sections import OWN, Section
from tcgn_hub.errors import ExtraError, SectionError
from tcgn_hub.extras import require
from tcgn_hub.files import read_json

_SYMBOLS = ("gene_name", "gene_symbols", "feature_name", "symbol")
_HEST_MPP = "pixel_size_um_estimated"
_HEST_STUDY = ("dataset_title", "dataset", "study", "study_link")


def read_h5ad(
    path: str | Path,
    *,
    name: str | None = None,
    patient: str | None = None,
    image: str | Path | None = None,
    mpp: float | None = None,
    study: str | None = None,
) -> Section:
    """Read the spots of one section, those in tissue if ``obs['in_tissue']`` tells.

    Counts are ``layers['counts']``, or ``X`` if there is no such layer; positions ``obsm['spatial']``, (x, y) in pixels
    of the full-resolution image.

    ``path``: the file; ``name``: name of the section; the stem of the file if None; ``patient``: patient; if None, the
    one of ``obs['patient']``, ``obs['donor']`` or ``uns['patient']``, or the name of the section; ``image``: the
    full-resolution image; if None, ``source_image_path`` of ``uns['spatial']`` if it exists, or the image of the same
    stem beside the file; ``mpp``: micrometres per pixel of the image; if None, ``uns['tcgn']['mpp']``, that of Visium
    by the distance of its spots, or what the image states; ``study``: study; that of ``uns['study']`` if None, else
    'own'.
    """
    path = Path(path)
    name = name or path.stem
    try:
        anndata = require("anndata", extra="h5ad", to="read .h5ad files")
        check_heaps(path)
        data = anndata.read_h5ad(path)
        if "spatial" not in data.obsm:
            raise SectionError(f"{path} has no obsm['spatial'], the positions of the spots in pixels of the image.")
        xy = np.asarray(data.obsm["spatial"], np.float64)
        if xy.ndim != 2 or xy.shape[1] < 2:
            raise SectionError(f"{path}: obsm['spatial'] has the shape {xy.shape}; give (x, y) of every spot.")
        keep = np.asarray(data.obs["in_tissue"]).astype(int) == 1 if "in_tissue" in data.obs else np.ones(len(xy), bool)
        out = int((~keep).sum())
        data, xy = data[keep], xy[keep, :2]
        libraries = dict(data.uns.get("spatial", {}))
        if image is None and len(libraries) > 1:
            raise SectionError(
                f"{path} holds {len(libraries)} sections ({', '.join(list(libraries)[:5])}); save one file a section."
            )
        metadata = next((dict(library.get("metadata", {})) for library in libraries.values()), {})
        image = Path(image) if image else _image(path, metadata)
        counts = data.layers.get("counts", data.X)
        if counts is None:
            raise SectionError(f"{path} has neither layers['counts'] nor X; give raw counts.")
        genes, counts, summed = tidy(
            counts,
            [str(gene) for gene in data.var_names],
            rows=[str(spot) for spot in data.obs_names],
            source=path,
            symbols=_symbols(data.var),
        )
        if patient is None:
            patient = _patient(data, path)
        if mpp is None:
            mpp = _mpp(data, xy, metadata)
        study = study or str(data.uns.get("study", OWN))
    except (SectionError, ExtraError):
        raise
    except Exception as err:  # of damage h5py and anndata say whatever comes of it
        raise SectionError(f"{path} is no .h5ad file of a section that can be read ({err}).") from err
    return Section(
        name=name,
        patient=patient or name,
        image=image,
        spots=[str(spot) for spot in data.obs_names],
        xy=xy,
        genes=genes,
        counts=counts,
        mpp=mpp or image_mpp(image, name),
        left_out=({"spots not in tissue": out} if out else {}) | summed,
        study=study,
    )


def _image(path: Path, metadata: dict[str, Any]) -> Path:
    stated = metadata.get("source_image_path")
    if stated is not None and (path.parent / str(stated)).is_file():
        return path.parent / str(stated)
    beside = [image for image in images_in(path.parent) if image.name.startswith(f"{path.stem}.")]
    if len(beside) != 1:
        raise SectionError(
            f"{path} has {len(beside) or 'no'} images beside it that are named {path.stem}; put the full-resolution"
            " image there, or name it in a sample sheet (a CSV with the columns section, patient, data, image)."
        )
    return beside[0]


def _symbols(var: Any) -> list[str] | None:
    column = next((column for column in _SYMBOLS if column in var), None)
    if column is None:
        return None
    return ["" if symbol in (None, "nan") or symbol != symbol else str(symbol) for symbol in var[column]]


def _patient(data: Any, path: Path) -> str | None:
    for column in ("patient", "donor"):
        if column in data.obs:
            patients = sorted({str(value) for value in data.obs[column]})
            if len(patients) > 1:
                raise SectionError(
                    f"{path} holds spots of {len(patients)} patients ({', '.join(patients[:5])}); save one file a"
                    " section."
                )
            return patients[0] if patients else None
    return str(data.uns["patient"]) if "patient" in data.uns else None


def _mpp(data: Any, xy: np.ndarray, metadata: dict[str, Any]) -> float | None:
    if "mpp" in data.uns.get("tcgn", {}):
        return float(data.uns["tcgn"]["mpp"])
    # only of Visium are the places in the array those that the distance below holds for
    if "Spatial" in str(metadata.get("chemistry_description")) and {"array_row", "array_col"} <= set(data.obs):
        array = np.asarray(data.obs[["array_row", "array_col"]]).astype(int)
        return array_mpp(array, xy, steps=NEIGHBOURS, pitch_um=PITCH_VISIUM)
    return None


def is_hest(root: Path) -> bool:
    """Whether a folder is of the layout of HEST-1k: ``st/*.h5ad`` with ``wsis/*.tif``."""
    return (root / "st").is_dir() and (root / "wsis").is_dir()


def hest_names(root: str | Path) -> list[str]:
    """Ids of the sections of which there are counts, sorted."""
    names = sorted(p.stem for p in (Path(root) / "st").glob("*.h5ad"))
    if not names:
        raise SectionError(f"{Path(root) / 'st'} holds no .h5ad file.")
    return names


def read_hest(root: str | Path, names: Sequence[str] | None = None) -> list[Section]:
    """Read sections in the layout of HEST-1k.

    ``root``: folder that holds ``st``, ``wsis``, and ``metadata`` or the table ``HEST_v1_*.csv``; ``names``: ids of the
    sections to read, such as ``['INT1']``; all if None. Returns the sections, in the order of ``names``, or sorted.
    Study (``dataset_title``), patient and scale, ``pixel_size_um_estimated``, are those of the metadata, where a study
    is 'hest' and a patient the section's id if they are not known. Patients of different studies that have one name are
    taken for one by a split, so that none can separate what is one.
    """
    root = Path(root)
    sections = []
    for name in hest_names(root) if names is None else names:
        metadata = _metadata_of(root, name)
        image = root / "wsis" / f"{name}.tif"
        if not image.is_file():
            raise SectionError(f"Section {name} of {root} has no image {image}; download it too.")
        mpp = metadata.get(_HEST_MPP)
        sections.append(
            read_h5ad(
                root / "st" / f"{name}.h5ad",
                name=name,
                patient=str(metadata["patient"]) if _known(metadata.get("patient")) else name,
                image=image,
                mpp=float(mpp) if _known(mpp) else None,  # type: ignore[arg-type]
                study=next((str(metadata[key]) for key in _HEST_STUDY if _known(metadata.get(key))), "hest"),
            )
        )
    return sections


def _known(value: Any) -> bool:
    return value is not None and str(value).strip().lower() not in ("", "nan", "none")


def _metadata_of(root: Path, name: str) -> dict[str, Any]:
    """What the metadata say of a section: its own file, or its row of the table of all."""
    file = root / "metadata" / f"{name}.json"
    if file.is_file():
        try:
            metadata = read_json(file)
            float(metadata.get(_HEST_MPP) or 1)
        except (OSError, ValueError, TypeError, AttributeError) as err:
            raise SectionError(f"{file} cannot be read ({err}).") from err
        return metadata
    for table in sorted(root.glob("HEST_v*.csv"), reverse=True):
        for row in read_rows(table):
            if row.get("id") == name:
                return {**row, _HEST_MPP: number(row, _HEST_MPP, table)}
    return {}
