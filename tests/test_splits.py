from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcgn_hub.data.sections import Section
from tcgn_hub.errors import SectionError, TrainingError
from tcgn_hub.evaluation.splits import Split, check_seen, folds, make_split, spatial_block
from tcgn_hub.text import on_command_line


def sections(names):
    """Sections whose patient is the part of the name before a digit."""
    return [
        Section(
            name=name,
            patient=name.rstrip("0123456789"),
            image=None,
            spots=["1x1"],
            xy=np.zeros((1, 2)),
            genes=["G"],
            counts=np.full((1, 1), i + 1, np.float32),
        )
        for i, name in enumerate(names.split())
    ]


MANY = sections("A1 A2 B1 C1 C2 D1 E1 E2 F1 G1")


def names(*parts):
    return {name for part in parts for name in part}


@st.composite
def cohorts(draw):
    sizes = draw(st.lists(st.integers(1, 4), min_size=2, max_size=6))
    return sections(" ".join(f"{'ABCDEF'[p]}{i}" for p, size in enumerate(sizes) for i in range(size)))


@given(cohorts(), st.sampled_from(["patient", "section", "none"]), st.booleans(), st.integers(0, 99))
def test_no_section_and_by_patient_no_patient_is_on_two_sides(cohort, by, val, seed):
    split = make_split(cohort, by=by, val=val, seed=seed)
    parts = (split.train, split.val, split.test)
    assert sorted(sum(parts, ())) == sorted(section.name for section in cohort)
    assert split.train
    assert bool(split.test) == (by != "none")
    # the order that sections are given in decides nothing
    dihedral = make_split(cohort[::-1], by=by, val=val, seed=seed)
    assert [set(part) for part in parts] == [set(dihedral.train), set(dihedral.val), set(dihedral.test)]
    if by == "patient":
        assert not {name[0] for name in split.test} & {name[0] for name in split.train + split.val}
    seen = [section.seen() for section in cohort if section.name in split.train]
    assert check_seen(seen, [s for s in cohort if s.name in split.test], by=by) == []
    left = {name[0] for name in split.train + split.val}
    if val and len(left) > 1:
        assert len({name[0] for name in split.val}) == 1
        assert not {name[0] for name in split.val} & {name[0] for name in split.train}
    else:
        assert len(split.val) == (val and len(split.train + split.val) > 1)
    # what is set aside is not of the test
    assert split.test == make_split(cohort, by=by, seed=seed).test


@given(cohorts(), st.sampled_from(["patient", "section"]), st.booleans())
def test_folds_hold_out_everything_once(cohort, by, val):
    splits = folds(cohort, by, val=val)
    assert sorted(sum((split.test for _, split in splits), ())) == sorted(section.name for section in cohort)
    for name, split in splits:
        assert sorted(split.train + split.val + split.test) == sorted(section.name for section in cohort)
        assert split.train
        if by == "patient":
            assert {f"patient {test[0]}" for test in split.test} == {name}
            assert not {test[0] for test in split.test} & {train[0] for train in split.train}
        else:
            assert split.test == (name,)


def test_a_fifth_is_held_out_and_chosen_by_the_seed():
    assert len({name[0] for name in make_split(MANY).test}) == 1
    assert len(make_split(MANY, by="section").test) == 2
    assert len({make_split(MANY, seed=seed).test for seed in range(30)}) == 7
    assert make_split(MANY, seed=3) == make_split(MANY, seed=3)


def test_named_sections_and_patients_are_held_out():
    split = make_split(MANY, test=["B", "E1", "E2"])
    assert split == Split(train=("A1", "A2", "C1", "C2", "D1", "F1", "G1"), test=("B1", "E1", "E2"))
    assert make_split(MANY, by="section", test=["C2", "A"]).test == ("A1", "A2", "C2")


def test_a_name_of_a_section_and_of_a_patient():
    # patient A has the sections A and A1, patient B a section B
    cohort = sections("A A1 B")
    assert make_split(cohort, test=["A"]).test == ("A", "A1")
    assert make_split(cohort, by="section", test=["A"]).test == ("A",)


@pytest.mark.parametrize(
    ("cohort", "options", "message"),
    [
        (
            "C1 C2",
            {},
            "All 2 sections are of one patient, C, .* split='section' .*this patient only.*, or split='none'",
        ),
        ("C1 C2", {"test": ["C2"]}, "one patient"),
        ("C1", {"by": "section"}, "C1 is the only section"),
        ("C1", {}, "C1 is the only section"),
        ("B1 C1 C2 C3", {"test": ["C2"]}, r"Patient C is both to train \(C1, C3\) and to test on \(C2\).*'section'"),
        ("B1 C1", {"test": ["X9", "B1"]}, "no section or patient X9 .* sections are B1, C1, the patients B, C"),
        ("B1 C1", {"test": []}, "is empty"),
        ("B1 C1", {"test": ["B", "C"]}, "All 2 sections are held out"),
        ("B1 C1", {"by": "none", "test": ["B"]}, "split='none' trains on everything"),
        ("B1 C1 B1", {}, "Two sections are named B1"),
        ("", {}, "There are no sections"),
    ],
)
def test_splits_that_are_refused(cohort, options, message):
    with pytest.raises(SectionError, match=message):
        make_split(sections(cohort), **options)


def test_options_are_named_as_the_reader_gives_them():
    with pytest.raises(SectionError, match=r"say by='section' \(the results [^,]*$"):
        folds(sections("C1 C2"), "patient")
    asked = on_command_line.set(True)
    try:
        with pytest.raises(SectionError, match=r"say --split section .*, or --split none to train without a test"):
            make_split(sections("C1 C2"))
        with pytest.raises(SectionError, match=r"say --by section [^-]*$"):
            folds(sections("C1 C2"), "patient")
        with pytest.raises(SectionError, match="say --allow-seen C1 C2,"):
            check_seen([one.seen() for one in HER2ST], HER2ST[:2])
    finally:
        on_command_line.reset(asked)


def test_an_unknown_way_to_split():
    with pytest.raises(TrainingError, match="by patient, section or none, not by 'slide'"):
        make_split(MANY, by="slide")
    with pytest.raises(TrainingError, match="needs sections to hold out"):
        folds(MANY, "none")


def test_everything_trains():
    assert make_split(sections("C1"), by="none", val=True) == Split(train=("C1",))
    assert len(make_split(sections("C1 C2"), by="none", val=True).val) == 1


@pytest.mark.parametrize(("cohort", "by"), [("C1 C2", "patient"), ("C1", "section")])
def test_folds_need_two_groups(cohort, by):
    with pytest.raises(SectionError, match=r"one patient|the only section"):
        folds(sections(cohort), by)


HER2ST = [replace(section, study="her2st") for section in sections("C1 C2 B1")]
SEEN = [section.seen() for section in HER2ST[:2]]


@pytest.mark.parametrize("by", ["patient", "section", "none"])
def test_a_section_that_was_seen_is_refused_whatever_it_is_called(by):
    seen = HER2ST[1]
    renamed = replace(seen, name="X9", patient="X", study="own")
    for section in (seen, renamed, replace(seen, counts=seen.counts + 1)):
        with pytest.raises(
            SectionError, match=rf"section {section.name} .it is C2 of study her2st.*allow_seen=\['{section.name}'\]"
        ):
            check_seen(SEEN, [section], by=by)
        assert check_seen(SEEN, [HER2ST[2], section], by=by, allow=[section.name]) == [section.name]
    assert check_seen([], [seen, renamed], by=by) == []


def test_an_image_that_was_seen_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"image")
    (tmp_path / "b.png").write_bytes(b"image")
    first, other = sections("C1 D1")
    with pytest.raises(SectionError, match="it is C1 of study own"):
        check_seen(
            [replace(first, image=tmp_path / "a.png").seen()], [replace(other, image=tmp_path / "b.png")], by="section"
        )


def test_a_patient_that_was_seen_is_refused_by_patient():
    other = replace(HER2ST[0], name="C9", counts=np.full((1, 1), 77, np.float32))
    with pytest.raises(SectionError, match=r"C9 .patient C of study her2st, as C1 is.*by section.*allow_seen=\['C9'\]"):
        check_seen(SEEN, [HER2ST[2], other])
    assert check_seen(SEEN, [HER2ST[2], other], allow=["C9", "B1"]) == ["C9"]
    assert check_seen(SEEN, [HER2ST[2], other], by="section") == []
    with pytest.raises(TrainingError, match="not by 'slide'"):
        check_seen(SEEN, [other], by="slide")


def test_names_of_another_study_are_not_those_that_were_seen():
    own = [replace(section, study="own", counts=section.counts + 70) for section in HER2ST]
    assert check_seen(SEEN, own) == []


def test_a_split_comes_back_from_json():
    split = make_split(MANY, val=True)
    assert Split.from_json(split.to_json()) == split
    assert Split.from_json('{"train": ["A1"], "test": ["B1"]}') == Split(("A1",), test=("B1",))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"train": "A1", "val": [], "test": []}',
        '{"train": [1]}',
        "null",
        '{"test": ["A1"]}',
        '{"train": ["A1"], "tests": ["B1"]}',
    ],
)
def test_other_json_is_refused(text):
    with pytest.raises(SectionError, match="a JSON object of the lists train, val, test"):
        Split.from_json(text)


def test_the_block_is_a_strip_at_one_end():
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(20.0), np.arange(10.0)))
    mask = spatial_block(np.stack([x, y], axis=1))
    assert mask.sum() == 40
    assert x[mask].min() > x[~mask].max()
    standing = spatial_block(np.stack([y, x], axis=1))
    assert x[standing].min() > x[~standing].max()
    # a column that has to be divided is divided in one place
    part = spatial_block(np.stack([x, y], axis=1), share=0.025)
    assert sorted(y[part]) == [5, 6, 7, 8, 9]


@pytest.mark.parametrize(("spots", "aside"), [(0, 0), (1, 0), (2, 1), (3, 1), (10, 2)])
def test_blocks_of_few_spots(spots, aside):
    assert spatial_block(np.full((spots, 2), np.nan)).tolist() == [False] * (spots - aside) + [True] * aside
