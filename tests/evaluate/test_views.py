"""Views of the loss against plain computations with all logits, on tiny models."""

import json
import math
import random

import pytest
import torch

import handscroll
from handscroll.base.errors import ConfigError, DataError
from handscroll.evaluate.beyond import Far, edges_of, gains, used
from handscroll.evaluate.samples import Sample, windows
from handscroll.evaluate.views import Views, ViewSettings, key_mask, loss_views, repeated
from handscroll.lm import LM
from handscroll.text.readers import Document
from tests.cli.material import run
from tests.conformance.families import FORMS
from tests.naming import naming

SETTINGS = ViewSettings(short=24, near=(40, 16), scored=12, run=3, alpha=0.02, beta=-6.0)


@pytest.fixture(scope="module")
def lm(tiny_folder):
    return handscroll.load(tiny_folder)


@pytest.fixture(scope="module")
def samples(lm):
    import argparse
    from pathlib import Path

    text = Path(argparse.__file__).read_text(encoding="utf-8")
    return windows([Document(text, "argparse")], lm.tokenizer, 120, count=4)


@pytest.fixture(scope="module")
def views(lm, samples):
    return loss_views(lm, samples, SETTINGS)


def losses(model, ids):
    """Plain: all logits of one text."""
    logits = model(torch.tensor([ids]), length=len(ids)).float().log_softmax(-1)[0]
    return -logits[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


@torch.no_grad()
def test_key_tokens_and_their_perplexity_by_hand(lm, samples, views):
    record, picked = views.record(lm, "x"), []
    for sample, positions in zip(samples, record["keys"], strict=True):
        long = losses(lm.model, sample.ids)
        short = torch.full_like(long, math.nan)
        done = 0
        for start in [*range(0, 120 - 24, 12), 120 - 24]:  # each window of 24 scores what no earlier one did
            part = losses(lm.model, sample.ids[start : start + 24])
            short[done : start + 23] = part[done - start :]
            done = start + 23
        keys = ((short - long > 0.02) & (-long > -6.0)).nonzero().flatten() + 1
        assert keys.tolist() == positions and min(positions, default=99) >= 24, "within the short context none gains"
        picked += long[keys - 1].tolist()
    assert record["long_ppl"]["count"] == len(picked) > 5
    assert record["long_ppl"]["value"] == pytest.approx(math.exp(sum(picked) / len(picked)), rel=1e-4)
    assert record["long_ppl"]["low"] < record["long_ppl"]["value"] < record["long_ppl"]["high"]
    assert record["long_ppl"]["share"] == pytest.approx(len(picked) / (4 * 119))


@torch.no_grad()
@pytest.mark.parametrize("name", ["tiny", "gemma3_text", "gpt2"])
def test_far_text_in_another_order_by_hand(lm, samples, name):
    """Each k is a text of its own here: the true one, with what lies beyond k in the order that the view takes."""
    if name != "tiny":
        tokens = [
            [int(n) for n in torch.randint(20, 97, (64,), generator=torch.Generator().manual_seed(s))] for s in (0, 1)
        ]
        lm = LM(FORMS[name].build(torch.float32), lm.tokenizer, name)
        samples = [Sample(ids, "random", 0) for ids in tokens]
        settings = SETTINGS.model_copy(update={"near": (24, 8), "scored": 6})
    else:
        settings = SETTINGS
    made, length, scored = loss_views(lm, samples, settings), len(samples[0].ids), settings.scored
    for number, sample in enumerate(samples):
        assert (made.far[number].true - losses(lm.model, sample.ids)[-scored:]).abs().max() < 1e-4
        other = samples[(number + 1) % len(samples)].ids
        draw, mixed, begin = random.Random(f"0/{number}"), [sample.ids[0]], 1
        for edge in edges_of(length, settings.near, scored):
            part = sample.ids[begin:edge]
            draw.shuffle(part)
            mixed, begin = mixed + part, edge
            k = length - scored - edge
            at = settings.near.index(k)
            want = losses(lm.model, mixed + sample.ids[edge:])[-scored:]
            assert (made.far[number].shuffled[at] - want).abs().max() < 1e-4
            strange = losses(lm.model, [sample.ids[0], *other[1:edge], *sample.ids[edge:]])[-scored:]
            assert (made.far[number].other[at] - strange).abs().max() < 1e-4
            assert sorted(mixed) == sorted(sample.ids[:edge]), "no token is lost"


def test_the_worth_of_far_text_is_a_mean_with_an_interval(lm, views):
    record = views.record(lm, "x")
    for at, row in enumerate(record["beyond"]):
        each = [float((far.shuffled[at] - far.true).mean()) for far in views.far]
        assert row["near"] == SETTINGS.near[at] and row["tokens"] == 4 * 12
        assert row["shuffled"] == pytest.approx(sum(each) / 4, abs=1e-6)
        spread = 4.17653 * float(torch.tensor(each, dtype=torch.float64).std()) / 2  # t of 3, with 2.5 % for each k
        assert row["shuffled_high"] - row["shuffled"] == pytest.approx(spread, rel=1e-3)
        assert row["shuffled"] - row["shuffled_low"] == pytest.approx(spread, rel=1e-3)
    helps = [row["near"] for row in record["beyond"] if row["shuffled_low"] > 0]
    assert record["used"] == max(helps, default=None)


def test_a_model_that_copies_gains_from_beyond():
    """Losses made by hand: what a model saves beyond 8 tokens is found, and nothing where it saves nothing."""
    noise = torch.Generator().manual_seed(0)
    far = []
    for _ in range(20):
        true = torch.rand(50, generator=noise)
        far.append(Far((8, 64), true, [true + 0.3, true + 0.2 * torch.randn(50, generator=noise)], None))
    made = gains(far)
    assert made[0].shuffled.value == pytest.approx(0.3) and made[0].other is None
    assert made[1].shuffled.low < 0 < made[1].shuffled.high and used(made[1:]) is None


@pytest.mark.parametrize("windows", [4, 8])
def test_noise_is_seldom_taken_for_help(windows):
    """The lower ends of all k together err in 2.5 % of 1,000 models that use nothing beyond any k; 25 are expected."""
    noise, erred = torch.Generator().manual_seed(1), 0
    for _ in range(1000):
        draws = torch.randn(windows, 3, 1, generator=noise)
        erred += used(gains([Far((8, 16, 32), torch.zeros(1), list(draw), None) for draw in draws])) is not None
    assert erred <= 40, erred


def test_few_windows_give_no_verdict():
    """Three windows that all gain 1 nat, with little doubt."""
    far = [Far((8,), torch.zeros(1), [torch.full((1,), 1.0 + 0.001 * number)], None) for number in range(4)]
    assert used(gains(far)) == 8 and used(gains(far[:3])) is None
    assert gains(far[:1])[0].shuffled.low is None


def test_repeated_text_by_hand(lm, views, samples):
    ids = [1, 2, 3, 9, 1, 2, 3, 4, 1, 2, 3]
    assert repeated(ids, 3).tolist() == [0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 4]
    assert repeated(ids, 2).tolist() == [0, 0, 0, 0, 0, 4, 4, 0, 0, 4, 4]
    part = views.record(lm, "x")["repeats"]
    back = torch.stack([repeated(sample.ids, 3)[1:] for sample in samples])
    assert part["repeated"]["loss"] == pytest.approx(float(views.long[back > 0].double().mean()))
    assert part["fresh"]["count"] + part["repeated"]["count"] == 4 * 119
    assert sum(one["count"] for one in part["by_distance"]) == part["repeated"]["count"] > 0


def test_each_window_has_its_curve(lm, views, samples):
    record = views.record(lm, "x")
    for sample, row, told in zip(samples, views.long, record["documents"], strict=True):
        assert (told["source"], told["offset"]) == (sample.source, sample.offset)
        assert told["mean"] == pytest.approx(float(row.double().mean()))
        assert told["loss"][1] == pytest.approx(float(row[15:31].double().mean())) and len(told["loss"]) == 8
    assert record["certificate"]["seen"] == record["certificate"]["offered"] == 4 * 120


def test_key_tokens_of_another_model_are_taken(lm, views, samples):
    keys = views.record(lm, "x")["keys"]
    assert loss_views(lm, samples, SETTINGS, keys).record(lm, "x")["long_ppl"] == {
        **views.record(lm, "x")["long_ppl"],
        "given": True,
        "alpha": None,
        "beta": None,
    }
    with pytest.raises(DataError, match="other windows"):
        loss_views(lm, samples, SETTINGS, keys[:2])


def test_a_run_that_was_stopped_goes_on(lm, samples, views, tmp_path):
    keep = tmp_path / "windows.jsonl"

    class Killed(Exception):
        pass

    def kill(done, total):
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        loss_views(lm, samples, SETTINGS, progress=kill, keep=keep)
    assert len(keep.read_text().splitlines()) == 3
    assert loss_views(lm, samples, SETTINGS, keep=keep).record(lm, "x") == views.record(lm, "x")


@pytest.fixture(scope="module")
def told(tiny_folder, tmp_path_factory):
    """What `evaluate views` prints of two windows of a text, and its record."""
    import argparse

    path = tmp_path_factory.mktemp("views") / "record.json"

    def call(*options):
        path.unlink(missing_ok=True)
        words = ("evaluate", "views", tiny_folder, argparse.__file__, "--windows", "2", "--json", path, *options)
        return run(*words), json.loads(path.read_text(encoding="utf-8"))

    return call


@pytest.mark.parametrize("length", [48, 112, 200])
def test_the_quarters_hold_every_token(told, length):
    _, record = told("--length", length)
    sizes = [len(part) for part in torch.zeros(length - 1).tensor_split(4)]
    for one in record["documents"]:
        whole = sum(size * mean for size, mean in zip(sizes, one["quarters"], strict=True))
        assert whole / (length - 1) == pytest.approx(one["mean"])


def test_near_contexts_that_do_not_fit_are_left_out_and_said(told):
    said, record = told("--length", "40")
    assert record["beyond"] == [] and "20, 10, 5" in said
    said, record = told("--length", "112")
    assert [one["near"] for one in record["beyond"]] == [56, 28] and "beyond 14 tokens" in said


def test_given_key_tokens_are_said_to_be_given(told, tmp_path):
    _, record = told("--length", "64", "--alpha", "0.01", "--beta", "-9")
    (tmp_path / "keys.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    said, record = told("--length", "64", "--keys", tmp_path / "keys.json", "--alpha", "5")
    assert record["long_ppl"]["count"] > 0 and "given by --keys" in said and "5 nats" not in said


def test_no_key_tokens_and_impossible_views(lm, samples):
    none = Views(SETTINGS, samples, torch.ones(4, 119), torch.ones(4, 119), [])
    assert none.record(lm, "x")["long_ppl"]["value"] is None
    assert not bool(key_mask(torch.ones(2, 5), torch.ones(2, 5) + 1.9, ViewSettings(short=2)).any())
    with pytest.raises(ConfigError, match=naming(120)):
        loss_views(lm, samples, ViewSettings(short=120))
    with pytest.raises(ConfigError, match="far text"):
        loss_views(lm, samples, ViewSettings(short=24, near=(100,), scored=12))
