"""Explanations: equal to a reference library, lost with the weights, and drawn."""

import io
import json
import re
from dataclasses import replace

import golden
import numpy as np
import pytest
import torch
from captum.attr import LayerActivation, LayerGradCam, LayerGradientXActivation
from PIL import Image
from results import some
from test_slides import SVS

import tcgn_hub
from tcgn_hub.cli.main import main
from tcgn_hub.correlation import spearman
from tcgn_hub.errors import ImageError, PanelError, WeightsError
from tcgn_hub.images.transforms import to_input
from tcgn_hub.models.loading import load_model
from tcgn_hub.prediction.explain import LAYERS, activation_maps, learned_graphs, occlusion_maps
from tcgn_hub.result import Explanation, LearnedGraph, Result
from tcgn_hub.writing.canvas import Canvas
from tcgn_hub.writing.explanations import draw_explanation, draw_gallery, explanation_text
from tcgn_hub.writing.report import write_report

PATCH = golden.PATCHES[0]
GENES = ["GNAS", "FASN"]


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return load_model()[0]


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in golden.PATCHES[::2]]
    return to_input(np.stack(pictures))


@pytest.fixture(scope="module")
def explanation() -> tcgn_hub.Explanation:
    return tcgn_hub.explain(PATCH, genes=GENES, occlusion=True)


@pytest.fixture(scope="module")
def slide() -> Result:
    return tcgn_hub.load().slide(SVS, genes=GENES, stride_um=250)


def test_grad_cam_is_that_of_captum(model, x):
    columns = [0, 300, 784]
    ours = activation_maps(model, x, columns)["final_conv"]
    reference = LayerGradCam(model, model.final_conv)
    for i, column in enumerate(columns):
        theirs = reference.attribute(x, target=column, relu_attributions=True)[:, 0].detach()
        torch.testing.assert_close(torch.from_numpy(ours[:, i]), theirs, atol=1e-6, rtol=1e-4)
    assert ours.max() > 0


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_layer_cam_is_made_of_gradients_and_activations_of_captum(model, x, stage):
    layer = model.stages[stage]
    product = LayerGradientXActivation(model, layer).attribute(x, target=5).detach()
    activation = LayerActivation(model, layer).attribute(x).detach()
    rising = product * activation.sign() > 0  # where the gradient is above 0
    theirs = torch.where(rising, product, 0).sum(1).relu()
    ours = activation_maps(model, x, [5], layers=["final_conv", f"stages.{stage}"])[f"stages.{stage}"][:, 0]
    assert ours.shape[1] == LAYERS[f"stages.{stage}"]
    torch.testing.assert_close(torch.from_numpy(ours), theirs, atol=1e-5 * theirs.max().item(), rtol=1e-3)


def test_a_batch_equals_its_patches_one_by_one(model, x):
    together = activation_maps(model, x, [3, 4], layers=list(LAYERS))
    for i in range(len(x)):
        alone = activation_maps(model, x[i : i + 1], [3, 4], layers=list(LAYERS))
        for layer, maps in together.items():
            np.testing.assert_allclose(alone[layer][0], maps[i], atol=1e-4 * maps.max())


def test_maps_do_not_depend_on_whether_finer_ones_are_asked_for(model, x):
    alone, beside = (activation_maps(model, x, [9], layers=layers) for layers in (("final_conv",), tuple(LAYERS)))
    np.testing.assert_allclose(alone["final_conv"], beside["final_conv"], rtol=1e-4, atol=1e-6)


def test_random_weights_destroy_the_maps(model, x):
    """Maps that survive show the image and not the model (Adebayo et al., NeurIPS 2018)."""
    columns = list(range(0, 785, 80))
    trained = activation_maps(model, x, columns, layers=list(LAYERS))
    torch.manual_seed(0)
    other = load_model()[0]
    for parameter in other.parameters():
        if parameter.ndim > 1:  # weights are drawn anew, at the scale that they have
            with torch.no_grad():
                parameter.copy_(torch.randn_like(parameter) * parameter.std())
    random = activation_maps(other, x, columns, layers=list(LAYERS))
    for layer in LAYERS:
        similar = spearman(*(m[layer].reshape(len(x) * len(columns), -1).T for m in (trained, random)))
        same = spearman(*(m[layer].reshape(len(x) * len(columns), -1).T for m in (trained, trained)))
        assert np.nanmean(np.abs(similar)) < 0.5 < np.nanmean(same), layer


def test_the_graphs_are_the_golden_ones(golden_model):
    for i, picture in enumerate(golden.expected()["input"]):
        graphs = learned_graphs(golden_model, picture[None])
        assert [graph.stage for graph in graphs] == ["stages.0", "stages.1"]
        for block, graph in enumerate(graphs):
            flat = np.sort(graph.edges[:, 0] * 196 + graph.edges[:, 1])
            np.testing.assert_array_equal(flat, golden.expected()["edges"][i, block].numpy())
            assert (np.diff(graph.weights) <= 0).all()
    assert not golden_model.stages[0].graph.co_embed._forward_pre_hooks


def test_a_graph_in_numbers():
    # two edges between the corners of the upper row, one loop, one edge downwards
    edges = np.array([[0, 3], [3, 0], [5, 5], [0, 4]])
    graph = LearnedGraph("stages.0", 4, edges, np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    assert graph.degree.tolist() == [3, 0, 0, 2, 1] + [0] * 11
    assert graph.summary(80) == {
        "edges": 4,
        "self_loops": 1,
        "nodes_without_edges": 13,
        "median_degree": 0,
        "max_degree": 3,
        "median_length_um": 60,
        "max_length_um": 60,
    }
    loops = LearnedGraph("stages.0", 4, np.array([[1, 1]]), np.ones(1, np.float32))
    assert loops.summary(80)["max_length_um"] == 0


class _Corner(torch.nn.Module):
    """Output 0 rises with the first channel of the upper left quarter, output 1 falls with it."""

    def forward(self, x):
        value = x[:, 0, :112, :112].mean((1, 2))
        return torch.stack([value, -value], 1)


def test_occlusion_finds_what_an_output_depends_on():
    x = torch.zeros(1, 3, 224, 224)
    x[:, 0, :112, :112] = 1
    rise, fall = occlusion_maps(_Corner(), x, [0, 1], batch_size=7)
    assert (rise[:6, :6] > 0.02).all()
    assert np.abs(rise[8:]).max() == 0 == np.abs(rise[:, 8:]).max()
    np.testing.assert_allclose(fall, -rise)
    # all 0.75 of it that is not the mean colour, over the 32 of 112 px
    assert rise.max() == pytest.approx(0.75 * (32 / 112) ** 2, rel=1e-5)
    assert np.abs(occlusion_maps(_Corner(), torch.ones_like(x), [0])).max() < 1e-6


def test_explain_a_patch(explanation):
    result = tcgn_hub.predict([PATCH], genes=GENES, tta=8)
    np.testing.assert_allclose(explanation.result.X, result.X, atol=1e-5)
    np.testing.assert_allclose(explanation.result.layers["tta_std"], result.layers["tta_std"], atol=1e-5)
    assert explanation.result.genes == GENES
    assert {layer: maps.shape for layer, maps in explanation.maps.items()} == {
        layer: (2, side, side) for layer, side in LAYERS.items()
    }
    assert explanation.occlusion.shape == (2, 14, 14)
    assert explanation.patch_um == pytest.approx(explanation.result.info.patch_um, rel=0.01)
    assert np.abs(explanation.agreement()).max() <= 1
    np.testing.assert_array_equal(explanation.patch, np.asarray(Image.open(PATCH).convert("RGB")))


def test_the_genes_that_are_explained_by_default():
    result = tcgn_hub.explain(PATCH, layers=["final_conv"])
    pcc = result.result.info.pcc
    assert result.result.genes == sorted(pcc, key=lambda gene: -pcc[gene])[:4]
    assert (result.agreement(), list(result.maps)) == (None, ["final_conv"])


def test_refusals(slide):
    blank = np.full((224, 224, 3), 240, np.uint8)
    for patch in (blank, np.zeros_like(blank)):
        with pytest.raises(ImageError, match="image shows no tissue in its central 205 px"):
            tcgn_hub.explain(patch, genes=GENES, mpp=0.75)
    with pytest.raises(PanelError, match="NOPE: not among"):
        tcgn_hub.explain(PATCH, genes=["NOPE"])
    with pytest.raises(ImageError, match="smaller than a patch"):
        tcgn_hub.explain(PATCH, genes=GENES, mpp=0.6, scale="strict")
    with pytest.raises(ValueError, match=r"names out of final_conv, .* got stages\.3"):
        tcgn_hub.explain(PATCH, genes=GENES, layers=["stages.3"])
    with pytest.raises(PanelError, match="NOPE is not among the genes predicted"):
        tcgn_hub.load().galleries(slide, ["NOPE"])
    changed = replace(slide, uns={**slide.uns, "weights": replace(slide.info, sha256="0" * 64)})
    with pytest.raises(WeightsError, match="was predicted by"):
        tcgn_hub.load().galleries(changed, GENES)


def test_the_picture(explanation):
    picture = Image.open(io.BytesIO(draw_explanation(explanation)))
    text = explanation_text(explanation)
    assert picture.width > 1200
    # a row of panels for each gene, and a line for what genes share
    row = picture.height - Image.open(io.BytesIO(draw_explanation(_one_gene(explanation)))).height
    assert 300 < row < 400
    assert re.search(
        r"GNAS  \d\.\d+ \+- 0\.\d+ .*significant: no  Grad-CAM and occlusion: rank correlation -?\d\.\d\d", text
    )
    assert re.search(r"graph of stages.1: 784 edges, \d+ self-loops.*; of any two squares 79\)", text)
    assert "values in log10(1 + 10^4 count / sum of the panel's counts)" in text


@pytest.fixture
def figures(monkeypatch):
    """What is drawn, as figures of matplotlib in place of bytes."""
    monkeypatch.setattr(Canvas, "png", lambda self: self.figure)


def _panels(figure, title):
    return [axes for axes in figure.axes if axes.get_title().startswith(title)]


def test_the_graph_can_be_read(explanation, figures):
    figure = draw_explanation(explanation)
    edges, degree, length = (_panels(figure, "graph")[i::3] for i in range(3))
    assert len(edges) == len(degree) == len(length) == 2
    for i, graph in enumerate(explanation.graphs):
        arrows = [arrow.xy for arrow in edges[i].texts if not arrow.get_text()]
        # the strongest, without self-loops
        strongest = graph.edges[~graph.loops][:30, 1]
        ends = [((node % 14 + 0.5) / 14, (node // 14 + 0.5) / 14) for node in strongest]
        np.testing.assert_allclose(sorted(arrows), sorted(ends))
        np.testing.assert_array_equal(degree[i].images[1].get_array().ravel(), graph.degree)
        bars, outline = length[i].patches[:-1], length[i].patches[-1].get_xy()
        steps, heights = np.diff(outline[:, 0]), outline[1:, 1]
        assert sum(bar.get_height() for bar in bars) == (~graph.loops).sum()
        # both histograms have the same area
        width = bars[0].get_width()
        assert np.sum(np.clip(steps, 0, None) * heights) / width == pytest.approx((~graph.loops).sum())
    assert degree[0].images[1].get_clim() == degree[1].images[1].get_clim()


def test_a_graph_of_loops_alone_is_drawn(explanation):
    loops = LearnedGraph("stages.0", 14, np.array([[1, 1], [2, 2]]), np.ones(2, np.float32))
    equal = LearnedGraph("stages.1", 14, np.array([[1, 2], [2, 3]]), np.ones(2, np.float32))
    coarse = {"final_conv": explanation.maps["final_conv"]}
    few = replace(explanation, maps=coarse, occlusion=None, graphs=[loops, equal])
    assert draw_explanation(few)
    assert "median length 0 um" in explanation_text(few)


def test_occlusion_is_drawn_on_one_scale_that_shows_it(explanation, figures):
    occlusion = np.linspace(-0.1, 0.3, 2 * 196, dtype=np.float32).reshape(2, 14, 14)
    occlusion[0, 0, 0] = 100
    figure = draw_explanation(replace(explanation, occlusion=occlusion))
    panels = _panels(figure, "occlusion")
    assert len(panels) == 2
    for axes in panels:
        low, high = axes.images[1].get_clim()
        assert low == -high
        assert high == pytest.approx(0.3, abs=0.01)
    assert panels[1].get_title() == "occlusion (14 x 14):\n0.1 to 0.3, median 0.2"
    numbers = [text.get_text() for text in figure.texts]
    assert {f"{high:.2g}", f"{low:.2g}"} <= set(numbers)


def test_genes_whose_maps_are_one_picture(figures):
    result = tcgn_hub.predict([PATCH], genes=["GNAS", "FASN", "FUS", "GATC"])
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 14, 14))
    between = first + 0.22 * second
    chain = np.stack([first, first + 0.44 * second, 3 * between + 7, -first]).astype(np.float32)
    same = np.stack([first, second, second, 0 * first]).astype(np.float32)
    nothing = np.zeros((4, 7, 7), np.float32)
    explanation = Explanation(
        result=result,
        patch=np.asarray(Image.open(PATCH).convert("RGB")),
        maps={"final_conv": nothing, "stages.2": chain},
        graphs=[LearnedGraph("stages.0", 14, np.array([[0, 3]]), np.ones(1, np.float32))],
        occlusion=same,
    )
    r = [np.corrcoef(chain[i].ravel(), chain[j].ravel())[0, 1] for i, j in ((0, 1), (0, 2), (1, 2))]
    assert r[0] < 0.95 < min(r[1:])  # the third joins the others
    found = explanation.alike()
    assert list(found) == [("GNAS", "FASN", "FUS"), ("FASN", "FUS")]
    assert found["GNAS", "FASN", "FUS"] == {"stages.2": pytest.approx((r[0], max(r)))}
    assert found["FASN", "FUS"] == {"occlusion": pytest.approx((1, 1))}
    assert explanation.alike(above=0.9999) == {("FASN", "FUS"): found["FASN", "FUS"]}
    sentences = [
        f"GNAS, FASN and FUS: the same LayerCAM of stage 3 (r = {r[0]:.2f} to {max(r):.2f}): one picture, not three"
        " findings",
        "FASN and FUS: the same occlusion (r = 1.00): one picture, not two findings",
    ]
    drawn = " ".join(text.get_text() for text in draw_explanation(explanation).texts)
    for sentence in sentences:
        assert sentence in explanation_text(explanation).splitlines()
        assert sentence in re.sub(r"\s+", " ", drawn)
    alone = replace(explanation, maps={"final_conv": nothing}, occlusion=None)
    assert alone.alike() == {}
    assert "one picture" not in explanation_text(alone)


@pytest.mark.parametrize("layers", [["final_conv"], list(LAYERS)])
def test_no_text_is_cut_off(explanation, slide, figures, layers):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    gallery = tcgn_hub.load().galleries(slide, ["FASN"], count=1)[0]
    shown = replace(explanation, maps={layer: explanation.maps[layer] for layer in layers})
    for figure in (draw_explanation(shown), draw_gallery(slide, gallery)):
        FigureCanvasAgg(figure).draw()
        for text in [*figure.texts, *(axes.title for axes in figure.axes)]:
            box = text.get_window_extent()
            assert box.x0 >= 0 <= box.y0, text
            assert box.x1 <= figure.bbox.x1, text
            assert box.y1 <= figure.bbox.y1, text


def test_maps_of_tiles_are_on_one_scale(figures):
    slide = tcgn_hub.load().slide(SVS, genes=["TJP3"], stride_um=250)
    gallery = tcgn_hub.load().galleries(slide, ["TJP3"], count=2)[0]
    figure = draw_gallery(slide, gallery)
    panels = _panels(figure, "Grad-CAM")
    limit = np.quantile(gallery.maps, 0.99)
    assert len(panels) == 4
    for axes, values in zip(panels, gallery.maps, strict=True):
        assert axes.images[1].get_clim() == pytest.approx((0, limit))
        assert axes.get_title() == f"Grad-CAM, at most {values.max():.2g}"
    assert f"{limit:.2g} or more" in [text.get_text() for text in figure.texts]
    # a tile without any evidence says so
    nothing = replace(gallery, maps=gallery.maps * np.array([1, 0, 1, 1], np.float32)[:, None, None])
    panel = _panels(draw_gallery(slide, nothing), "Grad-CAM")[1]
    assert panel.texts[0].get_text() == "no evidence for\na higher value"


def _one_gene(explanation):
    return replace(
        explanation,
        result=explanation.result.select(explanation.result.genes[:1]),
        maps={layer: 0 * maps[:1] for layer, maps in explanation.maps.items()},
        occlusion=0 * explanation.occlusion[:1],
    )


def test_highest_and_lowest_tiles(slide):
    (gallery,) = tcgn_hub.load().galleries(slide, ["FASN"], count=3)
    order = np.argsort(slide.X[:, 1])
    assert gallery.tiles.tolist() == [*order[::-1][:3], *order[2::-1]]
    assert (gallery.highest, gallery.maps.shape) == (3, (6, 7, 7))
    # each patch is the tile of that value
    again = tcgn_hub.predict(list(gallery.patches), genes=["FASN"], mpp=slide.slide.patch_um / 224)
    np.testing.assert_allclose(again.X[:, 0], gallery.values, atol=0.05)
    picture = Image.open(io.BytesIO(draw_gallery(slide, gallery)))
    assert picture.height > picture.width
    few = tcgn_hub.load().galleries(_tiles(slide, 1), ["FASN"])[0]
    assert (few.tiles.tolist(), few.highest) == ([0], 1)
    assert Image.open(io.BytesIO(draw_gallery(slide, few))).width > 400


def _tiles(slide, count):
    return some(slide, slice(0, count))


def test_the_report_shows_them(slide, tmp_path):
    write_report(tmp_path / "with.html", slide, galleries=tcgn_hub.load().galleries(slide, ["GNAS"], count=1))
    write_report(tmp_path / "without.html", slide)
    page, without = ((tmp_path / name).read_text() for name in ("with.html", "without.html"))
    assert page.count("<img") == without.count("<img") + 1
    assert 'alt="Highest and lowest tiles of GNAS"' in page
    assert "What the predictions rest on" not in without


def test_the_command(tmp_path, capsys):
    out = tmp_path / "gnas.png"
    assert main(["explain", PATCH, "--gene", "GNAS", "--npz", "-o", str(out)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{PATCH}: central 154 um")
    assert text.rstrip().endswith(f"drawn in {out}")
    with np.load(tmp_path / "gnas.npz", allow_pickle=False) as arrays:
        assert arrays["genes"].tolist() == ["GNAS"]
        assert arrays["map.stages.0"].shape == (1, 56, 56)
        assert arrays["stages.1.edges"].shape == (784, 2)
        assert arrays["patch"].shape == (224, 224, 3)
        assert f"{arrays['values'][0]:.3f}" in text
        metadata = json.loads(str(arrays["metadata"]))
    assert metadata["graphs"]["stages.0"]["edges"] == 784
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gnas.npz", "gnas.png"]


def test_the_command_goes_on_over_bad_images(tmp_path, capsys):
    folder = tmp_path / "patches"
    folder.mkdir()
    Image.open(PATCH).save(folder / "good.png", dpi=(36972, 36972))
    Image.new("RGB", (224, 224), "white").save(folder / "blank.png", dpi=(36972, 36972))
    out = tmp_path / "out"
    assert main(["explain", str(folder), "--gene", "GNAS", "-o", str(out)]) == 1
    assert "blank.png shows no tissue" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["good.png.explained.png"]


def test_the_command_on_a_slide(tmp_path):
    assert main(["explain", str(SVS), "--gene", "GNAS", "--stride", "500", "--tiles", "1", "-o", str(tmp_path)]) == 0
    names = [f"{SVS.name}.explained.GNAS.{what}.png" for what in ("map", "tiles")]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([PATCH, "--gene", "NOPE"], "NOPE: not among the 785 genes"),
        ([PATCH, "--gene", "GNAS", "-o", "x.jpg"], "x.jpg is no name of a picture; let it end in .png"),
        ([PATCH, PATCH, "-o", "x.png"], "x.png is one file, but several pictures"),
        ([PATCH, PATCH, "-o", "x"], "Two of the images are named"),
        ([str(SVS), "-o", "x.png"], "x.png is one file, but several pictures"),
        (["gone.png"], "gone.png does not exist"),
        ([PATCH, "--device", "tpu9"], "Device 'tpu9' cannot be used here"),
    ],
)
def test_errors_are_one_sentence_and_exit_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["explain", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
