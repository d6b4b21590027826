"""Loss by position: every token once, blocks by hand, windows of real files, intervals."""

import pytest
import torch

import handscroll
from handscroll.base.errors import ConfigError, DataError
from handscroll.evaluate.perplexity import Losses, default_block, half_width, measure
from handscroll.evaluate.samples import fingerprint, windows
from handscroll.text.readers import Document
from tests.naming import naming


@pytest.fixture(scope="module")
def lm(tiny_folder):
    return handscroll.load(tiny_folder)


def documents():
    import argparse
    import json.decoder
    from pathlib import Path

    return [Document(Path(m.__file__).read_text(encoding="utf-8"), m.__name__) for m in (argparse, json.decoder)]


def test_windows_are_disjoint_and_exact(lm):
    samples = windows(documents(), lm.tokenizer, 200)
    whole = {d.source: lm.encode(d.text, special=False) for d in documents()}
    for sample in samples:
        assert len(sample.ids) == 200
        assert sample.ids == whole[sample.source][sample.offset : sample.offset + 200]
    assert (
        len({(s.source, s.offset) for s in samples}) == len(samples) == sum(len(ids) // 200 for ids in whole.values())
    )
    some = windows(documents(), lm.tokenizer, 200, count=5, seed=1)
    assert some == windows(documents(), lm.tokenizer, 200, count=5, seed=1)
    assert fingerprint(some) != fingerprint(windows(documents(), lm.tokenizer, 200, count=5, seed=2))


def test_each_window_begins_as_a_text_begins(babyllama):
    tokenizer = handscroll.load(babyllama).tokenizer
    samples = windows([Document((babyllama / "stories.txt").read_text(), "stories")], tokenizer, 100, count=4)
    assert all(len(sample.ids) == 100 and sample.ids[0] == tokenizer.bos for sample in samples)


def test_text_that_is_too_short_is_refused(lm):
    with pytest.raises(DataError, match=naming("x")):
        windows([Document("short", "x")], lm.tokenizer, 200)


def test_no_windows_and_no_blocks_are_refused(lm):
    for length, count in ((200, 0), (200, -3), (0, None), (1, 2)):
        with pytest.raises(ConfigError):
            windows(documents(), lm.tokenizer, length, count)
    with pytest.raises(ConfigError, match=naming(-5)):
        Losses("x", torch.ones(2, 7), []).blocks(-5)


def test_blocks_and_means_by_hand():
    values = torch.arange(1.0, 8.0).repeat(2, 1)  # positions 1 .. 7 of a window of 8
    values[1] += 2.0
    losses = Losses("x", values, [])
    assert losses.mean() == pytest.approx(5.0)
    assert losses.mean(0, 4) == pytest.approx(3.0) and losses.mean(4) == pytest.approx(6.5)
    blocks = losses.blocks(4)
    assert blocks["loss"] == pytest.approx([3.0, 6.5]) and blocks["count"] == [6, 8]
    assert blocks["positions"] == [2.0, 6.0]
    assert blocks["high"][0] - blocks["loss"][0] == pytest.approx(12.706 * 2**0.5 / 2**0.5, rel=1e-3)


def test_interval_against_known_quantiles():
    """Student's t: 0.975 quantiles for 9, 16 and 30 degrees of freedom are 2.262, 2.120 and 2.042."""
    for count, quantile in ((10, 2.262), (17, 2.120), (31, 2.042)):
        means = torch.linspace(0, 1, count, dtype=torch.float64)
        want = quantile * float(means.std()) / count**0.5
        assert half_width(means) == pytest.approx(want, rel=5e-4)
    assert half_width(torch.ones(1)) is None


def test_exact_and_sliding_agree_inside_one_window(lm):
    samples = windows(documents(), lm.tokenizer, 128, count=3)
    exact = measure(lm, samples, "exact")
    sliding = measure(lm, samples, "sliding window", window=64)
    torch.testing.assert_close(exact.values[:, :63], sliding.values[:, :63], atol=1e-4, rtol=1e-4)
    record = exact.record(lm)
    assert record["tokens"] == 3 * 127 and record["windows"] == 3 and record["trained"] == 64
    assert record["mean"] == pytest.approx(float(exact.values.double().mean()))


def test_default_blocks():
    assert [default_block(length) for length in (64, 512, 1024, 4096, 32768)] == [16, 16, 32, 128, 1024]
