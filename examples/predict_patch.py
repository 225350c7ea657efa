"""Predict the genes of a patch, first with this package and then with timm alone.

python examples/predict_patch.py [patch.png]
"""

import sys
from pathlib import Path

import timm
import torch
from PIL import Image

import tcgn_hub
from tcgn_hub.images.transforms import CropMicrons


def main() -> None:
    patch = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "patch.png"

    predictor = tcgn_hub.load()
    result = predictor.patches([patch])
    values = dict(zip(result.genes, result.X[0], strict=True))
    print(f"{patch.name}, in {result.units}")
    for gene in result.top(10).summary():
        print(f"  {gene.gene:10} {gene.mean:6.3f}   z {gene.z:+.1f}   significant: {gene.significant}")

    # what happened: 154 um of tissue, which the weights were trained on, resized to 224 and normalised
    model = timm.create_model("tcgn_base", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    image = Image.open(patch).convert("RGB")
    crop = CropMicrons(mpp=result.obs["mpp"][0], patch_um=predictor.info.patch_um)
    with torch.inference_mode():
        logits = model(transform(crop(image))[None])[0]
    difference = max(abs(logits[i].item() - values[gene]) for i, gene in enumerate(model.pretrained_cfg["label_names"]))
    print(f"timm alone agrees to {difference:.3f} (it resizes 8-bit pixels, we resize in floating point)")


if __name__ == "__main__":
    main()
