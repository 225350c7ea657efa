"""What all commands share: errors in one sentence, and exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from tcgn_hub.errors import TcgnError

__all__ = ["run", "version"]


def run(command: Callable[[], int], name: str) -> int:
    """Run a command; 2 and one sentence on stderr for an error of the user's, 130 after Ctrl-C."""
    try:
        code = command()
        sys.stdout.flush()
        return code
    except TcgnError as err:
        print(f"{name}: {err}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as err:
        print(f"{name}: interrupted{f'; {err}' if err.args else ''}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader, such as head, has seen enough; keep the interpreter from complaining at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def version(name: str) -> str:
    """What ``--version`` prints."""
    from tcgn_hub.version import __version__

    return f"{name} {__version__}"
