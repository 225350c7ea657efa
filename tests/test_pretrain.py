import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import golden
import numpy as np
import pytest
import timm
import torch
from encoders import write_encoder
from PIL import Image
from safetensors.torch import load_file, save_file
from sections import PANEL, write_section, write_visium

import tcgn_hub
from tcgn_hub import Distillation, Recipe
from tcgn_hub.cli.main import main
from tcgn_hub.data import fields
from tcgn_hub.data.fields import draw_fields, read_tissues
from tcgn_hub.data.readers import read_sections
from tcgn_hub.errors import OutputError, PanelError, SectionError, TrainingError, WeightsError
from tcgn_hub.training import pretrain as module
from tcgn_hub.training.distributed import Processes
from tcgn_hub.training.pretrain import Distiller
from tcgn_hub.training.start import starting_backbone, starting_model
from tcgn_hub.training.teachers import GRIDS, Teacher
from tcgn_hub.weights.convert import import_checkpoint, remove_import

CMU = Path(__file__).parent.parent / "examples" / "cmu_small_region.svs"
MPP = 0.7
RECIPE = Distillation(architecture="test_tcgn", crops=10, epochs=2, batch_size=4, precision="float32", lr=1e-2)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("her2st")
    write_section(root, "A1", spots=8)
    write_section(root, "B1", spots=8, seed=1)
    return root


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    return write_encoder(tmp_path_factory.mktemp("teacher") / "small", license="mit")


@pytest.fixture(scope="module")
def run(root, teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "trunk"
    return out, tcgn_hub.pretrain(root, teacher=teacher, out=out, recipe=RECIPE, sections=["A1"], mpp=MPP)


def same(a: Path, b: Path) -> bool:
    first, second = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def distiller(root, teacher, tmp_path, recipe=RECIPE, **more) -> Distiller:
    tissues = root if isinstance(root, list) else read_tissues(root, mpp=MPP)
    return Distiller(tissues, [Teacher(teacher)], recipe, start=starting_backbone(recipe), cache=tmp_path, **more)


def test_a_run_leaves_a_backbone_that_says_whose_child_it_is(run):
    out, metrics = run
    assert {path.name for path in out.iterdir()} - {"tensorboard"} == {
        *("README.md", "config.json", "model.safetensors", "metrics.json", "history.csv", "figures")
    }
    stated = json.loads((out / "config.json").read_text())["tcgn"]
    assert stated["scope"] == "backbone"
    [taught] = stated["training_data"]["teachers"]
    assert (taught["name"], taught["license"]) == ("small", "mit")
    assert [(s["section"], s["counts"]) for s in stated["seen"]] == [("A1", "")]
    assert metrics["epochs"] == 2
    card = (out / "README.md").read_text()
    assert "small" in card
    assert "mit" in card
    assert "num_classes=0" in card
    assert "0 genes" not in card


def test_timm_takes_it_with_and_without_a_classifier(run):
    state = load_file(run[0] / "model.safetensors")
    for outputs in (0, 5):
        model = timm.create_model(f"local-dir:{run[0]}", pretrained=True, num_classes=outputs)
        assert torch.equal(model.stem.conv1.weight, state["stem.conv1.weight"].float())
        assert model.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, outputs or model.head_hidden_size)


def test_a_start_for_training_whose_picture_counts_as_seen(run, root, tmp_path):
    recipe = Recipe(weights=str(run[0]), epochs=1, batch_size=4, components=3, crop_px=112, precision="float32")
    sections = read_sections(root)
    with pytest.raises(SectionError, match="seen"):
        tcgn_hub.finetune(sections, genes=PANEL, test=["A"], out=tmp_path / "leak", recipe=recipe)
    tcgn_hub.finetune(sections, genes=PANEL, test=["B"], out=tmp_path / "model", recipe=recipe)
    stated = json.loads((tmp_path / "model/config.json").read_text())["tcgn"]
    assert [parent["name"] for parent in stated["parents"]] == ["trunk"]
    assert (
        tcgn_hub.predict([np.asarray(golden.tissue(112))], weights=tmp_path / "model", magnification=20).genes == PANEL
    )


def test_it_predicts_nothing_by_itself(run):
    with pytest.raises(WeightsError, match="predicts no genes"):
        tcgn_hub.load(run[0])


def test_what_the_teacher_says_is_learned(root, teacher, tmp_path):
    recipe = replace(RECIPE, epochs=6, coarsest=224, color_jitter=0)
    student = distiller(root, teacher, tmp_path, recipe)
    student.fit()
    losses = [row["loss"] for row in student.state.history]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("steps", [1, 4])
def test_resumed_equals_uninterrupted(run, root, teacher, tmp_path, stop_after, steps):
    options = {"teacher": teacher, "out": tmp_path, "sections": ["A1"], "mpp": MPP}
    stop_after(steps)
    with pytest.raises(KeyboardInterrupt):
        tcgn_hub.pretrain(root, recipe=RECIPE, **options)
    stop_after(1000)
    with pytest.raises(TrainingError, match="another lr"):
        tcgn_hub.pretrain(root, recipe=replace(RECIPE, lr=1e-3), resume=True, **options)
    other = write_encoder(tmp_path.parent / f"other{steps}", seed=1)
    with pytest.raises(TrainingError, match="another teachers"):
        tcgn_hub.pretrain(root, recipe=RECIPE, resume=True, **{**options, "teacher": other})
    tcgn_hub.pretrain(root, recipe=RECIPE, resume=True, **options)
    assert same(run[0], tmp_path)


def test_killed_while_teachers_are_asked(run, root, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(fields, "CHUNK", 4)
    monkeypatch.setattr(module, "CHUNK", 4)
    monkeypatch.setattr("tcgn_hub.training.teachers.CHUNK", 4)
    asked = []

    def ask(self, pixels):
        asked.append(len(pixels))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return call(self, pixels)

    call = Teacher.__call__
    monkeypatch.setattr(Teacher, "__call__", ask)
    options = {"teacher": teacher, "recipe": RECIPE, "sections": ["A1"], "mpp": MPP, "cache": tmp_path / "cache"}
    with pytest.raises(KeyboardInterrupt):
        tcgn_hub.pretrain(root, out=tmp_path / "run", **options)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix == ".part"]
    tcgn_hub.pretrain(root, out=tmp_path / "run", resume=True, **options)
    assert asked == [4, 4, 4, 2]  # the first chunk is not asked again
    tcgn_hub.pretrain(root, out=tmp_path / "again", **options)
    assert asked == [4, 4, 4, 2]
    assert same(tmp_path / "run", tmp_path / "again")


@pytest.mark.parametrize("harm", ["cut", "dtype", "shape"])
def test_damaged_or_other_features_are_computed_again(root, teacher, tmp_path, harm):
    whole = distiller(root, teacher, tmp_path)
    [path] = tmp_path.glob("teacher-*.npy")
    good = np.load(path)
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        np.save(path, good.astype(np.float32) if harm == "dtype" else good[:, :-1])
    distiller(root, teacher, tmp_path)
    assert np.array_equal(np.load(path), good)
    assert whole.teachers[0].width == good.shape[1]


def test_a_full_disk_says_how_much_is_needed(root, teacher, tmp_path, monkeypatch):
    def full(file, array):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    save = np.save
    of_teachers = lambda file, array: (full if array.dtype == np.float16 else save)(file, array)  # noqa: E731
    monkeypatch.setattr(fields.np, "save", of_teachers)
    with pytest.raises(OutputError, match=r"No space left.* takes 0\.\d GB; give another cache"):
        distiller(root, teacher, tmp_path)
    assert [path.name[:6] for path in tmp_path.iterdir()] == ["fields"]


def test_seen_once_nothing_is_kept(root, teacher, tmp_path):
    once = distiller(root, teacher, tmp_path, replace(RECIPE, epochs=1))
    once.fit()
    assert not list(tmp_path.glob("teacher-*"))
    assert np.isfinite(once.state.history[0]["loss"])


def test_several_processes_share_each_batch(root, teacher, tmp_path):
    def parts(rank: int, count: int):
        processes = Processes("cpu")
        processes.device = "cpu"
        student = distiller(root, teacher, tmp_path, processes=processes)
        processes.rank, processes.count = rank, count
        return [(size, part[0]) for size, [part] in student.batches(0, 1, 0)]

    whole, first, second = parts(0, 1), parts(0, 2), parts(1, 2)
    for (size, squares), (half, even), (_, odd) in zip(whole, first, second, strict=True):
        assert size == half == len(even) + len(odd)
        assert torch.equal(squares[::2], even)
        assert torch.equal(squares[1::2], odd)


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_efficientnet", "test_vit", "test_convnext", "swin_tiny_patch4_window7_224"]
)
def test_maps_of_networks_of_any_kind(name, tmp_path):
    teacher = Teacher(write_encoder(tmp_path, name))
    pixels = np.random.default_rng(0).integers(0, 255, (3, 3, 224, 224), dtype=np.uint8)
    said = teacher(pixels)
    assert said.dtype == np.float16
    assert said.shape == (3, teacher.width)
    teacher.look([said])
    maps = teacher.maps(torch.from_numpy(said))
    assert [tuple(m.shape[1:]) for m in maps] == [target.shape for target in teacher.targets]
    assert all(m.shape[-1] == GRIDS[target.stage] for m, target in zip(maps, teacher.targets, strict=True))
    assert maps[0].mean().abs() < 0.1
    # the last map, where a picture is of the teacher's own size, is what timm calls its features
    alone = teacher(pixels[1:2])
    assert np.allclose(alone, said[1:2], atol=2e-3)


def test_several_teachers_side_by_side(root, teacher, tmp_path):
    other = write_encoder(tmp_path / "vit", "test_vit")
    recipe = replace(RECIPE, epochs=1)
    metrics = tcgn_hub.pretrain(root, teacher=[teacher, other], out=tmp_path / "out", recipe=recipe, mpp=MPP)
    assert [taught["name"] for taught in metrics["teachers"]] == ["small", "vit"]


def test_without_a_teacher_nothing_is_written(root, tmp_path):
    with pytest.raises(TrainingError, match="no teacher"):
        tcgn_hub.pretrain(root, teacher=[], out=tmp_path / "out", recipe=RECIPE, mpp=MPP)
    assert not (tmp_path / "out").exists()


def test_what_does_not_vary_where_it_is_looked_at_does_not_drown_the_teacher(teacher, tmp_path):
    """As the brightest pixels of squares that all show some glass."""
    Image.new("RGB", (700, 700), (180, 90, 140)).save(tmp_path / "plain.png")
    [plain] = read_tissues(tmp_path / "plain.png", mpp=0.5)
    student = distiller([replace(plain, xy=np.array([[350, 350]]))], teacher, tmp_path)
    (_, [(_, _, colours, _)]), *_ = student.batches(0, 0, 0)
    assert colours.abs().max() == 8


def test_a_teacher_without_maps(tmp_path, monkeypatch):
    name = write_encoder(tmp_path)
    monkeypatch.delattr("timm.models.resnet.ResNet.forward_intermediates")
    with pytest.raises(WeightsError, match="gives no maps"):
        Teacher(name)


def test_a_teacher_that_is_cut_short(tmp_path):
    name = write_encoder(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match=r"Encoder .* cannot be had"):
        Teacher(name)


def test_a_teacher_whose_file_is_empty(tmp_path):
    name = write_encoder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(WeightsError, match=r"Encoder .* cannot be had"):
        Teacher(name)


def test_a_teacher_of_values_that_are_not_finite(tmp_path):
    teacher = Teacher(write_encoder(tmp_path))
    next(teacher.encoder.model.parameters()).fill_(torch.nan)
    with pytest.raises(WeightsError, match="not finite"):
        teacher(np.zeros((1, 3, 224, 224), np.uint8))


def test_one_slide(teacher, tmp_path):
    metrics = tcgn_hub.pretrain(CMU, teacher=teacher, out=tmp_path / "out", recipe=RECIPE)
    assert list(metrics["data"]) == ["cmu_small_region"]


def test_an_image_in_the_folder_of_a_section_is_that_of_the_section(tmp_path):
    write_visium(tmp_path / "run" / "outs")
    [tissue] = read_tissues(tmp_path / "run" / "outs")
    [section] = read_sections(tmp_path / "run" / "outs")
    assert (tissue.name, tissue.mpp) == (section.name, section.mpp)
    assert (tissue.seen.patient, tissue.seen.image) == (section.patient, section.seen().image)
    assert np.array_equal(tissue.xy, section.xy)


def test_squares_are_on_tissue_of_sizes_even_in_their_logarithm():
    [tissue] = read_tissues(CMU)
    drawn = draw_fields([tissue], 2000, smallest_um=77, largest_um=300, seed=0)
    assert 77 <= drawn.um.min() < drawn.um.max() <= 300
    assert np.median(drawn.um) == pytest.approx(np.sqrt(77 * 300), rel=0.05)
    again = draw_fields([tissue], 2000, smallest_um=77, largest_um=300, seed=0)
    assert again.fingerprint == drawn.fingerprint
    assert draw_fields([tissue], 2000, smallest_um=77, largest_um=300, seed=1).fingerprint != drawn.fingerprint


def test_no_tissue_no_scale_no_image_no_such_name(root, tmp_path):
    Image.new("RGB", (500, 400), "white").save(tmp_path / "blank.png")
    with pytest.raises(SectionError, match=r"blank\.png does not state its scale"):
        read_tissues(tmp_path)
    blank = read_tissues(tmp_path, mpp=0.5)
    with pytest.raises(SectionError, match="shows no tissue; leave it out"):
        draw_fields(blank, 4, smallest_um=77, largest_um=300, seed=0)
    section = read_sections(root)[0]
    with pytest.raises(SectionError, match="scale of section A1 is not known"):
        read_tissues(root)
    with pytest.raises(SectionError, match="no image to cut"):
        read_tissues([replace(section, image=None, patches=[Path("x.png")] * len(section.spots))])
    for nowhere in (section.at(np.arange(0)), replace(section, xy=np.full_like(section.xy, np.nan))):
        with pytest.raises(SectionError, match="A1 has no spots, or no places"):
            read_tissues([nowhere], mpp=MPP)
    with pytest.raises(SectionError, match=r"nowhere\.svs does not exist; give slides"):
        read_tissues(tmp_path / "nowhere.svs")
    with pytest.raises(SectionError, match="no tissue X9"):
        read_tissues(root, names=["X9"])
    for source, names in (([], None), (root, [])):
        with pytest.raises(SectionError, match="no tissue to train on"):
            read_tissues(source, names=names)
    shutil.copy(CMU, tmp_path / "A1.svs")
    with pytest.raises(SectionError, match="Two images are named A1"):
        read_tissues([root, tmp_path / "A1.svs"])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"smallest_um": 400}, "smallest_um is larger"),
        ({"crops": 8}, "less than a batch"),
        ({"architecture": "test_tcgn", "start": "x"}, "built from scratch"),
        ({"coarsest": 300}, "from 16 to 224"),
    ],
)
def test_recipes_that_cannot_be_meant(values, said):
    with pytest.raises(TrainingError, match=said):
        Distillation(**values)


def test_the_command(root, teacher, tmp_path, capsys, stop_after, monkeypatch):
    out = tmp_path / "out"
    asked = ["pretrain", str(root), "-o", str(out), "--architecture", "test_tcgn", "--crops", "8", "--epochs", "1"]
    asked += ["--batch-size", "4", "--precision", "float32", "--mpp", str(MPP)]
    assert main(asked) == 2
    assert "--teacher" in capsys.readouterr().err
    assert main([*asked, "--teacher", "no_such_network"]) == 2
    assert "no_such_network cannot be had" in capsys.readouterr().err
    assert not out.exists()
    stop_after(1)
    assert main([*asked, "--teacher", teacher]) == 130
    stop_after(1000)
    monkeypatch.chdir(os.sep)
    assert main(["pretrain", "--resume", "-o", str(out)]) == 0
    assert "small (licence: mit)" in capsys.readouterr().err
    assert json.loads((out / "metrics.json").read_text())["epochs"] == 1


def test_it_can_be_imported_under_its_tag(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    model = timm.create_model("tcgn_base", num_classes=0)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    imported = import_checkpoint(tmp_path / "model.safetensors")
    assert imported.weights.tag == "tcgn_base.he_distilled"
    assert imported.weights.info.scope == "backbone"
    try:
        for outputs in (0, 7):
            started = timm.create_model("tcgn_base.he_distilled", pretrained=True, num_classes=outputs)
            assert torch.equal(started.stem.conv1.weight, model.stem.conv1.weight)
        start = starting_model(Recipe(weights="tcgn_base.he_distilled"), PANEL)
        assert torch.equal(start.model.final_conv[0].weight, model.final_conv[0].weight)
        assert start.new_classifier
        with pytest.raises(WeightsError, match="predicts no genes"):
            tcgn_hub.load("tcgn_base.he_distilled")
        with pytest.raises(PanelError, match="leave the panel out"):
            import_checkpoint(tmp_path / "model.safetensors", genes=["A"])
    finally:
        remove_import("tcgn_base.he_distilled")
    with pytest.raises(WeightsError, match=r"examples/train_her2st\.sh"):
        timm.create_model("tcgn_base.he_distilled", pretrained=True)
