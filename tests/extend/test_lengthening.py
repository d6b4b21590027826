"""The benchmark of lengthening: losses of holes by place, rows that begin as texts do, tables of several seeds."""

import numpy as np
import pytest
import torch

from bench.lengthening import rows_of
from bench.lengthening_table import tables
from bench.span_losses import holed, holes, span_losses
from handscroll.data.sources import TokenSource
from handscroll.evaluate.samples import Sample
from handscroll.lm import LM
from handscroll.models.new import About, new_model
from handscroll.nn.init import initialise
from handscroll.objectives.span_corruption import Frame, SpanCorruption
from handscroll.text.training import TokenizerConfig, train_tokenizer


@pytest.fixture(scope="module")
def t5():
    settings = {"vocab": 274, "special": ["<pad>", "</s>"], "sentinels": 16}
    tokenizer = train_tokenizer(["abc"], TokenizerConfig.parse(settings, "test"))
    sizes = {"width": 16, "layers": 1, "encoder_layers": 1, "heads": 2, "head_size": 8, "mlp_width": 32, "context": 32}
    model = new_model("t5", sizes, About(tokenizer, 32))
    initialise(model, "normal", 1, torch.Generator().manual_seed(0), std=0.3)
    return LM(model.eval(), tokenizer, "test")


def test_holes_are_those_of_span_corruption_and_rows_say_where_they_are():
    gone = holes(128, SpanCorruption(), 3)
    assert gone.sum() == 19 and (np.diff(np.flatnonzero(np.diff(np.pad(gone, 1).astype(int)) == 1)) > 1).all()
    assert (gone != holes(128, SpanCorruption(), 4)).any()
    frame = Frame((90, 91, 92), start=0, end=1)
    row, places = holed([5, 6, 7, 8, 9], np.array([True, False, False, True, True]), frame)
    assert row.source is not None
    assert row.source.tokens.tolist() == [90, 6, 7, 91, 1]
    assert (row.tokens.tolist(), row.targets.tolist()) == ([0, 90, 5, 91, 8, 9], [90, 5, 91, 8, 9, 1])
    assert places.tolist() == [-1, 0, -1, 3, 4, -1]


def test_every_token_cut_out_is_scored_whole_and_in_blocks(t5):
    samples = [Sample(torch.randint(0, 256, (96,)).tolist(), "", 0) for _ in range(5)]
    losses, places = span_losses(t5, samples, SpanCorruption(), trained=32)
    gone = [holes(96, SpanCorruption(density=0.05), number) for number in range(5)]
    assert places.tolist() == [place for one in gone for place in np.flatnonzero(one)]
    in_blocks, same = span_losses(t5, samples, SpanCorruption(), block=32, trained=32)
    assert torch.equal(places, same) and (in_blocks - losses).abs().min() > 1e-6
    first = next(number for number in range(5) if gone[number][:32].any())
    words = {word: number for number, word in enumerate(t5.tokenizer.words)}
    frame = Frame.of(words, t5.model.config.start, t5.tokenizer.eos)
    row, where = holed(samples[first].ids[:32], gone[first][:32], frame)
    assert row.source is not None
    tokens, source = torch.from_numpy(row.tokens)[None], torch.from_numpy(row.source.tokens)[None]
    with torch.no_grad():
        logits = t5.model.under(t5.model.encode(source))(tokens)[0]
    want = torch.nn.functional.cross_entropy(logits, torch.from_numpy(row.targets), reduction="none")
    want = want[torch.from_numpy(where >= 0)]
    begin = sum(int(one.sum()) for one in gone[:first])
    torch.testing.assert_close(in_blocks[begin : begin + len(want)], want)


def test_rows_begin_as_texts_do():
    tokenizer = train_tokenizer(["abc"], TokenizerConfig(vocab=260, special=("[PAD]", "[CLS]", "[SEP]", "[MASK]")))
    source = rows_of(TokenSource([np.arange(20)]), tokenizer, 9)
    want = [[tokenizer.cls, *range(first, first + 8)] for first in (0, 8, 4, 12)]
    assert [row.tolist() for row in source] == want


def test_tables_show_means_spreads_and_every_seed():
    results = [
        {"family": "t5", "seed": seed, "method": method, "detail": "", "steps": 200, "loss": {"128-1023": loss}}
        | {"pretrain_steps": 9, "pretrain_rows": 8}
        for method, losses in {"none": (2.0, 4.0), "reach": (1.0, 1.5)}.items()
        for seed, loss in enumerate(losses)
    ]
    shown = tables(results)
    assert "| none | 200 | 3.000 ± 1.414 | 2.000, 4.000 |" in shown
    assert "none - reach, 200 updates, positions 128-1023: +1.000, +2.500" in shown
