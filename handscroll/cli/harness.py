"""`handscroll evaluate harness`: lm-evaluation-harness with the model "handscroll"."""

import typer

# Everything after the verb is lm-eval's own: also --help.
ANY = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def harness(context: typer.Context) -> None:
    """Run lm-eval's command (its tasks, its options) on a model: --model_args path=MODEL --tasks ..."""
    from handscroll.evaluate.harness import main

    main(context.args)
