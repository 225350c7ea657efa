"""Train tcgn_base on her2st sections, some held out: how the bundled weights `tcgn_base.her2st_c6` were made.

    python examples/train_her2st.py --data her2st --holdout C6 --out runs/her2st_c6

The data are a clone of github.com/almaan/her2st (Andersson et al., Nature Communications 2021).
"""

import argparse
import json
import logging
from pathlib import Path

import torch

import tcgn_hub
from tcgn_hub.data.sections import read_her2st
from tcgn_hub.weights.model_dir import manifest_entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the her2st data set")
    parser.add_argument("--sections", nargs="+", help="sections to use; default: all")
    parser.add_argument("--holdout", nargs="+", default=["C6"], help="sections never trained on; default: C6")
    parser.add_argument("--out", type=Path, required=True, help="model directory to write")
    parser.add_argument("--epochs", type=int, default=22)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    sections = read_her2st(args.data, args.sections)
    metrics = tcgn_hub.finetune(
        [section for section in sections if section.name not in args.holdout],
        test=[section for section in sections if section.name in args.holdout],
        genes="her2st_785",
        out=args.out,
        epochs=args.epochs,
        device=args.device,
        facts={
            "panel": "her2st_785",
            "crop": {
                "px": 112,
                "magnification": 20,
                "nominal_field_um": 56,
                "trained_field_um": 77,
                "rule": "112 px at 20x, 56 px at 10x, 224 px at 40x, resized to 224; the training images are really"
                " 0.67 to 0.70 um/px, so that their crops cover about 77 um",
            },
            "training_data": {
                "name": "her2st",
                "sections": [section.name for section in sections if section.name not in args.holdout],
                "held_out": args.holdout,
                "source": "github.com/almaan/her2st, zenodo.org/records/4751624",
                "license": "CC-BY-4.0",
                "citation": "Andersson et al., Spatial deconvolution of HER2-positive breast cancer delineates"
                " tumor-associated cell type interactions, Nature Communications 12, 6012 (2021)",
            },
            "license": "Apache-2.0",
            "origin": "trained from scratch by examples/train_her2st.py",
        },
    )
    entry = manifest_entry(args.out, tag=f"tcgn_base.her2st_{'_'.join(args.holdout).lower()}", bundled=True)
    (args.out / "manifest_entry.json").write_text(json.dumps(entry, indent=1) + "\n")
    held_out = metrics["held_out"]
    print(
        f"median PCC {held_out['median_pcc']:.3f}, ridge {held_out['median_pcc_ridge']:.3f},"
        f" {held_out['reliable_genes']} reliable genes"
    )


if __name__ == "__main__":
    main()
