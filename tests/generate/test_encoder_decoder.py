"""Generation under a source: tokens of the reference library, rows that do not meet, and what is refused."""

import json

import pytest
import torch

import handscroll
from handscroll.base.errors import CapacityError, ConfigError, DataError
from handscroll.cache.reading.store import Store
from handscroll.generate.draft import Lookup
from handscroll.generate.engine.engine import Engine
from handscroll.generate.sample import Sampling
from handscroll.models.weights import load_model
from tests.conftest import shared
from tests.generate.asking import decode
from tests.models.t5 import SIZES, save, tokens
from tests.naming import naming

SOURCES = [tokens(1, n, 11)[0].tolist() for n in (30, 5, 70)]


@pytest.fixture(scope="module", params=["v1.0", "v1.1"])
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    return save(request.param, folder), load_model(folder)


def decoded(model, prompts, sampling, eos=(1,), **how):
    rows: dict[int, list[int]] = {}
    for step in decode(model, prompts, sampling, eos, **how):
        for item in step:
            rows.setdefault(item.row, []).append(item.token)
    return [rows[row] for row in sorted(rows)]


def test_greedy_tokens_are_those_of_the_reference(pair):
    theirs, model = pair
    width = max(map(len, SOURCES))
    padded = torch.tensor([source + [0] * (width - len(source)) for source in SOURCES])
    mask = torch.tensor([[1] * len(source) + [0] * (width - len(source)) for source in SOURCES])
    found = theirs.generate(padded, attention_mask=mask, max_new_tokens=20, do_sample=False, num_beams=1)
    want = [row[1:].tolist() for row in found]  # the start token is not told
    ours = decoded(model, SOURCES, Sampling(max_tokens=20, temperature=0.0))
    for mine, other in zip(ours, want, strict=True):
        assert mine == other[: len(mine)] and all(token == 0 for token in other[len(mine) :])
    assert [decoded(model, [source], Sampling(max_tokens=20, temperature=0.0))[0] for source in SOURCES] == ours


def test_sampled_rows_do_not_meet_and_samples_share_their_source(pair):
    _, model = pair
    sampling = Sampling(max_tokens=12, temperature=1.0, top_k=20, seed=3)
    together = decoded(model, SOURCES, sampling, eos=())
    assert decoded(model, SOURCES[:1], sampling, eos=())[0] == together[0]
    several = decoded(model, SOURCES[:1], sampling, eos=(), samples=3)
    assert several[0] == together[0] and len({tuple(row) for row in several}) == 3


def test_the_penalty_counts_what_was_written_not_what_was_read(pair):
    theirs, model = pair
    source = SOURCES[0]
    settings = {"max_new_tokens": 15, "do_sample": False, "num_beams": 1, "repetition_penalty": 3.0}
    want = theirs.generate(torch.tensor([source]), **settings)[0, 1:].tolist()
    ours = decoded(model, [source], Sampling(max_tokens=15, temperature=0.0, repetition_penalty=3.0))[0]
    assert ours == want[: len(ours)]


def test_what_does_not_apply_is_refused(pair):
    _, model = pair
    short = Sampling(max_tokens=4)
    with pytest.raises(ConfigError, match="draft"):
        decode(model, SOURCES, short, drafts=Lookup(2))
    with pytest.raises(ConfigError, match="'window'"):
        decode(model, SOURCES, short, policy="window")
    with pytest.raises(CapacityError, match=naming("prompt 0", 513)):
        decode(model, [tokens(1, 513)[0].tolist()], short)
    with pytest.raises(CapacityError, match="513"):
        decode(model, SOURCES, Sampling(max_tokens=512))
    with pytest.raises(DataError, match="prompt 1"):
        decode(model, [SOURCES[0], []], short)
    assert decoded(model, [tokens(1, 513)[0].tolist()], short, beyond=True)


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    """A tiny T5 with the published tokenizer."""
    import transformers

    folder = tmp_path_factory.mktemp("lm")
    (folder / "tokenizer.json").write_text(shared("tokenizers/t5_small_tokenizer.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    sizes = SIZES | {"vocab_size": 32_128, "d_model": 16, "num_layers": 1, "num_heads": 2}
    transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes)).save_pretrained(folder)
    return handscroll.load(folder)


def test_a_source_ends_with_its_end_token(lm):
    text = "translate English to German: The house is wonderful."
    ids = lm.encode(text)
    assert ids[-1] == lm.tokenizer.eos == 1 and lm.tokenizer.pad == 0 and lm.tokenizer.unk == 2
    assert lm.tokenizer.bos is None and lm.decode(ids) == text
    assert lm.tokenizer.encode("<extra_id_0> is <extra_id_1>", special=False, parse=True)[0] == 32_099
    assert ids == [13959, 1566, 12, 2968, 10, 37, 629, 19, 1627, 5, 1]  # as the reference library's pages print them


def test_text_under_a_source(lm):
    whole = lm.generate("Hello there", max_tokens=8)
    assert "".join(lm.stream("Hello there", max_tokens=8)) == whole
    (told,) = lm.continuations("Hello there", max_tokens=8, logprobs=2)
    assert told.text == whole == lm.decode(told.tokens) and len(told.scored) == len(told.tokens)
    several = lm.continuations("Hello there", 6, max_tokens=8, temperature=1.0)
    assert len({item.tokens for item in several}) == 6
    # A text of its own: the space before its first word is none, as `decode` has it.
    assert any((lm.tokenizer.token(item.tokens[0]) or "").startswith("▁") for item in several)
    assert [item.text for item in several] == [lm.decode(item.tokens) for item in several]


def test_what_reads_one_text_refuses_an_encoder_decoder(lm, tmp_path):
    store = Store(tmp_path)
    for call in (
        lambda: lm.logits("some text"),
        lambda: lm.nll("some text"),
        lambda: lm.beams("some text", 2),
        lambda: lm.conversation(),
        lambda: lm.read("some text", store),
        lambda: lm.generate("some text", store=store),
    ):
        with pytest.raises(ConfigError, match="encoder-decoder"):
            call()
    with pytest.raises(ConfigError, match="source"):
        Engine(lm.model, blocks=10)


def test_the_command(lm, capsys):
    from typer.testing import CliRunner

    from handscroll.cli.main import app

    runner, common = CliRunner(), [lm.source, "--prompt", "Hello there", "--max-tokens", "5"]
    done = runner.invoke(app, ["generate", *common, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["prompt_tokens"] == len(lm.encode("Hello there"))
    assert told["continuations"][0]["text"] == lm.generate("Hello there", max_tokens=5)
    for options in (["--lookup", "2"], ["--beams", "2"], ["--cache", "int8"]):
        refused = runner.invoke(app, ["generate", *common, *options])
        assert refused.exit_code != 0
        assert "encoder-decoder" in str(refused.exception or "") + refused.output
