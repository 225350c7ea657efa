from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from tcgn_hub.data.sections import Section, expression_targets, panel_counts
from tcgn_hub.data.targets import variable_genes
from tcgn_hub.errors import PanelError, SectionError
from tcgn_hub.panels import PANELS, load_panel

GENES = [f"G{i}" for i in range(12)]


@pytest.fixture
def section(tmp_path):
    """Twelve spots, the last two without counts of the panel."""
    counts = np.random.default_rng(0).poisson(3, (12, 13)).astype(np.float32)
    counts[10:, :12] = 0
    spots = [f"s{i}" for i in range(12)]
    return Section("A1", "A", tmp_path / "a.png", spots, np.arange(24.0).reshape(12, 2), [*GENES, "OTHER"], counts)


def test_targets_follow_the_formula(section):
    targets = expression_targets(section, GENES)
    counts = section.counts[0, :-1]
    assert targets[0] == pytest.approx(np.log10(1 + 1e4 * counts / counts.sum()), abs=1e-5)
    assert targets.dtype == np.float32
    assert np.isnan(targets).all(axis=1).tolist() == [False] * 10 + [True] * 2
    assert np.array_equal(expression_targets(section, GENES[::-1])[0], targets[0, ::-1])


def test_genes_that_were_not_measured_are_nan(section):
    targets = expression_targets(section, ["NOGENE", *GENES])
    assert np.isnan(targets[:, 0]).all()
    assert np.array_equal(targets[:, 1:], expression_targets(section, GENES), equal_nan=True)
    assert np.isnan(panel_counts(section, ["NOGENE", "G3"])).all(axis=0).tolist() == [True, False]
    with pytest.raises(SectionError, match="A1 has no counts of any gene of the panel, such as NOGENE"):
        expression_targets(section, ["NOGENE"])


def test_some_of_the_spots(section, tmp_path):
    keep = np.array([5, 2])
    some = section.at(keep)
    assert (some.spots, some.xy.tolist()) == (["s5", "s2"], [[10, 11], [4, 5]])
    assert np.array_equal(some.counts, section.counts[keep])
    of_sparse = replace(section, counts=sparse.csr_matrix(section.counts)).at(keep)
    assert np.array_equal(panel_counts(of_sparse, GENES[::-1]), panel_counts(some, GENES[::-1]))
    chosen = [variable_genes([s.counts], [s.genes], 5) for s in (some, of_sparse)]
    assert chosen[0] == chosen[1]
    assert section.at(np.arange(12) > 9).spots == ["s10", "s11"]
    files = [tmp_path / name for name in section.spots]
    patches = Section("P", "A", None, section.spots, section.xy, ["G"], np.ones((1, 1)), patches=files, bulk=True)
    assert patches.at(keep).patches == [files[5], files[2]]
    assert patches.at(keep).counts.shape == (1, 1)


def test_panels(tmp_path):
    assert [len(load_panel(name)) for name in PANELS] == [785, 171, 250]
    (tmp_path / "mine.txt").write_text("A\n\nB \n")
    assert load_panel(tmp_path / "mine.txt") == load_panel(["A", "B"]) == ["A", "B"]
    (tmp_path / "twice.txt").write_text("A\nB\nA\n")
    for bad, why in ((tmp_path / "twice.txt", "more than once: A"), ("absent", "could not be read"), ([], "no genes")):
        with pytest.raises(PanelError, match=why):
            load_panel(bad)


def test_what_tells_a_section_from_others(section):
    section.image.write_bytes(b"an image")
    seen = section.seen()
    assert (seen.study, seen.patient, seen.section) == ("own", "A", "A1")
    mixed, genes = np.random.default_rng(1).permutation(12), np.random.default_rng(2).permutation(13)
    again = replace(
        section.at(mixed),
        name="X",
        genes=[*(section.genes[i] for i in genes), "NOT COUNTED"],
        counts=np.pad(section.counts[mixed][:, genes].astype(np.float64), ((0, 3), (0, 1))),
    )
    assert again.seen() == replace(seen, section="X")
    assert replace(section, counts=sparse.csr_matrix(section.counts)).seen() == seen
    assert section.at(np.arange(1, 12)).seen().counts != seen.counts
    assert replace(section, counts=section.counts * 0).seen().counts == ""
    assert replace(section, image=None).seen() == replace(seen, image="")
    bulk = replace(section, counts=section.counts[:1], bulk=True)
    assert bulk.at(mixed[:4]).seen().counts == bulk.seen().counts
    with pytest.raises(SectionError, match="An image of section A1 cannot be read"):
        replace(section, image=section.image.parent / "absent.png").seen()


def test_large_images_are_told_by_their_size_and_ends(section, monkeypatch):
    monkeypatch.setattr("tcgn_hub.data.sections._WHOLE", 100)
    monkeypatch.setattr("tcgn_hub.data.sections._END", 10)
    hashes = []
    for middle, end in (
        (b"a" * 200, b"z"),
        (b"b" * 200, b"z"),
        (b"a" * 200, b"y"),
        (b"a" * 201, b"z"),
        (b"a" * 50, b"z"),
    ):
        section.image.write_bytes(b"first ten." + middle + 9 * b"." + end)
        hashes.append(section.seen().image)
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 4


def test_patches_are_told_by_all_of_them(section):
    files = [section.image.parent / f"{i}.png" for i in range(3)]
    for i, file in enumerate(files):
        file.write_bytes(bytes([i]))
    patches = replace(section, image=None, patches=files)
    assert patches.seen().image == replace(patches, patches=files[::-1]).seen().image != ""
    assert patches.seen().image != replace(patches, patches=files[:2]).seen().image
