"""What readers share: the files of a folder, the image beside the data, counts and positions of one section."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from tcgn_hub.errors import SectionError
from tcgn_hub.files import data_files
from tcgn_hub.images.readers import IMAGE_SUFFIXES
from tcgn_hub.images.scale import Scale

GIVEN = "what is given"
"""What a scale is said by that a user states, or a table of the user's."""


def given(mpp: float | None, source: str = GIVEN) -> Scale | None:
    """What somebody says of the scale, None if nothing."""
    return None if mpp is None else Scale(float(mpp), source)


def files_in(folder: Path, endings: Collection[str]) -> list[Path]:
    """The files of a folder that have one of these endings, by name; none of a folder that is not there."""
    try:
        return data_files(folder, endings=endings)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as err:
        raise SectionError(f"The folder {folder} cannot be read ({err.strerror or err}).") from err


def images_in(folder: Path, *stems: str) -> list[Path]:
    """The images directly in a folder; those of the first stem that names any, if one does."""
    images = files_in(folder, IMAGE_SUFFIXES)
    for stem in stems:
        named = [p for p in images if p.name.partition(".")[0] == stem]
        if named:
            return named
    return images


def matched(
    rows: Sequence[str], positions: Mapping[str, object], *, counts: Path, spots: Path
) -> tuple[list[int], dict[str, int]]:
    """Rows of the counts that have a position, and what to note of the others in ``left_out``."""
    keep = [i for i, name in enumerate(rows) if name in positions]
    if not keep:
        raise SectionError(
            f"No row of {counts}, such as {next(iter(rows), 'none')}, names a spot of {spots}, such as"
            f" {next(iter(positions), 'none')}; give counts and positions of the same section."
        )
    lone = len(set(rows) ^ set(positions))
    return keep, {"spots without counts or position": lone} if lone else {}
