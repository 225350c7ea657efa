"""A web page to play with: drop a patch or a slide, pick genes, see values and what they rest on."""

from __future__ import annotations

import base64
import math
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcgn_hub.errors import ImageError, PanelError, TcgnError
from tcgn_hub.extras import require
from tcgn_hub.images.slides import is_slide_file

if TYPE_CHECKING:
    from gradio import Blocks

__all__ = ["build_demo", "launch_demo"]

_MOST_GENES = 6
_MOST_TILES = 400
_INTRODUCTION = """# Gene expression from an H&E image

Drop a patch or a slide, pick genes, and see what is predicted and what the prediction rests on. For research use, not
for diagnosis: the values are predicted from the image, and nothing was measured."""
_COLUMNS = ("gene", "value", "spread", "interval", "significant", "held-out PCC")


def build_demo(weights: str | Path | None = None, *, device: str | None = None) -> Blocks:
    """The page, to be launched or mounted; the same runs as a Space of Hugging Face.

    Args:
        weights: As in `tcgn_hub.load_model`; the default weights if None.
        device: Where to compute, such as 'cuda'; the CPU if None.

    Raises:
        WeightsError: The weights cannot be had.
        ExtraError: Gradio is not installed.
    """
    gr = require("gradio", extra="demo", to="open the page")
    require("matplotlib", extra="plot", to="draw figures")
    from tcgn_hub.models.loading import load_model
    from tcgn_hub.prediction.explain import best_genes

    # loaded once here so that the page does not open on weights that cannot be had
    info = load_model(weights)[1]
    first = best_genes(info)[:2] if info.pcc else list(info.genes[:2])

    def predict(path: str | None, genes: list[str], mpp: str, occlusion: bool) -> tuple[str, Any, str]:
        try:
            if not path:
                raise ImageError("Give an image first.")
            if not 1 <= len(genes) <= _MOST_GENES:
                raise PanelError(f"Pick 1 to {_MOST_GENES} genes; {len(genes)} are picked.")
            options = {"weights": weights, "genes": genes, "mpp": _number(mpp), "device": device}
            if is_slide_file(Path(path)):
                return _slide(Path(path), options, info.patch_um)
            return _patch(Path(path), options, occlusion=occlusion)
        except TcgnError as err:
            # the page knows nothing of the folder that uploads are kept in
            return f"**Not predicted.** {str(err).replace(str(path), Path(path or '').name)}", None, ""

    with gr.Blocks(title="TCGN", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(_INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=1):
                image = gr.File(label="Patch or slide", type="filepath", elem_id="image")
                genes = gr.Dropdown(list(info.genes), value=first, multiselect=True, label="Genes", elem_id="genes")
                mpp = gr.Textbox(label="Micrometres per pixel", placeholder="what the file says", elem_id="mpp")
                occlusion = gr.Checkbox(False, label="Check the maps by covering parts (slower)", elem_id="occlusion")
                button = gr.Button("Predict", variant="primary", elem_id="predict")
            with gr.Column(scale=3):
                message = gr.Markdown(f"Weights: {info.name}, patches of {info.patch_um:g} µm.", elem_id="message")
                table = gr.Dataframe(headers=list(_COLUMNS), interactive=False, elem_id="values", label="Values")
                pictures = gr.HTML(elem_id="pictures")
        button.click(predict, [image, genes, mpp, occlusion], [message, table, pictures], api_name="predict")
    return page


def launch_demo(
    weights: str | Path | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    max_mb: int = 200,
    device: str | None = None,
    block: bool = True,
) -> str:
    """Serve the page.

    Args:
        weights: As in `tcgn_hub.load_model`; the default weights if None.
        host: Address to listen on; only this machine by default.
        port: Port; 0 for one that is free.
        max_mb: Largest upload in megabytes.
        device: Where to compute; the CPU if None.
        block: Whether to wait until the page is stopped.

    Returns:
        Address of the page.

    Raises:
        WeightsError: The weights cannot be had.
        ExtraError: Gradio is not installed.
        OutputError: The port cannot be listened on.
    """
    from tcgn_hub.errors import OutputError

    gr = require("gradio", extra="demo", to="open the page")
    page = build_demo(weights, device=device)
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port or None,
            max_file_size=f"{max_mb}mb",
            # fonts of the machine, so that nothing is asked of another one
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            share=False,
            ssr_mode=False,
            prevent_thread_lock=not block,
            quiet=not block,
        )
    except OSError as err:
        raise OutputError(f"{host}:{port} cannot be listened on ({err}); give another --port.") from err
    return address


def _patch(path: Path, options: dict[str, Any], *, occlusion: bool) -> tuple[str, list[list[Any]], str]:
    from tcgn_hub.prediction.explain import explain
    from tcgn_hub.writing.explanations import draw_explanation
    from tcgn_hub.writing.frames import significance

    explanation = explain(path, occlusion=occlusion, **options)
    ends = explanation.interval()
    rows = [
        [
            gene,
            f"{explanation.values[0, i]:.3f}",
            "" if explanation.spread is None else f"{explanation.spread[0, i]:.3f}",
            "unknown" if ends is None else f"{ends[0][0, i]:.2f} to {ends[1][0, i]:.2f}",
            significance(explanation, gene),
            "unknown" if (pcc := explanation.pcc(gene)) is None else f"{pcc:.2f}",
        ]
        for i, gene in enumerate(explanation.genes)
    ]
    message = (
        f"**{path.name}**: central {explanation.patch_um:.3g} µm, {explanation.scale.mpp:.4g} µm/px by"
        f" {explanation.scale.source}. Values in {explanation.units}."
    )
    if explanation.unlike is not None and explanation.unlike[0]:
        message += " **Unlike the training tissue: do not rely on it.**"
    return message, rows, _picture(draw_explanation(explanation), "maps and graphs")


def _slide(path: Path, options: dict[str, Any], patch_um: float) -> tuple[str, list[list[Any]], str]:
    from tcgn_hub.prediction.explain import galleries
    from tcgn_hub.writing.explanations import draw_gallery
    from tcgn_hub.writing.figures import draw_gene
    from tcgn_hub.writing.frames import summarise

    prediction = _coarsely(path, options, patch_um)
    rows = [
        [
            row.gene,
            f"{row.mean:.3f} (tiles {row.min:.2f} to {row.max:.2f})",
            "",
            "unknown" if math.isnan(row.interval_radius) else f"± {row.interval_radius:.2f} a tile",
            row.significant,
            "unknown" if math.isnan(row.pcc) else f"{row.pcc:.2f}",
        ]
        for row in summarise(prediction)
    ]
    message = (
        f"**{path.name}**: {len(prediction.tiles)} tiles of {prediction.patch_um:g} µm, {prediction.stride_um:.0f} µm"
        f" apart. Mean values in {prediction.units}."
    )
    if prediction.unlike is not None and prediction.unlike.any():
        message += f" **{int(prediction.unlike.sum())} tiles are unlike the training tissue.**"
    pictures = ""
    for gallery in galleries(prediction, prediction.genes, device=options["device"]):
        pictures += _picture(draw_gene(prediction, gallery.gene), f"map of {gallery.gene}")
        pictures += _picture(draw_gallery(prediction, gallery), f"tiles of {gallery.gene}")
    return message, rows, pictures


def _coarsely(path: Path, options: dict[str, Any], patch_um: float) -> Any:
    """The slide in at most `_MOST_TILES` tiles or so, for someone who waits."""
    from tcgn_hub.images.slides import size_and_scale
    from tcgn_hub.prediction.slides import predict_slide

    size, scale = size_and_scale(path)
    mpp = options["mpp"] or (scale.mpp if scale else 1.0)
    area = size[0] * size[1] * mpp**2
    return predict_slide(path, stride_um=max(patch_um, (area / _MOST_TILES) ** 0.5), workers=0, **options)


def _number(text: str) -> float | None:
    if not text.strip():
        return None
    try:
        return float(text.replace(",", "."))
    except ValueError as err:
        raise ImageError(f"{text!r} is not a number of micrometres per pixel, such as 0.5.") from err


def _picture(png: bytes, text: str) -> str:
    """A picture inside the page, so that no file of it is kept."""
    return (
        f'<img alt="{escape(text)}" style="width: 100%" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
    )
