"""One process or several that share each batch, and how they are asked to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed, nn

from tcgn_hub.errors import DeviceError

__all__ = ["Processes"]


class Processes(contextlib.AbstractContextManager["Processes"]):
    """The processes of a run: those that ``torchrun`` started, or this one alone.

    Attributes:
        count: How many there are.
        rank: Number of this one.
        first: Whether it is the one that writes.
        device: Where it computes.
    """

    def __init__(self, device: str | None = None) -> None:
        self.count, self.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        self.first = self.rank == 0
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if self.device == "cuda" and self.count > 1:
            self.device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        self._stop = False
        self._joined = False

    def __enter__(self) -> Processes:
        """Join the other processes.

        Raises:
            DeviceError: The device cannot be used.
        """
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as err:
            raise DeviceError(f"Device {self.device!r} cannot be used here ({str(err).splitlines()[0]}).") from err
        if self.count > 1 and not distributed.is_initialized():
            distributed.init_process_group("nccl" if self.device.startswith("cuda") else "gloo")
            self._joined = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._joined:
            distributed.destroy_process_group()

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
        if self.count == 1:
            return value
        total = torch.tensor(value, device=self.device, dtype=torch.float64)
        distributed.all_reduce(total)
        return total.item()

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            distributed.barrier()

    def shared(self, model: nn.Module) -> nn.Module:
        """A model whose gradients are the mean over the processes."""
        if self.count == 1:
            return model
        if self.device.startswith("cuda"):
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return nn.parallel.DistributedDataParallel(model)

    def joined(self, network: nn.Module, *, last: bool) -> contextlib.AbstractContextManager:
        """Gradients are exchanged once a step, with its last part."""
        return contextlib.nullcontext() if last or self.count == 1 else network.no_sync()  # type: ignore[operator]
