"""Names of genes: the symbols of a panel, retired and common names, typing errors."""

import re
import subprocess
import sys
from collections import Counter

import pytest

from tcgn_hub.errors import PanelError
from tcgn_hub.panels import (
    PANELS,
    _aliases,
    ensembl_ids,
    find_genes,
    load_panel,
    names_of,
    parse_genes,
    symbol_of_today,
)

HER2ST, CSCC = load_panel("her2st_785"), load_panel("cscc_171")


@pytest.mark.parametrize(
    ("name", "panel", "symbol"),
    [
        ("GNAS", HER2ST, "GNAS"),
        ("gnas", HER2ST, "GNAS"),
        ("tle5", HER2ST, "AES"),
        ("MARS1", HER2ST, "MARS"),
        ("c10orf10", HER2ST, "C10orf10"),
        ("DEPP1", HER2ST, "C10orf10"),
        ("Loricrin", CSCC, "LOR"),
        ("HER2", ["FASN", "ERBB2"], "ERBB2"),
        ("MLN64", ["STARD3"], "STARD3"),
        ("CD20", ["MS4A1"], "MS4A1"),
        ("Ki67", ["MKI67"], "MKI67"),
        ("AES", ["TLE5"], "TLE5"),
        ("TLE5", ["TLE5", "AES"], "TLE5"),
        ("AES", ["TLE5", "AES"], "AES"),
        ("CD20", ["CD20", "MS4A1"], "CD20"),
        ("ENSG00000087460", HER2ST, "GNAS"),
        ("ensg00000104964.15", HER2ST, "AES"),
        ("GNAS", ["Gnas"], "Gnas"),
    ],
)
def test_a_gene_is_found_by_its_names(name, panel, symbol):
    assert find_genes([name], panel, of="w") == {name: symbol}


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["TYPO"], "^TYPO: not among the 785 genes that w predicts; `tcgn genes w --grep TEXT` lists them.$"),
        (["GNAZ"], r"^GNAZ \(did you mean GNAS\?\): not among"),
        (["GNAS", "her2", "X9"], r"^her2 \(that is ERBB2\), X9: not among"),
        (["ENSG00000141736.3"], r"that is ERBB2"),
        (["ENSG00000999999.1"], "an Ensembl id that is not known here: give the symbol"),
        (list("ABCDEFG"), r"^A, B, C, D, E, \.\.\.: not among"),
        (["AES", "FASN", "tle5"], "AES and tle5 are one gene, AES of w; name it once"),
    ],
)
def test_a_gene_that_is_not_found(names, says):
    with pytest.raises(PanelError, match=says) as raised:
        find_genes(names, HER2ST, of="w")
    assert "\n" not in str(raised.value)


def test_a_name_that_could_be_two_is_none():
    with pytest.raises(PanelError, match="gnas"):
        find_genes(["gnas"], ["Gnas", "GNAS"], of="w")
    with pytest.raises(PanelError, match="ENSG00000104964"):
        find_genes(["ENSG00000104964"], ["TLE5", "AES"], of="w")


def test_the_table_of_names_is_without_contradictions():
    names = _aliases()
    symbols = set(names.values())
    assert not symbols & set(names)
    for symbol in symbols:
        assert symbol_of_today(symbol) == symbol
    for panel in map(load_panel, PANELS):
        assert max(Counter(symbol_of_today(gene).upper() for gene in panel).values()) == 1
        assert find_genes(panel, panel, of="w") == {gene: gene for gene in panel}
        today = [symbol_of_today(gene) for gene in panel]
        assert list(find_genes(today, panel, of="w").values()) == panel
    assert not {"CD8", "PER", "SAT", "NEU", "PSA"} & set(names)  # more than one gene each
    assert names_of(["AES", "NONE"]) == {"AES": ["TLE5", "ENSG00000104964", "AES"], "NONE": ["NONE"]}


def test_ensembl_ids():
    assert ensembl_ids(["GNAS", "TLE5", "AES", "C10orf10"]) == [
        *("ENSG00000087460", "ENSG00000104964", "ENSG00000104964", "ENSG00000165507")
    ]
    # of those on other haplotypes as well, that of the primary assembly
    assert ensembl_ids(["HLA-B", "RPS18", "HLA-DRA"]) == ["ENSG00000234745", "ENSG00000231500", "ENSG00000204287"]
    # a panel of ids; genes of other species; what is not known
    assert ensembl_ids(["ENSG00000206450.7", "Aes", "Gnas", "MTRNR2L1", "X9"]) == ["ENSG00000206450", "", "", "", ""]


@pytest.mark.parametrize(
    ("panel", "unknown"), [(0, []), (1, ["AC013461.1"]), (2, ["MTRNR2L1", "MTRNR2L12", "MTRNR2L8"])]
)
def test_ensembl_ids_of_the_panels(panel, unknown):
    genes = load_panel(PANELS[panel])
    ids = dict(zip(genes, ensembl_ids(genes), strict=True))
    assert [gene for gene in genes if not ids[gene]] == unknown
    known = [found for found in ids.values() if found]
    assert all(re.fullmatch(r"ENSG\d{11}", found) for found in known)
    assert len(set(known)) == len(known)
    # and the ids lead back
    assert find_genes(known, genes, of="w") == {found: gene for gene, found in ids.items() if found}


def test_genes_that_the_readme_says_are_missing():
    for gene in ("ERBB2", "ESR1", "MKI67", "EPCAM", "ACTB", "GAPDH"):
        with pytest.raises(PanelError):
            find_genes([gene], HER2ST, of="w")


def test_what_looks_like_a_file_is_one():
    assert parse_genes("GNAS,FASN") == ["GNAS", "FASN"]
    with pytest.raises(PanelError, match=r"panl\.txt could not be read"):
        load_panel(parse_genes("panl.txt"))


def test_genes_are_refused_and_listed_without_pytorch(tmp_path):
    """PyTorch takes most of what a command takes: what needs no model is done without it."""
    code = """
import sys
sys.modules["torch"] = sys.modules["timm"] = None
import tcgn_hub
from tcgn_hub.cli.main import main
for command in ("predict", "explain"):
    assert main([command, "x.png", "--mpp", "0.5", "--genes", "GNAZ"]) == 2
    assert main([command, "x.png", "--mpp", "0.5", "--weights", "absent"]) == 2
assert main(["predict", "x.png", "-o", "x.h5ad", "--plot", "GNAZ", "--mpp", "0.5"]) == 2
for call in (tcgn_hub.predict, tcgn_hub.predict_slide, tcgn_hub.explain):
    try:
        call(["x.png"] if call is tcgn_hub.predict else "x.png", genes=["GNAZ"], mpp=0.5)
    except tcgn_hub.errors.PanelError as err:
        print(err, file=sys.stderr)
assert main(["genes", "--grep", "gnas"]) == 0
"""
    from PIL import Image

    Image.new("RGB", (400, 400)).save(tmp_path / "x.png")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("GNAZ (did you mean GNAS?): not among the 785 genes that tcgn_base.her2st") == 6
    assert done.stderr.count("absent does not exist") == 2
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["gene", "GNAS"]
