"""One process or several that share each batch, and how they are asked to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import distributed, nn

from tcgn_hub.devices import pick_device

_LONG = timedelta(days=7)  # one process may cut crops, or measure, for as long as that takes


class Processes(contextlib.AbstractContextManager["Processes"]):
    """The processes of a run: those that ``torchrun`` started, or this one alone.

    Attributes:
        count: How many there are.
        rank: Number of this one.
        first: Whether it is the one that writes.
        device: Where it computes; known once they are entered.
    """

    def __init__(self, device: str = "auto") -> None:
        self.count, self.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        self.first = self.rank == 0
        self.device = device
        self._stop = False
        self._joined = False
        self._waiting: Any = None

    def __enter__(self) -> Processes:
        """Join the other processes."""
        if self.count > 1 and (self.device == "cuda" or (self.device == "auto" and torch.cuda.is_available())):
            self.device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
            # before anything is put on a GPU, or every process takes memory of the first one
            torch.cuda.set_device(self.device)
        self.device = pick_device(self.device)
        if self.count > 1:
            if not distributed.is_initialized():
                on_gpu = self.kind == "cuda"
                distributed.init_process_group(
                    "nccl" if on_gpu else "gloo", device_id=torch.device(self.device) if on_gpu else None
                )
                self._joined = True
            self._waiting = distributed.new_group(backend="gloo", timeout=_LONG)
        return self

    def __exit__(self, *_: object) -> None:
        if self._joined:
            distributed.destroy_process_group()

    @property
    def kind(self) -> str:
        """Kind of the device, such as 'cuda', without its number."""
        return torch.device(self.device).type

    @contextlib.contextmanager
    def finishing_steps(self) -> Iterator[None]:
        """While this lasts, Ctrl-C and SIGTERM do not interrupt at once, but are asked for after each step."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {number: signal.signal(number, self._ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _ask_to_stop(self, number: int, _: Any) -> None:
        if self._stop:
            # asked twice: there may be no next step
            raise KeyboardInterrupt
        self._stop = True

    def stop_asked(self) -> bool:
        """Whether any of the processes was asked to stop."""
        return self.sum(float(self._stop)) > 0

    def sum(self, value: float) -> float:
        """Sum of a number over the processes."""
        return float(self.sums(np.array(value)))

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sums over the processes of arrays of one shape, float64, the same to the last bit in all of them."""
        if self.count == 1:
            return values
        total = torch.from_numpy(values.astype(np.float64)).to(self.device)
        distributed.all_reduce(total)
        return total.cpu().numpy()

    def of_first(self, value: float) -> float:
        """The number that the first process has, for all of them to decide alike."""
        return self.sum(value if self.first else 0.0)

    def wait(self) -> None:
        """Until all processes are here, however long one of them works alone."""
        if self.count > 1:
            distributed.barrier(group=self._waiting)

    def prepared(self, model: nn.Module) -> nn.Module:
        """A model whose normalisation, on GPUs, sees the whole of a batch; the caller freezes modules afterwards."""
        if self.count == 1 or self.kind != "cuda":
            return model
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(model)

    def shared(self, model: nn.Module) -> nn.Module:
        """A model whose gradients are the mean over the processes."""
        return model if self.count == 1 else nn.parallel.DistributedDataParallel(model)

    def align(self, model: nn.Module) -> None:
        """Give all processes the statistics that the first one gathered."""
        if self.count > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, 0)

    def joined(self, network: nn.Module, *, last: bool) -> contextlib.AbstractContextManager:
        """Gradients are exchanged once a step, with its last part."""
        return contextlib.nullcontext() if last or self.count == 1 else network.no_sync()  # type: ignore[operator]
