"""The options of all commands, and tcgn-predict as a user runs it."""

import argparse
import csv
import dataclasses
import inspect
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import golden
import numpy as np
import pytest
from PIL import Image
from sections import PANEL

import tcgn_hub
from tcgn_hub.cli import common
from tcgn_hub.cli.main import COMMANDS
from tcgn_hub.cli.main import main as tcgn
from tcgn_hub.cli.predict import build_parser, main
from tcgn_hub.errors import TcgnError
from tcgn_hub.prediction.cohort.run import predict_cohort
from tcgn_hub.training.recipe import Steps

PATCH = golden.PATCHES[0]


@pytest.fixture
def tiny(tiny_weights) -> list[str]:
    return ["--weights", str(tiny_weights)]


@pytest.fixture
def nothing_loaded(monkeypatch):
    """What is refused has to be refused before weights are read."""

    def load(*args, **kwargs):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("tcgn_hub.prediction.predictor.load", load)


def _json(capsys) -> dict:
    return json.loads(capsys.readouterr().out)


# the table of options


def _parsers() -> dict[str, argparse.ArgumentParser]:
    """Of every command, those of `tcgn weights` among them."""
    parsers = {}
    for name in COMMANDS:
        parser = import_module(f"tcgn_hub.cli.{name}").build_parser(f"tcgn {name}")
        parsers[name] = parser
        if parser._subparsers is not None:
            (commands,) = parser._subparsers._group_actions
            parsers.update({f"{name} {command}": own for command, own in commands.choices.items()})
    return parsers


def _options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {
        action.dest: action
        for action in parser._actions
        if action.option_strings and action.dest not in ("help", "version")
    }


def test_an_option_of_one_name_is_one_option_in_all_commands():
    seen: dict[str, dict[tuple, list[str]]] = {}
    for command, parser in _parsers().items():
        for name, option in _options(parser).items():
            kind = (tuple(option.option_strings), option.type, option.default, option.nargs, option.metavar)
            choices = None if option.choices is None else tuple(option.choices)
            # recipes have defaults of their own
            shared = name in {field.name for field in dataclasses.fields(Steps)}
            told = re.sub(r" \(default: .*\)$", "", option.help) if shared else option.help
            seen.setdefault(name, {}).setdefault((*kind, choices, told), []).append(command)
    assert len(seen) > 50
    assert {name: list(kinds.values()) for name, kinds in seen.items() if len(kinds) > 1} == {}


def _signatures() -> dict[str, list]:
    from tcgn_hub.demo import launch_demo
    from tcgn_hub.prediction.predictor import Predictor, load

    return {
        "predict": [load, Predictor.patches, Predictor.slide, Predictor.slides],
        "explain": [load, Predictor.explain, Predictor.galleries],
        "export": [load, Predictor.export],
        "demo": [launch_demo],
        "view": [tcgn_hub.view],
        "finetune": [tcgn_hub.finetune, tcgn_hub.Recipe],
        "crossval": [tcgn_hub.crossval, tcgn_hub.Recipe],
        "evaluate": [tcgn_hub.evaluate],
        "adapt": [tcgn_hub.adapt],
        "pretrain": [tcgn_hub.pretrain, tcgn_hub.Distillation],
    }


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"cohort", "genes", "weights"}))
def test_what_help_calls_the_default_is_that_of_the_api_and_only_what_is_given_is_passed_on(command):
    defaults = {
        name: parameter.default
        for function in _signatures()[command]
        for name, parameter in inspect.signature(function).parameters.items()
    }
    options = _options(_parsers()[command])
    assert {name for name, option in options.items() if option.default is not None} == set()
    checked = 0
    for name, option in options.items():
        stated = re.search(r"\(?default: (.*?)\)?$", option.help)
        default = defaults.get(name)
        if stated and default is not None and default is not inspect.Parameter.empty:
            assert str(default) in re.split(r"[ ,;]+", stated[1]), name
            checked += 1
    assert checked or command == "export"


def test_the_api_has_every_option_of_prediction():
    from tcgn_hub.cli import predict

    patches, slide, load = (
        set(inspect.signature(function).parameters)
        for function in (tcgn_hub.Predictor.patches, tcgn_hub.Predictor.slide, tcgn_hub.load)
    )
    assert set(predict._SETS) <= {*inspect.signature(tcgn_hub.Predictor.slides).parameters}
    both = {"genes", *predict._SHARED, *predict._SCALE}
    assert both <= patches & slide
    assert set(predict._TILED) <= slide
    assert {"device", "precision", "compile", "backend"} <= load


GIVEN = {
    "genes": ["--genes", "G1"],
    "top": ["--top", "2"],
    "signatures": ["--signatures", "sets.gmt"],
    "min_share": ["--min-share", "0.5"],
    "format": ["--format", "json"],
    "output": ["-o", "other.h5ad"],
    "weights": ["--weights", "tcgn_base.her2st"],
    "device": ["--device", "cpu"],
    "precision": ["--precision", "bfloat16"],
    "compile": ["--compile", "off"],
    "backend": ["--backend", "torch"],
    "significant_only": ["--significant-only"],
    "tta": ["--tta", "2"],
    "min_quality": ["--min-quality", "0.1"],
    "batch_size": ["--batch-size", "2"],
    "mpp": ["--mpp", "0.5"],
    "magnification": ["--magnification", "20"],
    "patch_um": ["--patch-um", "100"],
    "strict": ["--strict"],
    "force_scale": ["--force-scale"],
    "force": ["--force"],
    "series": ["--series", "0"],
    "stride_um": ["--stride-um", "900"],
    "spots": ["--spots", "spots.csv"],
    "library": ["--library", "S1"],
    "bin_um": ["--bin-um", "40"],
    "min_tissue": ["--min-tissue", "0.2"],
    "features": ["--features"],
    "workers": ["--workers", "0"],
    "max_pixels": ["--max-pixels", "1000000"],
    "image": ["--image", "copy"],
    "plot": ["--plot", "G1"],
    "map": ["--map", "value"],
    "report": ["--report"],
    "bulk": ["--bulk", "bulk.csv"],
    "scheduler": ["--scheduler", "tcp://127.0.0.1:9"],
    "local_workers": ["--local-workers", "2"],
    "shard": ["--shard", "1/2"],
    "retry_failed": ["--retry-failed"],
    "dry_run": ["--dry-run"],
}


@pytest.fixture(scope="module")
def canned(tiny_weights):
    """A predictor of real weights, and what it says of a patch and of a slide."""
    predictor = tcgn_hub.load(path=tiny_weights)
    slide = predictor.slide(golden.SVS, stride_um=400, workers=0)
    return predictor, predictor.patches([PATCH]), slide


@pytest.fixture
def recorded(canned, monkeypatch):
    """Commands ask this one, which notes what it is asked, and says what it always says."""
    predictor, patches, slide = canned
    calls = []

    def said(name, answer):
        def call(*args, **options):
            calls.append((name, args, options))
            return answer

        return call

    stand_in = SimpleNamespace(
        info=predictor.info,
        backend=predictor.backend,
        columns=predictor.columns,
        patches=said("patches", patches),
        slide=said("slide", slide),
        slides=lambda *args, **options: predict_cohort(stand_in, *args, **options),
        metadata=predictor.metadata,
        asked=predictor.asked,
        run=said("run", None),
        galleries=said("galleries", []),
        export=said("export", SimpleNamespace(path=Path(PATCH), difference=0.0)),
    )
    monkeypatch.setattr("tcgn_hub.prediction.predictor.load", said("load", stand_in))
    monkeypatch.setattr("tcgn_hub.prediction.predictor.check_weights", lambda *args, **options: predictor.info)
    return calls


@pytest.mark.parametrize("option", GIVEN)
@pytest.mark.parametrize(
    ("image", "output"), [(PATCH, "x.csv"), (str(golden.SVS), "x.h5ad")], ids=["patches", "slides"]
)
def test_each_option_of_predict_is_used_or_refused(recorded, capsys, tmp_path, monkeypatch, image, output, option):
    assert set(GIVEN) == set(_options(build_parser("tcgn predict")))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spots.csv").write_text("x,y\n500,500\n")
    (tmp_path / "sets.gmt").write_text("\t".join(["SET", "", *PANEL[4:]]))

    def outcome(arguments):
        recorded.clear()
        code = main(arguments)
        files = {path.name: path.stat().st_size for path in tmp_path.iterdir() if path.is_file()}
        for path in tmp_path.iterdir():
            if path.name not in ("spots.csv", "sets.gmt"):
                path.unlink()
        return code, repr(recorded), files, capsys.readouterr()

    plain = outcome([image, "-o", output])
    assert plain[0] == 0
    code, calls, files, (_, error) = outcome([image, "-o", output, *GIVEN[option]])
    if code == 0:
        assert (calls, files) != plain[1:3]
    else:
        assert code == 2
        assert "load" not in calls
        assert f"--{option.replace('_', '-')}" in error or option == "output"


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("predict", ["x.png", "--min-tissue", "1.5"]),
        ("predict", ["x.png", "--min-tissue", "-0.1"]),
        ("predict", ["x.png", "--min-tissue", "nan"]),
        ("predict", ["x.png", "--tta", "9"]),
        ("predict", ["x.png", "--mpp", "0"]),
        ("predict", ["x.png", "--mpp", "inf"]),
        ("predict", ["x.png", "--stride-um", "-5"]),
        ("predict", ["x.png", "--workers", "-1"]),
        ("predict", ["x.png", "--precision", "half"]),
        ("predict", ["x.png", "--batch-size", "0"]),
        ("predict", ["x.png", "--top", "x"]),
        ("predict", []),
        ("explain", ["x.png", "--tiles", "0"]),
        ("export", ["--batch-size", "0"]),
        ("export", ["--int8"]),
        ("export", ["--dynamic-batch"]),
        ("demo", ["--port", "70000"]),
        ("finetune", ["x", "--hvg", "0", "-o", "out"]),
        ("finetune", ["x", "--hvg", "5", "-o", "out", "--checkpoint-minutes", "0"]),
        ("crossval", ["x", "--genes", "A", "-o", "out", "--by", "spot"]),
    ],
)
def test_a_value_out_of_its_range_is_refused_as_it_is_read(command, arguments, capsys):
    with pytest.raises(SystemExit) as raised:
        tcgn([command, *arguments])
    assert raised.value.code == 2
    assert f"tcgn {command}: error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([str(golden.SVS), "-o", "x.h5ad", "--top", "5"], "--top is for patches"),
        ([str(golden.SVS), "-o", "x.h5ad", "--format", "csv"], "--format csv does not go with x.h5ad"),
        ([PATCH, "-o", "x.csv", "--format", "json"], "--format json does not go with x.csv"),
        ([PATCH, "-o", "x.docx"], "x.docx is of no format that is known"),
        ([str(golden.SVS), "-o", "x.docx"], "x.docx is of no format that is known"),
        ([str(golden.SVS), str(golden.SVS), "-o", "x.csv"], "x.csv is one file, but there are 2 slides"),
        ([PATCH, "-o", "EMPTY"], "EMPTY cannot be written: it is a folder"),
        ([str(golden.SVS), "-o", "x.csv", "--features"], "--features are kept in an .h5ad or .zarr only"),
        ([str(golden.SVS)], "Say where to write the tiles"),
        ([str(golden.SVS), "--bulk", "b.csv", "--report"], "--report"),
        ([str(golden.SVS), "-o", "x.h5ad", "--map", "given_depth"], "--map says what --plot and --report draw"),
        ([str(golden.SVS), "--bulk", "no/b.csv"], "no/b.csv cannot be written"),
        ([str(golden.SVS), "-o", "x.h5ad", "--spots", "s.csv", "--stride-um", "300"], "--stride-um"),
        ([str(golden.SVS), "-o", "x.h5ad", "--spots", "s.csv"], "s.csv"),
        ([PATCH, "--genes", " , "], "no genes"),
        (["absent.png"], "absent.png does not exist"),
        ([PATCH, "-o", "no/such/folder/out.csv"], "cannot be written"),
        (["EMPTY"], "holds no image"),
        ([PATCH, "--mpp", "0.00001"], "1e-05 um/px cannot be the scale of a histology image"),
        ([PATCH, "--mpp", "0.5", "--magnification", "20"], "Give the scale once"),
        ([PATCH, "--min-share", "0.5"], "--min-share is of --signatures"),
        ([PATCH, "--signatures", "no.gmt"], "Gene sets no.gmt could not be read"),
        ([str(golden.SVS), "--bulk", "b.csv", "--signatures", "no.gmt"], "--signatures"),
        ([str(golden.SVS), "-o", "x.csv", "--signatures", "no.gmt"], "Gene sets no.gmt could not be read"),
    ],
)
def test_what_needs_no_weights_is_refused_before_they_are_loaded(
    nothing_loaded, capsys, tmp_path, monkeypatch, arguments, why
):
    (tmp_path / "EMPTY").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    _one_sentence(capsys, why)
    assert [p.name for p in tmp_path.iterdir()] == ["EMPTY"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["explain", PATCH, "--tiles", "2"], "--tiles is for slides"),
        (["explain", str(golden.SVS), "--npz"], "--npz is for patches"),
        (["explain", PATCH, "-o", "x.jpg"], "let it end in .png"),
        (["export", "-o", "model.bin"], "let it end in .onnx or .pt2"),
        (["export", "-o", "model.pt2", "--fp16"], "float16 is for ONNX"),
    ],
)
def test_so_do_the_other_commands(nothing_loaded, capsys, tmp_path, monkeypatch, arguments, why):
    monkeypatch.chdir(tmp_path)
    assert tcgn(arguments) == 2
    _one_sentence(capsys, why, name=f"tcgn {arguments[0]}")


def test_a_folder_of_another_run_is_refused_before_weights_are_loaded(nothing_loaded, capsys, tmp_path):
    (tmp_path / "x.h5ad.partial").mkdir()
    (tmp_path / "x.h5ad.partial" / "0.npz").write_bytes(b"of someone else")
    assert main([str(golden.SVS), "-o", str(tmp_path / "x.h5ad")]) == 2
    _one_sentence(capsys, "x.h5ad.partial")
    assert (tmp_path / "x.h5ad.partial" / "0.npz").read_bytes() == b"of someone else"


def test_export_takes_any_number_of_patches_unless_it_is_told_how_many(recorded):
    assert tcgn(["export"]) == 0
    assert "batch_size" not in recorded[-1][2]
    assert inspect.signature(tcgn_hub.Predictor.export).parameters["batch_size"].default is None
    assert tcgn(["export", "--batch-size", "4"]) == 0
    assert recorded[-1][2]["batch_size"] == 4


def test_one_predictor_serves_slides_plots_reports_and_galleries(recorded, capsys, tmp_path):
    shutil.copy(golden.SVS, tmp_path / "second.svs")
    more = ["-o", str(tmp_path / "out"), "--plot", "G1", "--report", "--bulk", str(tmp_path / "bulk.csv")]
    assert main([str(golden.SVS), str(tmp_path / "second.svs"), *more]) == 0
    assert [name for name, _, _ in recorded] == ["load", "slide", "galleries", "slide", "galleries"]
    assert len(list((tmp_path / "out").glob("*.html"))) == 2
    assert len((tmp_path / "bulk.csv").read_text().splitlines()) == 3


def test_maps_are_drawn_given_depth(recorded, capsys, tmp_path, monkeypatch):
    drawn = []

    def write_report(path, result, *, layer, galleries):
        drawn.append(("report", layer))

    def draw_gene(result, gene, *, layer):
        drawn.append((gene, layer))
        return b"png"

    monkeypatch.setattr("tcgn_hub.prediction.cohort.outputs.write_report", write_report)
    monkeypatch.setattr("tcgn_hub.prediction.cohort.outputs.draw_gene", draw_gene)
    more = ["-o", str(tmp_path / "x.csv"), "--plot", "G1", "--report"]
    assert main([str(golden.SVS), *more, "--map", "given_depth"]) == 0
    assert main([str(golden.SVS), *more]) == 0
    assert drawn == [("G1", "given_depth"), ("report", "given_depth"), ("G1", "value"), ("report", "value")]
    assert {path.name for path in tmp_path.glob("x.G1*")} == {"x.G1.given_depth.png", "x.G1.png"}


def test_no_map_is_given_depth_where_none_is_predicted(recorded, capsys, tmp_path, monkeypatch):
    import tcgn_hub.prediction.predictor

    predictor = tcgn_hub.prediction.predictor.load()
    monkeypatch.setattr(predictor, "info", replace(predictor.info, typical=None))
    assert main([str(golden.SVS), "-o", str(tmp_path / "x.csv"), "--plot", "G1", "--map", "given_depth"]) == 2
    _one_sentence(capsys, "predicts no depth, so that there are no maps of given_depth; draw the values")
    assert not list(tmp_path.iterdir())


def test_the_log_has_no_handler_left(capsys, tiny):
    import logging

    logger = logging.getLogger("tcgn_hub")
    before = (list(logger.handlers), logger.level, list(logging.getLogger().handlers), logging.getLogger().level)
    assert main([PATCH, "--genes", "G1", *tiny]) == 0
    assert main(["absent.png"]) == 2
    assert before == (logger.handlers, logger.level, logging.getLogger().handlers, logging.getLogger().level)


# tcgn-predict


def test_table(capsys):
    assert main([PATCH, "--top", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    depth = tcgn_hub.predict([PATCH]).depth[0]
    assert lines[0] == (
        f"{PATCH}: central 224 px, 0.687 um/px by resolution in the file, weights tcgn_base.her2st, predicted depth"
        f" {depth:.2f}"
    )
    head, expected = lines[1].split(), tcgn_hub.predict([PATCH]).top(5)
    assert head[:2] == ["gene", "value"]
    assert [word for word in head if word in ("90%", "significant", "held-out")] == ["90%", "significant", "held-out"]
    assert ("z" in head) == (expected.z() is not None)
    assert [line.split()[0] for line in lines[2:7]] == expected.genes
    assert [line.split()[1] for line in lines[2:7]] == [f"{value:.3f}" for value in expected.X[0]]
    assert all({"yes", "no"} & set(line.split()) for line in lines[2:7])
    assert "values in log10(1 + 10^4 count / sum of the panel's counts)" in lines


def test_the_command_calls_the_api(capsys, tiny, tiny_weights):
    assert main([PATCH, "--format", "json", *tiny]) == 0
    document = _json(capsys)
    result = tcgn_hub.predict([PATCH], weights=tiny_weights)
    rows = document["predictions"][0]["genes"]
    assert [row["gene"] for row in rows] == result.genes
    assert [row["value"] for row in rows] == pytest.approx(result.X[0].tolist())
    assert sum(row["significant"] for row in rows) == len(result.info.significant)
    assert document["sha256"] == result.info.sha256


def test_genes_keep_the_asked_order(capsys, tmp_path, tiny):
    (tmp_path / "genes.txt").write_text("G7\nG2\n")
    for genes in ("G7,G2", str(tmp_path / "genes.txt")):
        assert main([PATCH, "--genes", genes, "--format", "json", *tiny]) == 0
        assert [row["gene"] for row in _json(capsys)["predictions"][0]["genes"]] == ["G7", "G2"]


def test_several_files_and_folders(capsys, tmp_path, tiny):
    folder = tmp_path / "a folder, №1"
    folder.mkdir()
    for i in range(3):
        Image.open(golden.PATCHES[i]).save(folder / f"{i}.png")
    arguments = ["--genes", "G1", "--format", "csv", "--batch-size", "2", "--mpp", "0.687", *tiny]
    assert main([str(folder), PATCH, *arguments]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [Path(row["name"]).name for row in rows] == ["0.png", "1.png", "2.png", "patch_0.png"]
    assert float(rows[0]["G1"]) == pytest.approx(float(rows[3]["G1"]), abs=1e-4)
    assert {row["scale_source"] for row in rows} == {"--mpp"}


@pytest.mark.parametrize(
    ("nominal_um", "magnification", "size"),
    [(56, 10, 56), (56, 20, 112), (56, 40, 224), (112, 10, 112), (112, 20, 224)],  # the first three: the paper's rule
)
def test_magnification_is_the_crop(capsys, tmp_path, tiny_weights, nominal_um, magnification, size):
    weights = tmp_path / "weights"
    shutil.copytree(tiny_weights, weights)
    config = json.loads((weights / "config.json").read_text())
    config["tcgn"]["crop"]["nominal_patch_um"] = nominal_um
    (weights / "config.json").write_text(json.dumps(config))
    crop = np.asarray(golden.tissue(size))
    framed = np.zeros((300, 300, 3), np.uint8)
    start = (300 - size) // 2
    framed[start : start + size, start : start + size] = crop
    for name, pixels in (("crop", crop), ("framed", framed)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    scale = ["--magnification", str(magnification), "--weights", str(weights)]
    images = [str(tmp_path / f"{name}.png") for name in ("crop", "framed")]
    assert main([*images, *scale, "--genes", "G1", "--format", "json"]) == 0
    predictions = _json(capsys)["predictions"]
    assert {p["patch_px"] for p in predictions} == {size}
    assert predictions[0]["scale_source"] == "--magnification"
    one, two = (p["genes"][0]["value"] for p in predictions)
    assert one == pytest.approx(two, abs=1e-5)


def test_no_scale_is_not_guessed(capsys, tmp_path, tiny):
    golden.tissue(300).save(tmp_path / "x.png")
    arguments = [str(tmp_path / "x.png"), "--format", "json", *tiny]
    assert main([*arguments, "--strict"]) == 2
    assert "x.png does not say how large its pixels are: give --mpp" in capsys.readouterr().err
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "x.png: states no scale: all of it is taken for one patch of 154 um; say how large" in err
    patch = json.loads(out)["predictions"][0]
    assert (patch["mpp"], patch["patch_um"], patch["trained_um"], patch["patch_px"]) == (None, None, 154, 300)


def test_patch_um_and_significant_only(capsys, tmp_path, tiny, tiny_weights):
    golden.tissue(320).save(tmp_path / "x.png")
    arguments = [str(tmp_path / "x.png"), "--format", "json", "--mpp", "0.5", *tiny]
    for more, side in (([], 308), (["--patch-um", "56"], 112), (["--patch-um", "100"], 200)):
        assert main([*arguments, *more, "--genes", "G1"]) == 0
        assert _json(capsys)["predictions"][0]["patch_px"] == side
    assert main([*arguments, "--significant-only"]) == 0
    rows = _json(capsys)["predictions"][0]["genes"]
    assert {row["gene"] for row in rows} == set(tcgn_hub.load(path=tiny_weights).info.significant)
    assert all(row["significant"] for row in rows)


def test_output_files(tmp_path, capsys, tiny):
    for name, kind in (("a.CSV", None), ("b.json", None), ("c.txt", None), ("d.txt", "json"), ("e.csv", "csv")):
        arguments = [PATCH, "--genes", "G1", "-o", str(tmp_path / name), *(["--format", kind] if kind else []), *tiny]
        assert main(arguments) == 0
    assert (tmp_path / "a.CSV").read_text().startswith("name,")
    assert (tmp_path / "a.CSV").read_text() == (tmp_path / "e.csv").read_text()
    assert json.loads((tmp_path / "b.json").read_text()) == json.loads((tmp_path / "d.txt").read_text())
    assert "values in" in (tmp_path / "c.txt").read_text()
    out, err = capsys.readouterr()
    assert out == ""
    ended = [line.split(" s, ")[1].replace(f"{tmp_path}/", "") for line in err.splitlines() if ": 1 patch in " in line]
    written = ["a.CSV, a.CSV.json", "b.json", "c.txt", "d.txt", "e.csv, e.csv.json"]
    assert ended == [f"written to {names}" for names in written]
    names = ["a.CSV", "a.CSV.json", "b.json", "c.txt", "d.txt", "e.csv", "e.csv.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names


def test_a_bad_file_in_a_folder_is_reported_and_the_rest_predicted(capsys, tmp_path, tiny):
    Image.open(PATCH).save(tmp_path / "a.png")  # says nothing of its scale, unlike its source
    (tmp_path / "b.png").write_text("text")
    Image.new("RGB", (50, 50)).save(tmp_path / "c.png")
    golden.tissue(50).save(tmp_path / "d.png")
    assert main([str(tmp_path), "--genes", "G1", "--format", "json", "--magnification", "20", "--strict", *tiny]) == 1
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert len(document["predictions"]) == 1
    assert set(document["failed"]) == {str(tmp_path / f"{name}.png") for name in "bcd"}
    assert len(err.splitlines()) == 3
    assert "b.png is no image that can be read" in err
    assert "50 x 50 px, smaller than a patch of 224 px" in err


def _one_sentence(capsys, why: str, *, name: str = "tcgn-predict") -> None:
    out, err = capsys.readouterr()
    assert out == ""
    assert why in err
    assert len(err.splitlines()) == 1
    assert err.startswith(f"{name}: ")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--genes", "G1,NOGENE"], "NOGENE"),
        (["--magnification", "40"], "states 0.687 um/px (resolution in the file), but 0.25 is given (--magnification)"),
        (["--magnification", "40", "--force-scale", "--strict"], "224 x 224 px, smaller than a patch of 448 px"),
        (["--weights", "tcgn_base.nothing"], "tcgn_base.nothing"),
        (["--weights", "no/such/folder"], "no/such/folder"),
        (["--device", "nonsense"], "nonsense"),
        (["--genes", "G1,G2,ZZZ", "--significant-only"], "ZZZ"),
        (["--backend", "onnx"], "tcgn export"),
    ],
)
def test_errors_are_one_sentence_and_exit_2(capsys, tmp_path, monkeypatch, tiny, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main([PATCH, *tiny, *arguments]) == 2
    _one_sentence(capsys, message)
    assert not list(tmp_path.iterdir())


def test_what_stdout_cannot_encode_is_escaped(monkeypatch):
    """As of a terminal or a pipe in cp1252 and a path in another script; its way with others is left as it was."""
    shown = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", shown)
    said = common.command(lambda prog: common.make_parser(prog, ""), lambda args, prog: print("срез µ") or 0, "tcgn")
    assert said([]) == 0
    assert shown.errors == "strict"
    assert shown.buffer.getvalue() == rb"\u0441\u0440\u0435\u0437 " + "µ\n".encode("cp1252")


def test_names_with_line_breaks_leave_a_line_one_line(monkeypatch, capsys, tiny, tmp_path):
    assert main([str(tmp_path / "a\nb.png"), *tiny]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_interrupted(monkeypatch, capsys, tiny):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("tcgn_hub.Predictor.patches", interrupt)
    assert main([PATCH, *tiny]) == 130
    assert capsys.readouterr().err == "tcgn-predict: interrupted\n"


def test_ctrl_c_ends_a_process_with_130():
    code = (
        "import sys, signal; from tcgn_hub.cli import predict\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def wait(*_): print('waiting', flush=True); signal.pause()\n"
        "sys.exit(predict.command(predict.build_parser, wait, 'tcgn-predict')(['x.png']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == "tcgn-predict: interrupted\n"
    assert process.returncode == 130


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, capsys, tiny):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert main([PATCH, "--genes", "G1", "-o", str(tmp_path / "out.csv"), *tiny]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_errors_of_ours_are_caught_and_no_others(monkeypatch, capsys):
    from tcgn_hub.cli.common import run

    def fail(error):
        raise error

    assert run(lambda: fail(TcgnError("why")), "tcgn") == 2
    assert capsys.readouterr().err == "tcgn: why\n"
    with pytest.raises(ZeroDivisionError):
        run(lambda: fail(ZeroDivisionError()), "tcgn")


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from importlib import import_module; from tcgn_hub.cli.main import COMMANDS, build_parser\n"
        "build_parser().format_help()\n"
        "for name in COMMANDS: import_module(f'tcgn_hub.cli.{name}').build_parser(f'tcgn {name}').format_help()\n"
        "heavy = {'torch', 'timm', 'numpy', 'PIL', 'huggingface_hub', 'safetensors'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([sys.executable, "-m", "tcgn_hub.cli.main", "predict", "--help"], capture_output=True)
    assert b"--magnification" in done.stdout


def test_closed_pipe_is_silent(tiny):
    command = f'"{sys.executable}" -m tcgn_hub.cli.predict "{PATCH}" --format json --weights "{tiny[1]}" | head -c 10'
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


def test_the_panel_of_the_tiny_weights_is_that_of_the_drawn_sections(tiny_weights):
    assert list(tcgn_hub.load(path=tiny_weights).info.genes) == PANEL
