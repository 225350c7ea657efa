"""What weights say of the sections that they were trained on: the blocks ``ood`` and ``typical`` of their description.

    python benchmarks/describe.py --data her2st --weights tcgn_base.her2st -o blocks.json

`tcgn_hub.finetune` writes these blocks itself; this is for weights that were made before, or elsewhere. The sections
are those that ``training_data`` of the weights names.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import tcgn_hub
from tcgn_hub.data.crops import spot_crops
from tcgn_hub.prediction.predictor import load_weights
from tcgn_hub.training.results import described
from tcgn_hub.weights.typical import Typical


def main() -> None:
    """Write the blocks, and say what the second one holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="what tcgn_hub.read_sections takes")
    parser.add_argument("--weights", help="a tag or a model directory")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    predictor = load_weights(args.weights)
    info = predictor.info
    sections = [s for s in tcgn_hub.read_sections(args.data) if s.name in info.training_data["sections"]]
    blocks = described(predictor, sections, {s.name: spot_crops(s, patch_um=info.patch_um) for s in sections})
    args.output.write_text(json.dumps(blocks, indent=1) + "\n", encoding="utf-8")
    typical = Typical.from_json(blocks["typical"], len(info.genes))
    print(f"{sum(len(s.spots) for s in sections)} spots of {', '.join(s.name for s in sections)}, weights {info.name}")
    print(f"effective rank {typical.effective_rank:.2f} of {len(info.genes)}")
    for i, share in enumerate(typical.shares):
        rising, falling = typical.leading(i, info.genes)
        print(f"axis {i + 1}: {share:.1%} of the variance; up {', '.join(rising)}; down {', '.join(falling) or 'none'}")
    if typical.depth is not None:
        print(f"depth from the {typical.depth.of}: mean {typical.depth.mean:.2f}, sd {typical.depth.sd:.2f}")
    print(", ".join(f"{name}: {len(json.dumps(block)) / 1024:.0f} KiB" for name, block in blocks.items()))


if __name__ == "__main__":
    main()
