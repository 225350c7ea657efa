"""Predict a whole slide and write everything there is to write of it.

python examples/predict_slide.py [folder]
"""

import sys
from pathlib import Path

import tcgn_hub
from tcgn_hub.files import write_bytes
from tcgn_hub.writing.figures import draw_gene, draw_mask
from tcgn_hub.writing.report import mapped_genes, write_report
from tcgn_hub.writing.tables import facts


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "slide_out")
    out.mkdir(parents=True, exist_ok=True)
    slide = Path(__file__).parent / "cmu_small_region.svs"

    predictor = tcgn_hub.load()
    result = predictor.slide(slide, progress=True)
    print(f"{slide.name}: {len(result)} tiles of {result.slide.patch_um:g} um at {result.slide.mpp:g} um/px")

    print("\n".join(facts(result)))
    print(f"farthest from what is predicted for the training tissue, in {result.units}")
    for gene in result.top(5).summary():
        print(f"  {gene.gene:10} {gene.mean:6.3f} (z {gene.z:+.1f})   {gene.min:.3f} to {gene.max:.3f}")

    result.write(out / "slide.h5ad")
    write_bytes(out / "tissue.png", draw_mask(result))
    mapped = mapped_genes(result)[:2]
    for gene in mapped:
        write_bytes(out / f"{gene}.png", draw_gene(result, gene))
    write_report(out / "report.html", result, galleries=predictor.galleries(result, mapped))
    for name in ("slide.h5ad", "tissue.png", *(f"{gene}.png" for gene in mapped), "report.html"):
        print(f"wrote {out / name}, {(out / name).stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
