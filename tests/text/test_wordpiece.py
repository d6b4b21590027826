"""BERT's and RoBERTa's tokenizers on the test vectors of other libraries."""

import struct

import pytest

from handscroll.text.tokenizer import Tokenizer
from handscroll.text.wordpiece import wordpiece_json
from tests.conftest import shared

NUMBERS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a GGUF number


def gguf_tokens(path):
    """The list `tokenizer.ggml.tokens` of a GGUF file's metadata."""
    data = path.read_bytes()

    def text(at):
        end = at + 8 + struct.unpack_from("<Q", data, at)[0]
        return data[at + 8 : end].decode(), end

    def value(kind, at):
        if kind == 8:
            return text(at)
        if kind != 9:
            return None, at + NUMBERS[kind]
        inner, count = struct.unpack_from("<IQ", data, at)
        found, at = [], at + 12
        for _ in range(count):
            one, at = value(inner, at)
            found.append(one)
        return found, at

    at = 24
    while True:
        name, at = text(at)
        found, at = value(struct.unpack_from("<I", data, at)[0], at + 4)
        if name == "tokenizer.ggml.tokens":
            return found


def vectors(name):
    texts = shared(f"tokenizers/{name}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    ids = shared(f"tokenizers/{name}.out").read_text(encoding="utf-8").splitlines()
    assert texts.pop() == "" and len(texts) > 40
    return [(text, [int(number) for number in line.split()]) for text, line in zip(texts, ids, strict=True)]


def test_bert_vectors():
    """GGUF writes a word's start as a mark and drops `##`: turned back here."""
    words = gguf_tokens(shared("tokenizers/ggml-vocab-bert-bge.gguf"))
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}

    def back(word):
        if word in special or (word.startswith("[unused") and word.endswith("]")):
            return word
        return word[1:] if word.startswith("▁") else f"##{word}"

    tokenizer = Tokenizer(wordpiece_json("\n".join(map(back, words)), {}, ""))
    for text, ids in vectors("ggml-vocab-bert-bge.gguf"):
        assert tokenizer.encode(text, special=False) == ids, text
        assert tokenizer.encode(text) == [101, *ids, 102]
    assert tokenizer.frame() == ([101], [102])


def test_roberta_frames_a_text():
    tokenizer = Tokenizer.load(shared("tokenizers/roberta_base_tokenizer.json"))
    ids = tokenizer.encode("Hello world")
    assert ids[0] == 0 and ids[-1] == 2 and tokenizer.decode(ids) == "Hello world"
    assert tokenizer.mask == 50264 and tokenizer.frame() == ([0], [2])


def test_chinese_characters_stand_alone(tmp_path):
    words = shared("tokenizers/chinese_wordpiece_vocab.txt").read_text(encoding="utf-8")
    (tmp_path / "vocab.txt").write_text(words, encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    ids = tokenizer.encode("使用语言模型 BERT", special=False)
    assert [tokenizer.token(number) for number in ids[:6]] == list("使用语言模型")
    assert tokenizer.unknown(ids) == 0 and tokenizer.vocab_size == 21128
    pytest.importorskip("transformers")
    from transformers import BertTokenizer

    theirs = BertTokenizer(str(tmp_path / "vocab.txt"))
    assert theirs("使用语言模型 BERT，好！")["input_ids"] == tokenizer.encode("使用语言模型 BERT，好！")
