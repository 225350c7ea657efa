"""What weights have seen: sections by study, patient, name and content, so that renaming one does not hide it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Parent:
    """Weights that others were started from: their name, and the sha256 of their file of parameters."""

    name: str
    sha256: str

    to_json = asdict


@dataclass(frozen=True)
class SeenSection:
    """A section that weights were trained on, or chosen by."""

    study: str  # the study it is from, such as 'her2st'; patients and sections of different studies may share names
    patient: str  # the patient
    section: str  # its name
    image: str = ""  # hash of its image; empty if unknown
    counts: str = ""  # hash of its counts, whatever their order; empty if unknown

    to_json = asdict

    def is_same(self, other: SeenSection) -> bool:
        """Whether both are one section: of one name in one study, or of the same image or counts."""
        return (
            (self.study, self.section) == (other.study, other.section)
            or bool(self.image and self.image == other.image)
            or bool(self.counts and self.counts == other.counts)
        )

    def is_patient_of(self, other: SeenSection) -> bool:
        """Whether both are of one patient."""
        return (self.study, self.patient) == (other.study, other.patient)


def union(*groups: Iterable[SeenSection]) -> tuple[SeenSection, ...]:
    """All sections of several groups, each once."""
    return tuple(dict.fromkeys(section for group in groups for section in group))
