"""A web page to play with: drop a patch or a slide, pick genes, see values and what they rest on."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcgn_hub.errors import ImageError, OutputError, PanelError, TcgnError
from tcgn_hub.extras import require
from tcgn_hub.images.readers import is_slide_file
from tcgn_hub.text import option

if TYPE_CHECKING:
    from gradio import Blocks

    from tcgn_hub.prediction.predictor import Predictor
    from tcgn_hub.result import Result

_MOST_GENES = 6
_MOST_TILES = 400
_INTRODUCTION = """# Gene expression from an H&E image

Drop a patch or a slide, pick genes, and see what is predicted and what the prediction rests on. For research use, not
for diagnosis: the values are predicted from the image, and nothing was measured."""
_COLUMNS = ("gene", "value", "tta_std", "interval", "significant", "held-out PCC")


def build_demo(
    weights: str | Path | None = None, *, device: str = "auto", precision: str = "auto", compile: str = "auto"
) -> Blocks:
    """The page, to be launched or mounted; the same runs as a Space of Hugging Face.

    ``weights``: as in `tcgn_hub.predict`; the default weights if None. They are read once, before the page opens;
    ``device``, ``precision``, ``compile``: as in `tcgn_hub.load`.
    """
    gr = require("gradio", extra="demo", to="open the page")
    require("matplotlib", extra="plot", to="draw figures")
    from tcgn_hub.prediction.explain import best_genes
    from tcgn_hub.prediction.predictor import load
    from tcgn_hub.weights.hub import locate

    predictor = load(**locate(weights), device=device, precision=precision, compile=compile)
    info = predictor.info
    first = best_genes(info)[:2] if info.pcc else list(info.genes[:2])

    def predict(path: str | None, genes: list[str], mpp: str, occlusion: bool) -> tuple[str, Any, str]:
        try:
            if not path:
                raise ImageError("Give an image first.")
            if not 1 <= len(genes) <= _MOST_GENES:
                raise PanelError(f"Pick 1 to {_MOST_GENES} genes; {len(genes)} are picked.")
            if is_slide_file(Path(path)):
                return _slide(predictor, Path(path), genes, _number(mpp))
            return _patch(predictor, Path(path), genes, _number(mpp), occlusion=occlusion)
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
    device: str = "auto",
    precision: str = "auto",
    compile: str = "auto",
    block: bool = True,
) -> str:
    """Serve the page."""
    gr = require("gradio", extra="demo", to="open the page")
    page = build_demo(weights, device=device, precision=precision, compile=compile)
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
        raise OutputError(f"{host}:{port} cannot be listened on ({err}); give another {option('port')}.") from err
    return address


def _patch(
    predictor: Predictor, path: Path, genes: list[str], mpp: float | None, *, occlusion: bool
) -> tuple[str, list[list[str]], str]:
    from tcgn_hub.writing.explanations import draw_explanation

    explanation = predictor.explain(path, genes=genes, mpp=mpp, occlusion=occlusion)
    result = explanation.result
    message = f"**{path.name}**: {explanation.field}. Values in {result.units}.{_notes(result)}"
    if result.is_ood is not None and result.is_ood[0]:
        message += "\n\n**Out of distribution, unlike the training tissue: do not rely on it.**"
    return message, _rows(result), _picture(draw_explanation(explanation), "maps and graphs")


def _notes(result: Result) -> str:
    """What was done that the user may not expect, and how much the values tell."""
    from tcgn_hub.writing.tables import facts

    return "".join(f" Note: {note}." for note in result.notes) + "".join(f"\n\n{fact}." for fact in facts(result))


def _slide(predictor: Predictor, path: Path, genes: list[str], mpp: float | None) -> tuple[str, list[list[str]], str]:
    from tcgn_hub.writing.explanations import draw_gallery
    from tcgn_hub.writing.figures import draw_gene

    stride_um = _stride_um(path, mpp, predictor.info.patch_um)
    result = predictor.slide(path, genes=genes, mpp=mpp, stride_um=stride_um, workers=0)
    message = f"**{path.name}**: {len(result)} tiles of {predictor.info.patch_um:g} µm, {stride_um:.0f} µm apart. Mean"
    message += f" values in {result.units}.{_notes(result)}"
    if result.is_ood is not None and result.is_ood.any():
        message += f"\n\n**{int(result.is_ood.sum())} tiles are out of distribution.**"
    pictures = ""
    for gallery in predictor.galleries(result, genes):
        pictures += _picture(draw_gene(result, gallery.gene), f"map of {gallery.gene}")
        pictures += _picture(draw_gallery(result, gallery), f"tiles of {gallery.gene}")
    return message, _rows(result), pictures


def _rows(result: Result) -> list[list[str]]:
    """What `_COLUMNS` say of the genes of a patch, or of the tiles of a slide."""
    tta_std, radius = result.layers.get("tta_std"), result.var.get("interval_radius")
    one, ends = result.slide is None, result.interval()
    means = result.X[0] if one else result.bulk()
    rows = []
    for i, gene in enumerate(result.genes):
        low, high = result.X[:, i].min(), result.X[:, i].max()
        interval = "unknown"
        if radius is not None and ends is not None and radius[i] == radius[i]:
            interval = f"{ends[0][0, i]:.2f} to {ends[1][0, i]:.2f}" if one else f"± {radius[i]:.2f} a tile"
        pcc = result.pcc(gene)
        rows.append(
            [
                gene,
                f"{means[i]:.3f}" if one else f"{means[i]:.3f} (tiles {low:.2f} to {high:.2f})",
                f"{tta_std[0, i]:.3f}" if one and tta_std is not None else "",
                interval,
                result.significance(gene),
                "unknown" if pcc is None else f"{pcc:.2f}",
            ]
        )
    return rows


def _stride_um(path: Path, mpp: float | None, patch_um: float) -> float:
    """Distance of tiles that makes at most `_MOST_TILES` or so of the slide, for someone who waits."""
    from tcgn_hub.images.readers import size_and_scale

    size, scale = size_and_scale(path)
    area = size[0] * size[1] * (mpp or (scale.mpp if scale else 1.0)) ** 2
    return max(patch_um / 2, (area / _MOST_TILES) ** 0.5)


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
