"""tcgn finetune, evaluate and crossval as a user runs them; what they do is tested where it is done."""

import csv
import json
from dataclasses import fields

import numpy as np
import pandas as pd
import pytest
from sections import PANEL, write_section

from tcgn_hub import Recipe
from tcgn_hub.cli.main import main
from tcgn_hub.data.readers.her2st import read_her2st
from tcgn_hub.evaluation.evaluate import summarise
from tcgn_hub.evaluation.splits import Split
from tcgn_hub.result import Measured
from tcgn_hub.writing.evaluations import read_measured


@pytest.fixture
def root(tmp_path):
    write_section(tmp_path / "data", "A1")
    write_section(tmp_path / "data", "B1", seed=1)
    return tmp_path / "data"


@pytest.fixture
def called(monkeypatch, tmp_path):
    """What the API is called with, in place of hours of training, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    import tcgn_hub.training.crossval  # noqa: F401  (imported under the stand-in, it would keep it)

    calls = {}
    rng = np.random.default_rng(0)
    measured = Measured("B1", "B", np.full((9, 2), np.nan), rng.normal(size=(9, 2)), rng.normal(size=(9, 2)), {})

    def stand_in(name):
        def record(data, **options):
            calls[name] = ([section.name for section in data], options)
            return summarise([measured], ["G0", "G1"], repeats=10)

        return record

    for module, name in (
        ("tcgn_hub.training.finetune", "finetune"),
        ("tcgn_hub.training.crossval", "crossval"),
        ("tcgn_hub.evaluation.heldout", "evaluate"),
    ):
        monkeypatch.setattr(f"{module}.{name}", stand_in(name))
    return calls


def test_every_field_of_a_recipe_is_an_option_that_says_what_it_does(capsys):
    for command in ("finetune", "crossval"):
        with pytest.raises(SystemExit) as end:
            main([command, "--help"])
        assert end.value.code == 0
        text = capsys.readouterr().out
        recipe = text[text.index("recipe:") :]
        for field in fields(Recipe):
            flag = f"--{field.name.replace('_', '-')}"
            after = recipe[recipe.index(flag) :].split("\n  --")[0]
            assert len(after.split()) > 6, flag


def test_finetune_passes_on_what_it_is_given(root, called, tmp_path):
    metadata = tmp_path / "metadata.json"
    metadata.write_text('{"license": "MIT"}')
    more = ["--epochs", "3", "--freeze-norm", "--tune", "head", "--metadata", str(metadata), "--test", "B", "--resume"]
    assert main(["finetune", str(root), "--genes", "G1,G0", "-o", "out", *more]) == 0
    names, options = called["finetune"]
    assert names == ["A1", "B1"]
    assert options["genes"] == ["G1", "G0"]
    assert options["recipe"] == Recipe(epochs=3, freeze_norm=True, tune="head")
    assert (options["test"], options["resume"]) == (["B"], True)
    assert "split" not in options  # what is not given is not passed on
    assert options["metadata"] == {"license": "MIT"}
    split = tmp_path / "splits.json"
    split.write_text(Split(("A1",), (), ("B1",)).to_json())
    assert main(["finetune", str(root), "--hvg", "5", "-o", "out", "--split", str(split), "--sections", "B1"]) == 0
    names, options = called["finetune"]
    assert names == ["B1"]
    assert options["genes"] == 5
    assert options["split"] == Split(("A1",), (), ("B1",))


def test_crossval_and_evaluate_print_a_table(root, called, capsys):
    assert main(["crossval", str(root), "--genes", ",".join(PANEL), "-o", "out", "--folds", "B", "--final"]) == 0
    assert "B1" in capsys.readouterr().out
    assert called["crossval"][1]["only"] == ["B"]
    assert called["crossval"][1]["final"]
    assert (
        main(["evaluate", str(root), "--weights", "mine", "--by", "section", "--tta", "8", "--allow-seen", "B1"]) == 0
    )
    assert "B1" in capsys.readouterr().out
    passed = {"weights": "mine", "by": "section", "tta": 8, "allow_seen": ["B1"], "out": None, "progress": True}
    assert called["evaluate"][1] == passed
    networks = ["--train", "A1", "A2", "--encoder", "resnet18", "hf-hub:org/net", "--encoder-um", "154", "308"]
    assert main(["evaluate", str(root), *networks]) == 0
    passed = {"train": ["A1", "A2"], "encoders": ["resnet18", "hf-hub:org/net"], "encoder_um": [154, 308]}
    assert called["evaluate"][1] == {**passed, "out": None, "progress": True}


def test_resume_needs_no_other_option(root, called, tmp_path, monkeypatch, capsys):
    """The folder keeps what the run was asked for, and where from, while it lasts."""
    (tmp_path / "genes.txt").write_text("G1\nG0\n")
    asked = ["data", "--genes", "genes.txt", "-o", "out", "--epochs", "3", "--test", "B", "--cache", "data"]
    asked += ["--encoder", "local-dir:data", "resnet18", "--encoder-um", "154"]
    calls = []

    def interrupted(data, **options):
        calls.append(([section.name for section in data], options))
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr("tcgn_hub.training.finetune.finetune", interrupted)
    assert main(["finetune", *asked]) == 130
    assert json.loads((tmp_path / "out" / "run.json").read_text())["asked"]["data"] == ["data"]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    capsys.readouterr()
    assert main(["finetune", "--resume", "-o", "../out", "--batch-size", "7"]) == 0
    (names, first), (again, second) = calls
    assert (names, first["genes"]) == (again, second["genes"]) == (["A1", "B1"], ["G1", "G0"])
    assert (first["recipe"], second["recipe"]) == (Recipe(epochs=3), Recipe(epochs=3, batch_size=7))
    assert (second["test"], second["cache"], second["resume"]) == (["B"], str(tmp_path / "data"), True)
    assert (second["encoders"], second["encoder_um"]) == ([f"local-dir:{tmp_path / 'data'}", "resnet18"], [154])
    assert not (tmp_path / "out" / "run.json").exists()


@pytest.mark.parametrize("command", ["finetune", "crossval"])
def test_nothing_to_resume_is_one_sentence(called, command, tmp_path, capsys):
    for more, why in ((["--resume"], "out keeps no run.json of a run"), ([], "A new run needs more: give the data")):
        assert main([command, "-o", "out", *more]) == 2
        error = capsys.readouterr().err
        assert why in error
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text("{}")
    assert main([command, "-o", "out", "--resume"]) == 2
    assert "run.json is damaged" in capsys.readouterr().err


def test_a_refused_resume_keeps_what_was_asked_for(root, called, tmp_path, capsys):
    assert main(["crossval", "data", "--genes", "G0,G1", "-o", "out"]) == 0
    kept = (tmp_path / "out" / "run.json").read_text()
    assert main(["crossval", "-o", "out", "--resume", "--sections", "Z9"]) == 2
    assert "no section Z9" in capsys.readouterr().err
    assert (tmp_path / "out" / "run.json").read_text() == kept
    assert main(["crossval", "-o", "out", "--resume", "--final"]) == 0
    assert called["crossval"][1]["final"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["finetune", "nowhere", "--hvg", "5", "-o", "out"], "nowhere does not exist"),
        (["finetune", "{root}", "--hvg", "5", "-o", "out", "--epochs", "0"], "epochs is 0"),
        (["finetune", "{root}", "--hvg", "5", "-o", "out", "--split", "no.json"], "no.json is neither one of patient"),
        (["finetune", "{root}", "--hvg", "5", "-o", "out", "--metadata", "no.json"], "no.json cannot be read"),
        (["finetune", "{root}", "--hvg", "5", "-o", "out", "--split", "none", "--test", "B"], "leave --test out"),
        (["finetune", "{root}", "--hvg", "5", "-o", "out", "--sections", "Z9"], "no section Z9"),
        (["finetune", "{root}", "--genes", "NOGENE", "-o", "out"], "NOGENE"),
        (["finetune", "{root}", "--hvg", "5", "-o", "out", "--device", "nodevice"], "Device 'nodevice'"),
        (["crossval", "{root}", "--genes", "G0", "-o", "out", "--folds", "Z"], "no fold Z"),
        (["evaluate", "{root}", "--weights", "nothing"], "nothing"),
        (["evaluate", "{root}", "--test", "Z9"], "no section or patient Z9"),
        (["evaluate", "{root}", "--allow-seen", "Z9"], "Z9"),
    ],
)
def test_bad_input_is_one_sentence(root, tmp_path, monkeypatch, capsys, arguments, why):
    monkeypatch.chdir(tmp_path)
    assert main([argument.format(root=root) for argument in arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"tcgn {arguments[0]}: ")
    assert why in error
    assert not (tmp_path / "out").exists()


def test_metadata_that_nothing_knows_are_refused(root, tmp_path, capsys):
    (tmp_path / "metadata.json").write_text(json.dumps({"licence": "MIT"}))
    options = ["--hvg", "5", "-o", str(tmp_path / "out"), "--metadata", str(tmp_path / "metadata.json")]
    assert main(["finetune", str(root), *options]) == 2
    assert "states licence; what can be stated is" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["finetune", "crossval"])
@pytest.mark.parametrize(("key", "value"), [("crop", "224 px"), ("training_data", ["her2st"]), ("held_out", "none")])
def test_metadata_of_another_kind_are_refused_before_training(root, tmp_path, capsys, command, key, value):
    (tmp_path / "metadata.json").write_text(json.dumps({key: value}))
    options = ["--genes", "G0,G1", "-o", str(tmp_path / "out"), "--metadata", str(tmp_path / "metadata.json")]
    assert main([command, str(root), *options, "--weights", "scratch"]) == 2
    assert f"the metadata is malformed ({key} is no object)" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/**/*.*"))


def test_a_folder_of_another_run_is_refused_before_anything_is_read(tmp_path, capsys, monkeypatch):
    def read(*args, **options):
        raise AssertionError("sections were read")

    monkeypatch.setattr("tcgn_hub.data.readers.read_sections", read)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.json").write_text("{}")
    for command in ("finetune", "crossval"):
        assert main([command, str(tmp_path), "--genes", "G1", "-o", str(tmp_path / "out")]) == 2
        assert f"{tmp_path / 'out'} holds a finished" in capsys.readouterr().err


def write_predictions(path, root, change=lambda table: table):
    """Predictions of chance for the spots of B1."""
    (section,) = read_her2st(root, ["B1"])
    values = np.random.default_rng(0).normal(size=(len(section.spots), len(PANEL)))
    table = pd.DataFrame(values, section.spots, PANEL)
    change(table).to_csv(path, sep="\t" if ".tsv" in path.name else ",")
    return str(path)


def test_evaluate_passes_on_predictions_and_what_to_call_them(root, called, tmp_path):
    files = [write_predictions(tmp_path / name, root) for name in ("a.csv", "b.tsv.gz")]
    assert main(["evaluate", str(root), "--sections", "B1", "--predictions", *files, "--genes", "G1,G0"]) == 0
    names, options = called["evaluate"]
    assert names == ["B1"]
    assert options["predictions"] == dict(zip("ab", files, strict=True))
    assert options["predictions_scale"] == {"a": "log", "b": "log"}
    assert options["genes"] == ["G1", "G0"]
    more = ["--label", "mine", "yours", "--predictions-scale", "log", "linear"]
    assert main(["evaluate", str(root), "--predictions", *files, *more]) == 0
    _, options = called["evaluate"]
    assert options["predictions"] == dict(zip(("mine", "yours"), files, strict=True))
    assert options["predictions_scale"] == {"mine": "log", "yours": "linear"}


def test_predictions_alone_are_ranked_and_written(root, tmp_path, capsys):
    """What anyone can run who has predictions and counts: no weights, no training, no image of a patch."""
    files = [write_predictions(tmp_path / name, root) for name in ("a.csv", "b.tsv.gz")]
    write_predictions(tmp_path / "a.csv", root, change=lambda table: table.iloc[1:, 2:])
    out = tmp_path / "out"
    asked = ["evaluate", str(root), "--sections", "B1", "--predictions", *files, "--genes", ",".join(PANEL)]
    assert main([*asked, "--predictions-scale", "log", "log", "-o", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.count("All of a, the first of the predictions.") == 1
    assert "a: 2 of 12 genes are missing (G0, G1)." in said
    assert "1 of 12 spots of B1 is left out for all methods, as not in a." in said
    metrics = json.loads((out / "metrics.json").read_text())
    held_out = metrics["held_out"]
    assert "weights" not in metrics
    assert {row["label"] for row in held_out["ranking"]} == set(held_out["methods"]) == {"a", "b"}
    assert held_out["predictions"]["a"]["missing_genes"] == ["G0", "G1"]
    assert len(held_out["predictions"]["a"]["missing_spots"]["B1"]) == 1
    assert held_out["methods"]["a"]["median_rmse"] is None
    with open(out / "per_gene.csv") as file:
        rows = {row["gene"]: row for row in csv.DictReader(file)}
    assert rows["G0"]["pcc"] == ""
    assert rows["G5"]["pcc"] == rows["G5"]["pcc b"] != ""
    assert sorted(path.name for path in out.rglob("*.*")) == [
        *("evaluation.html", "held_out.npz", "methods.png", "metrics.json", "per_gene.csv")
    ]
    (again,) = read_measured(out / "held_out.npz")
    assert again.predicted is None
    assert list(again.methods) == ["a", "b"]


BAD = {
    "labels": (["--label", "a", "b"], "--label is given 2 times for 1 files of --predictions."),
    "scales": (["--predictions-scale", "log", "linear"], "--predictions-scale is given 2 times for 1 files"),
    "a label of ours": (["--label", "TCGN"], "Predictions cannot be called 'TCGN'"),
    "negative": (["--predictions-scale", "linear"], "linear values are never negative; say --predictions-scale log"),
    "weights and genes": (["--weights", "tcgn_base.her2st"], "weights are measured on those they have"),
    "no such gene": (["--genes", "GNAS,FASN"], "2 genes of the panel were measured in no section"),
    "no such section": (["--test", "X"], "There is no section or patient X to measure on"),
}
TABLES = {
    "a spot twice": (lambda table: pd.concat([table, table[:1]]), "has more than one row of spot"),
    "a gene twice": (lambda table: table.rename(columns={"G3": "G4"}), "has 2 columns of G4"),
    "no spot": (lambda table: table.set_axis([f"s{i}" for i in range(12)]), "has no row of a spot of section B1"),
    "no gene": (lambda table: table.add_prefix("x"), "predicts none of the 12 genes of the panel, such as G0, G1, G2"),
    "text": (lambda table: table.astype(str).replace(r"^0\.1.*", "high", regex=True), "has 'high' in its column G"),
    "nothing": (lambda table: table * np.nan, "predicts nothing that is a number for section B1"),
    "turned": (lambda table: table.T, "so turn the table about"),
}


@pytest.mark.parametrize("kind", [*BAD, *TABLES])
def test_predictions_that_cannot_be_scored_are_refused_in_one_sentence(kind, root, tmp_path, capsys):
    options, why = BAD.get(kind, ([], ""))
    change, of_table = TABLES.get(kind, (lambda table: table, ""))
    file = write_predictions(tmp_path / "a.csv", root, change=change)
    genes = [] if "--genes" in options else ["--genes", ",".join(PANEL)]
    out = tmp_path / "out"
    asked = ["evaluate", str(root), "--sections", "B1", "--predictions", file, *options, *genes, "-o", str(out)]
    assert main(asked) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tcgn evaluate: ")]
    assert len(said) == 1
    assert (why or of_table) in said[0]
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "data"]


def test_two_files_of_one_name_need_labels(root, tmp_path, capsys):
    files = [write_predictions(tmp_path / name, root) for name in ("a.csv", "a.tsv")]
    assert main(["evaluate", str(root), "--predictions", *files]) == 2
    assert "Two files of predictions would be called a; name each with --label." in capsys.readouterr().err
