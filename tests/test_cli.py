"""tcgn-predict as a user runs it."""

import csv
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import golden
import numpy as np
import pytest
from PIL import Image

import tcgn_hub
from tcgn_hub.cli.predict import main

PATCH = golden.PATCHES[0]


def _json(capsys) -> dict:
    return json.loads(capsys.readouterr().out)


def test_table(capsys):
    assert main([PATCH, "--top", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (f"{PATCH}: central 224 px, 0.687 um/px by resolution in the file, weights tcgn_base.her2st")
    assert lines[1].split() == ["gene", "value", "90%", "interval", "significant", "held-out", "PCC"]
    values = [float(line.split()[1]) for line in lines[2:7]]
    assert values == sorted(values, reverse=True)
    assert {line.split()[-2] for line in lines[2:7]} <= {"yes", "no"}
    assert "values in log10(1 + 10^4 count / sum of the panel's counts)" in lines


def test_the_command_calls_the_api(capsys):
    assert main([PATCH, "--format", "json"]) == 0
    document = _json(capsys)
    result = tcgn_hub.predict([PATCH])
    rows = document["predictions"][0]["genes"]
    assert [row["gene"] for row in rows] == result.genes
    assert [row["value"] for row in rows] == pytest.approx(result.values[0].tolist())
    assert sum(row["significant"] for row in rows) == len(result.model.significant)
    assert document["sha256"] == result.model.sha256


def test_genes_keep_the_asked_order(capsys, tmp_path):
    (tmp_path / "genes.txt").write_text("GNAS\nFASN\n")
    for genes in ("GNAS,FASN", str(tmp_path / "genes.txt")):
        assert main([PATCH, "--genes", genes, "--format", "json"]) == 0
        assert [row["gene"] for row in _json(capsys)["predictions"][0]["genes"]] == ["GNAS", "FASN"]


def test_several_files_and_folders(capsys, tmp_path):
    folder = tmp_path / "a folder, №1"
    folder.mkdir()
    for i in range(3):
        Image.open(golden.PATCHES[i]).save(folder / f"{i}.png")
    arguments = ["--genes", "GNAS", "--format", "csv", "--batch-size", "2", "--mpp", "0.687"]
    assert main([str(folder), PATCH, *arguments]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [Path(row["image"]).name for row in rows] == ["0.png", "1.png", "2.png", "patch_0.png"]
    assert float(rows[0]["value"]) == pytest.approx(float(rows[3]["value"]), abs=1e-4)
    assert rows[0]["units"].startswith("log10")


@pytest.mark.parametrize(
    ("weights", "magnification", "size"),
    [
        ("tcgn_base.her2st_c6", 10, 56),  # the rule of the paper
        ("tcgn_base.her2st_c6", 20, 112),
        ("tcgn_base.her2st_c6", 40, 224),
        ("tcgn_base.her2st", 10, 112),  # patches twice as wide
        ("tcgn_base.her2st", 20, 224),
    ],
)
def test_magnification_is_the_crop(capsys, tmp_path, weights, magnification, size):
    rng = np.random.default_rng(0)
    crop = rng.integers(0, 255, (size, size, 3), dtype=np.uint8)
    framed = np.zeros((300, 300, 3), np.uint8)
    start = (300 - size) // 2
    framed[start : start + size, start : start + size] = crop
    for name, pixels in (("crop", crop), ("framed", framed)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    scale = ["--magnification", str(magnification), "--weights", weights]
    assert main([str(tmp_path), *scale, "--genes", "GNAS", "--format", "json"]) == 0
    document = _json(capsys)
    assert {p["crop_px"] for p in document["predictions"]} == {size}
    assert document["predictions"][0]["scale_source"] == "--magnification"
    one, two = (p["genes"][0]["value"] for p in document["predictions"])
    assert one == pytest.approx(two, abs=1e-5)


def test_no_scale_is_not_guessed(capsys, tmp_path):
    Image.new("RGB", (300, 300)).save(tmp_path / "x.png")
    assert main([str(tmp_path / "x.png")]) == 2
    assert "x.png does not say how large its pixels are: give --mpp" in capsys.readouterr().err


def test_field_and_reliable_only(capsys, tmp_path):
    Image.effect_noise((320, 320), 60).convert("RGB").save(tmp_path / "x.png")
    arguments = [str(tmp_path / "x.png"), "--format", "json", "--mpp", "0.5"]
    for more, side in (([], 308), (["--patch-um", "56"], 112), (["--patch-um", "100"], 200)):
        assert main([*arguments, *more, "--genes", "GNAS"]) == 0
        assert _json(capsys)["predictions"][0]["crop_px"] == side
    assert main([*arguments, "--significant-only"]) == 0
    rows = _json(capsys)["predictions"][0]["genes"]
    assert len(rows) == len(tcgn_hub.load_model()[1].significant)
    assert all(row["significant"] for row in rows)


def test_tiles_of_another_package():
    predictor = tcgn_hub.TilePredictor()
    result = tcgn_hub.predict([PATCH])
    pixels = np.asarray(Image.open(PATCH).convert("RGB"))
    tensor = np.moveaxis(pixels, -1, 0)
    import torch

    for image in (pixels, pixels / 255, torch.from_numpy(tensor.copy())[None], torch.from_numpy(tensor.copy()) / 255):
        values = predictor.predict(image)
        assert list(values) == result.genes
        assert np.concatenate(list(values.values())) == pytest.approx(result.values[0], abs=1e-4)
    for bad in (pixels * 1.0, pixels[..., :2]):
        with pytest.raises(tcgn_hub.errors.ImageError):
            predictor.predict(bad)


def test_output_files(tmp_path, capsys):
    for name, kind in (("a.csv", None), ("b.json", None), ("c.txt", None), ("d.txt", "json")):
        arguments = [PATCH, "--genes", "GNAS", "-o", str(tmp_path / name), *(["--format", kind] if kind else [])]
        assert main(arguments) == 0
    assert (tmp_path / "a.csv").read_text().startswith("image,gene,")
    assert json.loads((tmp_path / "b.json").read_text()) == json.loads((tmp_path / "d.txt").read_text())
    assert "values in" in (tmp_path / "c.txt").read_text()
    assert capsys.readouterr().out == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "b.json", "c.txt", "d.txt"]


def test_a_bad_file_in_a_folder_is_reported_and_the_rest_predicted(capsys, tmp_path):
    Image.open(PATCH).save(tmp_path / "a.png")  # says nothing of its scale, unlike its source
    (tmp_path / "b.png").write_text("text")
    Image.new("RGB", (50, 50)).save(tmp_path / "c.png")
    assert main([str(tmp_path), "--genes", "GNAS", "--format", "json", "--magnification", "20"]) == 1
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert len(document["predictions"]) == 1
    assert set(document["failed"]) == {str(tmp_path / "b.png"), str(tmp_path / "c.png")}
    assert len(err.splitlines()) == 2
    assert "b.png is not an image" in err
    assert "50 x 50 px, smaller than the crop of 224 x 224" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([PATCH, "--genes", "GNAS,NOGENE"], "NOGENE"),
        ([PATCH, "--genes", " , "], "no genes"),
        (["absent.png"], "absent.png does not exist"),
        ([PATCH, "--magnification", "40"], "224 x 224 px, smaller than the crop of 448 x 448"),
        ([PATCH, "--weights", "tcgn_base.nothing"], "tcgn_base.nothing"),
        ([PATCH, "--weights", "no/such/folder"], "no/such/folder"),
        ([PATCH, "--device", "nonsense"], "nonsense"),
        ([PATCH, "-o", "no/such/folder/out.csv"], "cannot be written"),
        (["EMPTY"], "holds no image"),
        ([PATCH, "--mpp", "0.00001"], "1e-05 um/px cannot be the scale of a histology image"),
        ([PATCH, "--mpp", "0.5", "--magnification", "20"], "Give the scale once"),
        ([PATCH, "--genes", "TNC,HPS6,ZZZ", "--significant-only"], "ZZZ"),
    ],
)
def test_errors_are_one_sentence_and_exit_2(capsys, tmp_path, monkeypatch, arguments, message):
    (tmp_path / "EMPTY").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1
    assert err.startswith("tcgn-predict: ")
    assert "Traceback" not in err
    assert [p.name for p in tmp_path.iterdir()] == ["EMPTY"]


@pytest.mark.parametrize("arguments", [[], [PATCH, "--top", "0"], [PATCH, "--batch-size", "-1"], [PATCH, "--top", "x"]])
def test_bad_arguments_exit_2(arguments, capsys):
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2


def test_interrupted(monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("tcgn_hub.prediction.patches.predict", interrupt)
    assert main([PATCH]) == 130
    assert capsys.readouterr().err == "tcgn-predict: interrupted\n"


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, capsys):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert main([PATCH, "--genes", "GNAS", "-o", str(tmp_path / "out.csv")]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from tcgn_hub.cli.predict import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'timm', 'numpy', 'PIL', 'huggingface_hub', 'safetensors'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--magnification" in done.stdout
    # half a second is the aim; the bound is loose because the machine may be busy
    assert time.perf_counter() - start < 5


def test_closed_pipe_is_silent():
    command = f'"{sys.executable}" -m tcgn_hub.cli.predict "{PATCH}" --format json | head -c 10'
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""
