"""Results as tables: CSV, JSON and Parquet to work with, text to read."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tcgn_hub.extras import require
from tcgn_hub.files import write_text, writing
from tcgn_hub.images.quality import MEASURES, POOR, worst_of
from tcgn_hub.result import Result, writer
from tcgn_hub.rows import AT_ONCE, forget
from tcgn_hub.text import aligned, counted

_WITHHELD = "; which genes are significant is withheld, as that was measured on other tissue"
_OF_GENES = ("significant", "held_out_pcc", "held_out_pcc_given_depth")


def table_metadata(result: Result) -> dict[str, Any]:
    """What a table of values does not say: the run, and what is known of its genes."""
    return {**result.metadata(), **result.gene_metadata()}


def rows_of(result: Result, count: int = AT_ONCE) -> Iterator[slice]:
    """Its rows, some at a time, so that no second table of many tiles is held."""
    for start in range(0, len(result), count):
        yield slice(start, min(start + count, len(result)))
        forget(result.X, *result.layers.values(), *result.obsm.values())


_COLUMNS = {
    "name": "string",
    **{"x": "double", "y": "double", "array_row": "int64", "array_col": "int64"},
    **{"mpp": "double", "scale_source": "string", "patch_um": "double", "trained_um": "double", "patch_px": "double"},
    **{"ood": "double", "predicted_depth": "double"},
    **dict.fromkeys(("tissue_share", "quality", *MEASURES), "double"),
}
"""The columns of every table before those of scores and genes, and their types in Parquet."""


def describe(result: Result) -> dict[str, np.ndarray]:
    """The columns of every table before those of the genes, the same for patches and tiles; NaN where unknown.

    ``name``; ``x`` and ``y`` of the centre in pixels of the picture, at full resolution; ``array_row`` and
    ``array_col``, of tiles; ``mpp`` and ``scale_source``; the side of what was predicted, ``patch_um``, that of the
    patches which the weights were trained on, ``trained_um``, and of the first in pixels, ``patch_px``; ``ood``;
    ``predicted_depth``; ``tissue_share``, of tiles; ``quality`` and what it follows from, see `Result.poor`; and
    `scores_of`.
    """
    slide, known = result.slide, dict(result.obs)
    if slide is not None:
        of_all: dict[str, Any] = {"mpp": slide.mpp, "patch_um": slide.patch_um, "trained_um": slide.trained_um}
        of_all |= {"scale_source": np.array(slide.scale_source, object), "patch_px": slide.tile_px}
        known |= {key: np.broadcast_to(value, len(result)) for key, value in of_all.items()}
        known |= {"x": result.obsm["spatial"][:, 0], "y": result.obsm["spatial"][:, 1]}
    unknown = np.broadcast_to(np.nan, len(result))
    return {key: known.get(key, unknown) for key in _COLUMNS} | scores_of(result)


def scores_of(result: Result) -> dict[str, np.ndarray]:
    """The scores of gene sets, see `Result.score`, each as ``SET.score``; NaN where they are withheld."""
    return {f"{signature.name}.score": result.obsm["signatures"][:, i] for i, signature in enumerate(result.signatures)}


def _values(result: Result) -> dict[str, np.ndarray]:
    """The tables that stand side by side in one table, by what their columns are called after the gene."""
    tta_std = result.layers.get("tta_std")
    return {"": result.X} | ({} if tta_std is None else {".tta_std": tta_std})


def to_csv(result: Result) -> Iterator[str]:
    """The lines of a table: one row a patch or tile, and a column a gene.

    Before the genes stands what `describe` gives, and after them, if several rotations and reflections were averaged,
    ``GENE.tta_std`` of each.
    """
    columns, tables = describe(result), _values(result)
    # hands each line back as it is made
    line = csv.writer(SimpleNamespace(write=str), lineterminator="\n").writerow
    # one format for a row takes a quarter of the time of one a number
    numbers = ",%.6g" * sum(table.shape[1] for table in tables.values()) + "\n"
    yield line([*columns, *(f"{gene}{suffix}" for suffix in tables for gene in result.genes)])
    for rows in rows_of(result):
        before = zip(*(_cells(values[rows]) for values in columns.values()), strict=True)
        after = np.concatenate([table[rows] for table in tables.values()], axis=1).tolist()
        for cells, row in zip(before, after, strict=True):
            yield line(cells)[:-1] + numbers % tuple(row)


def _cells(values: np.ndarray) -> list[Any]:
    """As they are to be written: coordinates to the hundredth of a pixel in any slide, the rest as it is known."""
    if values.dtype.kind != "f":
        return values.tolist()
    digits = 10 if values.dtype == np.float64 else 6
    return ["" if value != value else f"{value:.{digits}g}" for value in values.tolist()]


def to_json(result: Result) -> Iterator[str]:
    """The parts of one object: `Result.metadata`, ``gene_ids``, and ``predictions``, what is known of each row.

    Its ``genes`` are a list in the order of the result, each with ``gene``, ``value``, ``z``, ``given_depth``,
    ``significant``, ``held_out_pcc``, ``held_out_pcc_given_depth``, ``tta_std``, ``interval_low`` and
    ``interval_high``, null where unknown. ``significance_withheld`` says of a patch or tile why none of its genes is
    called significant or not, null where that is said.
    """
    head = json.dumps({**result.metadata(), "gene_ids": result.gene_metadata()["gene_ids"]}, indent=1)
    yield head.removesuffix("\n}") + ',\n "predictions": ['
    columns = describe(result)
    kept = [result.var[key] if key in result.var else np.full(len(result.genes), np.nan) for key in _OF_GENES]
    genes = [
        {"gene": gene, "value": 0.0, "z": None, "given_depth": None, **dict(zip(_OF_GENES, own, strict=True))}
        for gene, *own in zip(result.genes, *(values.tolist() for values in kept), strict=True)
    ]
    before, of_all = "\n", result.withheld() if result.slide else ""
    for rows in rows_of(result):
        ends = result.interval(rows)
        tables = {
            "value": result.X[rows],
            "z": result.z(rows),
            "given_depth": result.given_depth(rows),
            "tta_std": result.layers["tta_std"][rows] if "tta_std" in result.layers else None,
            "interval_low": None if ends is None else ends[0],
            "interval_high": None if ends is None else ends[1],
        }
        for i in range(rows.stop - rows.start):
            own = {key: values[rows][i : i + 1].tolist()[0] for key, values in columns.items()}
            own = {key: None if value != value else value for key, value in own.items()}
            cells = {key: [None] * len(genes) if t is None else t[i].tolist() for key, t in tables.items()}
            numbers = zip(*cells.values(), strict=True)
            withheld = of_all or result.withheld(rows.start + i)
            own["significance_withheld"] = withheld or None
            hidden = {"significant": None} if withheld else {}
            own["genes"] = [
                {k: None if v != v else v for k, v in {**gene, **dict(zip(cells, row, strict=True)), **hidden}.items()}
                for gene, row in zip(genes, numbers, strict=True)
            ]
            yield before + json.dumps(own, indent=1)
            before = ",\n"
    yield "\n ]\n}\n"


def to_table(result: Result) -> str:
    """A table to read: a block a patch, or one of the genes of a slide over its tiles.

    The genes come in the order of `Result.top` where it is known how far they are from the training tissue.
    """
    ordered = result.deviation() is not None
    result = result.top() if ordered else result
    blocks = [_slide_block(result)] if result.slide else [_block(result, i) for i in range(len(result))]
    after = [f"values in {result.units}"]
    over = "tiles" if result.slide else "the patch"
    if ordered:
        of = "" if len(result) == 1 else f", mean over the {'tiles' if result.slide else 'patches'}"
        after.append(f"z: standard deviations from what is predicted for the training tissue; ordered by its size{of}")
    if not result.slide and result.depth is not None:
        after.append("at mean depth: the value without what goes with the predicted depth, log10 of the panel's counts")
    if "tta_std" in result.layers:
        after.append(f"tta_std: standard deviation over rotations and reflections of {over}")
    if "interval_radius" in result.var:
        around = " around the value of a tile" if result.slide else ""
        level = f"{result.info.interval_level:.0%}"
        after.append(f"interval: where {level} of the measurements of held-out tissue would lie{around}")
    elif result.info.pcc is None:
        after.append("no intervals: these weights state no errors on held-out tissue")
    after += facts(result)
    return "\n".join(blocks) + "\n" + "\n".join(after) + "\n"


def facts(result: Result) -> list[str]:
    """What every table and report says of how much the values tell, a line each."""
    info, spread, lines = result.info, result.spread() if result.slide else None, []
    if "significant" in result.var:
        lines.append(f"significant: {info.significance}")
    if result.withheld():
        lines.append(f"significance is withheld: {result.withheld()}")
    if spread is not None:
        lines.append(
            f"for {spread['genes']} of {counted(int(spread['of']), 'gene')} the tiles differ by more than the interval:"
            f" median sd {spread['median_sd']:.2f}, half-width {spread['median_interval_radius']:.2f}"
        )
    lines += signature_facts(result)
    return [*lines, f"{info.name} {info.skill}"] if info.skill else lines


def signature_facts(result: Result) -> list[str]:
    """What is to be said of scores of gene sets, a line each; none without them."""
    if not result.signatures:
        return []
    different, withheld = result.different_signatures(), int(np.isnan(result.obsm["signatures"][:, 0]).sum())
    of = f"{counted(len(result), 'tile')}" if result.slide else f"{counted(len(result), 'patch', 'patches')}"
    lines = []
    if different is not None:
        lines.append(f"the scores of {len(result.signatures)} gene sets are worth {different:.1f} different maps")
    if withheld:
        lines.append(f"scores are withheld of {withheld} of {of}, which are unlike the training tissue")
    return lines


def _block(result: Result, i: int) -> str:
    """One patch."""
    obs = {key: values[i] for key, values in result.obs.items()}
    head = f"{obs['name']}: central {obs['patch_px']} px, "
    known = obs["mpp"] == obs["mpp"]
    head += f"{obs['mpp']:.4g} um/px by {obs['scale_source']}" if known else "scale unknown"
    head += f", weights {result.info.name}"
    head += f", predicted depth {obs['predicted_depth']:.2f}\n" if "predicted_depth" in obs else "\n"
    if obs.get("ood", 0) > 1:
        head += f"{ood_text(obs['ood'])}{_WITHHELD if 'significant' in result.var else ''}\n"
    if obs.get("quality", 1) < POOR:
        worst = worst_of({key: values[i : i + 1] for key, values in result.obs.items()})[0]
        head += f"poor quality: {obs['quality']:.2f} of 1, by its {worst}\n"
    ends = result.interval(slice(i, i + 1))
    z, given = result.z(slice(i, i + 1)), result.given_depth(slice(i, i + 1))
    columns = {"value": [f"{value:.3f}" for value in result.X[i]]} | ({} if z is None else {"z": _signed(z[0])})
    if given is not None:
        columns["at mean depth"] = [f"{value:.3f}" for value in given[0]]
    if "tta_std" in result.layers:
        columns["tta_std"] = [f"{value:.3f}" for value in result.layers["tta_std"][i]]
    if ends is not None:
        columns[f"{result.info.interval_level:.0%} interval"] = [
            "unknown" if np.isnan(low) else f"{low:.2f} to {high:.2f}" for low, high in np.concatenate(ends).T
        ]
    return head + _genes(result, columns, row=i) + _gene_sets(result, i)


def _signed(z: np.ndarray) -> list[str]:
    """Deviations to read."""
    return ["unknown" if value != value else f"{value:+.1f}" for value in z.tolist()]


def poor_text(result: Result) -> str:
    """How many patches or tiles are of poor quality, and by what; empty if none is."""
    poor = result.poor
    if not poor:
        return ""
    reasons = ", ".join(f"{count} by {reason}" for reason, count in poor.items())
    return f"{sum(poor.values())} of {len(result)} {'tiles' if result.slide else 'patches'} ({reasons})"


def ood_text(ood: float) -> str:
    """What to say of a patch that is out of distribution."""
    return f"out of distribution (distance from the training tissue {ood:.1f}, above 1): do not rely on it"


def _slide_block(result: Result) -> str:
    """A slide."""
    slide, is_ood = result.slide, result.is_ood
    assert slide is not None
    head = f"{slide.path}: {len(result)} tiles of {slide.patch_um:.4g} um, {slide.mpp:.4g} um/px by"
    head += f" {slide.scale_source}, weights {result.info.name}\n"
    if is_ood is not None and is_ood.any():
        head += f"out of distribution: {is_ood.sum()} of {len(result)} tiles; do not rely on them\n"
    if text := poor_text(result):
        head += f"poor quality: {text}\n"
    if result.left_out:
        head += f"left out for their quality: {counted(len(result.left_out), 'tile')}\n"
    summary = result.summary()
    deviation, shown = result.deviation(), ["sd", "min", "max"] + ["tta_std"] * ("tta_std" in result.layers)
    columns = {"mean": [f"{gene.mean:.3f}" for gene in summary]}
    columns |= {} if deviation is None else {"z": _signed(deviation)}
    columns |= {key: [f"{getattr(gene, key):.3f}" for gene in summary] for key in shown}
    if "interval_radius" in result.var:
        radii = [gene.interval_radius for gene in summary]
        columns[f"{result.info.interval_level:.0%} interval"] = [
            "unknown" if np.isnan(radius) else f"+- {radius:.2f}" for radius in radii
        ]
    return head + _genes(result, columns) + _gene_sets(result)


def _gene_sets(result: Result, row: int | None = None) -> str:
    """Lines of the scores of gene sets, none without them; ``row``: of which patch, else over the tiles of a slide."""
    if not result.signatures:
        return ""
    scores = result.obsm["signatures"]
    known = scores[np.isfinite(scores[:, 0])]
    columns = {
        "gene set": [signature.name for signature in result.signatures],
        "genes": [f"{len(signature.genes)} of {signature.size}" for signature in result.signatures],
    }
    over: dict[str, Callable] = {"mean": np.mean, "sd": np.std, "min": np.min, "max": np.max} if row is None else {}
    for key, of in over.items():
        columns[key] = [f"{value:.2f}" for value in of(known, axis=0)] if len(known) else ["withheld"] * scores.shape[1]
    if row is not None:
        columns["score"] = ["withheld" if value != value else f"{value:+.2f}" for value in scores[row].tolist()]
    return "\n" + aligned([list(columns), *zip(*columns.values(), strict=True)])


def _genes(result: Result, columns: dict[str, list[str]], row: int | None = None) -> str:
    """Lines of genes with what is known of each; ``row``: of which patch."""
    columns = {
        "gene": result.genes,
        **columns,
        "significant": [result.significance(gene, row) for gene in result.genes],
        "held-out PCC": _correlations(result),
    }
    if "held_out_pcc_given_depth" in result.var:
        columns["given depth"] = _correlations(result, given_depth=True)
    text = 0, list(columns).index("significant")
    return aligned([list(columns), *zip(*columns.values(), strict=True)], left=text)


def _correlations(result: Result, *, given_depth: bool = False) -> list[str]:
    pcc = [result.pcc(gene, given_depth=given_depth) for gene in result.genes]
    return ["unknown" if value is None else f"{value:.3f}" for value in pcc]


def write_with_metadata(path: str | Path, lines: Iterable[str], metadata: dict[str, Any]) -> None:
    """Write a table, and beside it, as ``FILE.json``, what it does not say; both or neither."""
    with writing(f"{path}.json") as beside, writing(path) as part:
        beside.write_bytes((json.dumps(metadata, indent=1) + "\n").encode())
        with part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.writelines(lines)


FORMATS: dict[str, Callable[[Result], Iterator[str]]] = {"csv": to_csv, "json": to_json}
"""The parts of tables that may go to standard output."""


@writer(".csv")
def write_csv(path: Path, result: Result) -> None:
    """Write `to_csv`, and beside it, as ``FILE.csv.json``, what it does not say."""
    write_with_metadata(path, to_csv(result), {"runs": [result.metadata()], **result.gene_metadata()})


@writer(".json")
def write_json(path: Path, result: Result) -> None:
    """Write `to_json`."""
    write_text(path, to_json(result))


@writer(".txt")
def write_table(path: Path, result: Result) -> None:
    """Write `to_table`."""
    write_text(path, to_table(result))


@writer(".parquet", needs="pyarrow", extra="parquet")
def write_parquet(path: Path, result: Result) -> None:
    """Write the table of `to_csv`, genes as float32; the metadata of the schema hold `table_metadata` as ``tcgn``."""
    pa = require("pyarrow", extra="parquet", to="write .parquet files")
    parquet = require("pyarrow.parquet", extra="parquet", to="write .parquet files")
    columns, tables = describe(result), _values(result)
    genes = [pa.field(f"{gene}{suffix}", pa.float32()) for suffix in tables for gene in result.genes]
    located = [pa.field(key, pa.type_for_alias(_COLUMNS.get(key, "float"))) for key in columns]
    schema = pa.schema([*located, *genes], metadata={"tcgn": json.dumps(table_metadata(result))})
    with writing(path) as part, parquet.ParquetWriter(part, schema) as file:
        for rows in rows_of(result, 16 * AT_ONCE):
            values = [
                pa.array(values[rows], field.type, from_pandas=True)
                for field, values in zip(located, columns.values(), strict=True)
            ]
            values += [pa.array(column) for table in tables.values() for column in np.ascontiguousarray(table[rows].T)]
            file.write_table(pa.Table.from_arrays(values, schema=schema))
