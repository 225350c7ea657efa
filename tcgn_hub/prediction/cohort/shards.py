"""Which part of a cohort a process begins with, where a scheduler of jobs has started many with the same command."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")

# of each scheduler the number of the job, of the first one, of the last one, and the step
_ARRAYS = (
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_STEP"),
    ("SGE_TASK_ID", "SGE_TASK_FIRST", "SGE_TASK_LAST", "SGE_TASK_STEPSIZE"),
    ("LSB_JOBINDEX", "", "LSB_JOBINDEX_END", "LSB_JOBINDEX_STEP"),
)


def parse_shard(text: str) -> tuple[int, int]:
    """The shard that ``i/n`` means, counted from 0: the first of four is ``1/4``.

    Raises:
        ValueError: It means none.
    """
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ValueError(f"{text!r} is no shard: it is I/N, with I from 1 to N, such as 1/8")
    return int(number) - 1, int(count)


def shard_of_job(environ: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """The shard of this process if it is a job of an array of SLURM, Grid Engine or LSF, counted from 0.

    An array with gaps, such as SLURM's ``1,3,7``, counts as if it had none: what falls into a gap is taken by those who
    have ended their own part.
    """
    for number, first, last, step in _ARRAYS:
        own, end = environ.get(number, ""), environ.get(last, "")
        if own.isdecimal() and end.isdecimal():
            begin = int(environ.get(first) or 0) if first else 1
            by = max(int(environ.get(step) or 1), 1)
            index, count = (int(own) - begin) // by, (int(end) - begin) // by + 1
            if 0 <= index < count:
                return index, count
    return None


def in_order(items: Sequence[T], shard: tuple[int, int]) -> list[T]:
    """The items of a shard, every n-th of all, and after them those of the others, each of these from its end.

    So each shard begins with a part of its own, and what another has not begun when it is done, it takes.
    """
    index, count = shard
    own, *others = (items[(index + part) % count :: count] for part in range(count))
    return [*own, *(item for part in others for item in reversed(part))]
