"""What a lower precision, and compiling, cost in the values.

    python benchmarks/precision.py --data her2st [--section C6] [--weights TAG|DIR] [--precisions bfloat16 float16]

Each precision predicts the spots of a section, beside float32. Columns: median over genes of the correlation of
prediction and measurement (of weights that have seen the section it says how alike two precisions are, and nothing of
skill); the largest difference of a value from that in float32, and the one that 99.9 % stay below; the correlation of
the values with those in float32, the lowest of all genes; and the share of edges, among both graphs of the first
patches, that float32 does not choose: their scores are computed in float32 from views that are not.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import processor_name, progress

from tcgn_hub.correlation import pearson
from tcgn_hub.data.checks import check_sections
from tcgn_hub.data.crops import spot_crops
from tcgn_hub.data.readers import as_sections
from tcgn_hub.data.sections import expression_targets
from tcgn_hub.evaluation.measuring import predict_crops
from tcgn_hub.prediction.backends.torch import TorchBackend
from tcgn_hub.prediction.explain import inputs_of
from tcgn_hub.prediction.predictor import Predictor, load_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--section", default="C6")
    parser.add_argument("--weights")
    parser.add_argument("--precisions", nargs="+", default=["bfloat16"])
    parser.add_argument("--compile", choices=("on", "off"), default="off", help="the lower precisions")
    parser.add_argument("--patches", type=int, default=32, help="whose graphs are compared")
    args = parser.parse_args()
    exact = load_weights(args.weights, precision="float32", compile="off")
    section = next(section for section in as_sections(args.data) if section.name == args.section)
    (section,), _ = check_sections([section], exact.info.genes)
    crops = spot_crops(section, patch_um=exact.info.patch_um)
    measured = expression_targets(section, exact.info.genes)
    few = next(iter(crops.patches(args.patches))).transpose(0, 2, 3, 1)
    progress("float32")
    wanted, graphs = predict_crops(exact, crops), edges(exact, few)
    device = str(next(exact.model.parameters()).device)
    print(f"{exact.info.name}, {len(wanted)} spots of {section.name}, {processor_name(device)}")
    print(f"{'':20}  PCC     largest  99.9 %   lowest r  other edges")
    print(f"{'float32':20}  {median(wanted, measured):.4f}")
    for precision in args.precisions:
        progress(precision)
        predictor = load_weights(args.weights, precision=precision, compile=args.compile)
        values = predict_crops(predictor, crops)
        off = np.abs(values - wanted)
        alike = np.nanmin(pearson(values, wanted))
        differ = [1 - np.isin(own, theirs).mean() for own, theirs in zip(edges(predictor, few), graphs, strict=True)]
        name = f"{precision}{', compiled' if predictor.backend.compiled else ''}"
        print(
            f"{name:20}  {median(values, measured):.4f}  {off.max():.4f}   {np.quantile(off, 0.999):.4f}   {alike:.5f}"
            f"   {np.mean(differ):.2%}"
        )


def median(predicted: np.ndarray, measured: np.ndarray) -> float:
    return float(np.nanmedian(pearson(predicted, measured)))


def edges(predictor: Predictor, pixels: np.ndarray) -> list[np.ndarray]:
    """The edges of both graphs of each patch, in eager mode, as numbers that tell them apart within a patch."""
    backend = predictor.backend
    assert isinstance(backend, TorchBackend)
    blocks = [stage.graph.co_embed for stage in backend.model.stages if stage.graph is not None]
    found = []
    with torch.inference_mode(), inputs_of(blocks) as seen:
        backend.whole(backend.prepare(pixels))
        for block in blocks:
            found += list(block.edges(block.attention(*(view.float() for view in seen[block]))).cpu().numpy())
    return found


if __name__ == "__main__":
    main()
