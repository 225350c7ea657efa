"""Sections as AnnData in .h5ad files, alone or in the layout of HEST-1k (Jaume et al., NeurIPS 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tcgn_hub.data.h5ad import array_of, chosen, library_of, open_h5ad, positions, tissue_of
from tcgn_hub.data.readers.genes import tidy
from tcgn_hub.data.readers.parts import files_in, given, images_in
from tcgn_hub.data.scales import BY_DISTANCE, PITCH_VISIUM, check_positions, settled, visium_pitch_px
from tcgn_hub.data.sections import OWN, Section
from tcgn_hub.data.tables import number, read_rows
from tcgn_hub.errors import ExtraError, SectionError
from tcgn_hub.files import read_json
from tcgn_hub.images.scale import Scale

_SYMBOLS = ("gene_name", "gene_symbols", "feature_name", "symbol")
_HEST_MPP = "pixel_size_um_estimated"
_CHOOSE = "name one in the column library of a sample sheet (a CSV with the columns section, patient, data, image)"
_HEST_STUDY = ("dataset_title", "dataset", "study", "study_link")


def read_h5ad(
    path: str | Path,
    *,
    name: str | None = None,
    patient: str | None = None,
    image: str | Path | None = None,
    mpp: float | None = None,
    study: str | None = None,
    library: str | None = None,
    force_scale: bool = False,
) -> Section:
    """Read the spots of one section, those in tissue if ``obs['in_tissue']`` tells.

    Counts are ``layers['counts']``, or ``X`` if there is no such layer; positions ``obsm['spatial']``, (x, y) in pixels
    of the full-resolution image.

    ``path``: the file; ``name``: name of the section; if None, ``library``, or the stem of the file; ``patient``:
    patient; if None, the one of ``obs['patient']``, ``obs['donor']`` or ``uns['patient']``, or the name of the section;
    ``image``: the full-resolution image; if None, ``source_image_path`` of ``uns['spatial']`` if it exists, or the
    image of the same stem beside the file; ``mpp``: micrometres per pixel of the image; if None, that of
    ``uns['tcgn']``, that of Visium by the distance of its spots, or what the image states; ``study``: study; that of
    ``uns['study']`` if None, else 'own'; ``library``: which section of a file that holds several, by ``uns['spatial']``
    or a column of obs such as library_id; ``force_scale``: go by the first of these scales although another one is more
    than 40 % off.
    """
    path = Path(path)
    name = name or library or path.stem
    data = open_h5ad(path)
    try:
        xy = positions(data, path)
        mine, own = chosen(data, path, library, choose=_CHOOSE)
        keep = np.flatnonzero(mine)[tissue_of(data, mine, path)]
        out = int(mine.sum()) - len(keep)
        facts = library_of(data, own)
        metadata = _facts(facts, "metadata")
        array = array_of(data)
        # spots that are not in tissue tell the distance as well
        pitch = None if array is None else visium_pitch_px(array[mine], xy[mine])
        data, xy = data[keep], xy[keep]
        image = Path(image) if image else _image(path, metadata, library)
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
        said = [given(mpp), given(_stated(data), f"uns['tcgn']['mpp'] of {path}")]
        factors = _facts(facts, "scalefactors")
        of_visium = check_positions(name, image, pitch, factors, _pictures(facts), said=said, force=force_scale)
        by_pitch = None if pitch is None else Scale(PITCH_VISIUM / pitch, BY_DISTANCE)
        # another array that looks the same may have another distance: it contradicts, but does not decide
        decides = of_visium or "Spatial" in str(metadata.get("chemistry_description"))
        study = study or str(data.uns.get("study", OWN))
        spots = [str(spot) for spot in data.obs_names]
    except (SectionError, ExtraError):
        raise
    except Exception as err:  # of damage h5py and anndata say whatever comes of it
        raise SectionError(f"{path} is no .h5ad file of a section that can be read ({err}).") from err
    scale, doubts = settled(name, [*said, by_pitch], image, decides, force=force_scale)
    return Section(
        name=name,
        patient=patient or name,
        image=image,
        spots=spots,
        xy=xy,
        genes=genes,
        counts=counts,
        mpp=scale,
        left_out=({"spots not in tissue": out} if out else {}) | summed,
        study=study,
        doubts=doubts,
    )


def _facts(library: dict[str, Any], key: str) -> dict[str, Any]:
    found = library.get(key)
    return dict(found) if isinstance(found, Mapping) else {}


def _pictures(library: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """(width, height) of the smaller pictures of a library."""
    shapes = {str(name): np.shape(picture) for name, picture in _facts(library, "images").items()}
    return {name: (shape[1], shape[0]) for name, shape in shapes.items() if len(shape) in (2, 3)}


def _stated(data: Any) -> float | None:
    stated = data.uns.get("tcgn", {})
    return float(stated["mpp"]) if "mpp" in stated else None


def _image(path: Path, metadata: dict[str, Any], library: str | None) -> Path:
    stated = metadata.get("source_image_path")
    if stated is not None and (path.parent / str(stated)).is_file():
        return path.parent / str(stated)
    images = images_in(path.parent)
    # that of a file of several sections is none of theirs
    stem = library or path.stem
    beside = [image for image in images if image.name.startswith(f"{stem}.")]
    if len(beside) != 1:
        raise SectionError(
            f"{path} has {len(beside) or 'no'} images beside it that are named {stem}; put the full-resolution"
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


def is_hest(root: Path) -> bool:
    """Whether a folder is of the layout of HEST-1k: ``st/*.h5ad`` with ``wsis/*.tif``."""
    return (root / "st").is_dir() and (root / "wsis").is_dir()


def hest_names(root: str | Path) -> list[str]:
    """Ids of the sections of which there are counts, sorted."""
    names = [p.stem for p in files_in(Path(root) / "st", (".h5ad",))]
    if not names:
        raise SectionError(f"{Path(root) / 'st'} holds no .h5ad file.")
    return names


def read_hest(
    root: str | Path,
    names: Sequence[str] | None = None,
    *,
    mpp: float | None = None,
    force_scale: bool = False,
) -> list[Section]:
    """Read sections in the layout of HEST-1k.

    ``root``: folder that holds ``st``, ``wsis``, and ``metadata`` or the table ``HEST_v1_*.csv``; ``names``: ids of the
    sections to read, such as ``['INT1']``; all if None; ``mpp``: micrometres per pixel of all images, in place of what
    the metadata say; ``force_scale``: see `read_h5ad`. Returns the sections, in the order of ``names``, or sorted.
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
        stated = metadata.get(_HEST_MPP) if mpp is None else mpp
        sections.append(
            read_h5ad(
                root / "st" / f"{name}.h5ad",
                name=name,
                patient=str(metadata["patient"]) if _known(metadata.get("patient")) else name,
                image=image,
                mpp=float(stated) if _known(stated) else None,  # type: ignore[arg-type]
                study=next((str(metadata[key]) for key in _HEST_STUDY if _known(metadata.get(key))), "hest"),
                force_scale=force_scale,
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
    tables = [path for path in files_in(root, (".csv",)) if path.name.startswith("HEST_v")]
    for table in reversed(tables):
        for row in read_rows(table):
            if row.get("id") == name:
                return {**row, _HEST_MPP: number(row, _HEST_MPP, table)}
    return {}
