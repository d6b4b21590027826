"""The `handscroll` command. Each verb has one file, which parses options, builds a configuration and calls."""

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
