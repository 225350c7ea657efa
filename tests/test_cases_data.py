"""Spots and sections as users have them: how yes and no are written, several sections in a file, other pixels."""

import json
import os
import shutil

import anndata
import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image
from sections import PANEL, picture, visium_array, write_10x, write_bulk, write_h5ad, write_patches, write_visium
from test_readers import refuses

from tcgn_hub.data.checks import check_sections
from tcgn_hub.data.readers import read_sections
from tcgn_hub.data.readers.h5ad import read_h5ad
from tcgn_hub.data.readers.visium import read_visium
from tcgn_hub.data.spots import read_spots
from tcgn_hub.errors import ExtraError, SectionError

IN = np.arange(20) % 3 > 0  # 13 of 20 spots


def refused(path, match, **options):
    with pytest.raises(SectionError, match=match) as caught:
        read_spots(path, **options)
    assert "\n" not in str(caught.value)


def scaled(path, mpp, size=(800, 700)):
    """A picture of noise that states its scale."""
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    tifffile.imwrite(path, pixels, photometric="rgb", resolution=(1e4 / mpp, 1e4 / mpp), resolutionunit="CENTIMETER")
    return path


# what a boolean column says

WRITTEN = {
    "int": IN.astype(int),
    "float": IN.astype(float),
    "bool": IN,
    "digits": IN.astype(int).astype(str),
    "decimals": [f"{value:.1f}" for value in IN],
    "words": np.where(IN, "True", "False"),
    "upper": np.where(IN, "TRUE", "FALSE"),
    "yes": np.where(IN, "yes", "No"),
    "letters": np.where(IN, "T", "F"),
    "category": pd.Categorical(IN.astype(int).astype(str)),
    "category of numbers": pd.Categorical(IN.astype(int), categories=[1, 0]),
    "nullable": pd.array(np.where(IN, True, None), dtype="boolean"),
    "nullable numbers": pd.array(np.where(IN, 1, None), dtype="Int64"),
    "missing": np.where(IN, 1.0, np.nan),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_in_tissue_is_read_by_both_readers_however_it_is_written(tmp_path, kind):
    names, _, _ = visium_array()
    want = [name for name, keep in zip(names, IN, strict=True) if keep]
    data = write_h5ad(tmp_path / "s.h5ad", obs={"in_tissue": WRITTEN[kind]})
    assert read_spots(tmp_path / "s.h5ad").names == want
    section = read_h5ad(tmp_path / "s.h5ad")
    assert (section.spots, section.left_out) == (want, {"spots not in tissue": 7})
    table = pd.DataFrame({"barcode": names, "in_tissue": WRITTEN[kind], "x": data.obsm["spatial"][:, 0], "y": 5.0})
    table.to_csv(tmp_path / "s.csv", index=False)
    table.to_parquet(tmp_path / "s.parquet")
    for name in ("s.csv", "s.parquet"):
        assert read_spots(tmp_path / name).names == want


def test_what_says_neither_yes_nor_no_is_named(tmp_path):
    for bad in (2, "maybe", "under tissue"):
        column = IN.astype(int).astype(str).astype(object)
        column[4] = str(bad)
        write_h5ad(tmp_path / "s.h5ad", obs={"in_tissue": column})
        refused(tmp_path / "s.h5ad", rf"s\.h5ad has '{bad}' in its column in_tissue")
        refuses(tmp_path / "s.h5ad", rf"s\.h5ad has '{bad}' in its column in_tissue")


def test_a_column_that_is_0_throughout_is_named(tmp_path):
    write_h5ad(tmp_path / "s.h5ad", obs={"in_tissue": 0})
    write_visium(tmp_path / "outs")
    positions = tmp_path / "outs/spatial/tissue_positions.csv"
    table = pd.read_csv(positions)
    table.assign(in_tissue=0).to_csv(positions, index=False)
    for path in (tmp_path / "s.h5ad", tmp_path / "outs"):
        refuses(path, "no spot in tissue: its column in_tissue is 0 in all 20 rows")
    for path in (tmp_path / "s.h5ad", positions):
        refused(path, "its column in_tissue is 0 in all 20 rows")


# several sections in a file


def two_sections(path, *, column="library_id", uns=("S1", "S2"), names=None):
    data = write_h5ad(
        path,
        image=False,
        obs={**({column: ["S1"] * 8 + ["S2"] * 12} if column else {}), "in_tissue": [0] + [1] * 19},
        uns={"spatial": {name: {"metadata": {}} for name in uns}} if uns else {},
    )
    if names:
        data.obs_names = names
        data.write_h5ad(path)
    return data


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"uns": ()},
        {"column": "sample", "uns": ("S1",)},
        {"column": "section"},
        {"column": None, "names": [f"AAAC{i}-1-{'S1' if i < 8 else 'S2'}" for i in range(20)]},
    ],
)
def test_one_of_two_sections_is_chosen_by_its_name(tmp_path, options):
    path = tmp_path / "two.h5ad"
    data = two_sections(path, **options)
    refused(path, r"two.h5ad holds 2 sections \(S1, S2\); choose one with library='NAME'")
    refused(path, "has no section S3; there are S1, S2", library="S3")
    assert read_spots(path, library="S1").names == list(data.obs_names[1:8])
    assert read_spots(path, library="S2").xy.tolist() == data.obsm["spatial"][8:].tolist()
    image = picture(tmp_path / "two.png")
    with pytest.raises(SectionError, match=r"2 sections \(S1, S2\); name one in the column library of a sample sheet"):
        read_h5ad(path)
    section = read_h5ad(path, library="S1", image=image)
    assert (section.name, len(section.spots), section.left_out) == ("S1", 7, {"spots not in tissue": 1})
    # the picture of a file of two is neither's
    with pytest.raises(SectionError, match="no images beside it that are named S1"):
        read_h5ad(path, library="S1")
    sheet = tmp_path / "sheet.csv"
    sheet.write_text("section,patient,data,image,library\na,P,two.h5ad,two.png,S2\nb,P,two.h5ad,two.png,S1\n")
    assert [(s.name, len(s.spots)) for s in read_sections(sheet)] == [("a", 12), ("b", 7)]
    sheet.write_text("section,patient,data,image\na,P,two.h5ad,two.png\n")
    refuses(sheet, "holds 2 sections")


def test_one_section_is_one_whatever_its_file_says_besides(tmp_path):
    path = tmp_path / "s.h5ad"
    # what is left of two, and a column that differs from spot to spot
    for obs, uns in (
        ({"library_id": pd.Categorical(["S1"] * 20, categories=["S1", "S2"])}, ("S1", "S2")),
        ({"sample": [f"spot{i}" for i in range(20)]}, ("S1",)),
        ({}, ()),
    ):
        write_h5ad(path, obs=obs, uns={"spatial": {name: {"metadata": {}} for name in uns}} if uns else {})
        assert len(read_spots(path)) == len(read_h5ad(path).spots) == 20
    refused(path, "no section S1; it names none", library="S1")
    write_visium(tmp_path / "outs")
    refused(tmp_path / "outs/spatial/tissue_positions.csv", "leave library out", library="S1")
    (tmp_path / "sheet.csv").write_text("section,patient,data,image,library\na,P,outs,,S2\n")
    refuses(tmp_path / "sheet.csv", "section a a library, but .*outs holds one section")
    two_sections(path, column=None)
    refused(path, r"holds 2 sections \(S1, S2\), and no column of obs", library="S1")


# positions in the pixels of another picture


def visium_h5ad(path, image, *, positions=1.0, diameter=65.0, lowres=(160, 140), factors=None, keep=slice(None), **obs):
    """Spots 100 px apart, so that a pixel is 1 um, on a picture of 800 x 700 px."""
    _, _, xy = visium_array()
    known = {"spot_diameter_fullres": diameter, "tissue_hires_scalef": 0.7, "tissue_lowres_scalef": 0.2}
    library = {
        "images": {"lowres": np.zeros((lowres[1], lowres[0], 3), np.uint8)} if lowres else {},
        "scalefactors": known if factors is None else factors,
        "metadata": {},
    }
    for old in path.parent.glob(f"{path.stem}.*"):
        old.unlink()
    data = write_h5ad(path, image=False, xy=xy * positions, uns={"spatial": {"S1": library}}, obs=obs)
    data[keep].write_h5ad(path)
    shutil.copy(image, path.with_suffix(image.suffix))
    return path


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    return picture(tmp_path / "images/plain.png"), scaled(tmp_path / "images/scaled.tif", 1.0)


@pytest.mark.parametrize("factor", [0.7, 0.2, 0.5])
@pytest.mark.parametrize("diameter", [65.0, 55.0])
def test_positions_in_pixels_of_a_smaller_picture_are_refused(tmp_path, images, factor, diameter):
    for image in images:
        path = visium_h5ad(tmp_path / "s.h5ad", image, positions=factor, diameter=diameter)
        says = refuses(path, "Section s: the positions of its spots are in the pixels of a picture 0.* times as wide")
        assert ("scalef is" in says) == (factor != 0.5)
    # the scale of the picture is enough
    path = visium_h5ad(tmp_path / "s.h5ad", images[1], positions=factor, factors={})
    refuses(path, r"the distance of its spots says .* um/px, but .*s.tif \(.*\) 1; the positions may be .* force_scale")
    assert read_sections(path, force_scale=True)[0].doubts


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"diameter": 55.0},
        {"lowres": None},
        {"factors": {}},
        {"factors": {"spot_diameter_fullres": "wide", "tissue_lowres_scalef": None}},
        {"keep": [6]},
        {"keep": [5, 6, 7, 10, 11]},
        {"in_tissue": [0] * 12 + [1] * 8},
        {"lowres": (160, 90)},
    ],
)
def test_positions_in_pixels_of_the_image_are_taken(tmp_path, images, options):
    for image in images:
        (section,) = read_sections(visium_h5ad(tmp_path / "s.h5ad", image, **options))
        known = image.suffix == ".tif" or (options.get("factors") is None and len(options.get("keep", IN)) > 1)
        assert section.mpp == (pytest.approx(1.0) if known else None)
        assert section.doubts == ()


def test_small_pictures_with_positions_of_their_own_are_taken(tmp_path, images):
    # the picture of the section is the one that Space Ranger has made smaller, and so are the positions
    small = picture(tmp_path / "small.png", size=(400, 350))
    path = visium_h5ad(tmp_path / "s.h5ad", small, positions=0.5)
    assert read_sections(path)[0].mpp == pytest.approx(2.0)
    # a larger one than the spots were found on
    large = picture(tmp_path / "large.png", size=(1600, 1400))
    refuses(visium_h5ad(tmp_path / "t.h5ad", large), "in the pixels of a picture 0.5 times as wide as .*t.png")
    # a wrong diameter does no harm where the image agrees with the distance, or the user does
    for image, options in ((images[1], {}), (images[0], {"mpp": 1.0})):
        path = visium_h5ad(tmp_path / "u.h5ad", image, diameter=200.0)
        assert read_sections(path, **options)[0].mpp == pytest.approx(1.0)


def test_another_array_says_nothing(tmp_path, images):
    rows, cols = np.divmod(np.arange(20), 5)
    square = {"array_row": rows, "array_col": cols}
    path = visium_h5ad(tmp_path / "s.h5ad", images[0], positions=0.2, **square)
    assert read_sections(path)[0].mpp is None


@pytest.mark.parametrize("image", ["plain", "scaled"])
def test_space_ranger_beside_another_image(tmp_path, image):
    write_visium(tmp_path / "outs", image=False)
    if image == "plain":
        for name, size in (("hires", (400, 350)), ("lowres", (80, 70))):
            picture(tmp_path / f"outs/spatial/tissue_{name}_image.png", size=size)
        picture(tmp_path / "outs/image.tif", size=(1600, 1400))
        refuses(tmp_path / "outs", "in the pixels of a picture 0.5 times as wide")
    else:
        scaled(tmp_path / "outs/image.tif", 0.5)
        refuses(tmp_path / "outs", "the distance of its spots says 1 um/px, but .* 0.5")
    (section,) = read_sections(tmp_path / "outs", force_scale=True)
    assert section.mpp == pytest.approx(1.0)


def test_positions_in_a_corner_are_told(tmp_path, images):
    path = visium_h5ad(tmp_path / "s.h5ad", picture(tmp_path / "wide.png", size=(2000, 1600)), factors={})
    data = anndata.read_h5ad(path)
    more = data.copy()
    more.obs["array_row"] += 1000
    anndata.concat([data, more], index_unique="-", merge="same").write_h5ad(path)
    _, table = check_sections(read_sections(path), PANEL)
    assert "may belong to another resolution" in table


# a scale that is given


def test_a_given_scale_that_is_contradicted_is_told_or_refused(tmp_path):
    image = scaled(tmp_path / "s.tif", 0.5)
    write_h5ad(tmp_path / "s.h5ad", image=False, obs={"array_row": 0, "array_col": np.arange(20)})
    (tmp_path / "sheet.csv").write_text(f"section,patient,data,image,mpp\ns,P,s.h5ad,{image.name},0.6\n")
    for source, options in ((tmp_path / "s.h5ad", {"mpp": 0.6}), (tmp_path / "sheet.csv", {})):
        (section,) = read_sections(source, **options)
        _, table = check_sections([section], PANEL)
        lines = table.splitlines()
        assert section.mpp == 0.6
        assert lines[-1].startswith("Warning: section s: what is given says 0.6 um/px, but ")
        assert lines[-1].endswith("0.5.")
    assert read_sections(tmp_path / "s.h5ad", mpp=0.52)[0].doubts == ()
    refuses(tmp_path / "s.h5ad", "what is given says 0.25 um/px, but .*s.tif .* 0.5; .* force_scale=True", mpp=0.25)
    (section,) = read_sections(tmp_path / "s.h5ad", mpp=0.25, force_scale=True)
    assert (section.mpp, len(section.doubts)) == (0.25, 1)


def test_every_reader_compares_a_given_scale(tmp_path):
    write_bulk(tmp_path / "bulk", slides=1)
    with Image.open(tmp_path / "bulk/slide0.png") as slide:
        slide.save(tmp_path / "bulk/slide0.png", dpi=(25400 / 0.7, 25400 / 0.7))
    write_patches(tmp_path / "patches")
    for i in range(6):
        with Image.open(tmp_path / f"patches/p{i}.png") as patch:
            patch.save(tmp_path / f"patches/p{i}.png", dpi=(25400 / 0.9, 25400 / 0.9))
    write_h5ad(tmp_path / "hest/st/INT1.h5ad", image=False)
    (tmp_path / "hest/wsis").mkdir()
    scaled(tmp_path / "hest/wsis/INT1.tif", 1.0)
    (tmp_path / "hest/metadata").mkdir()
    (tmp_path / "hest/metadata/INT1.json").write_text('{"pixel_size_um_estimated": 0.5}')
    expression = {"expression": tmp_path / "patches/expression.csv"}
    for path, options in (
        (tmp_path / "bulk/bulk.csv", {"mpp": 0.35, "tiles_um": 70}),
        (tmp_path / "patches/patches.csv", expression),
        (tmp_path / "hest", {}),
    ):
        refuses(path, "what is given says 0.[35]5? um/px, but", **options)
        assert all(section.doubts for section in read_sections(path, force_scale=True, **options))


def test_the_commands_of_training_can_insist(tmp_path):
    from tcgn_hub.cli import crossval, evaluate, finetune
    from tcgn_hub.cli.common import sections_of

    scaled(tmp_path / "s.tif", 1.0)
    write_h5ad(tmp_path / "s.h5ad", image=False)
    given = [str(tmp_path / "s.h5ad"), "--mpp", "0.5"]
    for command, needed in ((finetune, ["--hvg=2", "-o=x"]), (crossval, ["--genes=G1", "-o=x"]), (evaluate, [])):
        parse = command.build_parser("x").parse_args
        with pytest.raises(SectionError, match=r"what is given says 0\.5"):
            sections_of(parse([*given, *needed]))
        (section,) = sections_of(parse([*given, *needed, "--force-scale"]))
        assert section.mpp == 0.5


# folders


def test_what_macos_leaves_beside_files_is_no_data(tmp_path):
    from sections import write_section

    write_section(tmp_path / "her2st", "A1")
    write_h5ad(tmp_path / "hest/st/INT1.h5ad", image=False)
    picture(tmp_path / "hest/wsis/INT1.tif")
    (tmp_path / "hest/HEST_v1_1_0.csv").write_text("id,patient,pixel_size_um_estimated\nINT1,P3,1\n")
    write_visium(tmp_path / "run/outs")
    write_h5ad(tmp_path / "lone/s.h5ad")
    for file in [path for path in tmp_path.rglob("*") if path.is_file()]:
        (file.parent / f"._{file.name}").write_bytes(b"\0\5\26\7" + b"\0" * 78)
    for folder, name in (("her2st", "A1"), ("hest", "INT1"), ("run", "run"), ("lone/s.h5ad", "s")):
        assert [section.name for section in read_sections(tmp_path / folder)] == [name]


def write_hd(outs, size="008um"):
    """Outputs of Space Ranger for Visium HD, bins 8 um apart at 0.5 um/px."""
    folder = outs / "binned_outputs" / f"square_{size}"
    (folder / "spatial").mkdir(parents=True)
    (outs / "spatial").mkdir(exist_ok=True)
    rows, cols = np.divmod(np.arange(40), 8)
    table = pd.DataFrame(
        {
            "barcode": [f"s_{size}_{r:05d}_{c:05d}-1" for r, c in zip(rows, cols, strict=True)],
            "in_tissue": (cols > 0).astype(int),
            "array_row": rows,
            "array_col": cols,
            "pxl_row_in_fullres": rows * 16.0 + 100,
            "pxl_col_in_fullres": cols * 16.0 + 200,
        }
    )
    table.to_parquet(folder / "spatial/tissue_positions.parquet", index=False)
    facts = {"spot_diameter_fullres": 16.0, "bin_size_um": 8.0, "microns_per_pixel": 0.5, "tissue_hires_scalef": 0.1}
    (folder / "spatial/scalefactors_json.json").write_text(json.dumps(facts))
    barcodes = list(table.barcode[table.in_tissue == 1])
    matrix = np.random.default_rng(0).poisson(2, (len(barcodes), len(PANEL)))
    write_10x(folder, "h5", matrix, barcodes, PANEL)
    return folder


def test_visium_hd(tmp_path):
    outs = tmp_path / "run" / "outs"
    folders = [write_hd(outs, size) for size in ("002um", "008um")]
    for path in (outs, outs.parent):
        says = refuses(path, "of Visium HD, which has a folder for each size of bins; give ")
        assert all(str(folder) in says for folder in folders)
        refused(path, r"is a folder; give a file of spots, such as .*square_002um/spatial/tissue_positions.parquet")
    image = picture(tmp_path / "run/big.png")
    (section,) = read_sections(folders[1])
    assert (section.name, section.patient, section.image) == ("run_square_008um", "run", image)
    assert (len(section.spots), section.mpp, section.doubts) == (35, 0.5, ())
    assert section.xy[0].tolist() == [216, 100]
    shutil.rmtree(outs / "spatial")
    refuses(outs, "of Visium HD")


def test_links_and_odd_names(tmp_path):
    write_visium(tmp_path / "store/ab12/outs")
    runs = tmp_path / "runs #1\nof two"
    (runs / "A").mkdir(parents=True)
    os.symlink(tmp_path / "store/ab12/outs", runs / "A/outs")
    section = read_visium(runs / "A/outs")
    assert (section.name, section.patient) == ("A", "A")
    assert read_visium(runs / "A").image == runs / "A/outs/image.tif"
    write_h5ad(runs / "s #2.h5ad")
    os.symlink(runs / "s #2.h5ad", runs / "link\n.h5ad")
    os.symlink(runs / "s #2.png", runs / "link\n.png")
    for path in runs.iterdir():
        path.chmod(0o555)
    assert [read_h5ad(runs / name).name for name in ("s #2.h5ad", "link\n.h5ad")] == ["s #2", "link\n"]
    assert len(read_spots(runs / "link\n.h5ad")) == 20


# tables of spots


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("x,y\n10.5,20\n30,40.25\n", ["0", "1"]),
        ("X,Y\r\n10.5,20\r\n30,40.25\r\n", ["0", "1"]),
        ("\ufeffname,x,y\na,10.5,20\nb,30,40.25\n", ["a", "b"]),
        ("x;y;ID\n10,5;20;a\n30;40,25;b\n", ["a", "b"]),
        ('"";"spot";"x";"y"\n"1";"a";10,5;20\n"2";"b";30;40,25\n', ["a", "b"]),
        (" y \t x \tbarcode\n20\t10.5\ta\n40.25\t30\tb\n", ["a", "b"]),
        ("x,y,name,in_tissue\n10.5,20,a,TRUE\n30,40.25,b,True\n1,1,c,FALSE\n", ["a", "b"]),
        (",pxl_col_in_fullres,pxl_row_in_fullres,barcode\n0,10.5,20,a\n1,30,40.25,b\n", ["a", "b"]),
        (
            "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres\n"
            "a,1,0,0,20,10.5\nb,1.0,1.0,1.0,40.25,30\n",
            ["a", "b"],
        ),
    ],
)
def test_tables_of_spots(tmp_path, text, names):
    path = tmp_path / "spots.csv"
    path.write_bytes(text.encode())
    tiles = read_spots(path)
    assert tiles.xy.tolist() == [[10.5, 20], [30, 40.25]]
    assert tiles.names == names


def test_compressed_positions(tmp_path):
    import gzip

    write_visium(tmp_path / "outs", positions="v1")
    plain = tmp_path / "outs/spatial/tissue_positions_list.csv"
    packed = tmp_path / "GSM1_tissue_positions_list.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_spots(packed).names == read_spots(plain).names


def test_tables_that_are_no_spots_are_named(tmp_path):
    path = tmp_path / "spots.csv"
    for text, why in (
        ("a,b\n1,2\n", "is not a file of spots .its columns are a, b.; give a table with the columns x and y"),
        ("x,y\n1,2\n3\n", "has a row of 1 cells, but 2 columns"),
        ("x,y\n1,far\n", "its column y has 'far', which is not a number"),
        ("x\ty\n1,5\t2\n", "its column x has '1,5', which is not a number"),
        ("x,y\n1,\n", "its column y has ''"),
        ("x,y,name\n1,2,a\n3,4,a\n", "names the spot a more than once"),
        ("x,y\n", "no spot"),
        ("", "not a file of spots"),
    ):
        path.write_text(text)
        refused(path, why)
    (tmp_path / "spots.parquet").write_bytes(b"PAR1")
    refused(tmp_path / "spots.parquet", "is not a file of spots")
    refused(tmp_path, "is a folder; give a file of spots")


def test_parquet_without_its_package(tmp_path, monkeypatch):
    import sys

    pd.DataFrame({"x": [1], "y": [2]}).to_parquet(tmp_path / "s.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ExtraError, match=r"tcgn_hub\[parquet\]"):
        read_spots(tmp_path / "s.parquet")


def test_sheets_of_spreadsheets(tmp_path):
    write_h5ad(tmp_path / "s.h5ad")
    for text in (
        "\ufeffsection;patient;data;mpp\r\none;P;s.h5ad;0,95\r\n",
        "section\tpatient\tdata\tmpp\none\tP\ts.h5ad\t0.95\n",
    ):
        (tmp_path / "sheet.csv").write_bytes(text.encode())
        assert [(section.name, section.mpp) for section in read_sections(tmp_path / "sheet.csv")] == [("one", 0.95)]
    write_patches(tmp_path)
    want = [
        section.counts for section in read_sections(tmp_path / "patches.csv", expression=tmp_path / "expression.csv")
    ]
    table = pd.read_csv(tmp_path / "expression.csv", index_col=0)
    (table + 0.0).to_csv(tmp_path / "expression.csv", sep=";", decimal=",", float_format="%.2f", encoding="utf-8-sig")
    got = read_sections(tmp_path / "patches.csv", expression=tmp_path / "expression.csv")
    assert all(np.array_equal(section.counts, counts) for section, counts in zip(got, want, strict=True))


# AnnData as others write it


def test_positions_as_a_data_frame(tmp_path):
    data = write_h5ad(tmp_path / "s.h5ad")
    xy = data.obsm["spatial"]
    for columns in (["x", "y"], ["pxl_row_in_fullres", "pxl_col_in_fullres"], ["a", "b"], ["Y", "X"]):
        turned = columns[0] in ("pxl_row_in_fullres", "Y")
        frame = pd.DataFrame(xy[:, ::-1] if turned else xy, columns=columns, index=data.obs_names)
        data.obsm["spatial"] = frame
        data.write_h5ad(tmp_path / "s.h5ad")
        assert read_spots(tmp_path / "s.h5ad").xy.tolist() == xy.tolist()
        assert read_h5ad(tmp_path / "s.h5ad").xy.tolist() == xy.tolist()


def test_names_of_spots_may_be_numbers(tmp_path):
    data = write_h5ad(tmp_path / "s.h5ad")
    data.obs.index = pd.Index([str(i) for i in range(20)])
    data.write_h5ad(tmp_path / "s.h5ad")
    assert read_spots(tmp_path / "s.h5ad").names == read_h5ad(tmp_path / "s.h5ad").spots == [str(i) for i in range(20)]
    pd.DataFrame({"barcode": range(3), "x": 1.0, "y": [1, 2, 3]}).to_parquet(tmp_path / "s.parquet")
    assert read_spots(tmp_path / "s.parquet").names == ["0", "1", "2"]


def test_what_anndata_does_not_know_is_one_sentence(tmp_path):
    import h5py

    write_h5ad(tmp_path / "s.h5ad")
    with h5py.File(tmp_path / "s.h5ad", "a") as file:
        file["obsm/spatial"].attrs["encoding-version"] = "9.9.9"
    refuses(tmp_path / "s.h5ad", r"s.h5ad is no \.h5ad file that can be read")
    refused(tmp_path / "s.h5ad", r"s.h5ad is no \.h5ad file that can be read")


# what an attack found


def test_rows_that_are_longer_than_the_header(tmp_path):
    path = tmp_path / "r.tsv"
    path.write_text('"x"\t"y"\n"a"\t500\t600\n"b"\t700\t800\n')
    tiles = read_spots(path)
    assert (tiles.names, tiles.xy.tolist()) == (["a", "b"], [[500, 600], [700, 800]])
    path.write_text("x,y\n500,600,\n700,800\n\n , \n")
    assert read_spots(path).xy.tolist() == [[500, 600], [700, 800]]
    path.write_text("x,y\n500,600,7\n700,800\n")
    refused(path, "has a row of 3 cells, but 2 columns: 500, 600, 7")


def test_spots_of_several_sections_share_places_of_the_array(tmp_path):
    path = tmp_path / "two.csv"
    rows = "".join(f"{100 * i},{50 + i},{i},{i % 2}\n" for i in range(10))
    path.write_text(f"x,y,array_row,array_col\n{rows}")
    assert len(read_spots(path)) == 10
    path.write_text(f"x,y,array_row,array_col\n{rows}{rows}")
    refused(path, "holds several sections, as its 20 spots have but 10 places in the array")


def test_a_place_that_is_no_number_is_one_sentence(tmp_path):
    path = tmp_path / "inf.csv"
    path.write_text("x,y,array_row,array_col\n500,500,inf,0\n")
    refused(path, "is not a file of spots")


def test_one_place_for_all_spots_says_nothing(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("x,y,array_row,array_col\n" + "".join(f"{100 * i},50,0,0\n" for i in range(10)))
    assert len(read_spots(path)) == 10
