"""Packages that are installed only if asked for."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from tcgn_hub.errors import ExtraError


def require(module: str, *, extra: str, to: str) -> ModuleType:
    """Import a module of an optional package."""
    try:
        return import_module(module)
    except ImportError as err:
        package = {"skimage": "scikit-image", "openslide": "openslide-python"}.get(
            name := module.partition(".")[0], name
        )
        raise ExtraError(f"To {to}, install {package}: pip install 'tcgn_hub[{extra}]'.") from err
