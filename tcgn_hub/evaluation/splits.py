"""Which sections to train on and which to hold out, so that nothing of a test is seen in training."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from tcgn_hub.data.sections import Section
from tcgn_hub.errors import SectionError, TrainingError
from tcgn_hub.text import option, some
from tcgn_hub.weights.lineage import SeenSection

SPLITS = ("patient", "section", "none")
"""What may be kept together by a split: whole patients, whole sections, or everything, which then all trains."""


@dataclass(frozen=True)
class Split:
    """Names of the sections to train on, to choose settings on, and to measure on once."""

    train: tuple[str, ...]  # sections to train on
    val: tuple[str, ...] = ()  # sections to choose on, such as when to stop; none of them trains
    test: tuple[str, ...] = ()  # sections held out, on which nothing is chosen

    def to_json(self) -> str:
        """One object of three lists of names."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Split:
        """The split that `to_json` wrote, or of which empty lists were left out."""
        keys = [field.name for field in fields(cls)]
        try:
            names = json.loads(text)
        except (ValueError, RecursionError):
            names = None
        known = isinstance(names, dict) and "train" in names and names.keys() <= set(keys)
        lists: list[Any] = [names.get(key, []) for key in keys] if known else [None]
        if not all(isinstance(part, list) and all(isinstance(name, str) for name in part) for part in lists):
            raise SectionError(f"A split is a JSON object of the lists {', '.join(keys)} of names, not {text!r:.80}.")
        return cls(*(tuple(part) for part in lists))


def make_split(
    sections: Sequence[Section],
    *,
    by: str = "patient",
    test: Sequence[str] | None = None,
    val: bool = False,
    seed: int = 0,
) -> Split:
    """Divide sections into those to train on and those to hold out.

    ``sections``: the sections; ``by``: 'patient' holds out whole patients, so that the test tells how well another
    patient is predicted; 'section' holds out sections, of which the training may have seen neighbours of the same
    patient; 'none' holds out nothing; ``test``: sections or patients to hold out; about a fifth, chosen by ``seed``, if
    None; ``val``: set aside sections to choose on: those of one patient if several are left to train on, else one
    section if several are left, else none, and `spatial_block` sets aside spots of the one section; ``seed``: seed of
    what is chosen. Returns the names, in the order of ``sections``.
    """
    _check_by(by)
    patients = _patients(sections)
    if not patients:
        raise SectionError("There are no sections to train on.")
    if by == "none":
        if test:
            raise SectionError(
                f"Sections to test on are given, but {option('split', 'none')} trains on everything; leave one out."
            )
        return _divide(patients, set(), val, seed)
    _check_groups(patients, by, "split")
    if test is not None:
        held_out = _named(patients, test, by)
    else:
        groups = sorted(set(patients.values()) if by == "patient" else patients)
        chosen = set(_shuffled(groups, seed)[: max(1, round(len(groups) / 5))])
        held_out = {name for name, patient in patients.items() if (patient if by == "patient" else name) in chosen}
    if not held_out:
        raise SectionError(f"The list of sections to test on is empty; name some, or say {option('split', 'none')}.")
    if len(held_out) == len(patients):
        raise SectionError(f"All {len(patients)} sections are held out, so that none is left to train on; name fewer.")
    if by == "patient":
        _check_patients(patients, held_out)
    return _divide(patients, held_out, val, seed)


def folds(sections: Sequence[Section], by: str, *, val: bool = False, seed: int = 0) -> list[tuple[str, Split]]:
    """The splits of a cross-validation that leaves out one patient or one section at a time."""
    if by == "none":
        choice = f"{option('by', 'patient')} or {option('by', 'section')}"
        raise TrainingError(f"A cross-validation needs sections to hold out; say {choice}.")
    _check_by(by)
    patients = _patients(sections)
    _check_groups(patients, by, "by")
    if by == "section":
        return [(name, _divide(patients, {name}, val, seed)) for name in patients]
    return [
        (f"patient {held_out}", _divide(patients, {n for n, p in patients.items() if p == held_out}, val, seed))
        for held_out in dict.fromkeys(patients.values())
    ]


def check_seen(
    seen: Iterable[SeenSection], sections: Sequence[Section], *, by: str = "patient", allow: Collection[str] = ()
) -> list[str]:
    """Refuse to measure on what weights or their parents have seen, whatever it is called now.

    ``seen``: what was seen, such as `tcgn_hub.weights.info.WeightsInfo.seen`; ``sections``: sections to measure on, as
    they were read; ``by``: 'patient' also refuses sections of a patient of the same study that was seen; 'section' and
    'none' only sections; ``allow``: names of sections to measure on all the same. Returns the names of those that were
    seen and are allowed, which every table of the results has to state.
    """
    _check_by(by)
    _patients(sections)
    seen = list(seen)
    found = {}
    for section in sections if seen else ():
        own = section.seen()
        same = next((other for other in seen if own.is_same(other)), None)
        kin = next((other for other in seen if by == "patient" and own.is_patient_of(other)), None)
        if same is not None:
            found[section.name] = f"it is {same.section} of study {same.study}"
        elif kin is not None:
            found[section.name] = f"patient {kin.patient} of study {kin.study}, as {kin.section} is"
    refused = [name for name in found if name not in allow]
    if refused:
        which = some(f"{name} ({found[name]})" for name in refused)
        raise SectionError(
            f"Already seen by the weights, or by those they were started from: section {which}; leave out what"
            " was seen, hold out by section if only its patient was, or say"
            f" {option('allow_seen', refused)}, which every table will then state."
        )
    return list(found)


def spatial_block(xy: np.ndarray, share: float = 0.2) -> np.ndarray:
    """Spots to choose on within a single section: a strip at one end of its longer axis.

    Spots picked at random would have neighbours among those that train, and tell little. Nothing here is random.

    ``xy``: spot centres in any unit, shape (n, 2); where they are NaN, the last spots are taken; ``share``: share of
    the spots to set aside. Returns True for the spots set aside, shape (n,): at least one, and not all, unless there is
    one spot only.
    """
    mask = np.zeros(len(xy), dtype=bool)
    if len(xy) > 1:
        along = int(np.argmax(np.ptp(xy, axis=0)))
        number = min(max(round(share * len(xy)), 1), len(xy) - 1)
        # a column of a grid that has to be divided is divided in one place
        mask[np.lexsort((xy[:, 1 - along], xy[:, along]))[-number:]] = True
    return mask


def spatial_parts(xy: np.ndarray, number: int) -> np.ndarray:
    """Spots in parts of as many each, or one more, each of spots beside each other.

    Halves, and halves of these, across the longer side of what is to be divided.

    ``xy``: spot centres in any unit, shape (n, 2); those that are NaN are parted in their order; ``number``: of parts,
    from 1 to n. Returns the part that each spot belongs to, from 0, shape (n,).
    """
    part = np.zeros(len(xy), int)

    def divide(spots: np.ndarray, first: int, number: int) -> None:
        part[spots] = first
        if number > 1:
            along = int(np.argmax(np.ptp(xy[spots], axis=0)))
            ordered = spots[np.lexsort((xy[spots, 1 - along], xy[spots, along]))]
            near, share = number // 2, len(spots) * (number // 2) // number
            divide(ordered[:share], first, near)
            divide(ordered[share:], first + near, number - near)

    divide(np.arange(len(xy)), 0, number)
    return part


def _check_by(by: str) -> None:
    if by not in SPLITS:
        raise TrainingError(f"A split is by {', '.join(SPLITS[:-1])} or {SPLITS[-1]}, not by {by!r}.")


def _patients(sections: Sequence[Section]) -> dict[str, str]:
    """The patient of each section by its name."""
    patients = {section.name: section.patient for section in sections}
    if len(patients) < len(sections):
        names = [section.name for section in sections]
        twice = next(name for name in names if names.count(name) > 1)
        raise SectionError(f"Two sections are named {twice}; give each a name of its own.")
    return patients


def _check_groups(patients: dict[str, str], by: str, word: str) -> None:
    """Raise a SectionError if there is nothing to hold out; the caller has its ``by`` from an option of this name."""
    untested = f", or {option(word, 'none')} to train without a test" if word == "split" else ""
    if len(patients) < 2:
        raise SectionError(
            f"{next(iter(patients), 'None')} is the only section, so that none can be held out; add another{untested}."
        )
    if by == "patient" and len(set(patients.values())) == 1:
        raise SectionError(
            f"All {len(patients)} sections are of one patient, {next(iter(patients.values()))}, so that a split by"
            f" patient is not possible; say {option(word, 'section')} (the results then hold for this patient only)"
            f"{untested}."
        )


def _check_patients(patients: dict[str, str], held_out: set[str]) -> None:
    """Raise a SectionError if a patient of the sections held out is trained on too."""
    for patient in dict.fromkeys(patients.values()):
        own = [name for name in patients if patients[name] == patient]
        tested, trained = [n for n in own if n in held_out], [n for n in own if n not in held_out]
        if tested and trained:
            raise SectionError(
                f"Patient {patient} is both to train ({', '.join(trained)}) and to test on ({', '.join(tested)}); hold"
                f" out all sections of the patient, or say {option('split', 'section')} if this is wanted."
            )


def _named(patients: dict[str, str], names: Sequence[str], by: str) -> set[str]:
    """Sections of a list of sections and patients."""
    of_patient = {p: {name for name in patients if patients[name] == p} for p in patients.values()}
    of_section = {name: {name} for name in patients}
    # a name may be a section's and a patient's: what the split is by goes first
    known = {**of_section, **of_patient} if by == "patient" else {**of_patient, **of_section}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SectionError(
            f"There is no section or patient {', '.join(unknown)} to hold out; the sections are {', '.join(patients)},"
            f" the patients {', '.join(of_patient)}."
        )
    return set().union(*(known[name] for name in names))


def _divide(patients: dict[str, str], held_out: set[str], val: bool, seed: int) -> Split:
    left = [name for name in patients if name not in held_out]
    groups = sorted({patients[name] for name in left})
    aside: set[str] = set()
    if val and len(groups) > 1:
        patient = _shuffled(groups, seed)[0]
        aside = {name for name in left if patients[name] == patient}
    elif val and len(left) > 1:
        aside = {_shuffled(sorted(left), seed)[0]}
    return Split(
        train=tuple(name for name in left if name not in aside),
        val=tuple(name for name in left if name in aside),
        test=tuple(name for name in patients if name in held_out),
    )


def _shuffled(names: Sequence[str], seed: int) -> list[str]:
    return [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
