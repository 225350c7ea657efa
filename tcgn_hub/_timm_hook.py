"""Registration with timm, which has no discovery of plug-ins: done as soon as both packages are imported."""

from __future__ import annotations

import atexit
import gc
import importlib.util
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from tcgn_hub.text import on_command_line


def register_with_timm() -> None:
    """Register our architectures with timm now if it is imported, and otherwise right after it is."""
    if "timm" in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _RegisterAfterTimm())


def _register() -> None:
    try:
        importlib.import_module("tcgn_hub.models.tcgn")
    except Exception as err:  # noqa: BLE001 - whatever is wrong with us, timm's own models are not to suffer
        warnings.warn(f"timm does not know the models of tcgn_hub: {err}", stacklevel=2)


class _RegisterAfterTimm(MetaPathFinder):
    def __init__(self) -> None:
        self._searching = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "timm" or self._searching:
            return None
        self._searching = True
        try:
            spec = importlib.util.find_spec("timm")
        finally:
            self._searching = False
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_register(module: ModuleType) -> None:
            with _quickly():
                load(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                _register()

        spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


_UTILS = "torch._dynamo.utils"


class _Utils(ModuleType):
    """``torch._dynamo.utils`` that is imported when something of it is asked for, and not when it is named."""

    def is_compile_supported(self, device: Any) -> Any:
        """What torchvision names on import, and calls in an operator for other networks than ours."""
        return importlib.import_module(_UTILS).is_compile_supported(device)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(_UTILS) is self:
            del sys.modules[_UTILS]
        return getattr(importlib.import_module(_UTILS), name)


@contextmanager
def _quickly() -> Iterator[None]:
    """While timm is imported for a command, PyTorch's compiler is left for when it is called.

    timm and torchvision import it for the sake of decorators of networks that are not ours, and sympy and triton with
    it: two thirds of the import of timm. PyTorch has a decorator for itself that does without. When the command ends,
    Python does not search all that was imported for garbage. Processes that are not our own import timm as it is.
    """
    if not on_command_line.get() or "torch._dynamo" in sys.modules:
        yield
        return
    atexit.register(gc.freeze)
    import torch.compiler

    try:
        from torch._compile import _disable_dynamo
    except ImportError:  # it is private
        yield
        return

    def disable(fn: Any = None, recursive: bool = True, **_: Any) -> Any:
        return _disable_dynamo(fn, recursive)

    before, collecting, utils = torch.compiler.disable, gc.isenabled(), _Utils(_UTILS)
    torch.compiler.disable, sys.modules[_UTILS] = disable, utils
    gc.disable()  # nothing that is imported is garbage
    try:
        yield
    finally:
        torch.compiler.disable = before
        if sys.modules.get(_UTILS) is utils:
            del sys.modules[_UTILS]
        if collecting:
            gc.enable()
