"""Small sections in the layout of her2st, drawn rather than measured."""

import gzip
from pathlib import Path

import numpy as np
from PIL import Image

PANEL = [f"G{i}" for i in range(12)]


def write_section(root: Path, name: str, *, spots: int = 12, seed: int = 0, zero: int = 0, unmatched: int = 0) -> None:
    """A section whose genes follow the colour around each spot; the last ``zero`` spots have no panel counts."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 255, (700, 800, 3), dtype=np.uint8)
    image_folder = root / "ST-imgs" / name[0] / name
    for folder in (root / "ST-cnts", root / "ST-spotfiles", image_folder):
        folder.mkdir(parents=True, exist_ok=True)
    centres = rng.integers(90, 600, (spots + unmatched, 2))
    for i, (x, y) in enumerate(centres):
        pixels[y - 80 : y + 80, x - 80 : x + 80] = (20 * i % 255, 120, 200)
    Image.fromarray(pixels).save(image_folder / "HE.jpg")
    with open(root / "ST-spotfiles" / f"{name}_selection.tsv", "w") as handle:
        handle.write("x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected\n")
        for i, (x, y) in enumerate(centres):
            handle.write(f"{i}\t{i + 1}\t{i}.1\t{i}.9\t{x}.2\t{y}.7\t1\n")
    with gzip.open(root / "ST-cnts" / f"{name}.tsv.gz", "wt") as handle:
        handle.write("\t" + "\t".join([*PANEL, "OTHER"]) + "\n")
        for i in range(spots):
            counts = rng.poisson(3 + i, len(PANEL)) if i < spots - zero else np.zeros(len(PANEL), int)
            handle.write(f"{i}x{i + 1}\t" + "\t".join(map(str, [*counts, 7])) + "\n")
