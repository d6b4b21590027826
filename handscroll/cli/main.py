"""The `handscroll` command. Each verb has one file, which parses options, builds a configuration and calls."""

import os
import sys

import typer

from handscroll.base.errors import HandscrollError
from handscroll.cli import (
    batch,
    chat,
    data,
    demo,
    evaluate,
    export,
    extend,
    finetune,
    generate,
    info,
    metrics,
    plan,
    predict,
    read,
    scores,
    tokenizer,
    train,
)
from handscroll.cli.screen import error_screen

# How often a thread looks whether the others are done before it sleeps. The OpenMP runtime's own 300,000 keep a core of
# a busy machine from the thread that is waited for: beside two busy loops a token of the starter took 918 ms with two
# threads, and 120 ms of processor time, where one thread takes 2.4 ms (2026-11-29). 1,000 is what the runtime takes
# when it knows of more threads than cores. It has to stand in the environment before torch is loaded.
SPINS = "1000"

app = typer.Typer(
    name="handscroll",
    help="Train, lengthen, examine and run language models on text far longer than memory would allow.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
VERBS = (demo, train, finetune, predict, metrics, plan, extend, export, evaluate, generate, chat, batch, read, scores)
for verb in (*VERBS, info, tokenizer, data):
    verb.register(app)


def main() -> None:
    """Run the command; an error that the user can mend is one paragraph, and the exit status is 2."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    try:
        app()
    except HandscrollError as error:
        error_screen().print(f"error: {error}", style="bold red", markup=False, highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        error_screen().print("interrupted", markup=False)
        sys.exit(130)


if __name__ == "__main__":
    main()
