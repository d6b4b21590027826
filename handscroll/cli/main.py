"""The `handscroll` command. Each verb has one file, which parses options, builds a configuration and calls."""

import os
import sys
from pathlib import Path

import typer

from handscroll.base.errors import HandscrollError
from handscroll.cli import (
    batch,
    chat,
    data,
    demo,
    doctor,
    evaluate,
    explain,
    export,
    extend,
    finetune,
    generate,
    info,
    metrics,
    plan,
    predict,
    read,
    report,
    scores,
    serve,
    tokenizer,
    train,
)
from handscroll.cli.screen import error_screen

LOAD = Path("/proc/loadavg")

app = typer.Typer(
    name="handscroll",
    help="Train, lengthen, examine and run language models on text far longer than memory would allow.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
VERBS = (
    demo,
    train,
    finetune,
    predict,
    metrics,
    plan,
    extend,
    export,
    evaluate,
    doctor,
    generate,
    chat,
    batch,
    read,
    report,
    explain,
    scores,
)
for verb in (*VERBS, serve, info, tokenizer, data):
    verb.register(app)


def main() -> None:
    """Run the command; an error that the user can mend is one paragraph, and the exit status is 2."""
    share_cores()
    try:
        app()
    except HandscrollError as error:
        error_screen().print(f"error: {error}", style="bold red")
        sys.exit(2)
    except OSError as error:  # of a file or folder that the user named
        if error.filename is None:
            raise
        error_screen().print(f"error: {os.fsdecode(error.filename)}: {error.strerror}", style="bold red")
        sys.exit(2)
    except KeyboardInterrupt:
        error_screen().print("interrupted")
        sys.exit(130)


def share_cores() -> None:
    """On a machine that others use too, let threads that wait for each other sleep at once.

    The OpenMP runtime lets them spin for milliseconds, which keeps a core from the thread that is waited for: beside
    two busy loops a token of the starter took 918 ms (120 ms of processor time), 25 ms with 1,000 turns. Asleep it took
    0.9 ms on a busy machine, and on an idle one spinning takes 0.5 ms (2026-11-29), so it stays there. This has to be
    decided before torch is loaded; the user's own settings go first.
    """
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return
    try:
        average, _, _, running, _ = LOAD.read_text(encoding="ascii").split()
    except OSError:  # not Linux
        return
    others = int(running.split("/")[0]) - 1
    if others >= 1 and float(average) >= 1:  # now, and in the last minute
        os.environ["GOMP_SPINCOUNT"] = "0"


if __name__ == "__main__":
    main()
