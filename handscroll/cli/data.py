"""`handscroll data`: examine texts and tables before a model is trained on them."""

from typing import Annotated

import typer

from handscroll.cli import tables
from handscroll.cli.options import FILES, Encoding, Key, SkipPictures, reader
from handscroll.cli.records import OneJson, Report
from handscroll.cli.screen import bar, screen, table

texts = typer.Typer(
    help="Examine, clean and split texts and tables before a model is trained on them.", no_args_is_help=True
)


@texts.callback()
def _texts() -> None:
    """Examine, clean and split texts and tables before a model is trained on them."""


@texts.command()
def report(
    files: Annotated[list[str], typer.Argument(help=FILES)],
    tokenizer: Annotated[str, typer.Option(help="Folder of a model or tokenizer whose coverage is reported.")] = "",
    valid: Annotated[list[str] | None, typer.Option(help="Held-out text; its overlap with FILES is reported.")] = None,
    report: Report = None,
    json_out: OneJson = None,
    key: Key = "",
    encoding: Encoding = "",
    skip_pictures: SkipPictures = False,
) -> None:
    """Report coverage, lengths, languages, duplicates, poor quality and overlap of FILES, in bounded memory."""
    from handscroll.base.runs import write_file
    from handscroll.data.survey.survey import survey
    from handscroll.report import Table, write
    from handscroll.report.corpus import corpus_page
    from handscroll.text.tokenizer import Tokenizer

    loaded = Tokenizer.load(tokenizer) if tokenizer else None
    with bar("characters", None) as advance:
        corpus = survey(files, loaded, valid, tokenizer, advance, reader(key, encoding, skip_pictures))
    page = corpus_page(corpus, {"Files": ", ".join(files)} | ({"Tokenizer": tokenizer} if tokenizer else {}))
    size = f"{corpus.characters:,} characters, {corpus.bytes:,} bytes, {corpus.words:,} words or Chinese characters"
    screen().print(f"{corpus.files:,} files, {corpus.documents:,} documents, {size}")
    for section in page.sections[1:]:
        screen().print(f"\n{section.title}: {section.lead}")
        for item in section.items:
            if isinstance(item, Table) and not item.folded:
                screen().print(table(item.columns, item.cells))
    if json_out is not None:
        write_file(json_out, (corpus.model_dump_json() + "\n").encode())
        screen().print(f"record: {json_out}")
    if report is not None:
        report.mkdir(parents=True, exist_ok=True)
        screen().print(f"report: {write(page, report / 'report.html')}")


def register(app: typer.Typer) -> None:
    tables.register(texts)
    app.add_typer(texts, name="data")
