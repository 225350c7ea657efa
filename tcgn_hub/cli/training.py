"""What the commands that train or measure share: where data come from, and the options of a recipe."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcgn_hub.errors import TrainingError
from tcgn_hub.training.recipe import AMP, TUNE, Recipe
from tcgn_hub.weights.model_dir import FACTS

if TYPE_CHECKING:
    from tcgn_hub.data.sections import Section

__all__ = ["add_data", "add_facts", "add_recipe", "facts_of", "log_to_stderr", "recipe_of", "sections_of"]

_CHOICES = {"tune": TUNE, "amp": AMP}
_TYPES = {"int": int, "float": float, "str": str, "bool": bool}


def add_data(parser: argparse.ArgumentParser) -> None:
    """The arguments that name sections."""
    parser.add_argument(
        "data",
        nargs="+",
        help="her2st or HEST folder, Space Ranger output folders, .h5ad files, a sample sheet (CSV: section, patient,"
        " data, image, mpp), a CSV of patches (with --expression), or a CSV of bulk measurements (slide, patient,"
        " genes)",
    )
    parser.add_argument("--sections", nargs="+", metavar="NAME", help="only these sections (default: all)")
    parser.add_argument("--expression", metavar="FILE", help="expression table of a CSV of patches, a row a spot")
    parser.add_argument("--mpp", type=float, metavar="UM", help="micrometres per pixel of all images")
    parser.add_argument("--device", help="such as cpu or cuda (default: cuda where there is one)")


def add_facts(parser: argparse.ArgumentParser) -> None:
    """The option for what nobody but the user knows."""
    parser.add_argument(
        "--facts",
        metavar="FILE",
        help="JSON of what else to state in config.json and the model card: panel, license, origin, training_data",
    )


def facts_of(args: argparse.Namespace) -> dict[str, Any]:
    """What the user wants stated.

    Raises:
        TrainingError: The file is missing, or no JSON object of known facts.
    """
    if args.facts is None:
        return {}
    try:
        facts = json.loads(Path(args.facts).read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise TrainingError(f"The facts {args.facts} cannot be read as JSON ({err}).") from err
    unknown = sorted(set(facts) - set(FACTS)) if isinstance(facts, dict) else ["which is no object"]
    if unknown:
        raise TrainingError(f"{args.facts} states {', '.join(unknown)}; what can be stated is {', '.join(FACTS)}.")
    return facts


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """An option for each field of a recipe, with its default and its description."""
    group = parser.add_argument_group("recipe")
    described = dict(re.findall(r"^    (\w+): (.*(?:\n      .*)*)", inspect.cleandoc(Recipe.__doc__ or ""), re.M))
    for field in fields(Recipe):
        flag = "--" + field.name.replace("_", "-")
        text = " ".join(described.get(field.name, "").split()).rstrip(".").replace("%", "%%")
        if field.type == "bool":
            group.add_argument(flag, action="store_true", help=text)
            continue
        default = "" if field.default is None else f" (default: {field.default})"
        kind = _TYPES[str(field.type).removesuffix(" | None")]
        group.add_argument(
            flag,
            type=kind,
            choices=_CHOICES.get(field.name),
            default=field.default,
            metavar=None if field.name in _CHOICES else kind.__name__.upper(),
            help=text + default,
        )


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe that was asked for.

    Raises:
        TrainingError: A value is out of its range.
    """
    return Recipe(**{field.name: getattr(args, field.name) for field in fields(Recipe)})


def sections_of(args: argparse.Namespace) -> list[Section]:
    """The sections that were asked for.

    Raises:
        SectionError: They cannot be read.
    """
    from tcgn_hub.data.readers import read_sections

    options: dict[str, Any] = {"names": args.sections, "expression": args.expression, "mpp": args.mpp}
    return read_sections(args.data if len(args.data) > 1 else args.data[0], **options)


@contextlib.contextmanager
def log_to_stderr() -> Iterator[None]:
    """While this lasts, the package's log is shown as it is."""
    logger = logging.getLogger("tcgn_hub")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
