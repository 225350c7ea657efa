"""What a viewer is given of a predicted slide; TissUUmaps itself opens it in `ecosystem/test_view.py`."""

import json
import logging
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from results import GENES, HELD_OUT, make, make_patches

import tcgn_hub
from tcgn_hub.cli.main import main
from tcgn_hub.errors import ExtraError, ImageError, SectionError
from tcgn_hub.images.quality import MEASURES
from tcgn_hub.writing import view as module
from tcgn_hub.writing.view import project

GIVEN = {**HELD_OUT, "pcc_given_depth": [0.1, 0.3, None, 0.4]}
FACTS = {"ood", "predicted depth", "tissue share", "quality", *(name.replace("_", " ") for name in MEASURES)}


@pytest.fixture
def written(tmp_path):
    """A result with its slide beside it."""

    def write(suffix, **options):
        small = {"height": 96, "width": 128}
        result = make(name="slide 1.png", sure=True, described=True, held_out=GIVEN, **small, **options)
        result.write(tmp_path / f"slide{suffix}")
        Image.new("RGB", result.slide.size, (240, 240, 240)).save(tmp_path / "slide 1.png")
        return tmp_path / f"slide{suffix}", result

    return write


def opened(path, **options):
    with project(path, **options) as (folder, zoom):
        about, tmap = (json.loads((folder / name).read_text()) for name in ("tiles.json", "view.tmap"))
        with h5py.File(folder / "tiles.h5") as file:
            arrays = {key: file[key][:] for key in file}
        names = {path.name for path in folder.iterdir()}
    assert not folder.exists()
    assert names == {"tiles.json", "view.tmap", "tiles.h5", "tcgn_tiles.js"}
    return about, tmap, arrays, zoom


@pytest.mark.parametrize("suffix", [".h5ad", ".csv"])
def test_it_is_given_what_was_predicted(written, suffix):
    path, result = written(suffix)
    about, tmap, arrays, zoom = opened(path)
    facts = about["columns"][4:]
    assert about["columns"] == [*GENES, *facts]
    assert sorted(facts) == sorted(FACTS)
    assert facts[0] == "ood"
    np.testing.assert_allclose(arrays["X"][:, :4], result.X, atol=1e-5)
    np.testing.assert_allclose(arrays["X"][:, 4], result.obs["ood"], rtol=1e-5)
    np.testing.assert_allclose(np.stack([arrays["x"], arrays["y"]], axis=1), result.obsm["spatial"])
    np.testing.assert_allclose(np.stack([about["x"], about["y"]], axis=1), result.obsm["spatial"])
    assert about["names"] == result.names
    assert list(about["facts"]) == facts
    np.testing.assert_allclose(about["facts"]["ood"], result.obs["ood"], rtol=1e-5)
    assert about["units"] == [result.units] * 4 + [""] * len(facts)
    assert about["said"][:2] == [
        "significant, PCC 0.42, 0.10 given depth",
        "significant, PCC 0.31, 0.30 given depth",
    ]
    assert about["said"][3] == "not significant, PCC 0.01, 0.40 given depth"
    # a table does not say what is predicted for the training tissue
    limits = [
        list(map(float, ends)) for ends in zip(result.var["trained_low"], result.var["trained_high"], strict=True)
    ]
    assert about["limits"] == (limits if suffix == ".h5ad" else [None] * 4) + [None] * len(facts)
    assert zoom.size == result.slide.size
    assert about["side"] == 256
    assert tmap["mpp"] == 0.5
    (genes,) = tmap["markerFiles"]
    assert [option["optionName"] for option in genes["dropdownOptions"]] == [
        *("HLA-DRA", "FASN", "GNAS", "ACTB (not significant)", *facts)
    ]
    columns = [int(option["expectedHeader.cb_col"].removeprefix("/X;")) for option in genes["dropdownOptions"]]
    assert [option["name"] for option in genes["dropdownOptions"]] == [about["columns"][i] for i in columns]


def test_tiles_that_overlap_touch_and_spots_have_their_own_size(written):
    assert opened(written(".h5ad", stride_um=64.0)[0])[0]["side"] == 128
    path, result = written(".h5ad")
    spots = replace(result, uns={**result.uns, "slide": replace(result.slide, stride_um=None)})
    spots.write(path)
    assert opened(path)[0]["side"] == 256


def test_what_was_added_and_taken_away_with_scanpy_is_shown(written):
    import anndata
    from scipy.sparse import csr_matrix

    path, result = written(".h5ad")
    data = anndata.read_h5ad(path)[::2, ["FASN", "GNAS"]].copy()
    data.X = csr_matrix(data.X)
    data.obs["group"] = ["a", "b"] * (data.n_obs // 2) + ["a"] * (data.n_obs % 2)
    data.obs["clusters"] = data.obs["group"].astype("category")
    data.write(path)
    about, _, arrays, _ = opened(path)
    np.testing.assert_allclose(arrays["X"][:, :2], result.X[::2, [1, 0]])
    assert about["facts"]["clusters"][:2] == about["facts"]["group"][:2] == ["a", "b"]
    assert about["columns"][:2] == ["FASN", "GNAS"]
    assert sorted(about["columns"][2:]) == sorted(FACTS)


def test_what_was_added_may_be_unknown_or_infinite(written):
    import anndata
    import pandas as pd

    path, result = written(".h5ad")
    data = anndata.read_h5ad(path)
    rest = data.n_obs - 2
    data.obs["ratio"] = [-np.inf, np.nan, *[1.0] * rest]
    data.obs["agreed"] = pd.array([None, False, *[True] * rest], "boolean")
    data.obs["cells"] = pd.array([None, 2, *[3] * rest], "Int64")
    data.var["trained_low"] = [np.nan, *data.var["trained_low"][1:]]
    data.write(path)
    with project(path) as (folder, _):
        # as browsers do, which know no infinity
        about = json.loads((folder / "tiles.json").read_text(), parse_constant=pytest.fail)
    assert about["facts"]["ratio"][:3] == ["-inf", None, 1]
    assert about["facts"]["agreed"][:3] == [None, False, True]
    assert about["facts"]["cells"][:3] == [None, 2, 3]
    assert about["limits"][0] is None
    assert about["limits"][1] == [float(result.var[f"trained_{end}"][1]) for end in ("low", "high")]


def test_a_table_may_have_been_kept_by_a_spreadsheet(written):
    path, result = written(".csv")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert opened(path)[0]["names"] == result.names


def test_significance_is_withheld_with_the_result(written):
    path, result = written(".h5ad")
    replace(result, obs={**result.obs, "ood": np.full(len(result), 2, np.float32)}).write(path)
    assert opened(path)[0]["said"][0] == "significance withheld, PCC 0.42, 0.10 given depth"


def test_a_slide_that_has_moved_is_found_where_it_is_said_to_be_or_shown_by_its_overview(written, tmp_path, caplog):
    path, result = written(".h5ad")
    (tmp_path / "elsewhere").mkdir()
    moved = Path(shutil.move(tmp_path / "slide 1.png", tmp_path / "elsewhere/renamed.png"))
    with caplog.at_level(logging.INFO, "tcgn_hub"):
        zoom = opened(path)[3]
    assert "slide 1.png is not beside" in caplog.text
    assert zoom._slide is None
    assert zoom.size == result.slide.size
    zoom.square(0, 0, 0)
    assert opened(path, slide=moved)[3]._slide is not None
    Image.new("RGB", (100, 100)).save(moved)
    with pytest.raises(ImageError, match=r"renamed\.png has 100 x 100 px, but .* is of a slide of 2048 x 1536 px"):
        opened(path, slide=moved)
    with pytest.raises(ImageError, match=r"gone\.png does not exist; say where the slide is by slide='FILE'"):
        opened(path, slide=tmp_path / "gone.png")
    written(".csv")
    (tmp_path / "slide 1.png").unlink()
    with pytest.raises(ImageError, match=r"slide 1\.png is not beside"):
        opened(tmp_path / "slide.csv")


def test_names_are_no_html(written):
    path, result = written(".h5ad")
    named = replace(result.slide, path=Path("<b>.png"))
    replace(result, uns={**result.uns, "slide": named}).write(path)
    _, tmap, _, _ = opened(path)
    assert tmap["filename"] == tmap["layers"][0]["name"] == "&lt;b&gt;.png"


def _patches(path):
    make_patches().write(path.with_suffix(".h5ad"))
    return path.with_suffix(".h5ad")


def _patch_table(path):
    make_patches().write(path.with_suffix(".csv"))
    return path.with_suffix(".csv")


def _without_values(path):
    import anndata

    make().write(path.with_suffix(".h5ad"))
    data = anndata.read_h5ad(path.with_suffix(".h5ad"))
    data.X = None
    data.write(path.with_suffix(".h5ad"))
    return path.with_suffix(".h5ad")


def _damaged(path):
    make().write(path.with_suffix(".h5ad"))
    with h5py.File(path.with_suffix(".h5ad"), "r+") as file:
        chunk = file["X"].id.get_chunk_info(0)
    content = bytearray(path.with_suffix(".h5ad").read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"x" * chunk.size
    path.with_suffix(".h5ad").write_bytes(content)
    return path.with_suffix(".h5ad")


def _several(path):
    import anndata

    make().write(path.with_suffix(".h5ad"))
    data = anndata.read_h5ad(path.with_suffix(".h5ad"))
    data.obs["slide"] = ["a"] + ["b"] * (data.n_obs - 1)
    data.write(path.with_suffix(".h5ad"))
    return path.with_suffix(".h5ad")


def _changed(change):
    def write(path):
        import anndata

        path = path.with_suffix(".h5ad")
        make().write(path)
        data = anndata.read_h5ad(path)
        change(data)
        data.write(path)
        return path

    return write


def _table(change):
    def write(path):
        path = path.with_suffix(".csv")
        make().write(path)
        change(path)
        return path

    return write


def _text(old, new):
    return lambda path: path.write_text(path.read_text().replace(old, new, 1))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.with_suffix(".h5ad"), "does not exist"),
        (_table(lambda path: path.rename(path.with_suffix(".txt"))), "does not exist"),
        (lambda path: path.write_text("x") and path, "is neither .h5ad nor .csv"),
        (_patches, "does not say of which slide its tiles are"),
        (_patch_table, "does not say of which slide its tiles are"),
        (_several, "holds 2 slides; view the file of one"),
        (_without_values, "tiles of 0 genes; there is nothing to show"),
        (_damaged, "cannot be read to its end"),
        (_table(lambda path: _text('"mpp": 0.5', '"mpp": "a"')(Path(f"{path}.json"))), "says that mpp is 'a'"),
        (_changed(lambda data: data.uns.update(tcgn=3)), "does not say of which slide its tiles are"),
        (_changed(lambda data: data.uns["tcgn"].update(stride_um="a")), "says that stride_um is 'a'"),
        (_changed(lambda data: data.obsm.update(spatial=data.obsm["spatial"][:, :1])), "does not say where"),
        (_table(_text("GNAS", "\0" * 200_000)), "is no table that can be read"),
        (_table(lambda path: path.write_bytes(path.read_bytes() + b"\xe4")), "is no table that can be read"),
        (_table(lambda path: _text('"gene_ids": {', '"gene_ids": null, "x": {')(Path(f"{path}.json"))), "what was run"),
        (_table(lambda path: Path(f"{path}.json").unlink()), "it says of what slide"),
        (_table(lambda path: Path(f"{path}.json").write_text("[]")), "does not say what was run"),
        (_table(lambda path: Path(f"{path}.json").write_text("{")), "does not say what was run"),
        (_table(_text("name,x,y", "name,a,b")), "has no columns name, x and y"),
        (_table(lambda path: path.write_text(path.read_text().strip() + "x")), "a value that is no number"),
        (_table(_text("\n", ",more\n")), "cells, and its header"),
        (_table(lambda path: path.write_text(path.read_text().splitlines()[0])), "holds 0 tiles of 4 genes"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_a_sentence(tmp_path, write, message):
    with pytest.raises(SectionError, match=message):
        opened(write(tmp_path / "x.txt"))


def test_without_tissuumaps_a_sentence_says_what_to_install(written, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tissuumaps", None)
    path, _ = written(".csv")
    with pytest.raises(ExtraError, match=r"pip install 'tcgn_hub\[view\]'"):
        tcgn_hub.view(path)
    assert main(["view", str(path)]) == 2
    assert capsys.readouterr().err == "tcgn view: To view slides, install tissuumaps: pip install 'tcgn_hub[view]'.\n"
    assert module.logging.getLogger().level == logging.getLogger().level
