import numpy as np
import pytest
from sections import PANEL, write_section

from tcgn_hub.data.panels import PANELS, load_panel
from tcgn_hub.data.sections import expression_targets, read_her2st, spot_crops
from tcgn_hub.errors import PanelError, SectionError


@pytest.fixture
def root(tmp_path):
    write_section(tmp_path, "A1", zero=2, unmatched=1)
    write_section(tmp_path, "B1", seed=1)
    return tmp_path


def test_reads_the_layout(root):
    a, b = read_her2st(root)
    assert (a.name, a.patient, b.name, b.patient) == ("A1", "A", "B1", "B")
    assert len(a.spots) == len(a.xy) == len(a.counts) == 12
    assert a.unmatched == ["12x13"]
    assert a.genes == [*PANEL, "OTHER"]
    assert a.xy[0] % 1 == pytest.approx([0.2, 0.7])
    assert [s.name for s in read_her2st(root, ["B1"])] == ["B1"]


def test_targets_follow_the_formula(root):
    section = read_her2st(root)[0]
    targets = expression_targets(section, PANEL)
    counts = section.counts[0, :-1]
    assert targets[0] == pytest.approx(np.log10(1 + 1e4 * counts / counts.sum()), abs=1e-5)
    assert np.isnan(targets).all(axis=1).tolist() == [False] * 10 + [True] * 2
    assert np.array_equal(expression_targets(section, PANEL[::-1])[0], targets[0, ::-1])


def test_crops_are_centred_and_white_beyond_the_edge(root):
    section = read_her2st(root)[1]
    crops = spot_crops(section, 112)
    assert crops.shape == (12, 3, 112, 112)
    assert crops.dtype == np.uint8
    assert abs(int(crops[-1, 1, 56, 56]) - 120) < 10
    assert (spot_crops(section, 900)[0, :, 0, 0] == 255).all()


@pytest.mark.parametrize("missing", ["ST-cnts/A1.tsv.gz", "ST-spotfiles/A1_selection.tsv", "ST-imgs/A/A1/HE.jpg"])
def test_missing_files_are_named(root, missing):
    (root / missing).unlink()
    with pytest.raises(SectionError, match="A1"):
        read_her2st(root, ["A1"])


def test_malformed_counts_are_named(root):
    (root / "ST-cnts/A1.tsv.gz").write_bytes(b"no gzip")
    with pytest.raises(SectionError, match=r"A1\.tsv\.gz"):
        read_her2st(root, ["A1"])


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(SectionError, match="ST-cnts"):
        read_her2st(tmp_path)


def test_spots_off_the_image_are_refused(root):
    section = read_her2st(root, ["A1"])[0]
    section.xy[3] += 10_000
    with pytest.raises(SectionError, match="outside the image"):
        spot_crops(section, 112)


def test_absent_genes_are_named(root):
    with pytest.raises(SectionError, match="NOGENE"):
        expression_targets(read_her2st(root, ["A1"])[0], [*PANEL, "NOGENE"])


def test_panels(tmp_path):
    assert [len(load_panel(name)) for name in PANELS] == [785, 171, 250]
    (tmp_path / "mine.txt").write_text("A\n\nB \n")
    assert load_panel(tmp_path / "mine.txt") == load_panel(["A", "B"]) == ["A", "B"]
    (tmp_path / "twice.txt").write_text("A\nB\nA\n")
    for bad, why in ((tmp_path / "twice.txt", "more than once: A"), ("absent", "could not be read"), ([], "no genes")):
        with pytest.raises(PanelError, match=why):
            load_panel(bad)
