"""Predictions that any method made for the spots of sections, whatever wrote them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from tcgn_hub.data.h5ad import JOINTS, SECTION_OF, open_h5ad, positions
from tcgn_hub.data.sections import Section
from tcgn_hub.data.spots import SPOT_NAMES
from tcgn_hub.data.tables import open_table
from tcgn_hub.errors import ExtraError, SectionError
from tcgn_hub.extras import require
from tcgn_hub.panels import match_genes
from tcgn_hub.text import counted, option, some
from tcgn_hub.units import UNITS, from_linear

SCALES = ("log", "linear")
"""What values may be: logarithmic or standardised ones, whose units are free, or such as counts."""

SUFFIXES = (".h5ad", ".parquet", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt", ".txt.gz")
"""Files of predictions that are read."""

_LAYERS = ("predicted", "predictions", "prediction", "pred", "preds")
_SYMBOLS = ("gene_name", "gene_symbols", "feature_name", "symbol")
_XY = (("pixel_x", "pixel_y"), ("pxl_col_in_fullres", "pxl_row_in_fullres"), ("imagecol", "imagerow"), ("x", "y"))
_BARCODE = re.compile(r"([ACGT]{8,})(-\d+)*")  # what concatenating sections appends to a barcode says nothing of it
_SECTIONS = (*SECTION_OF, "slide", "slice")
_MISSING = ("", "na", "n/a", "<na>", "null", "none")  # beside nan, which every language reads
_FIRST = 2  # columns of a table that may say of which spot and section a row is, whatever they are called
_LEAST_SPOTS = 3  # a section; a column that differs from spot to spot names no sections
_LEAST_FIT = 0.75  # of the places or of the spots; a lattice that is scaled or turned fits in part
_ROWS = 256  # spots at a time whose distances to all others are held


@dataclass(frozen=True)
class GivenPredictions:
    """What one method predicted for the spots of sections."""

    label: str  # what the method is called
    values: dict[str, np.ndarray]  # by section, float32, shape (spots, genes); NaN where a spot or a gene is missing
    source: str  # the file, or what else was given
    scale: str = "log"  # what the values were said to be, one of `SCALES`
    ours: bool = False  # whether ``values`` are in the units of the measurement, so that they have errors
    missing_genes: list[str] = field(default_factory=list)  # genes of the panel that were not predicted at all
    missing_spots: dict[str, list[str]] = field(default_factory=dict)  # of each section the spots without a prediction
    notes: list[str] = field(default_factory=list)  # what a reader of the results has to know, a sentence each


@dataclass
class _Table:
    """Predictions as they were found; ``n`` rows, and the columns whose gene is one of the panel."""

    source: str
    spots: list[list[str]]  # what each row is called, by the columns that may say so, the likeliest first
    genes: list[str]  # symbols of the columns
    values: np.ndarray  # float32, shape (n, genes)
    owners: list[list[str]]  # columns that say of which section a row is, the likeliest first
    xy: np.ndarray | None = None  # centres in pixels of the image, shape (n, 2)
    ours: bool = False
    notes: list[str] = field(default_factory=list)


def read_predictions(
    source: Any,
    sections: Sequence[Section],
    genes: Sequence[str],
    *,
    label: str | None = None,
    scale: str = "log",
    rows: Mapping[str, Sequence[str]] | None = None,
) -> GivenPredictions:
    """Match predictions with spots and genes, in whatever order they are.

    A row is of a spot by its section and its name. The section is that of a column such as ``section``, ``sample`` or
    ``library_id``, or stands before or after the name (``C6_10x13``), or is the only one. Where no name fits, a row is
    of the spot whose centre is the nearest, within half a pitch, and to which no other row is nearer; positions are
    ``obsm['spatial']``, or columns x and y, in pixels of the image, and are refused where too many fit nowhere. Genes
    may have any name that `tcgn_hub.panels.find_genes` knows. Spots and genes that are not among ``sections`` and
    ``genes`` are left out.

    What 'linear' values have in common with ours is the share of a gene in a spot: they become ``log10(1 + 10^4
    share)``, of the sum of those genes that are predicted. 'log' values stay as they are.

    ``source``: .h5ad (``layers['predicted']`` or ``X``), .csv, .tsv (also .gz) or .parquet, a row a spot and a column a
    gene; an AnnData, a DataFrame; or arrays by section, shape (spots, genes), in the order of ``rows`` and ``genes``;
    ``sections``: sections to predict; ``genes``: symbols of the panel; ``label``: what to call the method, the stem of
    the file if None; ``scale``: one of `SCALES`; ``rows``: spots of each array, those of ``sections`` if None. Raises a
    SectionError where a spot or gene is named twice, nothing fits, or values are no numbers, or 'linear' and negative.
    """
    if scale not in SCALES:
        raise SectionError(
            f"Predictions are of the scale {' or '.join(SCALES)}, not {scale!r}; {option('predictions_scale')}"
            " says which."
        )
    bulk = [section.name for section in sections if section.bulk]
    if bulk:
        raise SectionError(
            f"Section {some(bulk)} has one measurement of the whole slide, and predictions are scored by spot; leave"
            " it out."
        )
    tables = _tables(source, sections, genes, rows)
    name = label or stem(tables[0].source)
    notes = [note for table in tables for note in table.notes]
    values: dict[str, np.ndarray] = {s.name: np.full((len(s.spots), len(genes)), np.nan, np.float32) for s in sections}
    column = {gene: i for i, gene in enumerate(genes)}
    for table in tables:
        at, own = _matched(table, sections, {*(rows or ())})
        notes += own
        columns = [column[gene] for gene in table.genes]
        for section, spots in at.items():
            taken = np.flatnonzero(spots >= 0)
            values[section][taken[:, None], columns] = table.values[spots[taken]]
    known = set().union(*(table.genes for table in tables))
    missing_genes = [gene for gene in genes if gene not in known]
    if scale == "linear":
        _check_linear(values, tables[0].source, sections, genes)
        values = {section: _shares(block) for section, block in values.items()}
    notes += _mend(values, genes)
    missing_spots = {
        section.name: [section.spots[i] for i in np.flatnonzero(np.isnan(values[section.name]).all(axis=1))]
        for section in sections
    }
    missing_spots = {section: spots for section, spots in missing_spots.items() if spots}
    if all(len(missing_spots.get(section.name, ())) == len(section.spots) for section in sections):
        raise SectionError(f"{tables[0].source} predicts nothing that is a number for {_of(sections)}.")
    return GivenPredictions(
        label=name,
        values=values,
        source=tables[0].source,
        scale=scale,
        # of the sum of fewer genes a share is larger, which no correlation sees, but every error does
        ours=all(table.ours for table in tables) if scale == "log" else not missing_genes,
        missing_genes=missing_genes,
        missing_spots=missing_spots,
        notes=_missing(missing_genes, missing_spots, sections, genes) + notes,
    )


def _tables(
    source: Any, sections: Sequence[Section], genes: Sequence[str], rows: Mapping[str, Sequence[str]] | None
) -> list[_Table]:
    if isinstance(source, (str, Path)):
        return [_of_file(Path(source), sections, genes)]
    if isinstance(source, Mapping):
        known = rows or {section.name: section.spots for section in sections}
        unknown = [str(name) for name in source if name not in known]
        if unknown or not source:
            raise SectionError(
                f"Arrays of predictions are given for {some(unknown) or 'no section'}, but the sections are"
                f" {some(known)}."
            )
        chosen = {section.name for section in sections}
        tables = [
            _of_array(name, array, known[name], sections, genes) for name, array in source.items() if name in chosen
        ]
        if not tables:
            raise SectionError(f"Arrays of predictions are given for {some(source)}, but not for {_of(sections)}.")
        return tables
    if hasattr(source, "obs_names"):
        return [_of_anndata(source, "the AnnData of predictions", genes)]
    if hasattr(source, "columns") and hasattr(source, "index"):
        return [_of_frame(source, sections, genes)]
    raise SectionError(
        f"Predictions are a file, an AnnData, a DataFrame or arrays by section, not {type(source).__name__}."
    )


def stem(source: str) -> str:
    """The name of a file of predictions without what says its format."""
    name = Path(source).name
    suffix = next((end for end in sorted(SUFFIXES, key=len, reverse=True) if name.lower().endswith(end)), "")
    return name[: len(name) - len(suffix)] or name


def _of(sections: Sequence[Section]) -> str:
    return f"section{'s' * (len(sections) > 1)} {some(section.name for section in sections)}"


# what is given, as a table


def _of_file(path: Path, sections: Sequence[Section], genes: Sequence[str]) -> _Table:
    if not path.is_file():
        raise SectionError(f"There is no file of predictions {path}.")
    name = path.name.lower()
    if name.endswith(".h5ad"):
        data = open_h5ad(path)
        try:
            return _of_anndata(data, str(path), genes)
        except (SectionError, ExtraError):
            raise
        except Exception as err:  # of damage h5py and anndata say whatever comes of it
            raise SectionError(f"{path} is no .h5ad file of predictions ({err}).") from err
    if name.endswith(".parquet"):
        parquet = require("pyarrow.parquet", extra="parquet", to="read .parquet files")
        try:
            table = parquet.read_table(path)
        except Exception as err:  # of damage pyarrow says whatever comes of it
            raise SectionError(f"{path} is no .parquet file that can be read ({err}).") from err
        header = [str(column) for column in table.column_names]
        return _of_columns(header, lambda i: table.column(i).to_pylist(), str(path), sections, genes)
    if not name.endswith(SUFFIXES):
        raise SectionError(f"{path} is of no format of predictions that is read: {', '.join(SUFFIXES[:5])}.")
    return _of_text(path, sections, genes)


def _of_anndata(data: Any, source: str, genes: Sequence[str]) -> _Table:
    names = [str(name) for name in data.var_names]
    columns = [names, *([str(name) for name in data.var[column]] for column in _SYMBOLS if column in data.var)]
    found = max((_genes(column, source, genes) for column in columns), key=len)
    if not found:
        _refuse_genes(names, _texts(data.obs_names), source, genes)
    layer = next((name for name in _LAYERS if name in data.layers), None)
    matrix = data.X if layer is None else data.layers[layer]
    if matrix is None:
        raise SectionError(f"{source} has neither layers['{_LAYERS[0]}'] nor X; the predictions belong there.")
    notes = [f"its layer {layer} was taken, not X"] if layer is not None and data.X is not None else []
    block = matrix[:, list(found.values())]
    block = block.toarray() if hasattr(block, "toarray") else np.asarray(block)
    stated = data.uns.get("tcgn", {})
    return _Table(
        source=source,
        spots=[_texts(data.obs_names), *(_texts(data.obs[name]) for name in SPOT_NAMES if name in data.obs)],
        genes=list(found),
        values=_numbers(block, source),
        owners=_owners(data.obs),
        xy=_positions(data),
        ours=isinstance(stated, Mapping) and stated.get("units") == UNITS and layer is None,
        notes=notes,
    )


def _owners(obs: Any) -> list[list[str]]:
    """Columns that say of which section a row is; a slide may be named as its file is."""
    owners = [_texts(obs[name]) for name in _SECTIONS if name in obs]
    if "slide" in obs:
        owners.append([Path(name).stem for name in _texts(obs["slide"])])
    return owners


def _positions(data: Any) -> np.ndarray | None:
    try:
        return positions(data, Path())
    except SectionError:
        return None  # they are needed where no name fits, and then miss


def _of_frame(frame: Any, sections: Sequence[Section], genes: Sequence[str]) -> _Table:
    pandas = require("pandas", extra="parquet", to="read data frames")
    index = [] if isinstance(frame.index, pandas.RangeIndex) else list(range(frame.index.nlevels))
    levels = [str(frame.index.names[i] or "") for i in index]
    header = levels + [str(name) for name in frame.columns]

    def column(i: int) -> list[Any]:
        return list(frame.index.get_level_values(i) if i < len(levels) else frame.iloc[:, i - len(levels)])

    return _of_columns(header, column, "the DataFrame of predictions", sections, genes)


def _of_array(
    section: str, array: Any, spots: Sequence[str], sections: Sequence[Section], genes: Sequence[str]
) -> _Table:
    source = f"the predictions of section {section}"
    if hasattr(array, "columns") and hasattr(array, "index"):
        table = _of_frame(array, sections, genes)
        table.owners = [[section] * len(table.values)]
        return table
    values = _numbers(np.asarray(array), source)
    if values.shape != (len(spots), len(genes)):
        raise SectionError(
            f"{source[0].upper()}{source[1:]} have the shape {values.shape}, but it has {len(spots)} spots and"
            f" {len(genes)} genes; give a DataFrame if some are missing."
        )
    return _Table(source, [list(spots)], list(genes), values, [[section] * len(spots)])


def _of_text(path: Path, sections: Sequence[Section], genes: Sequence[str]) -> _Table:
    labels: dict[int, list[str]]
    with open_table(path) as lines:
        header, first = [name.strip() for name in next(lines, [])], next(lines, None)
        if first is None:
            raise SectionError(f"{path} has no rows.")
        if len(first) == len(header) + 1:
            # R leaves the column of the names of rows without a name
            header = ["", *header]
        found = _genes(header, str(path), genes)
        if not found:
            _refuse_genes(header, [row[0].strip() for row in chain([first], lines)], str(path), genes)
        columns = list(found.values())
        labels = {i: [] for i in _label_columns(header, columns)}
        values = []
        for row in chain([first], lines):
            if len(row) != len(header):
                raise SectionError(f"Row {row[0]:.60} of {path} has {len(row)} cells, but its header {len(header)}.")
            for i, column in labels.items():
                column.append(row[i].strip())
            cells = [row[i] for i in columns]
            try:
                values.append(np.array(cells, np.float32))
            except ValueError:
                names = [header[i] for i in columns]
                values.append(
                    np.array([_number(cell, name, str(path)) for cell, name in zip(cells, names, strict=True)])
                )
    return _table(header, labels, found, np.stack(values), str(path), sections)


def _of_columns(
    header: list[str],
    column: Callable[[int], list[Any]],
    source: str,
    sections: Sequence[Section],
    genes: Sequence[str],
) -> _Table:
    """A table that gives one column after the other."""
    found = _genes(header, source, genes)
    if not found:
        _refuse_genes(header, _texts(column(0)) if header else [], source, genes)
    columns = list(found.values())
    labels = {i: _texts(column(i)) for i in _label_columns(header, columns)}
    values = []
    for i in columns:
        cells = column(i)
        try:
            values.append(np.array(cells, np.float32))
        except (ValueError, TypeError):
            values.append(np.array([_number(cell, header[i], source) for cell in cells]))
    return _table(header, labels, found, np.stack(values, axis=1), source, sections)


def _genes(names: Sequence[str], source: str, genes: Sequence[str]) -> dict[str, int]:
    """The column of each gene of the panel that is there."""
    symbols = match_genes(names, genes)
    ways: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        if name in symbols:
            ways.setdefault(symbols[name], []).append(i)
    found = {}
    for gene in genes:
        columns = ways.get(gene, [])
        # another name that may mean the gene means another one where the symbol is there as well
        columns = [i for i in columns if names[i] == gene] or columns
        if len(columns) > 1:
            raise SectionError(f"{source} has {len(columns)} columns of {gene} ({some(names[i] for i in columns)}).")
        if columns:
            found[gene] = columns[0]
    return found


def _refuse_genes(names: Sequence[str], rows: Sequence[str], source: str, genes: Sequence[str]) -> NoReturn:
    turned = "; its rows do, so turn the table about" if match_genes(rows, genes) else ""
    raise SectionError(
        f"{source} predicts none of the {len(genes)} genes of the panel, such as {some(genes, 3)}: its columns are"
        f" called {some(names, 3) or 'nothing'}{turned}."
    )


def _label_columns(header: Sequence[str], genes: Sequence[int]) -> list[int]:
    """Columns that may say of which spot or section a row is, or where."""
    known = {*_SECTIONS, *SPOT_NAMES, *chain(*_XY)}
    taken = set(genes)
    return [i for i, name in enumerate(header) if i not in taken and (i < _FIRST or name.lower() in known)]


def _table(
    header: Sequence[str],
    labels: dict[int, list[str]],
    found: dict[str, int],
    values: np.ndarray,
    source: str,
    sections: Sequence[Section],
) -> _Table:
    column = {header[i].lower(): cells for i, cells in reversed(labels.items())}
    xy = None
    for x, y in _XY:
        if x in column and y in column:
            xy = np.array([[_number(cell, axis, source) for cell in column[axis]] for axis in (x, y)], float).T
            break
    names = {section.name for section in sections}
    free = [cells for i, cells in labels.items() if header[i].lower() not in {*_SECTIONS, *chain(*_XY)}]
    owners = [column[name] for name in _SECTIONS if name in column]
    owners += [cells for cells in free if names & (said := set(cells)) and _LEAST_SPOTS * len(said) <= len(cells)]
    spots = [column[name] for name in SPOT_NAMES if name and name in column]
    return _Table(source, spots + [cells for cells in free if cells not in spots], list(found), values, owners, xy)


def _texts(values: Iterable[Any]) -> list[str]:
    return [value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in values]


def _number(cell: Any, column: str, source: str) -> float:
    if cell is None or str(cell).strip().lower() in _MISSING:
        return math.nan
    try:
        return float(cell)
    except (TypeError, ValueError):
        raise SectionError(f"{source} has '{cell!s:.60}' in its column {column}, which is not a number.") from None


def _numbers(block: np.ndarray, source: str) -> np.ndarray:
    try:
        return np.asarray(block, np.float32)
    except (TypeError, ValueError) as err:
        raise SectionError(f"{source} has predictions that are not numbers ({err}).") from err


# which row is of which spot


def _matched(
    table: _Table, sections: Sequence[Section], elsewhere: Collection[str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The row of each spot, -1 of those without one, int, shape (spots,), by section; and what has to be known.

    ``elsewhere``: names of sections that may be meant as well.
    """
    count = len(table.values)
    names = {section.name for section in sections}
    said = next((column for column in table.owners if names.union(elsewhere).intersection(column)), None)
    # the section of each row; None where it is not said, '' where it is another one
    owner = [None] * count if said is None else [name if name in names else "" for name in said]
    rows = {section.name: np.full(len(section.spots), -1) for section in sections}
    notes = []
    if said is None and table.owners:
        others = some(sorted(set(table.owners[0])))
        notes.append(
            f"rows are said to be of {others}, which is no section here, and were taken to be of {_of(sections)}"
        )
    named = _by_name(table.spots, owner, sections)
    for i, (section, spot) in named.items():
        if rows[section][spot] >= 0:
            called = next(own.spots[spot] for own in sections if own.name == section)
            raise SectionError(
                f"{table.source} has more than one row of spot {called} of section {section}; give each one row, and"
                " say in a column section of which section a row is, if there are several."
            )
        rows[section][spot] = i
    if not named and table.xy is not None and (said is not None or len(sections) == 1):
        for own in sections:
            mine = np.array([of in (None, own.name) for of in owner]) & np.isfinite(table.xy).all(axis=1)
            found = rows[own.name] = _nearest(own.xy, table.xy[mine], np.flatnonzero(mine))
            fit = int((found >= 0).sum())
            if 0 < fit < _LEAST_FIT * min(len(own.spots), mine.sum()):
                raise SectionError(
                    f"{table.source} has {counted(int(mine.sum()), 'place')} for section {own.name}, of which only"
                    f" {fit} {_be(fit)} at one of its {len(own.spots)} spots, as chance would have it; give"
                    " places in pixels of the image, or call rows as the spots are."
                )
        notes.append("rows are matched with spots by position, as none is called as a spot is")
    matched = sum(int((found >= 0).sum()) for found in rows.values())
    if not matched:
        if said is not None and not names.intersection(said):
            raise SectionError(f"{table.source} predicts sections {some(sorted(set(said)))}, but not {_of(sections)}.")
        theirs = next((section.spots for section in sections if section.spots), [])
        ours = next(iter(table.spots), [])
        raise SectionError(
            f"{table.source} has no row of a spot of {_of(sections)}: its rows are called {some(ours, 3) or 'nothing'},"
            f" the spots {some(theirs, 3)}; name them alike, with the section in a column section, or give the places"
            " of the spots in pixels of the image."
        )
    if count > matched:
        notes.append(f"{counted(count - matched, 'row')} {_be(count - matched)} of no spot that is measured")
    return rows, notes


def _by_name(
    columns: Sequence[Sequence[str]], owner: Sequence[str | None], sections: Sequence[Section]
) -> dict[int, tuple[str, int]]:
    """Section and number of the spot of each row that is called as one, by the first column that calls any so."""
    place = {(section.name, spot): i for section in sections for i, spot in enumerate(section.spots)}
    names = [section.name for section in sections]
    for spots, ways in ((spots, ways) for spots in columns for ways in (_with_section, _without_suffix)):
        found: dict[int, tuple[str, int]] = {}
        for i, (spot, of) in enumerate(zip(spots, owner, strict=True)):
            fits = {
                name: place[name, own]
                for name in (names if of is None else [of])
                for own in ways(spot, name)
                if (name, own) in place
            }
            if len(fits) > 1:
                raise SectionError(
                    f"The predictions of spot {spot} may be of section {some(fits)}; say in a column section of which"
                    " section each row is."
                )
            if fits:
                found[i] = next(iter(fits.items()))
        if found:
            return found
    return {}


def _with_section(spot: str, section: str) -> list[str]:
    """What a spot of a section may be called in it, if it is called so among those of others."""
    cut = (cut for joint in JOINTS for cut in (spot.removesuffix(joint + section), spot.removeprefix(section + joint)))
    return [*cut, spot]


def _without_suffix(spot: str, section: str) -> list[str]:
    """What a barcode was before sections were joined."""
    barcode = _BARCODE.fullmatch(spot)
    return [f"{barcode[1]}-1", barcode[1]] if barcode else []


def _nearest(spots: np.ndarray, found: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The row whose place is nearest to each spot, and of which the spot is nearest, within half a pitch; or -1.

    ``spots``: shape (n, 2); ``found``: shape (m, 2); ``rows``: numbers of the rows, shape (m,). Returns shape (n,).
    """
    out = np.full(len(spots), -1)
    known = np.flatnonzero(np.isfinite(spots).all(axis=1))
    if not len(found) or not len(known):
        return out
    row, distance = _closest(spots[known], found)
    back, _ = _closest(found, spots[known])
    pitch = np.median(_closest(spots[known], spots[known], other=True)[1]) if len(known) > 1 else np.inf
    good = (back[row] == np.arange(len(known))) & (distance <= pitch / 2)
    out[known[good]] = rows[row[good]]
    return out


def _closest(places: np.ndarray, others: np.ndarray, *, other: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Index of the nearest of ``others`` and its distance, each of shape (n,); ``other``: not one at the same place."""
    index, distance = np.empty(len(places), int), np.empty(len(places))
    for start in range(0, len(places), _ROWS):
        part = slice(start, start + _ROWS)
        d = np.hypot(*(places[part, None] - others).transpose(2, 0, 1))
        if other:
            d[d == 0] = np.inf
        index[part] = d.argmin(axis=1)
        distance[part] = d.min(axis=1)
    return index, distance


# what is wrong with the values


def _check_linear(
    values: Mapping[str, np.ndarray], source: str, sections: Sequence[Section], genes: Sequence[str]
) -> None:
    for section in sections:
        block = values[section.name]
        spots, columns = np.nonzero(block < 0)
        if len(spots):
            worst = block[spots[0], columns[0]]
            raise SectionError(
                f"{source} predicts {worst:.3g} of {genes[columns[0]]} in spot {section.spots[spots[0]]}, and linear"
                f" values are never negative; say {option('predictions_scale', 'log')} if they are logarithmic or"
                " standardised."
            )


def _shares(values: np.ndarray) -> np.ndarray:
    """Linear predictions as our units, of the sum of those genes that were predicted; NaN where this is 0."""
    finite = np.where(np.isfinite(values), values, np.nan).astype(np.float64)
    total = np.nansum(finite, axis=1, keepdims=True)
    share = np.divide(finite, total, out=np.full(finite.shape, np.nan), where=total > 0)
    return from_linear(1e4 * share).astype(np.float32)


def _mend(values: Mapping[str, np.ndarray], genes: Sequence[str]) -> list[str]:
    """Take genes that are not numbers in some of a section's spots out of it, in place; what has to be known."""
    odd, flat = set(), set()
    for block in values.values():
        block[~np.isfinite(block)] = np.nan
        known = ~np.isnan(block)
        rows = known.any(axis=1)
        holes = known.any(axis=0) & ~known[rows].all(axis=0)
        block[:, holes] = np.nan
        odd |= {genes[i] for i in np.flatnonzero(holes).tolist()}
        if rows.sum() > 1:
            same = known.any(axis=0) & ~holes & (np.ptp(block[rows], axis=0) == 0)
            flat |= {genes[i] for i in np.flatnonzero(same).tolist()}
    notes = []
    if odd:
        notes.append(
            f"{counted(len(odd), 'gene')} {_be(len(odd))} not finite in some spots of a section and left out of it"
            f" ({_few(odd, genes)})"
        )
    if flat:
        notes.append(
            f"{counted(len(flat), 'gene')} {_be(len(flat))} the same in all spots of a section, which gives a"
            f" correlation of 0 ({_few(flat, genes)})"
        )
    return notes


def _missing(
    genes: Sequence[str], spots: Mapping[str, Sequence[str]], sections: Sequence[Section], panel: Sequence[str]
) -> list[str]:
    notes = []
    if genes:
        notes.append(f"{len(genes)} of {len(panel)} genes {_be(len(genes))} missing ({_few(genes, panel)})")
    for section in sections:
        absent = spots.get(section.name, ())
        if len(absent) == len(section.spots):
            notes.append(f"section {section.name} is missing")
        elif absent:
            notes.append(
                f"{len(absent)} of {len(section.spots)} spots of {section.name} {_be(len(absent))} missing"
                f" ({some(absent)})"
            )
    return notes


def _few(genes: Collection[str], panel: Sequence[str]) -> str:
    return some(gene for gene in panel if gene in genes)


def _be(number: int) -> str:
    return "is" if number == 1 else "are"
