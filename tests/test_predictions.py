"""Predictions of other methods: read from whatever wrote them, and matched with spots and genes."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.linear_model import Ridge

from tcgn_hub.correlation import pearson
from tcgn_hub.data.predictions import read_predictions
from tcgn_hub.data.sections import Section, expression_targets
from tcgn_hub.errors import SectionError
from tcgn_hub.evaluation.evaluate import summarise
from tcgn_hub.evaluation.referee import read_given, with_predictions
from tcgn_hub.result import Measured

GENES = ["GNAS", "FASN", "PGAP3", "CD24", "AFDN", "AGO2"]  # the last two were MLLT4 and EIF2C2
SIDE = 8


def make_section(name, *, spots=None, seed=0, **changes):
    """A grid of spots 100 px apart."""
    rng = np.random.default_rng(seed)
    xy = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1).reshape(-1, 2)
    values = {
        "name": name,
        "patient": name[0],
        "image": None,
        "spots": [f"{x}x{y}" for x, y in xy] if spots is None else spots,
        "xy": 100.0 * xy + 50,
        "genes": GENES,
        "counts": rng.poisson(20, (SIDE**2, len(GENES))).astype(np.float32),
    }
    return Section(**{**values, **changes})


C6, B4 = make_section("C6"), make_section("B4", seed=1)
WANT = {
    section.name: np.random.default_rng(i).normal(size=(SIDE**2, len(GENES))).astype(np.float32)
    for i, section in enumerate((C6, B4))
}


def frame(of=C6, **columns):
    return pd.DataFrame({**columns, **dict(zip(GENES, WANT[of.name].T, strict=True))}, index=of.spots)


def barcodes(seed):
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list("ACGT"), 16)) + "-1" for _ in range(SIDE**2)]


def shuffled(table, seed=0):
    """Rows and columns in another order, which says nothing."""
    rng = np.random.default_rng(seed)
    return table.iloc[rng.permutation(len(table)), rng.permutation(table.shape[1])]


def as_h5ad(table, path, **more):
    genes = [name for name in table if name in GENES or name.startswith("other")]
    data = anndata.AnnData(
        table[genes].to_numpy(np.float32), obs=table.drop(columns=genes), var=pd.DataFrame(index=genes)
    )
    for key, values in more.items():
        setattr(data, key, values)
    data.write_h5ad(path)


def write_semicolons(table, path):
    table.to_csv(path, sep=";", decimal=",")


def write_like_r(table, path):
    lines = table.to_csv(sep="\t").splitlines()
    path.write_text("\n".join([lines[0].removeprefix("\t"), *lines[1:]]) + "\n")


def write_sparse(table, path):
    as_h5ad(table, path)
    data = anndata.read_h5ad(path)
    data.X = sparse.csr_matrix(data.X)
    data.write_h5ad(path)


WRITERS = {
    "a.csv": lambda table, path: table.to_csv(path),
    "a.tsv.gz": lambda table, path: table.to_csv(path, sep="\t"),
    "b.csv": write_semicolons,
    "r.txt": write_like_r,
    "a.parquet": lambda table, path: table.to_parquet(path),
    "b.parquet": lambda table, path: table.rename_axis("barcode").reset_index().to_parquet(path, index=False),
    "a.h5ad": as_h5ad,
    "b.h5ad": write_sparse,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_in_any_order_holds_the_same(name, tmp_path):
    table = shuffled(frame().assign(**{"other gene": 7.0, "other one": 8.0}))
    WRITERS[name](table, tmp_path / name)
    given = read_predictions(tmp_path / name, [C6], GENES)
    np.testing.assert_array_equal(given.values["C6"], WANT["C6"])
    assert given.label == name.split(".")[0]
    assert (given.notes, given.missing_genes, given.missing_spots, given.ours) == ([], [], {}, False)


def test_what_is_in_memory_is_read_as_files_are(tmp_path):
    data = anndata.AnnData(frame())
    for source in (
        shuffled(frame()),
        frame().rename_axis("spot").reset_index(),
        data,
        {"C6": WANT["C6"]},
        {"C6": shuffled(frame())},
    ):
        np.testing.assert_array_equal(read_predictions(source, [C6], GENES).values["C6"], WANT["C6"])


def names(kind, section):
    return {
        "column": lambda: frame(section, section=section.name),
        "library": lambda: frame(section, library_id=section.name, in_tissue=1),
        "any column": lambda: frame(section).rename_axis("spot").reset_index().set_index([[section.name] * SIDE**2]),
        "before": lambda: frame(section).rename(index=lambda spot: f"{section.name}_{spot}"),
        "after": lambda: frame(section).rename(index=lambda spot: f"{spot}-{section.name}"),
    }[kind]()


@pytest.mark.parametrize("kind", ["column", "library", "any column", "before", "after"])
@pytest.mark.parametrize("measured", [[C6, B4], [C6]])
@pytest.mark.parametrize("text", [True, False])
def test_spots_of_several_sections_have_the_same_names(kind, measured, text, tmp_path):
    table = pd.concat([names(kind, section) for section in (B4, C6)])
    if text:
        table.to_csv(tmp_path / "a.csv")
    given = read_predictions(tmp_path / "a.csv" if text else table, measured, GENES)
    for section in measured:
        np.testing.assert_allclose(given.values[section.name], WANT[section.name], rtol=1e-6)
    assert given.notes == (["64 rows are of no spot that is measured"] if len(measured) == 1 else [])


def test_barcodes_lose_what_joining_sections_appended(tmp_path):
    section = make_section("C6", spots=barcodes(0))
    other = make_section("B4", spots=barcodes(1))
    for suffix in ("", "-0", "-C6"):
        table = frame().set_axis([spot + suffix for spot in section.spots])
        np.testing.assert_array_equal(read_predictions(table, [section], GENES).values["C6"], WANT["C6"])
    bare = frame().set_axis([spot.removesuffix("-1") for spot in section.spots])
    np.testing.assert_array_equal(read_predictions(bare, [section, other], GENES).values["C6"], WANT["C6"])
    # Visium has one list of barcodes for all sections
    with pytest.raises(SectionError, match=r"spot [ACGT]+-1 may be of section C6, D1; say in a column section"):
        read_predictions(frame().set_axis(section.spots), [section, make_section("D1", spots=section.spots)], GENES)


@pytest.mark.parametrize("way", ["h5ad", "csv"])
def test_spots_are_found_by_position_where_names_are_others(way, tmp_path):
    """Tiles half a pitch apart: the nearest one counts, and no tile is of two spots."""
    rng = np.random.default_rng(3)
    tiles = np.stack(np.meshgrid(np.arange(2 * SIDE), np.arange(2 * SIDE)), axis=-1).reshape(-1, 2)
    places = 50.0 * tiles + 50 + rng.uniform(-10, 10, tiles.shape)
    values = np.full((len(tiles), len(GENES)), 9, np.float32)
    values[(tiles % 2 == 0).all(axis=1)] = WANT["C6"]
    table = pd.DataFrame(values, [f"tile {i}" for i in range(len(tiles))], GENES)
    path = tmp_path / f"a.{way}"
    if way == "csv":
        table.assign(x=places[:, 0], y=places[:, 1]).to_csv(path, index=False)
    else:
        as_h5ad(table, path, obsm={"spatial": places})
    given = read_predictions(path, [C6], GENES)
    np.testing.assert_array_equal(given.values["C6"], WANT["C6"])
    assert given.notes[0] == "rows are matched with spots by position, as none is called as a spot is"
    # of two sections at the same places a position says nothing
    with pytest.raises(SectionError, match="has no row of a spot of sections C6, B4"):
        read_predictions(path, [C6, B4], GENES)
    far = make_section("C6", xy=C6.xy + 1e5)
    with pytest.raises(SectionError, match="has no row of a spot of section C6"):
        read_predictions(path, [far], GENES)


@pytest.mark.parametrize("change", [lambda xy: 0.687 * xy, lambda xy: 1.4 * xy, lambda xy: xy + np.array([400, 0])])
def test_places_in_other_units_fit_by_chance_alone(change):
    x, y = change(C6.xy).T
    table = frame().assign(x=x, y=y).reset_index(drop=True)
    with pytest.raises(SectionError, match=r"64 places for section C6, of which only \d+ are at one of its 64 spots"):
        read_predictions(table, [C6], GENES)
    # a part of the spots is no reason
    part = frame().assign(x=C6.xy[:, 0], y=C6.xy[:, 1]).reset_index(drop=True).iloc[:9]
    assert len(read_predictions(part, [C6], GENES).missing_spots["C6"]) == 55


def test_a_row_between_two_spots_is_of_the_nearer_one_alone():
    near = C6.xy.copy()
    near[1] = near[0] + [20, 0]
    table = frame().assign(x=C6.xy[:, 0] + 5, y=C6.xy[:, 1]).drop(index="1x0")
    given = read_predictions(table.reset_index(drop=True), [make_section("C6", xy=near)], GENES)
    assert given.missing_spots == {"C6": ["1x0"]}
    np.testing.assert_array_equal(given.values["C6"][0], WANT["C6"][0])


def test_ridge_of_scikit_learn():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, SIDE**2, 5))
    train, test = expression_targets(B4, GENES), expression_targets(C6, GENES)
    predicted = Ridge().fit(features[0], train).predict(features[1])
    given = read_predictions(pd.DataFrame(predicted, C6.spots, GENES), [C6], GENES, label="sklearn")
    assert pearson(given.values["C6"], test) == pytest.approx(pearson(predicted, test), abs=1e-6)


def test_a_table_of_a_generative_model_in_counts(tmp_path):
    """Denoised rates of 1,000 genes per cell in another order, of spots of several batches, as scVI gives them."""
    rng = np.random.default_rng(5)
    rates = pd.DataFrame(rng.gamma(1, 3e-4, (SIDE**2, 1000)), C6.spots, [f"OTHER{i}" for i in range(1000)])
    # whatever the genes of no panel have, and the scale of the rest
    rates[GENES] = C6.counts * rng.uniform(0.1, 10, (SIDE**2, 1))
    table = shuffled(rates).rename(index=lambda spot: f"{spot}-1").assign(batch="1")
    table.to_csv(tmp_path / "scvi.csv.gz")
    given = read_predictions(tmp_path / "scvi.csv.gz", [make_section("1")], GENES, scale="linear")
    np.testing.assert_allclose(given.values["1"], expression_targets(C6, GENES), atol=2e-6)
    assert given.ours


def test_predictions_of_a_benchmark_of_foundation_models(tmp_path):
    """Barcodes, Ensembl ids beside symbols, some genes and not all spots, predictions beside the counts."""
    spots = barcodes(2)
    section = make_section("INT1", spots=spots)
    some = frame().set_axis(spots).iloc[10:, [3, 0, 1]]
    data = anndata.AnnData(np.ones((54, 3), np.float32), layers={"pred": some.to_numpy()})
    data.obs_names, data.var_names = list(some.index), ["ENSG00000272398", "ENSG00000087460", "ENSG1"]
    data.var["gene_name"] = list(some.columns)
    data.write_h5ad(tmp_path / "uni.h5ad")
    given = read_predictions(tmp_path / "uni.h5ad", [section], GENES)
    want = np.full((SIDE**2, 6), np.nan, np.float32)
    want[10:, [3, 0, 1]] = some
    np.testing.assert_array_equal(given.values["INT1"], want)
    assert f"10 of 64 spots of INT1 are missing ({', '.join(spots[:5])} and 5 more)" in given.notes
    assert given.missing_spots == {"INT1": spots[:10]}
    assert {"PGAP3", "AFDN", "AGO2"} <= set(given.missing_genes)
    assert "its layer pred was taken, not X" in given.notes


def test_rows_may_be_of_the_slides_of_sections(tmp_path):
    """As a cohort's tiles are, whose slides are called as their files."""
    table = pd.concat([frame(section).assign(slide=f"{section.name}.svs") for section in (B4, C6)])
    as_h5ad(shuffled(table), tmp_path / "all.h5ad")
    given = read_predictions(tmp_path / "all.h5ad", [C6, B4], GENES)
    for name, want in WANT.items():
        np.testing.assert_array_equal(given.values[name], want)
    assert given.notes == []


def test_genes_may_have_other_names():
    renamed = {"AFDN": "MLLT4", "AGO2": "EIF2C2", "FASN": "ENSG00000169710.4"}
    table = frame().rename(columns={**renamed, "GNAS": "gnas"})
    np.testing.assert_array_equal(read_predictions(table, [C6], GENES).values["C6"], WANT["C6"])
    # beside the symbol another name is another gene
    both = frame().assign(**dict.fromkeys(renamed.values(), 0.0), gnas=0.0)
    np.testing.assert_array_equal(read_predictions(both, [C6], GENES).values["C6"], WANT["C6"])
    with pytest.raises(SectionError, match=r"2 columns of GNAS \(gnas, Gnas\)"):
        read_predictions(table.assign(Gnas=1.0), [C6], GENES)


def test_what_is_no_number_is_named(tmp_path):
    table = frame().astype(object)
    table.iloc[3, 0], table.iloc[4, 1] = np.inf, "NA"
    table["CD24"] = 1.5
    table.iloc[7] = None
    table.to_csv(tmp_path / "a.csv")
    for source in (table, tmp_path / "a.csv"):
        given = read_predictions(source, [C6], GENES)
        assert given.notes == [
            "1 of 64 spots of C6 is missing (7x0)",
            "2 genes are not finite in some spots of a section and left out of it (GNAS, FASN)",
            "1 gene is the same in all spots of a section, which gives a correlation of 0 (CD24)",
        ]
        assert np.isnan(given.values["C6"][:, :2]).all()
        assert np.isnan(given.values["C6"]).all(axis=1).sum() == 1


def text(table, path, **options):
    table.to_csv(path, **options)
    return path


REFUSED = {
    "twice a spot": (lambda path: text(pd.concat([frame(), frame()[:1]]), path), "more than one row of spot 0x0"),
    "twice a gene": (lambda path: text(frame().set_axis([*GENES[:5], "GNAS"], axis=1), path), "2 columns of GNAS"),
    "no spot": (
        lambda path: text(frame().set_axis(barcodes(1)), path),
        r"no row of a spot of section C6: its rows are called [ACGT]+-1.* and 61 more, the spots 0x0, 1x0, 2x0 and 61",
    ),
    "no gene": (
        lambda path: text(frame().add_suffix("?"), path),
        r"none of the 6 genes of the panel, such as GNAS, FASN, PGAP3 and 3 more: its columns are called .*GNAS\?",
    ),
    "turned": (lambda path: text(frame().T, path), "its rows do, so turn the table about"),
    "text": (
        lambda path: text(frame().astype(str).replace(str(WANT["C6"][2, 1]), "high"), path),
        "has 'high' in its column FASN, which is not a number",
    ),
    "nothing": (lambda path: text(frame() * np.nan, path), "predicts nothing that is a number for section C6"),
    "a short row": (lambda path: path.write_text("s,GNAS,FASN\n0x0,1\n") and path, "Row 0x0 .* has 2 cells"),
    "no rows": (lambda path: path.write_text("s,GNAS\n") and path, "has no rows"),
    "empty": (lambda path: path.write_text("") or path, "has no rows"),
    "no file": (lambda path: path, "There is no file of predictions"),
    "another format": (lambda path: path.with_suffix(".pkl"), r"no file"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_matched_is_refused_in_a_sentence(kind, tmp_path):
    make, why = REFUSED[kind]
    with pytest.raises(SectionError, match=why):
        read_predictions(make(tmp_path / "a.csv"), [C6], GENES)


@pytest.mark.parametrize("name", ["a.h5ad", "a.parquet", "a.pkl"])
def test_files_that_are_something_else(name, tmp_path):
    (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(SectionError, match=r"can be read|is of no format of predictions that is read: \.h5ad, "):
        read_predictions(tmp_path / name, [C6], GENES)


def test_linear_values_are_not_negative_and_have_a_sum(tmp_path):
    with pytest.raises(SectionError, match=r"linear values are never negative; say predictions_scale='log'"):
        read_predictions(frame(), [C6], GENES, scale="linear")
    with pytest.raises(SectionError, match="log or linear, not 'ln'"):
        read_predictions(frame(), [C6], GENES, scale="ln")
    table = frame().abs()
    table.iloc[5] = 0
    given = read_predictions(table, [C6], GENES, scale="linear")
    assert given.missing_spots == {"C6": ["5x0"]}
    # of some of the genes a share is one of another sum
    assert not read_predictions(table[GENES[:4]], [C6], GENES, scale="linear").ours


def test_arrays_have_the_shape_of_the_section_as_it_was_read():
    kept = C6.at(np.arange(5, 60))
    rows = {"C6": C6.spots, "B4": B4.spots}
    given = read_predictions(WANT, [kept], GENES, rows=rows)
    np.testing.assert_array_equal(given.values["C6"], WANT["C6"][5:60])
    with pytest.raises(SectionError, match=r"shape \(63, 6\), but it has 64 spots and 6 genes"):
        read_predictions({"C6": WANT["C6"][1:]}, [kept], GENES, rows=rows)
    with pytest.raises(SectionError, match="given for X9, but the sections are C6, B4"):
        read_predictions({"X9": WANT["C6"]}, [kept], GENES, rows=rows)
    with pytest.raises(SectionError, match="given for B4, but not for section C6"):
        read_predictions({"B4": WANT["B4"]}, [kept], GENES, rows=rows)
    with pytest.raises(SectionError, match="not int"):
        read_predictions(3, [kept], GENES)


def test_a_bulk_measurement_has_no_spots_to_score():
    with pytest.raises(SectionError, match="Section C6 has one measurement of the whole slide"):
        read_predictions(frame(), [make_section("C6", bulk=True)], GENES)


# ------------------------------------------------------------------------------------------------------ beside others


def as_measured(section):
    targets = expression_targets(section, GENES)
    return Measured(
        section.name,
        section.patient,
        section.xy,
        targets,
        targets + 1,
        {"ridge": targets * 2},
        counts=section.counts,
    )


def test_a_spot_that_one_method_lacks_is_left_out_for_all():
    given = read_given(
        {"a": frame().iloc[3:], "b": frame().iloc[:-2]}, {"a": "log"}, [C6], GENES, rows={"C6": C6.spots}
    )
    (measured,), notes = with_predictions([as_measured(C6)], given)
    assert notes[-1] == "5 of 64 spots of C6 are left out for all methods, as not in a, b"
    assert "a: 3 of 64 spots of C6 are missing (0x0, 1x0, 2x0)" in notes
    assert list(measured.methods) == ["TCGN", "a", "b", "ridge"]
    assert np.isnan(measured.predictions["a"]).all(axis=1).sum() == 3
    # of which others make one table of the 59 that are left
    summary = summarise([measured], GENES, repeats=20).summary
    assert (summary["spots"], summary["spots_left_out"]) == (59, 5)


def test_rows_of_another_section_are_not_taken_silently():
    table = frame(section="B4")
    notes = read_predictions(table, [C6], GENES).notes
    assert notes == ["rows are said to be of B4, which is no section here, and were taken to be of section C6"]
    with pytest.raises(SectionError, match="predicts sections B4, but not section C6"):
        read_predictions(table, [C6], GENES, rows={"C6": C6.spots, "B4": B4.spots})


def test_protocols_are_of_the_spots_that_all_methods_have():
    given = read_given({"a": frame().iloc[::2], "b": frame()}, "log", [C6], GENES, rows={"C6": C6.spots})
    (measured,), _ = with_predictions([as_measured(C6)], given)
    summary = summarise([measured], GENES, repeats=20).summary
    assert summary["spots"] == 32
    want = {label: pytest.approx(values["median_pcc"]) for label, values in summary["methods"].items()}
    assert summary["protocols"]["per section"] == summary["protocols"]["pooled"] == want


def test_errors_are_stated_of_predictions_in_our_units_alone():
    sources = {"a": frame(), "b": frame().abs()}
    given = read_given(sources, {"b": "linear"}, [C6], GENES, rows={})
    (measured,), _ = with_predictions([as_measured(C6)], given)
    methods = summarise([measured], GENES, repeats=20).summary["methods"]
    assert methods["a"]["median_rmse"] is methods["a"]["median_nrmse"] is None
    assert methods["b"]["median_rmse"] > 0
    assert methods["TCGN"]["median_rmse"] == pytest.approx(1)


def test_a_section_that_one_method_lacks_is_left_out_for_all():
    both = pd.concat([frame(section, section=section.name) for section in (C6, B4)])
    sources = {"a": both, "b": frame(section="C6")}
    given = read_given(sources, "log", [C6, B4], GENES, rows={})
    measured, notes = with_predictions([as_measured(C6), as_measured(B4)], given)
    assert [section.name for section in measured] == ["C6"]
    assert notes[-1] == "section B4 is left out for all methods, as no spot of it is in all of b"
    with pytest.raises(SectionError, match="No spot is predicted by all methods"):
        with_predictions([as_measured(B4)], given)


@pytest.mark.parametrize("label", ["TCGN", "depth", "ridge resnet18", " "])
def test_a_label_that_something_else_has(label):
    with pytest.raises(SectionError, match="Predictions cannot be called"):
        read_given({label: frame()}, "log", [C6], GENES, rows={})


def test_a_scale_of_what_is_not_given():
    with pytest.raises(SectionError, match="A scale is given of b, but predictions only of a"):
        read_given({"a": frame()}, {"b": "log"}, [C6], GENES, rows={})
