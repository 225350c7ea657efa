"""All that is written of one slide, whether it is one of many or alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcgn_hub.data.readers.h5ad import read_h5ad
from tcgn_hub.data.sections import beside
from tcgn_hub.errors import OutputError, PanelError, SectionError
from tcgn_hub.extras import require
from tcgn_hub.files import write_bytes
from tcgn_hub.result import Result, format_of
from tcgn_hub.text import option
from tcgn_hub.units import UNITS
from tcgn_hub.writing.figures import draw_gene, draw_mask, no_depth
from tcgn_hub.writing.report import mapped_genes, write_report

if TYPE_CHECKING:
    from tcgn_hub.prediction.predictor import Predictor

_EXPLAINED = 3  # genes of a report whose highest and lowest tiles are shown


@dataclass(frozen=True)
class Outputs:
    """What is written of a slide.

    Attributes:
        format: Suffix of the format of the tiles, such as '.h5ad'.
        plot: Genes to draw maps of.
        map: What maps and report draw of a gene: 'value', as if it is None, or 'given_depth'.
        report: Whether to write a report.
    """

    format: str = ".h5ad"
    plot: tuple[str, ...] = ()
    map: str | None = None
    report: bool = False

    def check(self) -> None:
        """Refuse, before anything is loaded, what cannot be written.

        Raises:
            OutputError: The format is not known.
            ExtraError: What is to be written needs a package that is not installed.
        """
        format_of(f"tiles{self.format}")
        if self.map and not (self.plot or self.report):
            drawn = f"{option('plot')} and {option('report')}"
            raise OutputError(f"{option('map')} says what {drawn} draw; give one of them, or leave it out.")
        if self.plot or self.report:
            require("matplotlib", extra="plot", to="draw figures")

    def drawn(self, predictor: Predictor, genes: Any = None, *, significant_only: bool = False) -> Outputs:
        """The same with the genes to draw by the names that the weights have for them.

        Raises:
            PanelError: One is not among the genes that are predicted.
            OutputError: Depth is not known of the weights, by which it is to be drawn.
        """
        typical = predictor.info.predicted_in_training
        if self.map == "given_depth" and (typical is None or typical.depth is None):
            raise OutputError(no_depth(predictor.info.name))
        predicted = predictor.info.columns(genes, significant_only=significant_only).values()
        drawn = predictor.info.columns(self.plot).values() if self.plot else ()
        absent = [predictor.info.genes[i] for i in drawn if i not in predicted]
        if absent:
            raise PanelError(f"{absent[0]} is to be drawn, but not among the genes that are predicted.")
        return Outputs(self.format, tuple(predictor.info.genes[i] for i in drawn), self.map, self.report)

    def write(
        self, result: Result, output: Path, *, predictor: Predictor, options: Mapping[str, Any]
    ) -> tuple[list[Path], list[str]]:
        """Write the tiles of a slide, and what is asked for beside them.

        Args:
            result: The tiles.
            output: Their file.
            predictor: What predicted them.
            options: Of the prediction, see `tcgn_hub.Predictor.slide`.

        Returns:
            The files, and what the report lacks, a sentence each.

        Raises:
            OutputError: A file cannot be written.
        """
        said: list[str] = []
        if self.report:
            result, missing = _with_measured(result, options.get("spots"), options.get("library"))
            said += missing
        result.write(output, format=self.format)
        written, layer = files_of(output, self.format), self.map or "value"
        for gene in self.plot:
            written.append(output.with_suffix(f".{gene}.png" if layer == "value" else f".{gene}.{layer}.png"))
            write_bytes(written[-1], draw_gene(result, gene, layer=layer))
        if self.plot and result.slide is not None and result.slide.mask is not None:
            written.append(output.with_suffix(".tissue.png"))
            write_bytes(written[-1], draw_mask(result))
        if self.report:
            written.append(output.with_suffix(".html"))
            explains = predictor.backend.name == "torch"
            if not explains:
                said.append("the report has no tiles with Grad-CAM, which needs weights of PyTorch")
            explained: Sequence[str] = mapped_genes(result, layer=layer)[:_EXPLAINED] if explains else ()
            galleries = predictor.galleries(result, explained) if explained else ()
            write_report(written[-1], result, layer=layer, galleries=galleries)
        return written, said


def files_of(output: Path, suffix: str) -> list[Path]:
    """The files that `Result.write` leaves."""
    return [output, Path(f"{output}.json")] if suffix == ".csv" else [output]


def state_of(output: Path) -> Path:
    """Where what is done of a slide is kept, for a run that continues."""
    return output.with_name(f"{output.name}.partial")


def _with_measured(result: Result, spots: Any, library: str | None) -> tuple[Result, list[str]]:
    """With what was measured of the spots, where their file holds it, and why not where it cannot be read."""
    if result.slide is None or result.units != UNITS or Path(spots or "").suffix != ".h5ad":
        return result, []
    where: dict[str, Any] = {"library": library, "image": result.slide.path, "mpp": result.slide.mpp}
    try:
        return beside(result, read_h5ad(spots, force_scale=True, **where)), []
    except SectionError as err:
        return result, [f"the report has no measurements of the spots: {str(err).rstrip('.')}"]
