"""Small sections in the layout of her2st, drawn rather than measured."""

import gzip
from pathlib import Path

import numpy as np
from PIL import Image

PANEL = [f"G{i}" for i in range(12)]


def write_section(root: Path, name: str, *, spots: int = 12, seed: int = 0, zero: int = 0, unmatched: int = 0) -> None:
    """A section whose genes follow the colour around each spot; the last ``zero`` spots have no panel counts."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 255, (700, 800, 3), dtype=np.uint8)
    image_folder = root / "ST-imgs" / name[0] / name
    for folder in (root / "ST-cnts", root / "ST-spotfiles", image_folder):
        folder.mkdir(parents=True, exist_ok=True)
    centres = rng.integers(90, 600, (spots + unmatched, 2))
    for i, (x, y) in enumerate(centres):
        pixels[y - 80 : y + 80, x - 80 : x + 80] = (20 * i % 255, 120, 200)
    Image.fromarray(pixels).save(image_folder / "HE.jpg")
    with open(root / "ST-spotfiles" / f"{name}_selection.tsv", "w") as handle:
        handle.write("x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected\n")
        for i, (x, y) in enumerate(centres):
            handle.write(f"{i}\t{i + 1}\t{i}.1\t{i}.9\t{x}.2\t{y}.7\t1\n")
    with gzip.open(root / "ST-cnts" / f"{name}.tsv.gz", "wt") as handle:
        handle.write("\t" + "\t".join([*PANEL, "OTHER"]) + "\n")
        for i in range(spots):
            counts = rng.poisson(3 + i, len(PANEL)) if i < spots - zero else np.zeros(len(PANEL), int)
            handle.write(f"{i}x{i + 1}\t" + "\t".join(map(str, [*counts, 7])) + "\n")


def picture(path: Path, *, size: tuple[int, int] = (800, 700), seed: int = 0) -> Path:
    """A picture of noise, stored without loss unless its suffix is .jpg."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return path


def visium_array(rows: int = 4, cols: int = 5, *, pitch: float = 100.0) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Barcodes, places (row, column) and centres (x, y) of a hexagonal array of spots ``pitch`` px apart."""
    array = np.array([(r, 2 * c + r % 2) for r in range(rows) for c in range(cols)])
    xy = np.stack([array[:, 1] * pitch / 2, array[:, 0] * pitch * 3**0.5 / 2], axis=1) + 80
    return [f"{'ACGT'[i % 4] * 4}{i:02d}-1" for i in range(len(array))], array, xy


def write_visium(
    outs: Path, *, positions: str = "v2", counts: str = "h5", lone: int = 0, image: bool = True, genes=None, extra=0
) -> np.ndarray:
    """Outputs of Space Ranger; returns the counts (spots, genes) of the spots in tissue, which is all but the last.

    Args:
        outs: Where to.
        positions: 'v1' without header, 'v2' with, or 'parquet'.
        counts: 'h5', 'mtx', or 'mtx.gz'.
        lone: Spots in tissue that the matrix lacks.
        image: Whether a full-resolution image lies beside.
        genes: Symbols, PANEL if None.
        extra: Antibodies after the genes.
    """
    names, array, xy = visium_array()
    (outs / "spatial").mkdir(parents=True)
    lines = [
        f"{names[i]},{int(i < len(names) - 1)},{array[i, 0]},{array[i, 1]},{xy[i, 1]:.2f},{xy[i, 0]:.2f}"
        for i in range(len(names))
    ]
    header = "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres"
    if positions == "v1":
        (outs / "spatial" / "tissue_positions_list.csv").write_text("\n".join(lines) + "\n")
    elif positions == "v2":
        (outs / "spatial" / "tissue_positions.csv").write_text("\n".join([header, *lines]) + "\n")
    else:
        import io

        import pandas as pd

        table = pd.read_csv(io.StringIO("\n".join([header, *lines])))
        table.to_parquet(outs / "spatial" / "tissue_positions.parquet")
    (outs / "spatial" / "scalefactors_json.json").write_text(
        '{"spot_diameter_fullres": 65.0, "tissue_hires_scalef": 0.5, "fiducial_diameter_fullres": 105.0,'
        ' "tissue_lowres_scalef": 0.1}'
    )
    for resolution in ("hires", "lowres"):
        picture(outs / "spatial" / f"tissue_{resolution}_image.png", size=(60, 50))
    barcodes = names[: len(names) - 1 - lone]
    symbols = list(genes or PANEL) + [f"CD{i}" for i in range(extra)]
    matrix = np.random.default_rng(1).poisson(2, (len(barcodes), len(symbols)))
    write_10x(outs, counts, matrix, barcodes, symbols, extra)
    if image:
        picture(outs / "image.tif")
    return matrix


def write_10x(outs: Path, form: str, matrix: np.ndarray, barcodes, symbols, extra: int = 0) -> None:
    """The filtered matrix (spots, features), whose last ``extra`` features are antibodies, of Space Ranger."""
    import h5py
    from scipy import io, sparse

    ids = [f"ENSG{i:011d}" for i in range(len(symbols))]
    kinds = ["Gene Expression"] * (len(symbols) - extra) + ["Antibody Capture"] * extra
    columns = sparse.csc_matrix(matrix.T.astype(np.int32))
    if form == "h5":
        with h5py.File(outs / "filtered_feature_bc_matrix.h5", "w") as file:
            group = file.create_group("matrix")
            group["barcodes"] = np.array(barcodes, "S")
            group["data"], group["indices"] = columns.data, columns.indices.astype(np.int64)
            group["indptr"], group["shape"] = columns.indptr.astype(np.int64), np.array(columns.shape, np.int32)
            features = group.create_group("features")
            features["id"], features["name"] = np.array(ids, "S"), np.array(symbols, "S")
            features["feature_type"], features["genome"] = np.array(kinds, "S"), np.array(["GRCh38"] * len(ids), "S")
            features["_all_tag_keys"] = np.array(["genome"], "S")
        return
    folder = outs / "filtered_feature_bc_matrix"
    folder.mkdir()
    io.mmwrite(folder / "matrix.mtx", columns.tocoo(), field="integer", symmetry="general")
    (folder / "barcodes.tsv").write_text("\n".join(barcodes) + "\n")
    rows = zip(ids, symbols, kinds, strict=True)
    (folder / "features.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    if form == "mtx.gz":
        for path in list(folder.iterdir()):
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()


def write_h5ad(path: Path, *, image: bool = True, counts=None, var=None, obs=None, layers=None, uns=None, xy=None):
    """A section as AnnData; every part can be given. Returns the AnnData."""
    import anndata
    import pandas as pd
    from scipy import sparse

    names, array, centres = visium_array()
    places = {"in_tissue": 1, "array_row": array[:, 0], "array_col": array[:, 1]}
    if counts is None:
        counts = sparse.csr_matrix(np.random.default_rng(2).poisson(2, (len(names), len(PANEL))).astype(np.float32))
    data = anndata.AnnData(
        X=counts,
        obs=pd.DataFrame({**places, **(obs or {})}, index=names),
        var=pd.DataFrame(index=PANEL) if var is None else var,
        obsm={"spatial": centres if xy is None else xy},
        layers=layers or {},
        uns=uns or {},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    data.write_h5ad(path)
    if image:
        picture(path.with_suffix(".png"))
    return data


def write_patches(folder: Path, *, size: int = 120, spots: int = 6, header: str = "patch,section,patient,mpp") -> None:
    """Patches p0.png, ... of the sections S1 and S2 in turn, ``patches.csv`` and ``expression.csv``."""
    rng = np.random.default_rng(3)
    lines = [header]
    for i in range(spots):
        picture(folder / f"p{i}.png", size=(size, size), seed=i)
        lines.append(f"p{i}.png,S{1 + i % 2},P{1 + i % 2},0.5")
    (folder / "patches.csv").write_text("\n".join(lines) + "\n")
    rows = [",".join([f"p{i}", *map(str, rng.poisson(3, len(PANEL)))]) for i in range(spots)]
    (folder / "expression.csv").write_text("\n".join([",".join(["", *PANEL]), *rows]) + "\n")


def write_bulk(folder: Path, *, slides: int = 2) -> None:
    """Slides with a square of tissue on glass, and ``bulk.csv`` of their expression."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["slide,patient," + ",".join(PANEL)]
    for i in range(slides):
        pixels = np.full((1200, 1200, 3), 245, np.uint8)
        pixels[200:900, 200:900] = (190, 90, 160)
        Image.fromarray(pixels).save(folder / f"slide{i}.png")
        lines.append(f"slide{i}.png,P{i}," + ",".join(f"{v:.2f}" for v in np.linspace(0.1, 900, len(PANEL)) + i))
    (folder / "bulk.csv").write_text("\n".join(lines) + "\n")
