"""`handscroll evaluate exposure`: how much a model gives away of secrets that stood in its training data."""

from typing import Annotated

import typer

from handscroll.cli.options import Adapter, Device, Dtype, Model
from handscroll.cli.records import Json, keep
from handscroll.cli.screen import bar, screen, table


def exposure(
    model: Model,
    secrets: Annotated[
        list[str], typer.Option("--secret", help='A text with its secret in double braces: "The code is {{4815}}."')
    ],
    among: Annotated[
        int, typer.Option(help="Secrets of the same form that are compared, the real one among them.")
    ] = 1000,
    reference: Annotated[str, typer.Option(help="A model that did not read them, for comparison.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the other secrets.")] = 0,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    adapter: Adapter = None,
    json_out: Json = None,
) -> None:
    """Rank secrets of the training data among others of the same form, by how likely the model finds them."""
    from handscroll.evaluate.exposure import UNREAD, Secret, exposed_record
    from handscroll.lm import load

    texts = [Secret.parse(one) for one in secrets]
    models = [(model, adapter)] + ([(reference, None)] if reference else [])  # it may be the base of the adapter
    records, rows = [], []
    for source, own in models:
        name = f"{source} with {', '.join(own)}" if own else source
        lm = load(source, device, dtype, adapter=own)
        with bar(name, len(texts)) as advance:
            record = exposed_record(lm, texts, among, seed, advance)
        records.append(record)
        for one, found in zip(secrets, record["secrets"], strict=True):
            rank = f"{found['rank']:,} of {found['among']:,}"
            rows.append([name, one, rank, f"{found['bits']:.1f} of {found['most']:.1f}", f"{found['chance']:.1%}"])
    title = "the rank of each secret among others of its form"
    screen().print(table(["model", "text", "rank", "exposure (bits)", "as high by chance"], rows, title))
    screen().print(
        f"A secret that a model never read has {UNREAD:.1f} bits on average; at most, it is guessed at once."
    )
    keep(records, json_out, None)
