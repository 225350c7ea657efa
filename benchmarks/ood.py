"""What counts as unlike the training tissue, and what does not.

    python benchmarks/ood.py --data her2st [--weights TAG|DIR]

The sections are described as training describes its own, see `tcgn_hub.prediction.ood`. The first table holds sections
that were left out of the description, the second one patches of some sections after something was done to them, and
what is no such tissue at all, by the description of all sections. The network itself has seen what its weights were
trained on, whatever is left out here.

Columns: patches, share of them that is flagged, median distance (1 is the limit).
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import progress

import tcgn_hub
from tcgn_hub.data.checks import check_sections
from tcgn_hub.data.crops import SpotCrops, spot_crops
from tcgn_hub.data.readers import as_sections
from tcgn_hub.evaluation.measuring import seen_in
from tcgn_hub.images.transforms import INPUT_PX
from tcgn_hub.prediction.ood import describe
from tcgn_hub.prediction.predictor import load_weights

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]

SLIDE = Path(__file__).resolve().parents[1] / "examples" / "cmu_small_region.svs"
HAEMATOXYLIN, EOSIN = (0.65, 0.70, 0.29), (0.07, 0.99, 0.11)
"""Optical densities of the stains in red, green and blue (Ruifrok and Johnston, Anal. Quant. Cytol. Histol. 23, 291
(2001))."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights")
    parser.add_argument("--sections", nargs="+", default=["B4", "C6"], help="those whose patches are changed")
    parser.add_argument("--patches", type=int, default=15, help="of each of them")
    parser.add_argument("--cache", type=Path, help="folder to keep the features of sections in")
    args = parser.parse_args()
    predictor = load_weights(args.weights)
    info = predictor.info
    sections, _ = check_sections(as_sections(args.data), info.genes)
    crops = {section.name: spot_crops(section, patch_um=info.patch_um) for section in sections}
    numbers = {}
    for name in crops:
        progress(f"describing {name}")
        numbers[name] = kept(args.cache and args.cache / f"{info.sha256[:16]}-{name}.npz", predictor, crops[name])
    places = {section.name: section.xy for section in sections}

    def described(names: list[str]):
        features, pictures = zip(*(numbers[name] for name in names), strict=True)
        return describe(features, pictures, places=[places[name] for name in names])

    known = described(list(crops))
    assert known is not None
    print(f"{info.name}, described by {', '.join(crops)}\n")
    print(f"{'left out of the description':44}patches   flagged    median")
    for section in sections:
        left = described([name for name in crops if name != section.name])
        row(f"{section.name}, patient {section.patient}", left.distance(*numbers[section.name]))
    for patient in sorted({section.patient for section in sections}):
        others = [section.name for section in sections if section.patient != patient]
        if others and len(others) < len(sections) - 1:
            left, own = described(others), [s.name for s in sections if s.patient == patient]
            distances = np.concatenate([left.distance(*numbers[name]) for name in own])
            row(f"patient {patient}, described by {', '.join(others)} alone", distances)

    predictor = tcgn_hub.Predictor(predictor.backend, replace(info, ood=known.to_json()))
    rng = np.random.default_rng(0)
    patches = []
    for name in args.sections:
        pixels = next(crops[name].patches(len(crops[name].pixels))).transpose(0, 2, 3, 1)
        patches += [sized(pixels[i]) for i in rng.permutation(len(pixels))[: args.patches]]
    print(f"\n{'patches of ' + ' and '.join(args.sections):44}patches   flagged    median")
    for title, change in CHANGES.items():
        progress(title)
        changed = np.stack([change(patch, rng) for patch in patches])
        distances = [predictor.run(changed[i : i + 16])["ood"] for i in range(0, len(changed), 16)]
        row(title, np.concatenate(distances))
    tiles = predictor.slide(SLIDE, stride_um=info.patch_um)
    row("another organ: skin, another scanner", tiles.obs["ood"])


def kept(path: Path | None, predictor: tcgn_hub.Predictor, crops: SpotCrops) -> tuple[np.ndarray, np.ndarray]:
    """Features and pictures of a section, read from a file if it is there, and written to it if it is not."""
    if path is None or not path.is_file():
        _, features, pictures = seen_in(predictor, crops)
        if path is not None:
            np.savez(path, features=features, pictures=pictures)
        return features, pictures
    with np.load(path) as arrays:
        return arrays["features"], arrays["pictures"]


def row(title: str, distances: np.ndarray) -> None:
    print(f"{title:44}{len(distances):7}{100 * (distances > 1).mean():8.0f} %{np.median(distances):10.2f}", flush=True)


def sized(patch: np.ndarray) -> np.ndarray:
    """At the size that the network takes, so that a change is the same for all."""
    if patch.shape[0] == INPUT_PX:
        return patch
    return np.asarray(Image.fromarray(patch).resize((INPUT_PX, INPUT_PX), Image.Resampling.BILINEAR))


def densities(pixels: np.ndarray) -> np.ndarray:
    return -np.log((pixels.astype(float) + 1) / 256)


def picture(density: np.ndarray) -> np.ndarray:
    return (256 * np.exp(-density) - 1).clip(0, 255).round().astype(np.uint8)


def stained(haematoxylin: float, eosin: float) -> Change:
    """Amounts of the two stains, relative to what they were."""
    vectors = np.array([HAEMATOXYLIN, EOSIN, np.cross(HAEMATOXYLIN, EOSIN)])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    def change(pixels: np.ndarray, _: np.random.Generator) -> np.ndarray:
        amounts = densities(pixels) @ np.linalg.inv(vectors)
        return picture(amounts * [haematoxylin, eosin, 1] @ vectors)

    return change


def hue(degrees: float) -> Change:
    def change(pixels: np.ndarray, _: np.random.Generator) -> np.ndarray:
        hsv = np.array(Image.fromarray(pixels).convert("HSV"))
        hsv[..., 0] = (hsv[..., 0].astype(int) + round(degrees * 256 / 360)) % 256
        return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))

    return change


def blurred(pixels: np.ndarray, _: np.random.Generator) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(3)))


def band(pixels: np.ndarray, width: float, rng: np.random.Generator) -> np.ndarray:
    """Where a straight band across the patch lies, at random, near the centre; bool, shape (H, W, 1)."""
    angle, offset = rng.uniform(0, np.pi), rng.uniform(-0.2, 0.2)
    y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]] / pixels.shape[0] - 0.5
    return (abs(x * np.cos(angle) + y * np.sin(angle) - offset) < width / 2)[..., None]


def marked(ink: tuple[int, int, int]) -> Change:
    """A stroke of a felt pen over a fifth of the patch; ink is seen through."""

    def change(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.where(band(pixels, 0.2, rng), picture(densities(pixels) + densities(np.array(ink))), pixels)

    return change


def folded(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Tissue lies double in a band."""
    double = picture(densities(pixels) + densities(pixels[::-1, ::-1]))
    return np.where(band(pixels, 0.3, rng), double, pixels)


def compressed(pixels: np.ndarray, _: np.random.Generator) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=10)
    return np.asarray(Image.open(stream).convert("RGB"))


def halved(pixels: np.ndarray, _: np.random.Generator) -> np.ndarray:
    image = Image.fromarray(pixels)
    return np.asarray(image.reduce(2).resize(image.size, Image.Resampling.BILINEAR))


CHANGES: dict[str, Change] = {
    "unchanged": lambda pixels, _: pixels,
    "other stain: half of the eosin": stained(1, 0.5),
    "other stain: eosin by half more": stained(1, 1.5),
    "other stain: 0.6 of the haematoxylin": stained(0.6, 1),
    "other stain: haematoxylin by half more": stained(1.5, 1),
    "other stain: hue by +30 degrees": hue(30),
    "other stain: hue by -30 degrees": hue(-30),
    "blur of 3 px (2 um)": blurred,
    "pen, blue": marked((40, 60, 160)),
    "pen, green": marked((40, 140, 80)),
    "pen, black": marked((30, 30, 30)),
    "fold": folded,
    "JPEG of quality 10": compressed,
    "half of the resolution": halved,
    "white": lambda pixels, _: np.full_like(pixels, 245),
    "noise": lambda pixels, rng: rng.integers(0, 256, pixels.shape, dtype=np.uint8),
}


if __name__ == "__main__":
    main()
