"""Longer encoders: position tables go on, judged by masked loss, read by the reference library."""

import pytest
import torch
import transformers

import handscroll
from handscroll.base.config import read_recipe
from handscroll.base.errors import ConfigError, DataError
from handscroll.evaluate.masked import FOLDS, masked_nll
from handscroll.evaluate.perplexity import measure
from handscroll.evaluate.samples import windows
from handscroll.extend.extend import extension
from handscroll.extend.methods import apply, candidates
from handscroll.extend.tune import TuneSettings
from handscroll.models.weights import load_model, save_model
from handscroll.nn.positions.lengthen_learned import LEARNED, extrapolate
from handscroll.text.readers import Document
from handscroll.train.recipe import Recipe
from handscroll.train.start import run_recipe
from tests.conftest import ROOT

TEXT = "\n".join(f"def function_{n}(x, y):\n    return json.loads(x + {n})" for n in range(120))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A BERT that was trained to 64 tokens for a second."""
    recipe = read_recipe(ROOT / "recipes" / "tiny" / "bert.toml", ["threads=1", "loop.evaluate_every=0"])
    folder = tmp_path_factory.mktemp("bert")
    run_recipe(Recipe.parse(recipe, "recipe"), folder)
    return folder / "model"


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.py"
    file.write_text(TEXT)
    return file


@pytest.mark.parametrize("method", LEARNED)
@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
def test_longer_tables_are_read_by_the_reference(kind, method, tmp_path):
    sizes = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2}
    rows = 16 if kind == "Bert" else 18  # RoBERTa's first two rows are no position
    config = getattr(transformers, f"{kind}Config")(**sizes, num_attention_heads=4, max_position_embeddings=rows)
    getattr(transformers, f"{kind}ForMaskedLM")(config).save_pretrained(tmp_path / "short")
    model = load_model(tmp_path / "short")
    before = model.position_embedding.weight.detach().clone()
    (entry,) = candidates(model, method, 40)
    apply(model, entry)
    assert (model.config.context, model.config.trained) == (40, 16)
    table, offset = model.position_embedding.weight, rows - 16
    assert torch.equal(table[:offset], before[:offset]) and table.shape[0] == 40 + offset
    if method == "interpolate":
        torch.testing.assert_close(table[offset + 26], before[offset + 10])  # 15 steps became 39
        torch.testing.assert_close(table[-1], before[-1])
    else:
        assert torch.equal(table[: offset + 16], before)
        row = {"tile": before[offset + 39 % 16], "copy-last-row": before[-1]}
        row["extrapolate"] = extrapolate(before[offset:], 40)[-1]
        row["hierarchical"] = row["tile"] + (before[offset + 39 // 16] - before[offset]) * 0.4 / 0.6
        torch.testing.assert_close(table[-1], row[method])
    save_model(model, tmp_path / "long")
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "long").eval()
    tokens = torch.randint(5, 97, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), theirs(tokens).logits, atol=1e-5, rtol=1e-5)
    assert load_model(tmp_path / "long").config == model.config


def test_every_token_is_hidden_once(trained):
    lm = handscroll.load(trained)
    ids = lm.encode(TEXT)[:50]
    losses = masked_nll(lm, ids)
    fold = torch.randperm(49, generator=torch.Generator().manual_seed(50)) % FOLDS
    for number in (0, 3):
        hidden = [lm.tokenizer.mask if place and fold[place - 1] == number else t for place, t in enumerate(ids)]
        want = torch.nn.functional.cross_entropy(lm.logits(hidden), torch.tensor(ids), reduction="none")[1:]
        torch.testing.assert_close(losses[fold == number], want[fold == number])
    halves = torch.cat([masked_nll(lm, ids[:25]), masked_nll(lm, [ids[0], *ids[25:]])])
    torch.testing.assert_close(masked_nll(lm, ids, window=26), halves)
    with pytest.raises(DataError, match="at least two"):
        masked_nll(lm, ids[:1])
    with pytest.raises(ConfigError, match="sees"):
        masked_nll(lm, ids, window=1)


def test_the_bake_off_is_by_masked_loss(trained, text):
    lm = handscroll.load(trained)
    result = extension(lm, 128, text=text, measured=256)
    assert result.outcome is not None and lm.context == 64
    by_name = {row.candidate.method: row for row in result.outcome.rows}
    assert set(by_name) == set(LEARNED) and result.outcome.winner.candidate == result.candidate
    samples = windows([Document(TEXT, "text")], lm.tokenizer, 128, 2)
    assert samples[0].ids[0] == lm.tokenizer.cls
    losses = measure(result.lm, result.outcome.samples, "again")
    assert losses.mean(64) == pytest.approx(result.outcome.winner.long)
    assert result.lm.embed(["x " * 40]).shape == (1, 48)
    with pytest.raises(ConfigError, match="--text"):
        extension(lm, 128)


def test_tuning_is_by_hidden_tokens(trained, text, tmp_path):
    settings = TuneSettings(files=(str(text),), steps=6, rows=2, lr=1e-3)
    result = extension(handscroll.load(trained), 128, "interpolate", tune=settings, folder=tmp_path / "tune")
    assert result.lm.provenance["tuned"]["steps"] == 6 and result.lm.context == 128
    records = (tmp_path / "tune" / "records.jsonl").read_text().splitlines()
    assert len(records) == 6 and 30 < int(records[0].split('"count":')[1].split(",")[0]) < 45  # 15 % of 256
