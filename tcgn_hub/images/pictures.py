"""Reading picture files, with an error that says which file and why."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from tcgn_hub.errors import ImageError
from tcgn_hub.images.scale import Scale, scale_of_picture
from tcgn_hub.images.slides import SLIDE_SUFFIXES, open_picture
from tcgn_hub.images.transforms import to_rgb

_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", *SLIDE_SUFFIXES}
_TOO_LARGE = "{} is too large for a patch; cut the patch out of it first."


def read_image(path: str | Path) -> tuple[Image.Image, Scale | None]:
    """A picture file as 8-bit RGB, and the scale it states; of a file with several pages, the first."""
    path = Path(path)
    try:
        with open_picture(path) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise ImageError(_TOO_LARGE.format(path))
            return to_rgb(image), scale_of_picture(image)
    except FileNotFoundError as err:
        raise ImageError(f"{path} does not exist.") from err
    except IsADirectoryError as err:
        raise ImageError(f"{path} is a folder.") from err
    except Image.DecompressionBombError as err:
        raise ImageError(_TOO_LARGE.format(path)) from err
    except Image.UnidentifiedImageError as err:
        raise ImageError(f"{path} is not an image that Pillow can read.") from err
    except ImageError as err:
        raise err if str(path) in str(err) else ImageError(f"{path}: {err}.") from err
    except (OSError, SyntaxError, ValueError, EOFError) as err:
        raise ImageError(f"{path} cannot be read as an image ({err}).") from err


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """The given files, and in place of a folder the images and slides in it by name."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES and p.is_file())
            if not inside:
                raise ImageError(f"The folder {path} holds no image ({', '.join(sorted(_SUFFIXES))}).")
            found += inside
        else:
            found.append(path)
    return found
