"""`handscroll evaluate harness`: lm-evaluation-harness with the model "handscroll"."""

import typer

from handscroll.cli.screen import screen

# Everything after the verb is lm-eval's own: also --help.
ANY = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def harness(context: typer.Context) -> None:
    """Run lm-eval's command (its tasks, its options) on a model: --model_args path=MODEL --tasks ..."""
    from handscroll.evaluate.harness import main

    if {"-h", "--help"} & set(context.args):
        screen().print("The model is given as --model_args path=MODEL; all else is lm-eval's, as its own help says:\n")
    main(context.args)
