"""Why a model predicts what it does: maps of a gene over a patch, and the graph that was learned."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tcgn_hub.errors import ImageError, PanelError, WeightsError
from tcgn_hub.images.readers import open_slide
from tcgn_hub.images.scale import Scale
from tcgn_hub.images.slides import MAX_PIXELS
from tcgn_hub.images.tiles import TileReader
from tcgn_hub.images.transforms import IMAGENET_MEAN, IMAGENET_STD, INPUT_PX
from tcgn_hub.prediction.patches import check_options, cut_image, notes_of, patch_table
from tcgn_hub.result import Explanation, Gallery, LearnedGraph, Result, gene_table
from tcgn_hub.rows import take_columns

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from tcgn_hub.models.tcgn import TCGN
    from tcgn_hub.prediction.predictor import Predictor
    from tcgn_hub.weights.info import WeightsInfo

LAYERS = {"final_conv": 7, "stages.2": 14, "stages.1": 28, "stages.0": 56}
"""Layers that can be mapped, by their name in the model, and the side of their maps, from coarse to fine."""

_WINDOW, _STEP = 32, 16  # of the 224 px; a position of the occlusion map is one step


def explain_patch(
    predictor: Predictor,
    image: str | Path | Image.Image | np.ndarray,
    *,
    genes: str | Path | Sequence[str] | None = None,
    mpp: float | None = None,
    magnification: float | None = None,
    patch_um: float | None = None,
    scale: Literal["auto", "strict"] = "auto",
    force_scale: bool = False,
    force: bool = False,
    layers: Sequence[str] = tuple(LAYERS),
    occlusion: bool = False,
) -> Explanation:
    """Explain the prediction for the centre of a patch.

    Args:
        predictor: The weights.
        image: Path, PIL image of any mode, or uint8 array of shape (H, W, 3).
        genes: Genes to explain, named as for `Predictor.patches`; the four of highest held-out PCC if None.
        mpp: Micrometres per pixel, if not what the file says.
        magnification: The same as a magnification, such as 20.
        patch_um: Side of the patch in micrometres, if not that of the weights.
        scale: As of `Predictor.patches`.
        force_scale: Likewise.
        force: Likewise.
        layers: Names out of `LAYERS`.
        occlusion: Also cover the patch part by part, which costs 169 predictions.

    Raises:
        ImageError: As of `Predictor.patches`.
        NoTissueError: Likewise.
        PanelError: A gene is not among the outputs of the weights, or none is given and no PCC was measured.
        WeightsError: The weights were exported for ONNX Runtime, which gives no gradients.
    """
    given = check_explain(
        genes=genes, mpp=mpp, magnification=magnification, patch_um=patch_um, scale=scale, layers=layers
    )
    model, info = predictor.model, predictor.info
    asked = info.columns(best_genes(info) if genes is None else genes)
    columns = list(asked.values())
    name = str(image) if isinstance(image, (str, Path)) else "image"
    cut, pixels = cut_image(
        image, name, given, patch_um, info, strict=scale == "strict", force_scale=force_scale, force=force
    )
    said = predictor.run(pixels[None], tta=8)
    x = predictor.backend.prepare(pixels[None])
    return Explanation(
        result=Result(
            X=said["values"][:, columns],
            obs=patch_table([cut], said),
            var=gene_table(info, columns),
            uns={"failed": {}, "notes": info.renamed(asked) | notes_of([cut]), **predictor.metadata(8)},
            layers={"tta_std": said["tta_std"][:, columns]},
        ),
        patch=_pictures(x)[0],
        maps={layer: maps[0] for layer, maps in activation_maps(model, x, columns, layers=layers).items()},
        occlusion=occlusion_maps(model, x, columns) if occlusion else None,
        graphs=learned_graphs(model, x),
    )


def check_explain(*, layers: Sequence[str] = tuple(LAYERS), **options: Any) -> Scale | None:
    """Refuse options that no weights could make sense of; gives the scale that they state."""
    unknown = [layer for layer in layers if layer not in LAYERS]
    if unknown or not layers:
        raise ValueError(f"layers are names out of {', '.join(LAYERS)}, got {', '.join(unknown) or 'none'}")
    return check_options(**options)


def best_genes(info: WeightsInfo) -> list[str]:
    """The four genes of highest held-out PCC."""
    if info.pcc is None:
        raise PanelError(f"Name the genes to explain: which ones {info.name} predicts well was not measured.")
    known = {gene: pcc for gene, pcc in info.pcc.items() if pcc is not None}
    return sorted(known, key=lambda gene: -known[gene])[:4]


def activation_maps(
    model: TCGN, x: torch.Tensor, columns: Sequence[int], *, layers: Sequence[str] = ("final_conv",)
) -> dict[str, np.ndarray]:
    """Where in patches the evidence for a higher value lies.

    On the last convolution this is Grad-CAM (Selvaraju et al., ICCV 2017): its channels, weighted by the mean of the
    gradient over positions. In the stages before it, whose gradient differs from place to place, it is LayerCAM (Jiang
    et al., IEEE Trans. Image Process. 30, 5875 (2021)), weighted at each position by the positive part of the gradient
    there. Of either the positive part is returned: tissue that lowers a value is not shown.

    Args:
        model: In eval mode.
        x: Model input, shape (B, 3, 224, 224), on the device of the model.
        columns: Outputs to explain.
        layers: Names out of `LAYERS`.

    Returns:
        Of each layer the maps in arbitrary units, float32, shape (B, columns, side, side).
    """
    import torch

    found: dict[str, list[torch.Tensor]] = {layer: [] for layer in layers}
    with torch.enable_grad():
        if tuple(layers) == ("final_conv",):
            with torch.no_grad():
                final = model.forward_features(x)
            outputs = {"final_conv": final.requires_grad_()}
        else:
            final, stages = model.forward_intermediates(x.detach().requires_grad_())
            outputs = {"final_conv": final, **{f"stages.{i}": stage for i, stage in enumerate(stages)}}
        logits = model.forward_head(final)
        wanted = [outputs[layer] for layer in layers]
        for column in columns:
            gradients = torch.autograd.grad(logits[:, column].sum(), wanted, retain_graph=True)
            for layer, output, gradient in zip(layers, wanted, gradients, strict=True):
                weight = gradient.mean((2, 3), keepdim=True) if layer == "final_conv" else gradient.relu()
                found[layer].append((weight * output).sum(1).relu().detach())
    return {layer: torch.stack(maps, 1).float().cpu().numpy() for layer, maps in found.items()}


def occlusion_maps(model: TCGN, x: torch.Tensor, columns: Sequence[int], *, batch_size: int = 32) -> np.ndarray:
    """How far a prediction falls if a part of the patch is covered (Zeiler and Fergus, ECCV 2014).

    A square of 32 of the 224 px is replaced by the mean colour of the patch, in steps of 16 px. The value of a position
    is the mean over the squares that cover it: positive where covering lowers the prediction.

    Args:
        model: In eval mode.
        x: Model input of one patch, shape (1, 3, 224, 224), on the device of the model.
        columns: Outputs to explain.
        batch_size: Patches per forward pass.

    Returns:
        In the units of the outputs, float32, shape (columns, 14, 14).
    """
    import torch

    corners = range(0, INPUT_PX - _WINDOW + 1, _STEP)
    places = [(top, left) for top in corners for left in corners]
    colour = x.mean((2, 3), keepdim=True)[0]
    total = np.zeros((len(columns), INPUT_PX // _STEP, INPUT_PX // _STEP))
    number = np.zeros(total.shape[1:])
    with torch.inference_mode():
        whole = model(x).float().cpu().numpy()[0, columns]
        for start in range(0, len(places), batch_size):
            chunk = places[start : start + batch_size]
            covered = x.repeat(len(chunk), 1, 1, 1)
            for picture, (top, left) in zip(covered, chunk, strict=True):
                picture[:, top : top + _WINDOW, left : left + _WINDOW] = colour
            values = model(covered).float().cpu().numpy()[:, columns]
            for (top, left), value in zip(chunk, values, strict=True):
                rows, cols = (slice(at // _STEP, (at + _WINDOW) // _STEP) for at in (top, left))
                total[:, rows, cols] += (whole - value)[:, None, None]
                number[rows, cols] += 1
    return (total / number).astype(np.float32)


def learned_graphs(model: TCGN, x: torch.Tensor) -> list[LearnedGraph]:
    """The graphs of one patch, in the order of the blocks. (Xiao et al. 2024, graph-node co-embedding)

    Args:
        model: In eval mode.
        x: Model input of one patch, shape (1, 3, 224, 224), on the device of the model.
    """
    import torch

    stages: Any = model.stages
    blocks = {f"stages.{i}": stage.graph.co_embed for i, stage in enumerate(stages) if stage.graph is not None}
    graphs = []
    with torch.inference_mode(), inputs_of(list(blocks.values())) as seen:
        model.forward_features(x)
        for name, block in blocks.items():
            # in float32, as the model builds it
            attention = block.attention(*(view.float() for view in seen[block]))
            flat = block.edges(attention)[0]
            weights = attention.mean(dim=1).flatten(1)[0, flat]
            order = weights.argsort(descending=True, stable=True)
            nodes = block.grid_size**2
            edges = torch.stack([flat[order] // nodes, flat[order] % nodes], dim=1).cpu().numpy()
            graphs.append(LearnedGraph(name, block.grid_size, edges, weights[order].cpu().numpy()))
    return graphs


@contextmanager
def inputs_of(modules: Sequence[Any]) -> Iterator[dict[Any, tuple[torch.Tensor, ...]]]:
    """What modules are called with by this thread while the block runs; others may predict with them meanwhile."""
    seen: dict[Any, tuple[torch.Tensor, ...]] = {}
    thread = threading.get_ident()

    def note(module: Any, args: tuple[torch.Tensor, ...]) -> None:
        if threading.get_ident() == thread:
            seen[module] = args

    hooks = [module.register_forward_pre_hook(note) for module in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def make_galleries(
    predictor: Predictor, result: Result, genes: Sequence[str], *, count: int = 4, max_pixels: int = MAX_PIXELS
) -> list[Gallery]:
    """Read the highest and lowest tiles of genes again, and map what their predictions rest on.

    Args:
        predictor: The weights that predicted them.
        result: A slide, whose file is read again.
        genes: Genes that were predicted.
        count: How many of the highest, and of the lowest; fewer if there are not so many tiles.
        max_pixels: The most pixels of a plain picture.

    Raises:
        PanelError: A gene was not predicted.
        WeightsError: Other weights predicted the slide, or they were exported for ONNX Runtime, which gives no
            gradients.
        ImageError: The slide can no longer be read.
    """
    context, model, info = result.slide, predictor.model, predictor.info
    if context is None:
        raise ValueError("galleries are of tiles of a slide, not of patches")
    if info.sha256 != result.info.sha256:
        raise WeightsError(
            f"{context.path} was predicted by {result.info.name}, not by the {info.name} that is to explain it; load"
            " the weights of the prediction."
        )
    columns = [result.column(gene) for gene in genes]
    found = []
    with open_slide(context.path, max_pixels=max_pixels, series=context.series) as slide:
        reader = TileReader(slide, result.obsm["spatial"], context.tile_px, max_pixels=max_pixels)
        for gene, column in zip(genes, columns, strict=True):
            values = take_columns(result.X, [column])[:, 0]
            order = np.argsort(-values, kind="stable")
            number = min(count, len(order) // 2 or 1)
            tiles = np.concatenate([order[:number], order[number:][-number:]])
            read = [reader[int(i)] for i in tiles]
            for _, _, why in read:
                if why:
                    raise ImageError(why)
            x = predictor.backend.prepare(np.stack([pixels for _, pixels, _ in read if pixels is not None]))
            maps = activation_maps(model, x, list(info.columns([gene]).values()))["final_conv"][:, 0]
            found.append(Gallery(gene, tiles, number, values[tiles], _pictures(x), maps))
    return found


def _pictures(x: torch.Tensor) -> np.ndarray:
    """Model input (B, 3, 224, 224) as the pictures (B, 224, 224, 3), uint8, that it was made of."""
    pixels = (x.permute(0, 2, 3, 1).cpu().numpy() * IMAGENET_STD + IMAGENET_MEAN) * 255
    return pixels.round().clip(0, 255).astype(np.uint8)
