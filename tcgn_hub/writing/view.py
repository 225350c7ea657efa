"""A slide with the genes of its tiles in TissUUmaps, which is served to a browser on this machine."""

from __future__ import annotations

import csv
import json
import logging
import math
import re
import socket
import tempfile
import warnings
import webbrowser
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from tcgn_hub.data.h5ad import open_h5ad
from tcgn_hub.errors import ExtraError, ImageError, OutputError, SectionError
from tcgn_hub.extras import require
from tcgn_hub.files import read_json
from tcgn_hub.images.deep_zoom import DeepZoom
from tcgn_hub.images.readers import open_slide
from tcgn_hub.images.slides import MAX_PIXELS
from tcgn_hub.text import option
from tcgn_hub.writing.figures import OPACITY

HOST = "127.0.0.1"
_ROWS = 1 << 14  # tiles that are written together, each gene of them in one piece
_SAME = {"mpp", "scale_source", "patch_um", "trained_um", "patch_px", "in_tissue", "slide"}  # of all tiles of a slide
_SAME |= {"array_row", "array_col", "is_ood"}  # or shown by the map, or by `ood`
_RUN = ("slide", "series", "width_px", "height_px", "mpp", "patch_um", "stride_um", "units", "significance_withheld")
_DULL = "not significant"
_PLUGIN, _UID = "tcgn_tiles", "tiles"
_SQUARE = re.compile(r"/slide_files/(\d{1,3})/(\d{1,9})_(\d{1,9})\.jpeg")
_SERVED = re.compile(rf"/|/favicon\.ico|/view\.tmap|/tiles\.(h5|json)|/plugins/{_PLUGIN}\.js|/static/[\w./-]+")


@dataclass
class _Tiles:
    """What is read of a file of tiles.

    Attributes:
        run: `tcgn_hub.Result.metadata`.
        genes: Symbols.
        said: What is said of each gene.
        skill: By what genes are listed, the highest first: whether they are significant, and a PCC.
        limits: What the colours of each gene span, None where it is what is predicted here.
        names: Of the tiles.
        xy: Their centres, in pixels at full resolution, shape (n, 2).
        facts: What else is known of each tile, arrays of n, as numbers or as text.
        rows: What gives the values of some tiles, float32, shape (rows, genes).
        overview: Of the slide, uint8, shape (h, w, 3); None where the file has none.
    """

    run: dict[str, Any]
    genes: list[str]
    said: list[str]
    skill: list[tuple[bool, float]]
    limits: list[tuple[float, float] | None]
    names: list[str]
    xy: np.ndarray
    facts: dict[str, np.ndarray]
    rows: Callable[[slice], np.ndarray]
    overview: np.ndarray | None = None


def view(result: str | Path, *, slide: str | Path | None = None, port: int = 0, browser: bool = True) -> None:
    """Open a predicted slide in TissUUmaps: pan, zoom, pick a gene, see what is known of the tile under the pointer.

    It is served to browsers on this machine until Ctrl-C. What is made for it lies in a temporary folder, and is gone
    then.

    Args:
        result: An .h5ad or .csv file that `Result.write` wrote of a slide.
        slide: The slide; None to look for it where it was, beside ``result``, and in the working directory. Where it is
            not found, the overview in an .h5ad stands in.
        port: To listen on; 0 for one that is free.
        browser: Whether to open the browser.

    Raises:
        ExtraError: TissUUmaps is not installed.
        SectionError: The file holds no tiles of one slide that can be shown.
        ImageError: The slide cannot be read, or is another one.
        OutputError: The port is taken.
    """
    with serving(result, slide=slide, port=port) as (url, thread), suppress(KeyboardInterrupt):
        logging.getLogger(__name__).info("%s is open at %s; Ctrl-C ends it", result, url)
        if browser:
            webbrowser.open(url)
        while thread.is_alive():
            thread.join(1)  # a signal that comes just before it waits would not end a wait without an end


@contextmanager
def serving(result: str | Path, *, slide: str | Path | None = None, port: int = 0) -> Iterator[tuple[str, Thread]]:
    """The address at which `view` shows a result, and what serves it, while this lasts."""
    app, serve = _tissuumaps(), require("werkzeug.serving", extra="view", to="view slides").make_server
    with ExitStack() as stack:
        folder, zoom = stack.enter_context(project(result, slide=slide))
        app.config.update(SLIDE_DIR=str(folder), PLUGIN_FOLDER_USER=str(folder), READ_ONLY=True, PLUGINS=[])
        require("tissuumaps.views", extra="view", to="view slides").setup(app)
        try:
            listening = stack.enter_context(socket.create_server((HOST, port)))
        except OSError as err:
            raise OutputError(f"Port {port} is not free ({err.strerror}); leave out {option('port')}.") from err
        server = serve(HOST, port, _only(app, zoom), threaded=True, fd=listening.fileno())
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        stack.callback(server.server_close)
        stack.callback(thread.join)
        stack.callback(server.shutdown)
        yield f"http://{HOST}:{listening.getsockname()[1]}/view.tmap", thread


@contextmanager
def project(result: str | Path, *, slide: str | Path | None = None) -> Iterator[tuple[Path, DeepZoom]]:
    """A folder with all that TissUUmaps opens but the slide, and the slide, while this lasts; see `view`."""
    with ExitStack() as stack:
        tiles = _read(Path(result), stack)
        zoom = _zoom(tiles, Path(result), slide, stack)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tcgn_view_", ignore_cleanup_errors=True)))
        script = files("tcgn_hub.writing").joinpath("view.js").read_text(encoding="utf-8")
        texts = {"tiles.json": json.dumps(_about(tiles)), "view.tmap": json.dumps(_tmap(tiles))}
        try:
            _write_values(folder / "tiles.h5", tiles)
            for name, text in {**texts, f"{_PLUGIN}.js": script}.items():
                (folder / name).write_text(text, encoding="utf-8")
        except OSError as err:
            raise OutputError(
                f"{folder} cannot be written ({err.strerror or err}); TMPDIR names another disk."
            ) from err
        yield folder, zoom


def _tissuumaps() -> Any:
    """The application; the log of the process, which it sets up as its own, stays as it was."""
    root, silent = logging.getLogger(), logging.NullHandler()
    level = root.level
    root.addHandler(silent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            app = require("tissuumaps", extra="view", to="view slides").app
    except (OSError, AttributeError) as err:  # pyvips without the library that it calls
        raise ExtraError(f"TissUUmaps cannot be loaded ({err}); run pip install 'tcgn_hub[view]'.") from err
    finally:
        root.setLevel(level)
        root.removeHandler(silent)
    for name in ("werkzeug", "pyvips"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return app


def _only(app: Callable, zoom: DeepZoom) -> Callable:
    """TissUUmaps for what a view asks for, and nothing else: it would read other files of this machine to anyone.

    Pages of other sites, which may have a name that leads here, are not answered. The slide comes from `zoom`: from the
    reader that it was predicted from, and so of every format, and in the same pixels.
    """
    from werkzeug.exceptions import NotFound
    from werkzeug.wrappers import Response

    def answer(environ: dict[str, Any], start: Callable) -> Any:
        path, host = environ.get("PATH_INFO", ""), environ.get("HTTP_HOST", "").partition(":")[0]
        own = host in (HOST, "localhost") and environ["REQUEST_METHOD"] in ("GET", "HEAD") and ".." not in path
        if own and path == "/slide.dzi":
            return Response(zoom.xml, mimetype="application/xml")(environ, start)
        if own and (asked := _SQUARE.fullmatch(path)):
            try:
                return Response(zoom.square(*map(int, asked.groups())), mimetype="image/jpeg")(environ, start)
            except KeyError:
                own = False
        if own and _SERVED.fullmatch(path):
            # of its queries one names a folder to read from
            return app({**environ, "QUERY_STRING": ""}, start)
        return NotFound()(environ, start)

    return answer


def _zoom(tiles: _Tiles, result: Path, given: str | Path | None, stack: ExitStack) -> DeepZoom:
    """The slide, if it is found and is the one that was predicted, else its overview."""
    run = tiles.run
    size, name = (int(run["width_px"]), int(run["height_px"])), str(run["slide"])
    places = [Path(given)] if given is not None else [result.parent / name, Path(name)]
    found = next((path for path in places if path.exists()), None)
    if found is None and given is None and tiles.overview is not None:
        logging.getLogger(__name__).info(
            "%s is not beside %s and is shown by its overview; %s shows it in full",
            name,
            result,
            option("slide", "FILE"),
        )
        return DeepZoom(None, size, tiles.overview)
    if found is None:
        where = f"{given} does not exist" if given is not None else f"{name} is not beside {result}"
        raise ImageError(f"{where}; say where the slide is by {option('slide', 'FILE')}.")
    # it was read as a whole before, if it was
    most = max(MAX_PIXELS, size[0] * size[1])
    slide = stack.enter_context(open_slide(found, series=int(run["series"]), max_pixels=most))
    if slide.size != size:
        raise ImageError(
            f"{found} has {slide.size[0]} x {slide.size[1]} px, but {result} is of a slide of {size[0]} x {size[1]} px;"
            f" give that one by {option('slide', 'FILE')}."
        )
    return DeepZoom(slide, size, tiles.overview)


# what is shown


def _write_values(path: Path, tiles: _Tiles) -> None:
    """A file from which the browser reads one column after the other: ``X``, genes and then facts that are numbers."""
    h5py = require("h5py", extra="view", to="view slides")
    facts = [values for values in tiles.facts.values() if values.dtype.kind == "f"]
    count, columns = len(tiles.xy), len(tiles.genes) + len(facts)
    with h5py.File(path, "w") as file:
        for axis, values in zip("xy", tiles.xy.T, strict=True):
            file.create_dataset(axis, data=values)
        values = file.create_dataset("X", (count, columns), np.float32, chunks=(min(count, _ROWS), 1))
        for start in range(0, count, _ROWS):
            rows = slice(start, min(start + _ROWS, count))
            values[rows] = np.concatenate([tiles.rows(rows), *(fact[rows, None] for fact in facts)], axis=1)


def _about(tiles: _Tiles) -> dict[str, Any]:
    """What the plugin says of the tile under the pointer, and by which limits it colours."""
    run, numbers = tiles.run, [key for key, values in tiles.facts.items() if values.dtype.kind == "f"]
    return {
        "uid": _UID,
        "columns": [*tiles.genes, *map(_words, numbers)],
        "said": [*tiles.said, *("" for _ in numbers)],
        "units": [run["units"]] * len(tiles.genes) + [""] * len(numbers),
        "limits": [*tiles.limits, *(None for _ in numbers)],
        "names": tiles.names,
        "x": tiles.xy[:, 0].tolist(),
        "y": tiles.xy[:, 1].tolist(),
        "side": _side_px(run),
        "facts": {_words(key): [_said_of(value) for value in values.tolist()] for key, values in tiles.facts.items()},
    }


def _said_of(value: Any) -> Any:
    """As browsers read it: JSON has neither NaN nor infinity."""
    return str(value) if value in (math.inf, -math.inf) else None if value != value else value


def _tmap(tiles: _Tiles) -> dict[str, Any]:
    """What TissUUmaps opens, in its own words."""
    numbers = [_words(key) for key, values in tiles.facts.items() if values.dtype.kind == "f"]
    best = sorted(range(len(tiles.genes)), key=tiles.skill.__getitem__, reverse=True)
    shown = [(i, f" ({_DULL})" if tiles.said[i].startswith(_DULL) else "", tiles.genes[i]) for i in best]
    shown += [(len(best) + i, "", name) for i, name in enumerate(numbers)]
    name = escape(str(tiles.run["slide"]))
    return {
        "filename": name,
        "mpp": float(tiles.run["mpp"]),
        "layers": [{"name": name, "tileSource": "slide.dzi"}],
        "hideTabs": True,
        "plugins": [],
        "settings": [{"module": "pluginUtils", "function": "startPlugin", "value": [_PLUGIN, [], False]}],
        "markerFiles": [
            {
                "title": "Gene",
                "name": "Gene",
                "comment": escape(str(tiles.run["units"])),
                "path": "tiles.h5",
                "uid": _UID,
                "autoLoad": True,
                "hideSettings": True,
                "settings": [{"module": "glUtils", "function": "_useAbsoluteMarkerSize", "value": {_UID: True}}],
                "expectedHeader": {
                    **{"X": "/x", "Y": "/y", "cb_col": "/X;0", "cb_cmap": "interpolateViridis"},
                    **{"shape_fixed": "square", "scale_factor": _side_px(tiles.run), "opacity": OPACITY},
                },
                "expectedRadios": {
                    **{"cb_col": True, "cb_gr": False, "cb_gr_key": False, "shape_fixed": True, "shape_gr": False},
                    **{"shape_gr_rand": False, "_no_outline": True},
                },
                "dropdownOptions": [
                    {"optionName": column + text, "name": column, "expectedHeader.cb_col": f"/X;{i}"}
                    for i, text, column in shown
                ],
            }
        ],
    }


def _side_px(run: dict[str, Any]) -> float:
    """Side of the square that a tile is drawn as, see `tcgn_hub.writing.figures.square_px`."""
    patch, stride = float(run["patch_um"]), run["stride_um"]
    return (patch if stride is None or stride != stride else min(patch, float(stride))) / float(run["mpp"])


def _words(key: str) -> str:
    return key.replace("_", " ")


# what is read


def _read(path: Path, stack: ExitStack) -> _Tiles:
    if not path.exists():
        raise SectionError(f"{path} does not exist.")
    suffix = path.suffix.lower()
    if suffix not in (".h5ad", ".csv"):
        raise SectionError(
            f"{path} is neither .h5ad nor .csv, which `tcgn predict` writes of a slide and can be shown."
        )
    try:
        tiles = (_read_h5ad if suffix == ".h5ad" else _read_csv)(path, stack)
    except (UnicodeDecodeError, csv.Error) as err:
        raise SectionError(f"{path} is no table that can be read ({err}); predict the slide again.") from err
    if not len(tiles.xy) or not tiles.genes:
        raise SectionError(f"{path} holds {len(tiles.xy)} tiles of {len(tiles.genes)} genes; there is nothing to show.")
    if tiles.xy.dtype.kind != "f" or not np.isfinite(tiles.xy).all():
        raise SectionError(f"{path} does not say where all of its tiles are.")
    tiles.facts = {key: values for key, values in tiles.facts.items() if (values == values).any()}
    return tiles


def _run_of(known: Any, path: Path) -> dict[str, Any]:
    """What was run, if it was of one slide."""
    if not isinstance(known, Mapping) or not set(_RUN) <= set(known):
        raise SectionError(f"{path} does not say of which slide its tiles are; give what `tcgn predict` wrote of one.")
    run = {key: known[key].item() if isinstance(known[key], np.generic) else known[key] for key in _RUN}
    for key in ("series", "width_px", "height_px", "mpp", "patch_um"):
        if not isinstance(run[key], int | float) or not 0 < run[key] + (key == "series") < math.inf:
            raise SectionError(f"{path} says that {key} is {run[key]!r:.60}, which no slide has; predict it again.")
    if not isinstance(run["stride_um"], int | float | None):
        raise SectionError(f"{path} says that stride_um is {run['stride_um']!r:.60}; predict the slide again.")
    return run


def _read_h5ad(path: Path, stack: ExitStack) -> _Tiles:
    data = open_h5ad(path, backed=True)
    stack.callback(data.file.close)
    run, var = _run_of(data.uns.get("tcgn", {}), path), data.var
    if "slide" in data.obs and data.obs["slide"].nunique() > 1:
        raise SectionError(f"{path} holds {data.obs['slide'].nunique()} slides; view the file of one.")
    facts = {}
    for key in data.obs.columns:
        kind = data.obs[key].dtype.kind
        if key not in _SAME:
            facts[key] = data.obs[key].to_numpy(np.float32 if kind in "fiu" else object, na_value=np.nan)
    drawn: dict[str, Any] = next(iter(data.uns.get("spatial", {}).values()), {})
    overview = drawn.get("images", {}).get("hires")
    if overview is not None and overview.dtype != np.uint8:  # as some programs leave it, from 0 to 1
        overview = np.rint(255 * np.clip(overview, 0, 1)).astype(np.uint8)
    limits: list[tuple[float, float] | None] = [None] * data.n_vars
    if "trained_low" in var:
        ends = zip(var["trained_low"].astype(float), var["trained_high"].astype(float), strict=True)
        limits = [both if all(map(math.isfinite, both)) else None for both in ends]

    def rows(part: slice) -> np.ndarray:
        try:
            values = data.X[part]
        except Exception as err:  # h5py fails in many ways on what is damaged
            raise SectionError(f"{path} cannot be read to its end ({' '.join(str(err).split())[:300]}).") from err
        return np.asarray(values.toarray() if hasattr(values, "toarray") else values, np.float32)

    columns = [var[key].tolist() if key in var else [None] * data.n_vars for key in _SAID]
    known = list(zip(*columns, strict=True))
    xy = np.asarray(data.obsm["spatial"], np.float64)[:, :2] if "spatial" in data.obsm else np.empty((0, 2))
    if xy.shape[1] < 2:
        raise SectionError(f"{path} does not say where all of its tiles are.")
    # of what has no values AnnData says so by an error
    genes = list(data.var_names) if "X" in data.file else []
    return _Tiles(run, genes, *_told(run, known), limits, list(data.obs_names), xy, facts, rows, overview)


_SAID = ("significant", "held_out_pcc", "held_out_pcc_given_depth")


def _told(run: dict[str, Any], known: list[tuple[Any, ...]]) -> tuple[list[str], list[tuple[bool, float]]]:
    """What to say of how well each gene is predicted on held-out tissue, by what is known of `_SAID`, and its rank."""
    said, skill = [], []
    for significant, *scores in known:
        pcc, given_depth = (None if score is None or score != score else float(score) for score in scores)
        unknown = "significance withheld" if isinstance(run["significance_withheld"], str) else "significance not known"
        texts = [unknown if significant is None else "significant" if significant else _DULL]
        texts += [] if pcc is None else [f"PCC {pcc:.2f}"]
        texts += [] if given_depth is None else [f"{given_depth:.2f} given depth"]
        said.append(", ".join(texts))
        score = pcc if given_depth is None else given_depth
        skill.append((bool(significant), -math.inf if score is None else score))
    return said, skill


def _read_csv(path: Path, stack: ExitStack) -> _Tiles:
    beside = Path(f"{path}.json")
    try:
        about = read_json(beside)
        run, ids = _run_of(about["runs"][0], path), dict(about["gene_ids"])
        known_of = [dict(about.get(key) or {}) for key in _SAID]
    except FileNotFoundError as err:
        raise SectionError(f"{beside} is not there; it says of what slide {path} is, keep both together.") from err
    except (OSError, ValueError, KeyError, TypeError, IndexError) as err:
        raise SectionError(f"{beside} does not say what was run ({err}); predict the slide again.") from err
    texts: dict[str, list[str]]
    values: list[np.ndarray] = []
    with open(path, encoding="utf-8-sig", newline="") as file:  # spreadsheets mark what they keep
        lines = csv.reader(file)
        header = next(lines, [])
        place = {name: i for i, name in enumerate(header)}
        genes = [gene for gene in ids if gene in place]
        if not {"name", "x", "y"} <= set(place):
            raise SectionError(f"{path} has no columns name, x and y, which say where a tile is.")
        columns = [place[gene] for gene in genes]
        texts = {key: [] for key in header if key not in {*genes, *_SAME} and not key.endswith(".tta_std")}
        for row in lines:
            if len(row) != len(header):
                raise SectionError(
                    f"Line {lines.line_num} of {path} has {len(row)} cells, and its header {len(header)}."
                )
            for key, column in texts.items():
                column.append(row[place[key]])
            try:
                values.append(np.array([row[i] for i in columns], np.float32))
            except ValueError as err:
                raise SectionError(f"Line {lines.line_num} of {path} has a value that is no number ({err}).") from err
    names, facts = texts.pop("name"), {key: _numbers(column) for key, column in texts.items()}
    xy = np.stack([facts.pop("x"), facts.pop("y")], axis=1)
    known = [tuple(of.get(gene) for of in known_of) for gene in genes]
    table = np.stack(values) if values else np.empty((0, len(genes)), np.float32)
    limits: list[tuple[float, float] | None] = [None] * len(genes)
    return _Tiles(run, genes, *_told(run, known), limits, names, xy, facts, table.__getitem__)


def _numbers(column: list[str]) -> np.ndarray:
    """Numbers, NaN where there is none; as texts, where they are."""
    try:
        return np.array([cell or "nan" for cell in column], np.float64)
    except ValueError:
        return np.array(column, object)
