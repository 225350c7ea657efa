"""What is taken for tissue, on sections whose tissue is known by their spots.

    python benchmarks/tissue.py --data her2st

``on tissue`` is the share of the measured spots whose square of 154 um is at least half tissue; ``glass`` that of
squares 150 px apart whose centre is more than 450 px (309 um) from every spot, thousands in an image of her2st.
``mask`` is the share of the image.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tcgn_hub.data.readers.her2st import her2st_names, read_her2st  # noqa: E402
from tcgn_hub.images.readers import open_slide  # noqa: E402
from tcgn_hub.images.tiles import OVERVIEW_PX  # noqa: E402
from tcgn_hub.images.tissue import tissue_fraction, tissue_mask  # noqa: E402

SIDE_UM, STEP_PX, FAR_PX, HALF = 154.0, 150, 450, 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the data set her2st")
    data = parser.parse_args().data
    print(f"{'section':8}{'spots':>7}{'on tissue':>11}{'squares':>9}{'glass':>8}{'mask':>7}")
    for name in her2st_names(data):
        (section,) = read_her2st(data, [name])
        assert section.image is not None
        assert section.mpp is not None
        with open_slide(section.image) as slide:
            size = slide.size
            overview, downsample, _ = slide.overview(OVERVIEW_PX)
        mask = tissue_mask(overview, um_per_px=section.mpp * downsample)
        grid = np.stack(np.meshgrid(*(np.arange(200, side - 200, STEP_PX) for side in size)), axis=-1).reshape(-1, 2)
        apart = np.linalg.norm(grid[:, None] - section.xy[None], axis=2).min(axis=1)
        side = SIDE_UM / section.mpp / downsample
        shown = [
            (tissue_fraction(mask, xy / downsample, side) >= HALF).mean() for xy in (section.xy, grid[apart > FAR_PX])
        ]
        spots, glass, share = 100 * shown[0], 100 * shown[1], 100 * mask.mean()
        count = int((apart > FAR_PX).sum())
        print(f"{name:8}{len(section.xy):7}{spots:9.1f} %{count:9}{glass:6.1f} %{share:5.1f} %")


if __name__ == "__main__":
    main()
