"""load() and the `Predictor`: weights that were read once, and all that can be asked of them."""

from __future__ import annotations

import inspect
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

import tcgn_hub.writing  # noqa: F401  (Result.write knows its formats)
from tcgn_hub.devices import pick_device, pick_precision
from tcgn_hub.errors import DeviceError, ImageError, WeightsError
from tcgn_hub.images.transforms import to_rgb
from tcgn_hub.prediction.backends import BACKENDS, COMPILE, PRECISIONS, Backend
from tcgn_hub.prediction.cohort.ledger import Record
from tcgn_hub.prediction.cohort.run import predict_cohort
from tcgn_hub.prediction.explain import check_explain, explain_patch, make_galleries
from tcgn_hub.prediction.export import Exported, check_export, export_weights
from tcgn_hub.prediction.ood import TissueModel
from tcgn_hub.prediction.patches import check_patches, predict_patches
from tcgn_hub.prediction.picture import picture_means, picture_numbers
from tcgn_hub.prediction.slides import check_folder, check_slide, predict_tiles
from tcgn_hub.result import Explanation, Result
from tcgn_hub.text import option
from tcgn_hub.units import UNITS
from tcgn_hub.weights.hub import locate, resolve, sha256_of
from tcgn_hub.weights.info import WeightsInfo
from tcgn_hub.weights.model_dir import info_of

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from tcgn_hub.models.tcgn import TCGN

_logger = logging.getLogger(__name__)

Key = TypeVar("Key")

_KEPT = 4  # loaded models; one takes 90 MB
_loaded: OrderedDict[tuple[str, ...], tuple[Backend, WeightsInfo]] = OrderedDict()
_loading = threading.Lock()


class Predictor:
    """Weights that were loaded, and what they say of patches, tiles and slides.

    Attributes:
        backend: What computes: `tcgn_hub.prediction.backends.torch.TorchBackend`, or that of ONNX Runtime.
        info: What is known of the weights; patches should cover ``info.patch_um`` micrometres.
        asked: What `load` was given, paths in full, by which another machine loads the same; None if it was not called.

    Raises:
        WeightsError: The description of the training tissue is malformed.
    """

    def __init__(self, backend: Backend, info: WeightsInfo, asked: dict[str, Any] | None = None) -> None:
        self.backend, self.info, self.asked = backend, info, asked
        try:
            self._tissue = None if info.ood is None else TissueModel.from_json(info.ood)
        except ValueError as err:
            raise WeightsError(f"What is stated of {info.name} is malformed ({err}).") from err

    patches = predict_patches
    slide = predict_tiles
    slides = predict_cohort
    explain = explain_patch
    galleries = make_galleries
    export = export_weights

    def embed(self, images: Sequence[str | Path | Image.Image | np.ndarray], **options: Any) -> np.ndarray:
        """Features of patches before the head, float32, shape (n, 1280).

        Args:
            images: As of `patches`.
            **options: Likewise: ``mpp``, ``magnification``, ``patch_um``, ``scale``, ``force_scale``, ``batch_size``,
                ``progress``; and ``force``, which is True here, for what is no tissue has features, too.

        Raises:
            ImageError: As of `patches`.
        """
        options = {"force": True, **options, "genes": self.info.genes[:1], "features": True}
        return self.patches(images, **options).obsm["features"]

    def run(
        self, pixels: np.ndarray | list[np.ndarray], *, tta: int = 1, features: bool = False
    ) -> dict[str, np.ndarray]:
        """What the weights say of a batch of patches.

        Args:
            pixels: RGB patches of the field that the weights were trained on, uint8: an array (B, H, W, 3), or a list
                of arrays (H, W, 3) of any size.
            tta: Over how many rotations and reflections to average, 1 to 8.
            features: Whether to return the features.

        Returns:
            ``values``, float32, shape (B, genes); ``tta_std`` likewise, if ``tta`` is above 1; ``ood``, shape (B,),
            ``modules``, shape (B, k), and ``predicted_depth``, shape (B,), if the weights describe their training
            tissue, what they predict for it, and how depth goes with that; and ``features``, shape (B, 1280), if asked
            for.
        """
        return self._begin(pixels, tta, features)()

    def stream(
        self,
        batches: Iterable[tuple[Key, np.ndarray | list[np.ndarray]]],
        *,
        tta: int = 1,
        features: bool = False,
        count: int = 0,
        batch_size: int = 1,
    ) -> Iterator[tuple[Key, dict[str, np.ndarray]]]:
        """What `run` gives of many batches, in their order; a GPU computes one while the next is prepared.

        Args:
            batches: Batches as `run` takes them, each with what it is to be known by.
            tta: As of `run`.
            features: As of `run`.
            count: How many patches are to come, if that is known: for many of them the model is compiled.
            batch_size: How many of them a batch has at most.
        """
        waiting: deque[tuple[Key, Callable[[], dict[str, np.ndarray]]]] = deque()
        if count:
            self.backend.expect(count, batch_size, tta=tta)
        for key, pixels in batches:
            waiting.append((key, self._begin(pixels, tta, features)))
            while len(waiting) > self.backend.in_flight:
                done, said = waiting.popleft()
                yield done, said()
        for key, said in waiting:
            yield key, said()

    def _begin(self, pixels: Any, tta: int, features: bool) -> Callable[[], dict[str, np.ndarray]]:
        """Begin what `run` does; what is returned waits for its end, and gives it."""
        x: Any = self.backend.prepare(pixels)
        views = [self.backend.start(x, index) for index in range(tta)]
        described = self._tissue is not None and self._tissue.picture is not None
        picture = self.backend.fetch(picture_means(x)) if described else None
        return lambda: self._said([view() for view in views], picture and picture(), features)

    def _said(
        self, views: list[tuple[np.ndarray, np.ndarray]], picture: np.ndarray | None, features: bool
    ) -> dict[str, np.ndarray]:
        """What `run` gives, of values and features of each view, and `picture_means`."""
        first, pooled = views[0]
        out, averaged = {"values": self._possible(first)}, pooled
        if len(views) > 1:
            seen, averaged = np.stack([view for view, _ in views]), np.mean([view for _, view in views], axis=0)
            out = {"values": self._possible(seen.mean(axis=0)), "tta_std": seen.std(axis=0, ddof=1)}
        if self._tissue is not None:
            out["ood"] = self._tissue.distance(pooled, None if picture is None else picture_numbers(picture))
        typical = self.info.predicted_in_training
        if typical is not None:
            out["modules"] = typical.modules(out["values"])
        if typical is not None and typical.depth is not None:
            told = averaged if typical.depth.of == "features" else out["modules"]
            if told.shape[1] != len(typical.depth.weight):
                raise WeightsError(
                    f"What is stated of {self.info.name} is malformed (the predicted depth is of"
                    f" {len(typical.depth.weight)} features, where there are {told.shape[1]})."
                )
            out["predicted_depth"] = typical.depth(told)
        if features:
            out["features"] = pooled
        return out

    def _possible(self, values: np.ndarray) -> np.ndarray:
        """Values that can be: those in `tcgn_hub.units.UNITS` are never below 0."""
        return np.maximum(values, 0) if self.info.units == UNITS else values

    @property
    def name(self) -> str:
        """Of the weights."""
        return self.info.name

    @property
    def columns(self) -> tuple[str, ...]:
        """The genes that `predict` gives, in its order."""
        return self.info.genes

    def metadata(self, tta: int = 1) -> dict[str, Any]:
        """What `Result.uns` states of any prediction."""
        backend = self.backend
        how = {"backend": backend.name, "precision": backend.precision, "compiled": backend.compiled}
        return {"weights": self.info, "tta": tta, **how}

    @property
    def model(self) -> TCGN:
        """The model in PyTorch, which other predictors may share: do not change it.

        Raises:
            WeightsError: The weights are an exported file.
        """
        from tcgn_hub.prediction.backends.torch import TorchBackend

        if not isinstance(self.backend, TorchBackend):
            raise WeightsError(
                f"{self.info.name} is loaded as an exported file, which gives values alone; load the weights"
                " themselves, with the backend torch."
            )
        return self.backend.model

    def to(self, device: str | torch.device) -> Predictor:
        """Compute on another device from now on; returns itself, as a module of PyTorch does.

        Raises:
            DeviceError: It is not there, or cannot be used.
        """
        self.backend = self.backend.to(str(device))
        return self

    def try_compile(self, **_: Any) -> None:
        """Compute by a compiled model from now on, as ``compile="on"`` of `load` does; where that cannot be, say why.

        Options of `torch.compile`, which LazySlide passes on, have no meaning here.
        """
        from tcgn_hub.prediction.backends.torch import TorchBackend

        if not isinstance(self.backend, TorchBackend):
            return
        try:
            self.backend = self.backend.to_compiled()
        except DeviceError as err:
            _logger.warning("%s Going on without.", err)

    def get_transform(self) -> Callable[[Any], torch.Tensor]:
        """What makes of a tile that another package reads what `predict` takes, see `as_tile`."""
        return as_tile

    def predict(self, tiles: torch.Tensor | np.ndarray) -> dict[str, np.ndarray]:
        """Values of every gene, float32, shape (B,): what LazySlide's ``tile_prediction`` calls.

        They are computed in the precision that was loaded, whatever autocast is around the call.

        Args:
            tiles: RGB tiles before any normalisation: a tensor (B, 3, H, W) or (3, H, W), or an array (B, H, W, 3) or
                (H, W, 3); uint8, or float from 0 to 1.

        Raises:
            ImageError: The shape is another one, or float values lie outside of 0 to 1.
        """
        pixels: Any = tiles[None] if tiles.ndim == 3 else tiles
        if not isinstance(pixels, np.ndarray):
            pixels = pixels.movedim(1, -1)
        if pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise ImageError(f"Tiles of shape {tuple(tiles.shape)} are not RGB images.")
        if not str(pixels.dtype).endswith("uint8"):
            if 0 not in pixels.shape and not (pixels.min() >= 0 and pixels.max() <= 1):
                raise ImageError("Tiles of floating point should be from 0 to 1, before any normalisation.")
            pixels = pixels * 255
        self.backend.expect(len(pixels), len(pixels))
        values = self._possible(self.backend.forward(self.backend.prepare(pixels))[0])
        return {gene: values[:, i] for i, gene in enumerate(self.info.genes)}


def as_tile(image: Any) -> torch.Tensor:
    """A tile as a uint8 tensor (3, H, W).

    ``image``: A PIL image of any mode, a uint8 array (H, W, 3), or a tensor (3, H, W), which is returned as it is.
    """
    import torch

    if isinstance(image, torch.Tensor):
        return image
    return torch.from_numpy(np.array(image if isinstance(image, np.ndarray) else to_rgb(image))).permute(2, 0, 1)


def load(
    tag: str | None = None,
    *,
    path: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    compile: str = "auto",
    backend: str | None = None,
    cache_dir: str | Path | None = None,
) -> Predictor:
    """Weights, ready to predict. Those that this process has loaded before are not read again.

    Args:
        tag: A tag of the manifest, or 'hf-hub:organisation/name'; the default weights if neither this nor a path is
            given. It is never looked for among files.
        path: A model directory, a file of parameters, or an .onnx file that `tcgn_hub.export` wrote.
        device: Where to compute: 'auto' takes CUDA where there is one, and the CPU elsewhere.
        precision: 'float32', or 'bfloat16' or 'float16', in which convolutions and products of matrices are computed,
            and graphs in float32 all the same; 'auto' is bfloat16 where the device multiplies in it, and float32
            elsewhere.
        compile: Whether to compile the model, which takes minutes, and is kept for later processes: 'on', 'off', or
            'auto' for once so many patches are asked for that it pays; on a GPU, where that was not measured, 'auto' is
            'off'.
        backend: 'torch', or, for weights that were exported, 'onnx' or 'openvino'; if None, what the name of the path
            says.
        cache_dir: Where to keep downloads.

    Raises:
        WeightsError: The weights cannot be found, had, read or verified, were not exported, or ONNX Runtime is to
            compute in another precision than float32, OpenVINO in float16, or either to compile.
        CheckpointError: The parameters do not fit the architecture.
        DeviceError: The device is not there, is not the CPU where an exported file computes, or the model is to be
            compiled and cannot be.
        ExtraError: ONNX Runtime or OpenVINO is not installed.
    """
    if tag is not None and path is not None:
        raise ValueError("give a tag or a path, not both")
    if backend not in (None, *BACKENDS):
        raise ValueError(f"backend is {backend!r}, but has to be one of {', '.join(BACKENDS)}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, but has to be one of {', '.join(PRECISIONS)}")
    if compile not in COMPILE:
        raise ValueError(f"compile is {compile!r}, but has to be one of {', '.join(COMPILE)}")
    if _uses_onnx(path, backend):
        loaded = _load_exported(tag, path, device, precision, compile, cache_dir, backend or "onnx")
    else:
        loaded = _load_torch(tag, path, device, precision, compile, cache_dir)
    asked = {"tag": tag, "device": device, "precision": precision, "compile": compile, "backend": backend}
    for name, place in (("path", path), ("cache_dir", cache_dir)):
        asked[name] = None if place is None else str(Path(place).absolute())
    return Predictor(*loaded, asked)


def _uses_onnx(path: str | Path | None, backend: str | None) -> bool:
    return backend in ("onnx", "openvino") or (backend is None and path is not None and Path(path).suffix == ".onnx")


def _load_torch(
    tag: str | None, path: str | Path | None, device: str, precision: str, compile: str, cache_dir: str | Path | None
) -> tuple[Backend, WeightsInfo]:
    device = pick_device(device)
    precision = pick_precision(precision, device)
    found = resolve(tag if path is None else Path(path), cache_dir=cache_dir)

    def read() -> tuple[Backend, WeightsInfo]:
        from tcgn_hub.models.loading import load_model
        from tcgn_hub.prediction.backends.torch import TorchBackend

        model, info = load_model(found, device=device, cache_dir=cache_dir)
        return TorchBackend(model.fuse(), precision, compile=compile, sha256=found.sha256), info

    return _once((str(found.path), found.sha256, device, precision, compile, "torch"), read)


def _load_exported(
    tag: str | None,
    path: str | Path | None,
    device: str,
    precision: str,
    compile: str,
    cache_dir: str | Path | None,
    backend: str,
) -> tuple[Backend, WeightsInfo]:
    from tcgn_hub.prediction.backends.onnx import OnnxBackend, exported_path
    from tcgn_hub.prediction.backends.openvino import PRECISIONS, OpenvinoBackend

    if backend == "onnx" and precision not in ("auto", "float32"):
        raise WeightsError(
            f"ONNX Runtime computes in float32, not in {precision}; leave the precision out, or choose it on export."
        )
    if backend == "openvino" and precision not in ("auto", *PRECISIONS):
        raise WeightsError(f"OpenVINO computes in {' or '.join(PRECISIONS)}, not in {precision}.")
    if compile == "on":
        raise WeightsError(f"The backend {backend} compiles no model; leave {option('compile', 'on')} out.")
    if device not in ("auto", "cpu"):
        raise DeviceError(f"The backend {backend} computes on the CPU, not on {device!r}; leave the device out.")
    if path is not None and Path(path).suffix == ".onnx":
        file = Path(path)
        if not file.is_file():
            raise WeightsError(f"{file} does not exist.")
    else:
        found = resolve(tag if path is None else Path(path), cache_dir=cache_dir)
        name, file = found.name, exported_path(found.sha256)
        if not file.is_file():
            raise WeightsError(f"{name} was not exported for ONNX Runtime; run `tcgn export --weights {name}` once.")

    def read() -> tuple[Backend, WeightsInfo]:
        loaded = OpenvinoBackend(file, precision) if backend == "openvino" else OnnxBackend(file)
        return loaded, loaded.info

    return _once((str(file), sha256_of(file), precision, backend), read)


def _once(key: tuple[str, ...], read: Callable[[], tuple[Backend, WeightsInfo]]) -> tuple[Backend, WeightsInfo]:
    """What a key stands for, read if it is not among the last ones asked for."""
    with _loading:
        if key not in _loaded:
            _loaded[key] = read()
            while len(_loaded) > _KEPT:
                _loaded.popitem(last=False)
        _loaded.move_to_end(key)
        return _loaded[key]


def load_weights(weights: str | Path | None = None, **options: Any) -> Predictor:
    """`load` of what users name: a tag where one has this name, and otherwise a path."""
    return load(**locate(weights), **options)


def predict(
    images: Sequence[str | Path | Image.Image | np.ndarray],
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    compile: str = "auto",
    backend: str | None = None,
    **options: Any,
) -> Result:
    """Predict gene expression in the centre of patches: `load`, then `Predictor.patches`.

    Args:
        images: Paths, PIL images of any mode, or uint8 arrays of shape (H, W, 3).
        weights: A tag, or a path to a model directory or file; the default weights if None. What is a tag is never
            looked for among files.
        device: As of `load`.
        precision: Likewise.
        compile: Likewise.
        backend: Likewise.
        **options: Those of `Predictor.patches`.

    Raises:
        TcgnError: As of `load` and `Predictor.patches`.
    """
    _known(Predictor.patches, options)
    check_patches(images, info=check_weights(weights, backend=backend, **options), **options)
    loaded = load_weights(weights, device=device, precision=precision, compile=compile, backend=backend)
    return loaded.patches(images, **options)


def predict_slide(
    path: str | Path,
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    compile: str = "auto",
    backend: str | None = None,
    **options: Any,
) -> Result:
    """Predict gene expression over the tissue of a slide: `load`, then `Predictor.slide`.

    ``weights`` are those of `predict`; ``device``, ``precision``, ``compile`` and ``backend`` those of `load`; the
    other options and the errors those of `Predictor.slide`.
    """
    _known(Predictor.slide, options)
    check_slide(path, **options)
    check_weights(weights, backend=backend, **options)
    if options.get("resume") is not None:
        check_resume(path, weights=weights, device=device, precision=precision, backend=backend, **options)
    loaded = load_weights(weights, device=device, precision=precision, compile=compile, backend=backend)
    return loaded.slide(path, **options)


def predict_slides(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    compile: str = "auto",
    backend: str | None = None,
    **options: Any,
) -> list[Record]:
    """Predict many slides, each into a file of its own: `load`, then `Predictor.slides`.

    ``weights`` are those of `predict`; ``device``, ``precision``, ``compile`` and ``backend`` those of `load`; the
    other options and the errors those of `Predictor.slides`.
    """
    check_weights(weights, backend=backend, **options)
    loaded = load_weights(weights, device=device, precision=precision, compile=compile, backend=backend)
    return loaded.slides(paths, out, **options)


def check_weights(
    weights: str | Path | None = None,
    *,
    genes: str | Path | Sequence[str] | None = None,
    significant_only: bool = False,
    backend: str | None = None,
    **_: Any,
) -> WeightsInfo | None:
    """Refuse weights that are not there, or genes that they do not predict, before PyTorch is imported.

    Returns what is known of them so far.
    """
    if _uses_onnx(locate(weights).get("path"), backend):
        return None
    info = info_of(resolve(weights))
    if info is not None and info.genes:
        info.columns(genes, significant_only=significant_only)
    return info


def check_resume(
    path: str | Path,
    *,
    resume: str | Path,
    weights: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    backend: str | None = None,
    **options: Any,
) -> None:
    """Refuse a folder that `predict_slide` could not resume from, before any weights are loaded."""
    where = locate(weights)
    loaded = {"backend": backend or "onnx"}
    if not _uses_onnx(where.get("path"), backend):
        computed = pick_precision(precision, device)
        loaded = {"backend": "torch", "precision": computed, "weights": resolve(weights).sha256}
    check_folder(resume, path, options, **loaded)


def explain(
    image: str | Path | Image.Image | np.ndarray,
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    compile: str = "auto",
    **options: Any,
) -> Explanation:
    """Explain the prediction for the centre of a patch: `load`, then `Predictor.explain`.

    ``weights`` are those of `predict`; ``device``, ``precision`` and ``compile`` those of `load`; the other options and
    the errors those of `Predictor.explain`.
    """
    _known(Predictor.explain, options)
    check_explain(**options)
    check_weights(weights, **options)
    loaded = load_weights(weights, device=device, precision=precision, compile=compile)
    return loaded.explain(image, **options)


def export(weights: str | Path | None = None, path: str | Path | None = None, **options: Any) -> Exported:
    """Export weights as ONNX or as a program of torch.export: `load`, then `Predictor.export`.

    ``weights`` are those of `predict`, ``path``, the other options and the errors those of `Predictor.export`.
    """
    check_export(path, **options)
    return load_weights(weights, device="cpu").export(path, **options)


def _known(method: Callable[..., Any], options: dict[str, Any]) -> None:
    """Refuse options that a method has not before anything is loaded."""
    inspect.signature(method).bind_partial(**options)
