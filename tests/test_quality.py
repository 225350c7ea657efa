"""How well tiles show their tissue: what each measure answers to, and what is left out by it."""

import json
from pathlib import Path

import anndata
import golden
import numpy as np
import onnx_file
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from sections import PANEL
from test_slides import SVS

import tcgn_hub
from tcgn_hub.cli.main import main
from tcgn_hub.errors import NoTissueError
from tcgn_hub.images.quality import LIMIT_UM, MEASURES, REASONS, graded, measure, poor_by
from tcgn_hub.images.readers import open_slide
from tcgn_hub.images.transforms import to_input_array
from tcgn_hub.prediction.picture import picture_means, picture_parts
from tcgn_hub.writing.tables import to_table

MPP = 0.499
SIDE = round(154 / MPP)


def tiles() -> list[np.ndarray]:
    """Tissue of two laboratories: skin of the example slide, and breast."""
    with open_slide(SVS) as slide:
        skin = [slide.read(x, y, SIDE, SIDE) for x, y in ((1000, 900), (860, 1500), (1200, 2100))]
    return [sized(tile) for tile in [*skin, np.asarray(Image.open(golden.PATCHES[0]).convert("RGB"))]]


def sized(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((224, 224), Image.Resampling.BILINEAR))


TILES = tiles()


def said(*patches: np.ndarray, um_per_px: float = LIMIT_UM) -> dict[str, np.ndarray]:
    parts = picture_parts(picture_means(to_input_array(list(patches))))
    return graded(measure(parts.blocks, parts.energy[:, 0], parts.energy[:, 1]), um_per_px)


def blurred(pixels: np.ndarray, um: float, um_per_px: float = LIMIT_UM) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(um / um_per_px)))


def through(pixels: np.ndarray, light: object, part: slice) -> np.ndarray:
    """With what lets through so much light over a part of the rows."""
    changed = pixels.astype(float)
    changed[part] *= light
    return changed.round().astype(np.uint8)


def half_blurred(path: Path, *, sharp: int = 620) -> Path:
    """A part of the example slide that is out of focus, but for its upper rows."""
    with open_slide(SVS) as slide:
        pixels = slide.read(900, 640, 620, 1240)
    pixels = np.concatenate([pixels[:sharp], blurred(pixels[sharp:], 3, MPP)])
    tifffile.imwrite(path, pixels, tile=(256, 256), resolution=(1e4 / MPP,) * 2, resolutionunit="CENTIMETER")
    return path


@pytest.fixture(scope="module")
def predictor(tiny_weights):
    return tcgn_hub.load(path=tiny_weights, device="cpu", precision="float32")


@pytest.fixture(scope="module")
def slide(tmp_path_factory) -> Path:
    return half_blurred(tmp_path_factory.mktemp("slides") / "half.tif")


# what it answers to


def test_tissue_of_other_laboratories_is_not_poor():
    known = said(*TILES)
    assert known["quality"].min() > 0.8
    assert set(known) == {"quality", *MEASURES}
    assert {values.dtype for values in known.values()} == {np.dtype(np.float32)}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, len(TILES) - 1), st.sets(st.integers(0, 12), min_size=2, max_size=4))
def test_the_more_it_is_blurred_the_lower_is_the_focus(index, thirds):
    focus = said(*(blurred(TILES[index], third / 3) for third in sorted(thirds)))["focus"]
    assert np.diff(focus).max() < 0


def test_the_focus_is_not_the_contrast():
    """As the variance of the Laplacian is, by which pale tissue would be out of focus."""
    tissue = TILES[0].astype(float)
    pale = (0.5 * tissue + 0.5 * tissue.mean(axis=(0, 1))).round().astype(np.uint8)
    before, after = (picture_parts(picture_means(to_input_array([p]))).energy[0, 1] for p in (TILES[0], pale))
    assert after < 0.3 * before
    focus = said(TILES[0], pale)["focus"]
    assert focus[1] > 0.7 * focus[0]
    assert said(np.full_like(pale, (240, 215, 235)))["focus"] < 0.01  # glass that is stained, which has none


@pytest.mark.parametrize("finer", [0.5, 0.8])
def test_the_focus_is_that_of_tissue_and_not_of_pixels(finer):
    tissue = blurred(TILES[0], 0.7)
    side = round(224 * finer)
    larger = sized(tissue[:side, :side])
    whole, part = said(tissue)["focus"][0], said(larger, um_per_px=finer * LIMIT_UM)["focus"][0]
    assert said(larger)["focus"][0] < 0.85 * part
    assert 0.6 < part / whole < 1.7


@pytest.mark.parametrize("ink", [(40, 140, 80), (30, 30, 30), (30, 60, 200), (250, 230, 60)])
def test_ink_is_how_much_of_the_tile_it_covers(ink):
    light = np.array(ink) / 255
    for tissue in TILES:
        known = said(tissue, *(through(tissue, light, slice(0, 28 * rows)) for rows in (1, 2, 4, 8)))
        assert np.diff(known["pen"]).min() >= 0
        assert known["pen"][0] < 0.02
        assert known["pen"][3] > 0.15
        assert known["quality"][3] < known["quality"][0]
    glass = np.full((224, 224, 3), 243, np.uint8)
    assert said(through(glass, light, slice(0, 56)))["pen"] == 0.25


def test_a_fold_is_dense_and_of_the_colour_of_tissue():
    for tissue in TILES:
        triple = (tissue / 255.0) ** 2
        known = said(tissue, through(tissue, triple[:112], slice(0, 112)), through(tissue, triple, slice(0, 224)))
        assert np.diff(known["fold"]).min() >= 0
        assert known["pen"].max() < 0.05
        assert known["fold"][2] > known["fold"][0]


def test_without_colour_there_is_no_quality():
    tissue = TILES[0].astype(float)
    grey = tissue.mean(axis=2, keepdims=True)
    known = said(*((grey + share * (tissue - grey)).round().astype(np.uint8) for share in (1, 0.5, 0.2)))
    assert np.diff(known["saturation"]).max() < 0
    assert known["quality"][2] < 0.5
    assert not poor_by(known)["focus"].any()


def test_the_stain_is_a_matter_of_hue_and_not_of_quality():
    red, green, blue = np.moveaxis(TILES[3], 2, 0)
    known = said(TILES[3], np.stack([blue, green, red], axis=2), TILES[0])
    assert known["stain_distance"][0] < 1  # of the laboratory that it is told by
    assert known["stain_distance"][1:].min() > 1
    assert known["quality"][2] > 0.9


def test_what_is_blank_or_black_has_numbers():
    known = said(*(np.full((224, 224, 3), level, np.uint8) for level in (0, 128, 255)))
    assert all(np.isfinite(values).all() for values in known.values())
    assert known["quality"].max() == 0


@settings(max_examples=15, deadline=None)
@given(st.integers(0, len(TILES) - 1), st.integers(0, 3), st.booleans())
def test_rotations_and_reflections_change_nothing(index, turns, mirrored):
    tissue = through(TILES[index], (0.2, 0.5, 0.3), slice(30, 80))
    turned = np.rot90(tissue[:, ::-1] if mirrored else tissue, turns)
    for values in said(tissue, np.ascontiguousarray(turned)).values():
        assert values[1] == pytest.approx(values[0], rel=1e-3, abs=1e-3)


# predicting


def test_batches_and_backends_agree(predictor, tmp_path):
    patches = [*TILES, blurred(TILES[0], 2)]
    at_once = predictor.patches(patches, mpp=LIMIT_UM)
    assert set(at_once.obs) >= {"quality", *MEASURES}
    one_by_one = [predictor.patches([patch], mpp=LIMIT_UM) for patch in patches]
    exported = tcgn_hub.load(path=onnx_file.write(tmp_path / "model.onnx", predictor.info))
    for key in ("quality", *MEASURES):
        np.testing.assert_allclose(np.concatenate([one.obs[key] for one in one_by_one]), at_once.obs[key], rtol=1e-5)
        np.testing.assert_allclose(exported.patches(patches, mpp=LIMIT_UM).obs[key], at_once.obs[key], rtol=1e-5)
    assert at_once.poor == {"focus": 1}


def test_tiles_that_are_out_of_focus_are_found_and_left_out(predictor, slide, tmp_path, monkeypatch):
    options = {"stride_um": 77, "workers": 0, "genes": PANEL[:2]}
    whole = predictor.slide(slide, **options, resume=tmp_path / "state")
    low = whole.obsm["spatial"][:, 1] > 620 + SIDE / 2
    high = whole.obsm["spatial"][:, 1] < 620 - SIDE / 2
    assert whole.obs["quality"][low].max() < 0.5 < whole.obs["quality"][high].min()
    assert set(whole.poor) == {"focus"}
    assert ((whole.obs["tissue_share"] >= 0.5) & (whole.obs["tissue_share"] <= 1)).all()
    assert "poor quality" in to_table(whole)

    # what was predicted is kept, whatever is left out of it
    monkeypatch.setattr(tcgn_hub.Predictor, "_begin", None)
    same = predictor.slide(slide, **options, min_quality=0, resume=tmp_path / "state")
    np.testing.assert_array_equal(same.X, whole.X)
    assert same.left_out == whole.left_out == {}
    kept = predictor.slide(slide, **options, min_quality=0.5, resume=tmp_path / "state")
    good = whole.obs["quality"] >= 0.5
    assert kept.names == [name for name, is_good in zip(whole.names, good, strict=True) if is_good]
    np.testing.assert_array_equal(kept.X, whole.X[good])
    for key, values in whole.obs.items():
        np.testing.assert_array_equal(kept.obs[key], values[good])
    assert set(kept.left_out) == set(whole.names) - set(kept.names)
    assert all(why.endswith("(focus)") for why in kept.left_out.values())
    assert kept.poor == {}


def test_a_slide_that_is_out_of_focus_is_told_in_one_sentence(predictor, tmp_path):
    path = half_blurred(tmp_path / "all.tif", sharp=0)
    says = r"^Of \d+ tiles of .*all.tif none has a quality of 0.5, so that .* \(focus\); give a lower min_quality.$"
    with pytest.raises(NoTissueError, match=says):
        predictor.slide(path, stride_um=200, workers=0, min_quality=0.5)
    (record,) = predictor.slides([path], tmp_path / "out", stride_um=200, min_quality=0.5)
    assert (record.state, record.tiles) == ("no tissue", 0)
    assert "none has a quality of 0.5" in record.error


def test_where_tissue_was_not_looked_for_its_share_is_not_known(predictor, slide, tmp_path):
    (tmp_path / "spots.csv").write_text("name,x,y\na,310,200\nb,310,900\n")
    for options in ({"spots": tmp_path / "spots.csv"}, {"min_tissue": 0, "stride_um": 300}):
        result = predictor.slide(slide, workers=0, **options)
        assert np.isnan(result.obs["tissue_share"]).all()
    result.write(tmp_path / "out.geojson")
    measured = json.loads((tmp_path / "out.geojson").read_text())["features"][0]["properties"]["measurements"]
    assert set(measured) >= {"quality", *MEASURES}
    assert "tissue_share" not in measured
    result.write(tmp_path / "out.h5ad")
    back = anndata.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_array_equal(back.obs["quality"], result.obs["quality"])
    assert json.loads(back.uns["tcgn"]["left_out"]) == {}


def test_the_command_leaves_out_and_says_so(tiny_weights, slide, tmp_path, capsys):
    names = []
    for i, patch in enumerate([TILES[0], blurred(TILES[0], 2)]):
        names.append(str(tmp_path / f"p{i}.png"))
        Image.fromarray(patch).save(names[-1])
    common = ["--weights", str(tiny_weights), "--precision", "float32"]
    patches = ["predict", *common, "--mpp", str(LIMIT_UM), "--min-quality", "0.5", "--format", "csv"]
    assert main([*patches, *names]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert "left out: " in err
    assert "p1.png, quality 0." in err
    assert main([*patches, names[1]]) == 1
    assert "p1.png none has a quality of 0.5" in (err := capsys.readouterr().err)
    assert "--min-quality" in err.splitlines()[-1]

    tiled = ["predict", str(slide), *common, "--stride-um", "154", "--genes", PANEL[0]]
    assert main([*tiled, "-o", str(tmp_path / "a.csv")]) == 0
    assert "of poor quality" in capsys.readouterr().err
    assert main([*tiled, "-o", str(tmp_path / "b.csv"), "--min-quality", "0.5"]) == 0
    assert "left out for their quality" in capsys.readouterr().err
    whole, kept = (len((tmp_path / f"{name}.csv").read_text().splitlines()) for name in "ab")
    assert 1 < kept < whole
    with pytest.raises(SystemExit, match="2"):
        main([*tiled, "-o", str(tmp_path / "c.csv"), "--min-quality", "2"])
    assert "2 is not from 0 to 1" in capsys.readouterr().err


def test_a_ledger_counts_them(predictor, slide, tmp_path):
    options = {"stride_um": 154, "genes": PANEL[:2]}
    (whole,) = predictor.slides([slide], tmp_path, **options)
    assert whole.poor_tiles > 0 == whole.left_out_tiles
    assert whole.quality["poor"] == whole.poor_tiles / whole.tiles == whole.quality["focus"]
    (kept,) = predictor.slides([slide], tmp_path, **options, min_quality=0.5)
    assert kept.run != whole.run  # for its outputs are others
    assert (kept.poor_tiles, kept.left_out_tiles) == (0, whole.poor_tiles)
    assert kept.tiles == whole.tiles - whole.poor_tiles
    assert kept.quality["poor"] == whole.quality["poor"]
    assert main(["cohort", "summary", str(tmp_path)]) == 0
    head, row = (line.split(",") for line in (tmp_path / "cohort.csv").read_text().splitlines())
    assert dict(zip(head, row, strict=True))["left_out"] == str(kept.left_out_tiles)
    assert {"poor", *REASONS} <= set(head)
