"""Every error a user can meet, each saying what was wrong and what to do."""

__all__ = [
    "CheckpointError",
    "DeviceError",
    "ExtraError",
    "ImageError",
    "ManifestError",
    "NoTissueError",
    "OutputError",
    "PanelError",
    "SectionError",
    "TcgnError",
    "TrainingError",
    "WeightsError",
]

_LONGEST = 560  # characters of a message


class TcgnError(Exception):
    """Base of all errors of this package; the command line prints its message and exits with 2."""

    def __str__(self) -> str:
        """The message as one line that a terminal can show, whatever a damaged file has put into it."""
        return _one_line(super().__str__())


class CheckpointError(TcgnError, RuntimeError):
    """A file of weights does not fit the model."""


class DeviceError(TcgnError, RuntimeError):
    """The device asked for is not there."""


class ExtraError(TcgnError, ImportError):
    """A package that is not installed by default is needed."""


class ImageError(TcgnError, ValueError):
    """An image cannot be read, or not be used as it is."""


class ManifestError(TcgnError, ValueError):
    """A manifest of weights is malformed, or does not list what was asked for."""


class NoTissueError(ImageError):
    """An image shows no tissue; the command line exits with 1."""


class OutputError(TcgnError, OSError):
    """A file cannot be written."""


class PanelError(TcgnError, ValueError):
    """A gene panel cannot be read, or a gene is not in it."""


class SectionError(TcgnError, ValueError):
    """The data of a section are missing, malformed, or do not fit together."""


class TrainingError(TcgnError, ValueError):
    """A training run cannot start or continue as asked."""


class WeightsError(TcgnError, RuntimeError):
    """Weights cannot be had, or are not what the manifest says."""


def _one_line(text: str) -> str:
    """A text without line breaks and signs that do not print; of a very long one the beginning and the end."""
    line = "".join(sign if sign.isprintable() else " " for sign in text).rstrip()
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST * 2 // 3]} ... {line[-_LONGEST // 4 :]}"
