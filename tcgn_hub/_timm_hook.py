"""Registration with timm, which has no discovery of plug-ins: done as soon as both packages are imported."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


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
            load(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            _register()

        spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec
