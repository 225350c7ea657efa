"""What the quality of tiles finds, and what it calls poor though nothing is wrong.

    python benchmarks/quality.py --data her2st [--chosen-on C2 C3 C4 C5 C6] [--slides SLIDE ...]

The limits of `tcgn_hub.images.quality` are those of the sections that they were chosen on. The first table shows what
99 % of the patches of each section reach, and the medians of the distance of the stain, whose reference is all sections
of her2st. The second one says which share of the patches is poor, below 0.5, after something was done to them, on the
sections of the choice and on other tissue, and what of the quality of those is worst, the most frequent first. Spots
lie on tissue; what is more than 400 um from all of them on a section is glass, stained or not.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import progress
from ood import SLIDE, band, densities, halved, picture, sized, stained

from tcgn_hub.data.crops import spot_crops
from tcgn_hub.data.readers import as_sections
from tcgn_hub.data.sections import Section
from tcgn_hub.images.quality import FOCUS_LIMIT, LIMIT_UM, SATURATION_LIMIT, graded, measure, poor_by
from tcgn_hub.images.readers import open_slide
from tcgn_hub.images.tiles import OVERVIEW_PX, TileReader, Tiles, grid_tiles, on_tissue
from tcgn_hub.images.transforms import INPUT_PX, to_input_array
from tcgn_hub.prediction.picture import picture_means, picture_parts

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]

PATCH_UM = INPUT_PX * LIMIT_UM
SMALL_UM = 77.0  # as weights of the published models have them
GLASS_UM = 400.0
MOST_PIXELS = 4_000_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--chosen-on", nargs="+", default=["C2", "C3", "C4", "C5", "C6"])
    parser.add_argument("--slides", type=Path, nargs="+", default=[SLIDE])
    parser.add_argument("--patches", type=int, default=120, help="of each column that are changed, at most")
    args = parser.parse_args()
    sections = [section for section in as_sections(args.data) if section.image is not None]
    chosen = [section for section in sections if section.name in args.chosen_on]
    columns = {"chosen on": chosen, **{section.name: [section] for section in sections if section not in chosen}}

    def shown(side_um: float) -> dict[str, np.ndarray]:
        progress(f"reading patches of {side_um:g} um")
        found = {
            title: np.concatenate([spots_of(section, side_um) for section in own]) for title, own in columns.items()
        }
        return found | {path.name.split(".")[0]: tissue_of(path, side_um) for path in args.slides}

    patches = shown(PATCH_UM)
    print(f"{'':14}patches  focus  saturation  pen    fold   stain_distance")
    for title, own in patches.items():
        known = described(own)
        low = np.quantile(known["focus"], 0.01) * FOCUS_LIMIT, np.quantile(known["saturation"], 0.01)
        high = np.quantile(known["pen"], 0.99), np.quantile(known["fold"], 0.99), np.median(known["stain_distance"])
        print(f"{title:14}{len(own):7}  {low[0]:.2f}   {low[1]:.2f}        {high[0]:.3f}  {high[1]:.3f}  {high[2]:.2f}")
    print(f"{'limit':14}{'':7}  {FOCUS_LIMIT:.2f}   {SATURATION_LIMIT:.2f}")

    print("\n" + f"{'poor, %':40}" + "".join(f"{title[:16]:>18}" for title in patches) + "  by")
    row("nothing", patches)
    energies = {title: np.concatenate(list(map(second_differences, own))) for title, own in patches.items()}
    limit = np.quantile(energies["chosen on"], 0.01)
    cells = [f"{100 * (energy < limit).mean():.0f}" for energy in energies.values()]
    print(f"{'nothing, by second differences alone':40}" + "".join(f"{cell:>18}" for cell in cells) + "  focus")
    row(f"nothing, patches of {SMALL_UM:g} um", shown(SMALL_UM), SMALL_UM)
    rng = np.random.default_rng(0)
    few = {title: own[np.sort(rng.permutation(len(own))[: args.patches])] for title, own in patches.items()}
    for title, change in DONE.items():
        progress(title)
        row(title, {name: np.stack([change(patch, rng) for patch in own]) for name, own in few.items()})
    progress("reading glass")
    glass = {title: np.concatenate([glass_of(section) for section in own]) for title, own in columns.items()}
    row("glass", {title: glass.get(title, own[:0]) for title, own in patches.items()})


def described(patches: np.ndarray, side_um: float = PATCH_UM) -> dict[str, np.ndarray]:
    """What is said of patches in the columns of a result."""
    means = [picture_means(to_input_array(list(patches[i : i + 16]))) for i in range(0, len(patches), 16)]
    parts = picture_parts(np.concatenate(means))
    return graded(measure(parts.blocks, parts.energy[:, 0], parts.energy[:, 1]), side_um / INPUT_PX)


def second_differences(patch: np.ndarray) -> np.ndarray:
    """Their energy, shape (1,): the variance of the Laplacian, were it not taken of rows and columns apart."""
    return picture_parts(picture_means(to_input_array([patch]))).energy[:, 1]


def row(title: str, patches: dict[str, np.ndarray], side_um: float = PATCH_UM) -> None:
    reasons: Counter[str] = Counter()
    cells = []
    for own in patches.values():
        if not len(own):
            cells.append("-")
            continue
        found = {reason: int(poor.sum()) for reason, poor in poor_by(described(own, side_um)).items()}
        reasons.update({reason: count for reason, count in found.items() if count})
        cells.append(f"{100 * sum(found.values()) / len(own):.0f}")
    by = ", ".join(reason for reason, _ in reasons.most_common())
    print(f"{title:40}" + "".join(f"{cell:>18}" for cell in cells) + f"  {by}", flush=True)


def spots_of(section: Section, side_um: float) -> np.ndarray:
    """Patches around the spots, uint8, shape (n, 224, 224, 3)."""
    pixels = next(spot_crops(section, patch_um=side_um).patches(len(section.spots)))
    return np.stack([sized(patch) for patch in pixels.transpose(0, 2, 3, 1)])


def glass_of(section: Section) -> np.ndarray:
    """Patches of a grid that are far from all spots, a hundred at most."""
    assert section.image is not None
    assert section.mpp is not None
    with open_slide(section.image, max_pixels=MOST_PIXELS) as slide:
        tiles = grid_tiles(slide.size, side=PATCH_UM / section.mpp, stride=PATCH_UM / section.mpp)
        away = np.linalg.norm(tiles.xy[:, None] - section.xy, axis=2).min(axis=1) * section.mpp > GLASS_UM
        far = np.flatnonzero(away)
        return read(TileReader(slide, tiles.xy[far[:: -(-len(far) // 100)]], PATCH_UM / section.mpp))


def tissue_of(path: Path, side_um: float) -> np.ndarray:
    """Patches of the tissue of a slide, side by side, or overlapping by half where they would be few."""
    with open_slide(path) as slide:
        assert slide.scale is not None
        mpp, (overview, downsample, lost) = slide.scale.mpp, slide.overview(OVERVIEW_PX)
        side = side_um / mpp
        tiles: Tiles = grid_tiles(slide.size, side=side, stride=side / 2)
        tiles, _ = on_tissue(tiles, overview, downsample, mpp=mpp, side=side, min_tissue=0.5, lost=lost)
        return read(TileReader(slide, tiles.xy, side))


def read(reader: TileReader) -> np.ndarray:
    pixels = (reader[i][1] for i in range(len(reader)))
    return np.stack([sized(patch) for patch in pixels if patch is not None])


def then(*changes: Change) -> Change:
    """One after the other."""

    def change(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for one in changes:
            pixels = one(pixels, rng)
        return pixels

    return change


def blurred(um: float) -> Change:
    """As by a Gaussian with this standard deviation."""

    def change(pixels: np.ndarray, _: np.random.Generator) -> np.ndarray:
        return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(um / LIMIT_UM)))

    return change


def noisy(levels: float) -> Change:
    """Noise of a camera, with a standard deviation of so many grey levels."""

    def change(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return (pixels + rng.normal(0, levels, pixels.shape)).clip(0, 255).round().astype(np.uint8)

    return change


def folded(width: float, layers: int) -> Change:
    """Tissue lies in so many layers in a band, its own and parts of the same patch."""

    def change(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        own = densities(pixels)
        more = [densities(pixels[::-1, ::-1]), densities(pixels[:, ::-1])][: layers - 1]
        return np.where(band(pixels, width, rng), picture(own + sum(more)), pixels)

    return change


def exposed(times: float) -> Change:
    """So many times as much light, cut off at white."""

    def change(pixels: np.ndarray, _: np.random.Generator) -> np.ndarray:
        return (pixels.astype(float) * times).clip(0, 255).round().astype(np.uint8)

    return change


def saved(quality: int) -> Change:
    def change(pixels: np.ndarray, _: np.random.Generator) -> np.ndarray:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
        return np.asarray(Image.open(stream).convert("RGB"))

    return change


def inked(ink: tuple[int, int, int], width: float) -> Change:
    """A stroke of a felt pen over so much of the patch; ink is seen through."""

    def change(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.where(band(pixels, width, rng), picture(densities(pixels) + densities(np.array(ink))), pixels)

    return change


def stronger(times: float) -> Change:
    """So many times the optical density."""
    return lambda pixels, _: picture(times * densities(pixels))


def coloured(share: float) -> Change:
    """So much of the colour, the rest grey."""

    def change(pixels: np.ndarray, _: np.random.Generator) -> np.ndarray:
        grey = pixels.mean(axis=2, keepdims=True)
        return (grey + share * (pixels - grey)).clip(0, 255).round().astype(np.uint8)

    return change


INKS = {
    "blue": (40, 60, 160),
    "green": (40, 140, 80),
    "black": (30, 30, 30),
    "red": (200, 30, 40),
    "violet": (90, 40, 140),
}

DONE: dict[str, Change] = {
    **{f"blur of {um:g} um": blurred(um) for um in (0.5, 0.7, 1.0, 1.5, 2.0, 3.0)},
    **{f"blur of 2 um, JPEG of quality {quality}": then(blurred(2), saved(quality)) for quality in (80, 30)},
    **{f"blur of 2 um, noise of {levels} of 255": then(blurred(2), noisy(levels)) for levels in (1, 2, 3)},
    "half of the resolution": halved,
    **{f"JPEG of quality {quality}": saved(quality) for quality in (30, 10)},
    **{f"pen, {name}, {width:.0%}": inked(INKS[name], width) for name in INKS for width in (0.1, 0.2, 0.5)},
    **{f"fold, {layers} layers, {width:.0%}": folded(width, layers) for layers in (2, 3) for width in (0.2, 0.4)},
    **{f"exposure times {times}": exposed(times) for times in (1.2, 1.5, 0.5)},
    **{f"{share:.0%} of the colour": coloured(share) for share in (0.5, 0.2)},
    **{f"all stain times {times}": stronger(times) for times in (1.5, 0.5, 0.3)},
    "eosin times 0.5": stained(1, 0.5),
    "haematoxylin times 0.6": stained(0.6, 1),
}


if __name__ == "__main__":
    main()
