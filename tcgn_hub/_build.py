"""A step of the build: the package carries the manifest that stands at the top of the repository."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools.command.build_py import build_py

__all__ = ["BuildPy"]

_MANIFEST = "weights_manifest.json"


class BuildPy(build_py):
    """Adds the manifest to the package; an editable install reads it where it stands."""

    def run(self) -> None:
        """Build, then copy."""
        super().run()
        if not self.editable_mode:
            shutil.copyfile(_MANIFEST, self._target())

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Files of the build, the copy included."""
        outputs = super().get_outputs(include_bytecode)
        return outputs if self.editable_mode else [*outputs, str(self._target())]

    def get_source_files(self) -> list[str]:
        """Files that belong into the source distribution, the manifest included."""
        return [*super().get_source_files(), _MANIFEST]

    def _target(self) -> Path:
        return Path(self.build_lib) / "tcgn_hub" / _MANIFEST
