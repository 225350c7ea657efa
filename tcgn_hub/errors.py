"""Every error a user can meet, each saying what was wrong and what to do."""

from tcgn_hub.text import one_line

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

_LONGEST = 560  # characters of a message, of which a damaged file may have put in more


class TcgnError(Exception):
    """Base of all errors of this package; the command line prints its message and exits with 2."""

    def __str__(self) -> str:
        """The message as one line that a terminal can show, whatever a damaged file has put into it."""
        return one_line(super().__str__(), most=_LONGEST)


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
