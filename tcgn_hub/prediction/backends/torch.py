"""Prediction by PyTorch, on the CPU or a GPU."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tcgn_hub.devices import free_memory, keep_freed_memory, pick_device
from tcgn_hub.errors import DeviceError, TcgnError
from tcgn_hub.images.transforms import dihedral, to_input
from tcgn_hub.models.tcgn import TCGN
from tcgn_hub.prediction.backends.compiled import NoCompilerError, Pass, compiled_path, read_compiled, write_compiled
from tcgn_hub.text import on_command_line

_logger = logging.getLogger(__name__)
_changing = threading.Lock()

_BATCH = {"cpu": 8, "cuda": 64}  # on a CPU more patches than these gain little
_PATCH_BYTES = 10e6  # of memory that a forward pass needs for each, by `python benchmarks/model.py`
# seconds of one core that compiling saves a patch on a CPU, by the same command: the table of the README
_SAVED_S = {"bfloat16": 0.018, "float32": 0.0086}
# what it costs, and what a model costs that was compiled before, by `python benchmarks/compiling.py`
_COMPILE_S, _LOAD_S = 140.0, 2.0


class Whole(torch.nn.Module):
    """A model as it predicts: model input to values (B, genes) and features (B, d), both float32.

    ``precision``: 'bfloat16' and 'float16' are those of autocast, in which stem, graphs, last convolution and head stay
    in float32.
    """

    def __init__(self, model: TCGN, precision: str) -> None:
        super().__init__()
        self.model, self.precision = model, precision

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Values and features."""
        # what is rounded in the stem is in all that follows, three quarters of all that bfloat16 costs, and it is small
        maps = self.model.stem(x)
        with self._autocast(x.device.type):
            maps = self.model.forward_stages(maps)
        maps = self.model.final_conv(maps.float()).float()
        # the head costs little, and bfloat16 would round its values to 1/64
        return self.model.forward_head(maps).float(), maps.mean(dim=(2, 3))

    def _autocast(self, device_type: str) -> AbstractContextManager[Any]:
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(device_type, getattr(torch, self.precision))


class TorchBackend:
    """A model of PyTorch, see `tcgn_hub.prediction.backends.Backend`.

    ``model``: it is put in eval mode; ``precision``: as of `Whole`; ``compile``: 'on', 'off', or 'auto' for once it
    pays, which needs ``sha256``, the checksum that its compiled form is found by.

    Raises:
        DeviceError: It is to be compiled, and cannot be.
    """

    name = "torch"

    def __init__(self, model: TCGN, precision: str = "float32", *, compile: str = "off", sha256: str = "") -> None:
        self.model, self.precision, self.compile, self.sha256 = model.eval(), precision, compile, sha256
        self.whole = Whole(model, precision).eval()
        self._compiled: Pass | None = None
        self._expected = 0
        self._told = ""
        if on_command_line.get() and self.device.type == "cpu":  # a process of our own
            keep_freed_memory()
        fit = free_memory(str(self.device)) / 2 // _PATCH_BYTES
        self.batch_size = int(max(1, min(_BATCH.get(self.device.type, _BATCH["cpu"]), fit)))
        self._most: int | None = None  # patches of a forward pass, once memory ran out
        if compile == "on":
            self._compile()

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.model.parameters()).device

    @property
    def compiled(self) -> bool:
        """Whether it computes by a compiled model."""
        return self._compiled is not None

    @property
    def in_flight(self) -> int:
        """On CUDA a batch is computed while the next one is prepared."""
        return int(self.device.type == "cuda")

    def prepare(self, pixels: Any) -> torch.Tensor:
        """Resized and normalised on the device."""
        if isinstance(pixels, list):
            return torch.cat([self.prepare(patch[None]) for patch in pixels])
        if isinstance(pixels, np.ndarray):
            # PyTorch warns of arrays that it could not write to
            pixels = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
        if self.in_flight and pixels.device.type == "cpu":
            pixels = pixels.pin_memory()  # without which the copy is waited for
        return to_input(pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2))

    def forward(self, x: torch.Tensor, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Values and features."""
        return self.start(x, index)()

    def start(self, x: torch.Tensor, index: int = 0) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
        """Begin `forward`."""
        # autocast of whoever calls, as LazySlide does, would round stem and values too, and float16 is slow on a CPU
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            x = dihedral(x, index)
            said = self._eager(x) if self._compiled is None else self._fast(x, self._compiled)
            values, features = map(self.fetch, said)
        return lambda: (values(), features())

    def fetch(self, tensor: torch.Tensor | np.ndarray) -> Callable[[], np.ndarray]:
        """Begin to copy a tensor to the host; what is there already is returned as it is."""
        if isinstance(tensor, np.ndarray):
            return lambda: tensor
        if tensor.device.type != "cuda":
            return tensor.cpu().numpy
        copied = tensor.to("cpu", non_blocking=True)
        there = torch.cuda.current_stream(tensor.device).record_event()

        def wait() -> np.ndarray:
            there.synchronize()
            return copied.numpy()

        return wait

    def expect(self, count: int, batch_size: int, *, tta: int = 1) -> None:
        """So many patches are to come, in batches of this size, each in so many views: compile if that pays by now.

        Fewer than a compiled pass takes do not count, for it would be filled up; nor is another thread waited for.
        """
        counts = self.compile == "auto" and self._compiled is None and min(count, batch_size) >= self._size
        if counts and _changing.acquire(blocking=False):
            try:
                self._expected += count * tta
                saved = self._expected * _SAVED_S.get(self.precision, 0) / torch.get_num_threads()
                self._compile_if(saved if self.device.type == "cpu" else 0)
            finally:
                _changing.release()
        batch = self._size if self.compiled else min(batch_size, self._most or batch_size)
        told = f"{self.precision}, {'compiled' if self.compiled else 'eager'}, batches of {batch}"
        if count > batch_size and told != self._told:
            _logger.info("%s", told)
            self._told = told

    def to(self, device: str | torch.device) -> TorchBackend:
        """A copy on another device, for others may use this one; itself where it is there already."""
        wanted = torch.device(pick_device(str(device)))
        if wanted.type == self.device.type and wanted.index in (None, self.device.index):
            return self
        model = copy.deepcopy(self.model).to(wanted)
        return TorchBackend(model, self.precision, compile=self.compile, sha256=self.sha256)

    def to_compiled(self) -> TorchBackend:
        """One of the same model that is compiled, for others may use this one; itself where it is compiled already.

        Raises:
            DeviceError: It cannot be compiled, or is in no file, by whose checksum a compiled model is found.
        """
        if self.compiled:
            return self
        if not self.sha256:
            raise DeviceError("A model that was not loaded from a file is not compiled.")
        return TorchBackend(self.model, self.precision, compile="on", sha256=self.sha256)

    def _eager(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Values and features, in as many parts as memory asks for."""
        while True:
            try:
                parts = [self.whole(part) for part in x.split(self._most or len(x))]
                return tuple(map(torch.cat, zip(*parts, strict=True)))
            except torch.OutOfMemoryError as err:
                most = min(self._most or len(x), len(x)) // 2
                if not most:
                    raise DeviceError(f"{self.device} has not enough memory for one patch.") from err
            # here, where nothing holds what the failed pass had allocated
            if self._most is None:
                _logger.warning("Memory is full: batches of %d are halved until they fit.", len(x))
            self._most = self.batch_size = most

    def _fast(self, x: torch.Tensor, run: Pass) -> tuple[torch.Tensor, ...]:
        """Values and features by batches of the size that was compiled, the last one filled up."""
        if not len(x):
            return self._eager(x)
        parts = []
        for part in x.split(self._size):
            filled = torch.cat([part, part[-1:].expand(self._size - len(part), -1, -1, -1)])
            said = run(filled.contiguous(memory_format=torch.channels_last))
            parts.append([rows[: len(part)] for rows in said])
        return tuple(map(torch.cat, zip(*parts, strict=True)))

    @property
    def _size(self) -> int:
        """Patches of a compiled pass."""
        return _BATCH.get(self.device.type, _BATCH["cpu"])

    def _compile_if(self, saved: float) -> None:
        """Use a compiled model if it saves more seconds than it costs; go on without it where it cannot be had."""
        try:
            if saved > (_LOAD_S if self._path().is_file() else _COMPILE_S):
                self._compile()
        except NoCompilerError:
            self.compile = "off"
        except TcgnError as err:
            _logger.warning("%s Going on without.", err)
            self.compile = "off"

    def _compile(self) -> None:
        path = self._path()
        if not path.is_file():
            _logger.warning("Compiling the model, which takes minutes; it is kept for later runs.")
            write_compiled(self.whole, path, self.device, self._size)
        self._compiled = read_compiled(path)

    def _path(self) -> Path:
        return compiled_path(self.sha256, self.precision, self.device, self._size)
