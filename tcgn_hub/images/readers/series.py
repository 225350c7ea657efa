"""Files that hold several images: which is the scan, which plane of it is read, and which channels are its colours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from tcgn_hub.errors import ImageError
from tcgn_hub.images.scale import Scale
from tcgn_hub.text import option, some

_LIKE = 0.02  # by how much the shape of a level may differ from that of the whole, and one scale from another
_NO_SCAN = re.compile(r"(?<![a-z])(label|macro|overview|thumbnail)(image)?(?![a-z])", re.I)
_FIRST = {"T": "time", "I": "plane", "Q": "plane"}  # axes that are not those of a picture
_PRIMARIES = {"red": 0, "r": 0, "green": 1, "g": 1, "blue": 2, "b": 2}
# what writers call a channel of which they know nothing
_NAMELESS = re.compile(r"(c|ch|channel)?[\s_:#-]*\d*(:\d+)*|c:\d+/\d+.*|.*\.\w{2,5}(:\d+)?", re.I)


class Held(Protocol):
    """One of the images in a file."""

    name: str
    scale: Scale | None
    note: str  # what to say of how it is read
    problem: str  # why its colours are not known

    @property
    def size(self) -> tuple[int, int]: ...


def taken(images: Sequence[Held], series: int | None, path: Path) -> tuple[int, str]:
    """The number of the image to read, which is that of the scan unless one is given, and what to say of it."""
    if series is not None and not 0 <= series < len(images):
        raise ImageError(
            f"{path} holds {len(images)} images, 0 to {len(images) - 1}, and no number {series}; see"
            f" {option('series')}."
        )
    number = _scan(images) if series is None else series
    if images[number].problem:
        raise ImageError(f"{path}: {images[number].problem}.")
    said = [_told(images, number)] if len(images) > 1 else []
    return number, "; ".join([*said, *filter(None, [images[number].note])])


def is_level(size: tuple[int, int], larger: tuple[int, int]) -> bool:
    """Whether an image of a size (width, height) can be a smaller level of another."""
    if not (0 < size[0] < larger[0] and 0 < size[1] <= larger[1]):
        return False
    # a side is rounded to whole pixels
    allowed = _LIKE + 1.5 / min(size)
    return abs(larger[0] / size[0] / (larger[1] / size[1]) - 1) < allowed


def plane_of(counts: Mapping[str, int]) -> tuple[dict[str, int], list[str]]:
    """Of a stack the middle plane, of times and the like the first: an index for each axis, and what to say of it."""
    place, said = dict.fromkeys(counts, 0), []
    if counts.get("Z", 1) > 1:
        place["Z"] = counts["Z"] // 2
        said.append(f"plane {place['Z']} of 0 to {counts['Z'] - 1} of the stack is taken")
    others = ((word, counts.get(axis, 1)) for axis, word in _FIRST.items())
    said += [f"{word} 0 of 0 to {count - 1} is taken" for word, count in others if count > 1]
    return place, said


def order_of_colours(count: int, names: Sequence[str], colours: Sequence[int | None]) -> list[int]:
    """Which channels are red, green and blue, by their names, or else by their colours (RGBA); none if they are not."""
    said = [text.strip().lower() for text in names]
    if nameless(said):
        pure = {0xFF0000: 0, 0x00FF00: 1, 0x0000FF: 2}
        primaries = [None if colour is None else pure.get((colour & 0xFFFFFFFF) >> 8) for colour in colours]
    else:
        primaries = [_PRIMARIES.get(text) for text in said]
        # a fourth one that is named so is no colour
        count -= sum(text in ("alpha", "a") for text in said)
    known = [primary for primary in primaries if primary is not None]
    return [primaries.index(primary) for primary in range(3)] if count == 3 and sorted(known) == [0, 1, 2] else []


def nameless(names: Sequence[str]) -> bool:
    """Whether none of the names of channels says anything of it."""
    return all(_NAMELESS.fullmatch(name) and name.lower() not in _PRIMARIES for name in names)


def no_colours(count: int, names: Sequence[str]) -> str:
    """What to say of an image whose channels are not red, green and blue."""
    called = some([name for name in names if name]) or "without names"
    return (
        f"it holds {count} channel{'s' * (count > 1)} ({called}), and no red, green and blue: these weights are for H&E"
        " in bright field; save it as RGB"
    )


def _scan(images: Sequence[Held]) -> int:
    """The number of the scan."""
    usable = [i for i, image in enumerate(images) if not image.problem] or list(range(len(images)))
    named = [i for i in usable if not _NO_SCAN.search(images[i].name)] or usable
    scales = [images[i].scale for i in named]
    if all(scales):
        finest = min(scale.mpp for scale in scales if scale)
        named = [i for i, scale in zip(named, scales, strict=True) if scale and scale.mpp < finest * (1 + _LIKE)]
    return max(named, key=lambda i: (images[i].size[0] * images[i].size[1], -i))


def _told(images: Sequence[Held], series: int) -> str:
    image = images[series]
    name = f" '{image.name}'" if image.name else ""
    scale = f", {image.scale.mpp:.4g} um/px" if image.scale else ""
    return (
        f"image {series} of 0 to {len(images) - 1} is taken:{name} {image.size[0]} x {image.size[1]} px{scale}; another"
        f" one by {option('series')}"
    )
