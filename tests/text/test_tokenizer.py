"""Tokenizers in folders: what is loaded is what encodes, what cannot be loaded says why."""

import json
import shutil
from pathlib import Path

import pytest
import tokenizers
from tokenizers import processors

from handscroll.base.errors import CheckpointError, DataError
from handscroll.text.tokenizer import Tokenizer
from handscroll.text.training import TokenizerConfig, train_tokenizer
from tests.naming import naming

DATA = Path(__file__).parents[2] / "../shared/data"
TEXT = "It was the best of times,\nit was the worst of times.\n\n  她说：“你好！”\r\nline\nnext 12345\n" * 40


@pytest.fixture(scope="module")
def small():
    return train_tokenizer([TEXT], TokenizerConfig(vocab=300, special=("<s>", "<|endoftext|>")))


@pytest.fixture
def gpt2(tmp_path):
    if not DATA.is_dir():
        pytest.skip("../shared/data is absent")
    shutil.copyfile(DATA / "tokenizers/gpt2_vocab.json", tmp_path / "vocab.json")
    shutil.copyfile(DATA / "tokenizers/gpt2_merges.txt", tmp_path / "merges.txt")
    return tmp_path


def framed(tokenizer, **changes):
    """The same tokenizer with its JSON edited."""
    return Tokenizer(json.dumps(json.loads(tokenizer.source) | changes), tokenizer.settings)


def test_gpt2_folder_gives_gpt2_tokens(gpt2):
    tokenizer = Tokenizer.load(gpt2)
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.unk) == (50256, 50256, None, None)
    expected = (DATA / "tokenizers/ggml-vocab-gpt-2.gguf.out").read_text().split("\n")
    samples = (
        (DATA / "tokenizers/ggml-vocab-gpt-2.gguf.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    )
    assert len(samples) > 30
    for sample, ids in zip(samples, expected, strict=False):
        assert tokenizer.encode(sample) == [int(i) for i in ids.split()], sample


def test_gpt2_folder_of_another_family_is_refused(gpt2):
    (gpt2 / "config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(CheckpointError, match=naming("'whisper'", "tokenizer.json")):
        Tokenizer.load(gpt2)


@pytest.mark.parametrize("way", ["roberta", "qwen2"])
def test_vocabularies_and_merges_of_other_families_are_those_of_the_reference_library(way, gpt2):
    transformers = pytest.importorskip("transformers")
    words = json.loads((gpt2 / "vocab.json").read_text(encoding="utf-8"))
    names = {"roberta": "RobertaTokenizer", "qwen2": "Qwen2Tokenizer"}
    added = {} if way == "qwen2" else {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": len(words) + 4}
    shifted = words if way == "qwen2" else {word: number + 4 for word, number in words.items()} | added
    (gpt2 / "vocab.json").write_text(json.dumps(shifted))
    (gpt2 / "config.json").write_text(json.dumps({"model_type": {"roberta": "bart"}.get(way, way)}))
    reference = getattr(transformers, names[way])(str(gpt2 / "vocab.json"), str(gpt2 / "merges.txt"))
    tokenizer = Tokenizer.load(gpt2)
    for text in ("Hello world", "  two\n\nlines 12345 don't", "你好，世界 café", "a <mask> b", TEXT):
        assert tokenizer.encode(text, parse=True) == reference(text)["input_ids"], text
    assert (tokenizer.eos, tokenizer.pad) == (reference.eos_token_id, reference.pad_token_id)


def test_real_char_level_tokenizer():
    folder = DATA / "checkpoints/babyllama-256"
    if not folder.is_dir():
        pytest.skip("../shared/data is absent")
    tokenizer = Tokenizer.load(folder)
    assert (tokenizer.vocab_size, tokenizer.bos, tokenizer.eos, tokenizer.unk) == (105, 1, 2, 0)
    ids = tokenizer.encode("Once upon a time")
    assert ids[0] == tokenizer.bos and tokenizer.decode(ids) == "Once upon a time"
    assert tokenizer.encode("Once upon a time", special=False) == ids[1:]
    assert tokenizer.unknown(tokenizer.encode("Once 你")) == 1 and tokenizer.unknown(ids) == 0


@pytest.mark.promise("R17")
def test_special_tokens_in_text_are_text(small):
    text = "a<|endoftext|>b<s>"
    assert small.eos not in small.encode(text) and small.decode(small.encode(text)) == text
    assert small.encode(text, parse=True).count(small.eos) == 1
    assert small.eos not in small.encode(text), "parsing once must not change later calls"
    ids = small.encode(text, parse=True)
    assert small.decode(ids) == "ab" and small.decode(ids, special=True) == text


def test_the_post_processor_frames_short_and_long_texts(small):
    frame = processors.TemplateProcessing(
        single="<s> $A <|endoftext|>", special_tokens=[("<s>", small.bos), ("<|endoftext|>", small.eos)]
    )
    built = tokenizers.Tokenizer.from_str(small.source)
    built.post_processor = frame
    tokenizer = Tokenizer(built.to_str())
    for text in ("", "a", TEXT, TEXT * 80):
        bare = tokenizer.encode(text, special=False)
        assert tokenizer.encode(text) == [small.bos, *bare, small.eos]
    assert len(TEXT * 80) > 200_000


def test_stored_truncation_does_not_cut(small):
    cut = framed(small, truncation={"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0})
    assert cut.encode(TEXT) == small.encode(TEXT) and len(small.encode(TEXT)) > 5


def test_save_and_load(small, tmp_path):
    small.save(tmp_path / "t")
    again = Tokenizer.load(tmp_path / "t")
    assert again.fingerprint == small.fingerprint == Tokenizer.load(tmp_path / "t" / "tokenizer.json").fingerprint
    assert again.encode(TEXT) == small.encode(TEXT)
    assert (again.bos, again.eos) == (small.bos, small.eos) == (298, 299)
    assert sorted(p.name for p in (tmp_path / "t").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_transformers_reads_what_we_save(small, tmp_path):
    transformers = pytest.importorskip("transformers")
    small.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(TEXT)["input_ids"] == small.encode(TEXT)
    assert theirs.decode(small.encode(TEXT)) == TEXT
    assert (theirs.bos_token_id, theirs.eos_token_id) == (small.bos, small.eos)


def test_settings_decide_special_ids(small):
    def ids(settings, model=None):
        tokenizer = Tokenizer(small.source, settings, model)
        return tokenizer.bos, tokenizer.eos, tokenizer.pad

    assert ids({}) == (298, 299, None)
    assert ids({"bos_token": None, "eos_token": {"content": "<s>"}}) == (None, 298, None)
    assert ids({}, {"bos_token_id": 5, "eos_token_id": [7, 8], "pad_token_id": -1}) == (5, 7, None)
    assert ids({"eos_token": "<s>"}, {"eos_token_id": 7}) == (298, 298, None)


def test_refusals(small, tmp_path):
    with pytest.raises(DataError, match=naming(-100)):
        small.decode([1, -100])
    with pytest.raises(DataError, match="surrogate"):
        small.encode("a\ud800")
    with pytest.raises(CheckpointError, match="does not exist"):
        Tokenizer.load(tmp_path / "none")
    with pytest.raises(CheckpointError, match="tokenizer files"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=naming("tokenizer.model", "tokenizer.json")):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(CheckpointError, match=naming("tokenizer.json")):
        Tokenizer.load(tmp_path)
    small.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="list"):
        Tokenizer.load(tmp_path)


def test_texts_are_not_cut_inside_added_tokens(small):
    built = tokenizers.Tokenizer.from_str(small.source)
    built.add_tokens(["two words", tokenizers.AddedToken("<t>", lstrip=True)])
    tokenizer = Tokenizer(built.to_str())
    assert tokenizer._cuttable
    for shift in (0, 6, 12):  # the cut would fall behind "a", "words" and "two"
        text = "b" * shift + "a two words <t> " * 12_600
        ids = tokenizer.encode(text)
        assert len(text) > 200_000 and ids == built.encode(text).ids
        assert ids.count(300) == ids.count(301) == 12_600
