"""tcgn and tcgn weights as a user runs them."""

import json
import os
import subprocess
import sys
import time

import golden
import pytest
import torch
from test_hub import BUNDLED, TAG, bundled_folder, facts_of, hub, write_manifest  # noqa: F401
from test_weights import flip_last_byte

from tcgn_hub.cli.main import main
from tcgn_hub.weights.hub import cached_path, sha256_of
from tcgn_hub.weights.manifest import find_weights, reload_manifest

PATCH = golden.PATCHES[0]


def weights(*arguments):
    return main(["weights", *map(str, arguments)])


def test_tcgn_predict_is_tcgn_predict(capsys):
    from tcgn_hub.cli.predict import main as predict

    assert main(["predict", PATCH, "--top", "3"]) == 0
    text = capsys.readouterr().out
    assert predict([PATCH, "--top", "3"]) == 0
    assert capsys.readouterr().out == text
    assert main(["predict", "absent.png"]) == 2
    assert capsys.readouterr().err.startswith("tcgn predict: absent.png")


def test_list_and_show(capsys):
    assert weights("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == [BUNDLED, "785"]
    assert lines[1].split()[2:7] == ["0.234", "on", "her2st", "B4,", "C6"]
    assert lines[1].split()[7] == "45"
    assert lines[1].endswith("in this package")
    assert weights("list", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["where"] for row in rows] == ["bundled", "import", "import", "import", "import", "import"]
    assert weights("show", "tcgn_base") == 0
    text = capsys.readouterr().out
    assert find_weights(BUNDLED).model_file.sha256 in text
    assert "directions" not in text
    assert "her2st B4, her2st C2" in text
    assert "interval_coverage" in text
    assert "license: CC-BY-4.0" in text
    assert f"{', '.join(find_weights(BUNDLED).info.genes[:8])} and 777 more" in text
    assert weights("show", "tcgn_base", "--genes") == 0
    assert ", ".join(find_weights(BUNDLED).info.genes) in capsys.readouterr().out
    assert weights("show", BUNDLED, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["held_out"]["pcc"]) == len(shown["panel"]) == 785
    assert weights("show", "tcgn_base.her2st_a2") == 0
    assert "run `tcgn weights import FILE --tag tcgn_base.her2st_a2`" in capsys.readouterr().out


def test_genes_are_listed(capsys, tiny_weights, tmp_path):
    assert main(["genes"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) == 786
    assert lines[1].split() == ["HPS6", "0.122", "0.036", "no", "ENSG00000166189"]
    assert "785 of the 785 genes of tcgn_base.her2st" in captured.err
    assert main(["genes", "--grep", "MARS"]) == 0
    (mars,) = capsys.readouterr().out.splitlines()[1:]
    assert mars == "MARS  0.419        0.086           no  ENSG00000166986  today MARS1"
    assert main(["genes", "--grep", "tle5"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[0] == "AES"
    assert main(["genes", str(tiny_weights), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    unknown = dict.fromkeys(("gene_id", "pcc", "pcc_given_depth"))
    assert rows[0] == {"gene": "G0", "today": "G0", **unknown, "significant": False}
    assert main(["genes", str(tiny_weights)]) == 0
    assert "significant: better than chance on held-out tissue" in capsys.readouterr().err
    assert rows[-1]["significant"]
    assert len(rows) == 12
    assert main(["genes", "tcgn_base.cscc", "--grep", "loricrin"]) == 0
    assert capsys.readouterr().out.split() == ["gene", "Ensembl", "LOR", "ENSG00000203782", "today", "LORICRIN"]
    assert main(["genes", "tcgn_base.cscc", "--grep", "loricrin", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["gene_id"] == "ENSG00000203782"
    (tmp_path / "mine.txt").write_text("A\nB\n")
    assert main(["genes", str(tmp_path / "mine.txt")]) == 0
    assert capsys.readouterr().out.split() == ["gene", "A", "B"]
    for arguments, says in (
        (["--grep", "nothing"], "None of the 785 genes of tcgn_base.her2st has 'nothing' in one of its names"),
        (["tcgn_base.cmt_tiny"], "tcgn_base.cmt_tiny states no genes"),
        (["absent"], "absent does not exist"),
    ):
        assert main(["genes", *arguments]) == 2
        assert says in capsys.readouterr().err


def test_pull_path_verify_clear(hub, capsys, tmp_path):  # noqa: F811
    cache = ("--cache-dir", tmp_path / "cache")
    assert weights("path", TAG, *cache) == 2
    assert "get it with `tcgn weights pull tcgn_base.lab`" in capsys.readouterr().err
    assert weights("verify", TAG, *cache) == 0
    assert "nothing to verify" in capsys.readouterr().out
    assert weights("pull", TAG, *cache) == 0
    path = capsys.readouterr().out.strip()
    assert path == str(cached_path(find_weights(TAG).model_file, tmp_path / "cache"))
    assert weights("path", TAG, *cache) == 0
    assert capsys.readouterr().out.strip() == path
    assert weights("list", *cache) == 0
    assert "downloaded" in capsys.readouterr().out
    assert weights("verify", *cache) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["good", BUNDLED],
        ["good", TAG],
    ]
    stat = os.stat(path)
    flip_last_byte(cached_path(find_weights(TAG).model_file, tmp_path / "cache"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert weights("verify", *cache) == 1
    assert f"DAMAGED  {TAG}  {path}" in capsys.readouterr().out
    assert weights("clear", TAG, *cache) == 0
    assert capsys.readouterr().out == "1.0 MB freed\n"
    assert not os.path.exists(path)
    assert weights("clear", *cache) == 0
    assert weights("clear", BUNDLED) == 2
    assert "part of this package" in capsys.readouterr().err


def test_import_and_predict(capsys, tmp_path):
    torch.save(golden.published_state_dict(171), tmp_path / "cscc.pth")
    assert weights("import", tmp_path / "cscc.pth") == 0
    out = capsys.readouterr().out
    assert out.startswith("tcgn_base.cscc: 994 tensors from ")
    assert "timm.create_model('tcgn_base.cscc', pretrained=True)" in out
    assert main(["predict", PATCH, "--weights", "tcgn_base.cscc", "--format", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["predictions"][0]["genes"]) == 171
    assert weights("clear", "tcgn_base.cscc") == 0
    assert capsys.readouterr().out.endswith(" MB freed\n")
    assert main(["predict", PATCH, "--weights", "tcgn_base.cscc"]) == 2
    assert "tcgn weights import FILE" in capsys.readouterr().err


def test_import_of_a_trunk_lists_what_is_fresh(capsys, tmp_path):
    state = golden.published_state_dict()
    torch.save(
        {k: v for k, v in state.items() if not k.startswith(("gnn_block", "channel_attention", "head"))},
        tmp_path / "cmt_tiny.pth",
    )
    assert weights("import", tmp_path / "cmt_tiny.pth") == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["fresh"].startswith("stages.0.graph (")
    assert lines["fresh"].endswith("head (4)")
    assert "stages.0.blocks (" in lines["filled"]
    assert "graph" not in lines["filled"]


def test_publish_dry_run(hub, capsys, tmp_path):  # noqa: F811
    folder = bundled_folder(tmp_path / "model")
    assert weights("publish", folder, "--repo", "org/tcgn", "--tag", "tcgn_base.mine", "--dry-run") == 0
    captured = capsys.readouterr()
    card, entry = captured.out.split("\n\n{\n")
    assert card.startswith("---\n")
    entry = json.loads("{" + entry)
    assert entry["tag"] == "tcgn_base.mine"
    assert entry["held_out"]["pcc"] == "<785 values>"
    assert entry["ood"]["mean"] == "<5,121 bytes>"
    assert entry["files"][0]["sha256"] == sha256_of(folder / "model.safetensors")
    assert max(map(len, captured.out.splitlines())) < 500
    assert "Would upload model.safetensors, config.json, README.md to org/tcgn" in captured.err
    assert not [path for _, path, _ in hub.log if "org" in path]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "tcgn_base.none"], "No weights are called 'tcgn_base.none'"),
        (["pull", "tcgn_base.none"], "no such tag"),
        (["pull", "tcgn_base.her2st_a2"], "get A2-TCGN-her2-best.pth from"),
        (["import", "absent.pth"], "absent.pth does not exist"),
        (["publish", "absent", "--repo", "org/x"], "absent is no model directory"),
        (["publish", "absent", "--repo", "x"], "give organisation/name"),
    ],
)
def test_errors_are_one_sentence_and_exit_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert weights(*arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("tcgn weights: ")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["weights"], ["weights", "nonsense"], ["weights", "show"]])
def test_bad_arguments_exit_2(arguments, capsys):
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2


def test_a_malformed_manifest_of_the_user(tmp_path, capsys, monkeypatch):
    write_manifest(tmp_path / "lab.json", "main", {"model.safetensors": facts_of(b"x")})
    with monkeypatch.context() as patch:
        patch.setenv("TCGN_MANIFEST", str(tmp_path / "lab.json"))
        from tcgn_hub.weights.manifest import load_manifest

        load_manifest.cache_clear()
        assert weights("list") == 2
    assert "lab.json: $.models[0].hub.revision is 'main', not a commit" in capsys.readouterr().err
    reload_manifest()


@pytest.mark.parametrize("arguments", [["--help"], ["weights", "--help"], ["weights", "pull", "--help"]])
def test_help_is_quick(arguments):
    code = "import sys; from tcgn_hub.cli.main import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    code += "print([name for name in ('torch', 'timm', 'numpy', 'huggingface_hub') if name in sys.modules])"
    start = time.monotonic()
    out = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"
    assert time.monotonic() - start < 2  # generous: the promise is what is not imported
    assert out.startswith("usage: tcgn")
