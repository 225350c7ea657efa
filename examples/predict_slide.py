"""Predict a whole slide and write everything there is to write of it.

python examples/predict_slide.py [folder]
"""

import sys
from pathlib import Path

import tcgn_hub
from tcgn_hub.files import write_bytes
from tcgn_hub.writing.figures import draw_gene, draw_mask
from tcgn_hub.writing.report import mapped_genes, write_report


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "slide_out")
    out.mkdir(parents=True, exist_ok=True)
    slide = Path(__file__).parent / "cmu_small_region.svs"

    predictor = tcgn_hub.load()
    result = predictor.slide(slide, progress=True)
    print(f"{slide.name}: {len(result)} tiles of {result.slide.patch_um:g} um at {result.slide.mpp:g} um/px")

    significant = [gene for gene in result.summary() if gene.significant == "yes"]
    highest = sorted(significant, key=lambda gene: gene.mean, reverse=True)[:5]
    print(f"highest means among {len(significant)} significant genes, in {result.units}")
    for gene in highest:
        print(f"  {gene.gene:10} {gene.mean:6.3f}   {gene.min:.3f} to {gene.max:.3f}   held-out PCC {gene.pcc:.2f}")

    result.write(out / "slide.h5ad")
    write_bytes(out / "tissue.png", draw_mask(result))
    for gene in highest[:2]:
        write_bytes(out / f"{gene.gene}.png", draw_gene(result, gene.gene))
    write_report(out / "report.html", result, galleries=predictor.galleries(result, mapped_genes(result)[:2]))
    for name in ("slide.h5ad", "tissue.png", *(f"{gene.gene}.png" for gene in highest[:2]), "report.html"):
        print(f"wrote {out / name}, {(out / name).stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
