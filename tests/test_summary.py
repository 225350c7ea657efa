"""Sections against a panel: what is left out, what is told, what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from sections import PANEL, picture, write_section

from tcgn_hub.data.checks import check_sections
from tcgn_hub.data.readers.her2st import read_her2st
from tcgn_hub.data.sections import Section
from tcgn_hub.errors import SectionError


@pytest.fixture
def image(tmp_path):
    return picture(tmp_path / "image.png", size=(400, 300))


def make(image, name="A1", *, genes=PANEL, spots=30, **changes):
    rng = np.random.default_rng(len(name))
    xy = rng.uniform(0, 1, (spots, 2)) * (400, 300)
    counts = rng.poisson(3, (spots, len(genes))).astype(np.float32) + 1
    names = [f"s{i}" for i in range(spots)]
    return replace(Section(name, name[0], image, names, xy, list(genes), counts, mpp=0.5), **changes)


def refuses(sections, match, panel=PANEL):
    with pytest.raises(SectionError, match=match) as caught:
        check_sections(sections, panel)
    assert "\n" not in str(caught.value)


def test_spots_that_cannot_be_trained_on_are_left_out_and_counted(image):
    section = make(image)
    section.counts[[2, 7]] = 0
    section.xy[4] = (400, 10)
    section.xy[5] = (10, -0.1)
    section.xy[6] = (np.nan, 10)
    section.xy[8] = (399.9, 0)
    section.counts[5] = 0
    whole = make(image, "B2", left_out={"spots without counts or position": 3, "genes named twice, summed": 1})
    (first, second), table = check_sections([section, whole], PANEL[:6])
    assert first.spots == [s for i, s in enumerate(section.spots) if i not in (2, 4, 5, 6, 7)]
    assert len(first.counts) == len(first.xy) == 25
    assert second is whole
    assert table.splitlines() == [
        "section  patient  image      um/px  spots  used  zero  off image  genes missing  notes",
        "A1       A        image.png  0.500     30    25     2          3              0",
        "B2       B        image.png  0.500     30    30     0          0              0"
        "  3 spots without counts or position; 1 genes named twice, summed",
    ]


def test_zero_is_of_the_panel(image):
    section = make(image)
    section.counts[3, :6] = 0
    (kept,), _ = check_sections([section], PANEL[:6])
    assert len(kept.spots) == 29
    (kept,), table = check_sections([section], PANEL[3:])
    assert kept is section
    assert "notes" not in table


def test_patches_and_bulk(image, tmp_path):
    patches = make(None, "P1", spots=3, patches=[image] * 3, xy=np.full((3, 2), np.nan), mpp=None)
    bulk = make(image, "B1", counts=np.ones((1, len(PANEL)), np.float32), bulk=True)
    fit, table = check_sections([patches, bulk], PANEL)
    assert [len(s.spots) for s in fit] == [3, 30]
    first, second = table.splitlines()[1:]
    assert first.split() == ["P1", "P", "3", "patches", "?", "3", "3", "0", "0", "0"]
    assert second.split() == ["B1", "B", "image.png", "0.500", "30", "30", "0", "0", "0", "bulk"]
    refuses([replace(bulk, counts=np.zeros((1, len(PANEL)), np.float32))], "No spot of section B1")


def test_scales_that_differ_are_told(image):
    def lines(*scales):
        return check_sections([make(image, f"A{i}", mpp=mpp) for i, mpp in enumerate(scales)], PANEL)[1].splitlines()

    assert len(lines(0.5, 0.59, None)) == 4
    assert "from 0.5 um/px (A0) to 0.61 um/px (A2)" in lines(0.5, 0.55, 0.61)[-1]


def test_genes_missing_in_some_sections_are_told(image):
    fit, table = check_sections([make(image), make(image, "B1", genes=PANEL[4:])], PANEL)
    assert len(fit[1].spots) == 30
    assert table.splitlines()[2].split()[-1] == "4"
    assert table.splitlines()[-1] == "Warning: 4 genes of the panel were not measured in every section: G0, G1, G2, G3."
    _, table = check_sections([make(image), make(image, "B1", genes=PANEL[6:])], PANEL)
    assert table.endswith("G0, G1, G2, G3, G4 and 1 more.")
    _, table = check_sections([make(image), make(image, "B1", genes=PANEL[1:])], PANEL)
    assert "1 gene of the panel was not" in table


def test_positions_in_a_corner_are_told(image):
    section = make(image)
    _, table = check_sections([replace(section, xy=section.xy / 20)], PANEL)
    assert "cover only 5% of its width or height; the positions may belong" in table.splitlines()[-1]


def test_genes_that_no_section_has_are_refused(image):
    sections = [make(image), make(image, "B1")]
    refuses(sections, r"1 genes .* in no section, such as section A1 \(.*image.png\): NO; take", [*PANEL, "NO"])
    refuses(sections, "12 genes .* NO0, NO1, NO2, NO3, NO4 and 7 more", [f"NO{i}" for i in range(12)])
    ensembl = [f"ENSG{i:011d}" for i in range(len(PANEL))]
    refuses([make(image, genes=ensembl)], "sections name genes by Ensembl ids, the panel by symbols")
    refuses(sections, "sections name genes by symbols, the panel by Ensembl ids", ensembl)


def test_positions_of_another_resolution_are_refused(image):
    section = make(image)
    refuses(
        [replace(section, xy=section.xy * 10)], r"of the 30 spots of section A1 \(.*image.png\) lie off .* 400 x 300"
    )
    half = section.xy.copy()
    half[:15] = -1
    assert len(check_sections([replace(section, xy=half)], PANEL)[0][0].spots) == 15
    half[15] = -1
    refuses([replace(section, xy=half)], "16 of the 30")


def test_sections_without_a_usable_spot_are_refused(image):
    section = make(image)
    refuses([replace(section, counts=section.counts * 0)], "No spot of section A1 .* 30 have no counts of the panel")
    refuses([make(image, "B1"), make(image, genes=[f"X{i}" for i in range(12)])], "No spot of section A1")
    refuses([section.at(np.zeros(30, bool))], "No spot of section A1 .* of 0,")
    refuses([], "No section")


def test_images_that_cannot_be_read_are_refused(image, tmp_path):
    refuses([make(tmp_path / "absent.png")], "image of section A1 cannot be used: .*absent.png does not exist")
    (tmp_path / "bad.tif").write_bytes(b"no image")
    refuses([make(tmp_path / "bad.tif")], "bad.tif is no image")
    refuses([make(None)], "A1 has no image")


def test_sections_as_they_are_read(tmp_path):
    write_section(tmp_path, "A1", zero=2, unmatched=1)
    (section,), table = check_sections(read_her2st(tmp_path), PANEL)
    assert len(section.spots) == 10
    assert table.splitlines()[1].split()[4:8] == ["12", "10", "2", "0"]
