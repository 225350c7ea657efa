r"""How much predictions change with the resolution of a picture and with the side of the patch.

    python benchmarks/scales.py --data her2st --section C6 --weights tcgn_base.her2st

Spots of a section are predicted from their patches as the image has them; from the same tissue at other micrometres per
pixel, a coarser picture made of the image and a finer one by enlarging it; and from patches of other sides. Printed is
the correlation over spots with the prediction from the patch as it is: the median over genes, and what nine genes in
ten are above.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tcgn_hub
from tcgn_hub.correlation import pearson
from tcgn_hub.data.crops import spot_crops
from tcgn_hub.images.transforms import patch_px

RESOLUTIONS = (0.25, 0.5, 1.0)
SIDES = (77.0, 112.0, 230.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--section", required=True)
    parser.add_argument("--weights", metavar="TAG|DIR")
    parser.add_argument("--spots", type=int, default=150, help="at most so many")
    args = parser.parse_args()
    [section] = tcgn_hub.read_sections(args.data, names=[args.section])
    section = section.at(np.unique(np.linspace(0, len(section.spots) - 1, args.spots).astype(int)))
    predictor = tcgn_hub.load(args.weights)
    side = predictor.info.patch_um

    def predicted(um: float, mpp: float | None = None) -> np.ndarray:
        crops = spot_crops(section, patch_um=um, most_px=10_000)
        pictures = [np.asarray(crop).transpose(1, 2, 0) for crop in crops.pixels]
        own = um / crops.patch_px
        if mpp is not None:
            px = patch_px(mpp, um)
            pictures = [np.asarray(Image.fromarray(p).resize((px, px), Image.Resampling.BICUBIC)) for p in pictures]
        return predictor.patches(pictures, mpp=mpp or own, patch_um=um, force=True).X

    whole = predicted(side)
    print(
        f"{len(section.spots)} spots of {section.name}, {predictor.info.name}, {side:g} um at {section.mpp:.3g} um/px"
    )
    print(f"{'what changed':26} median  9 in 10")
    for mpp in RESOLUTIONS:
        _row(f"{side:g} um at {mpp:g} um/px", whole, predicted(side, mpp))
    for um in SIDES:
        _row(f"{um:g} um", whole, predicted(um))


def _row(name: str, whole: np.ndarray, other: np.ndarray) -> None:
    pcc = pearson(other, whole)
    print(f"{name:26} {np.nanmedian(pcc):6.3f}  {np.nanquantile(pcc, 0.1):7.3f}", flush=True)


if __name__ == "__main__":
    main()
