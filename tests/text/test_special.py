"""Special tokens: those of all files of a folder, and never out of a user's text."""

import json
import warnings
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from handscroll.base.errors import CheckpointError
from handscroll.text.tokenizer import Tokenizer
from tests.conftest import shared
from tests.naming import naming
from tests.text.small import trained


def token(content: str, special: bool = True, **flags: bool) -> dict:
    plain = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    return {"content": content, "special": special, **plain, **flags}


def folder(path: Path, spec: str, config: dict | None = None, **files: dict) -> Path:
    (path / "tokenizer.json").write_text(spec, encoding="utf-8")
    base = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (path / "tokenizer_config.json").write_text(json.dumps(base | (config or {})), encoding="utf-8")
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return path


def theirs(path: Path):
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoTokenizer.from_pretrained(path)


DECODER = {
    "added_tokens_decoder": {"299": token("<|endoftext|>"), "300": token("<|im_end|>"), "301": token("<t>", False)}
}
WAYS = {
    "added_tokens_decoder": (DECODER | {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}, {}),
    "special_tokens_map": (
        {},
        {"special_tokens_map": {"eos_token": token("<|im_end|>"), "pad_token": "<|endoftext|>"}},
    ),
    "added_tokens": ({"eos_token": "<|im_end|>"}, {"added_tokens": {"<|im_end|>": 300, "<t>": 301}}),
    "extra": ({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "eos_token": "<|im_end|>"}, {}),
    "a role alone": ({"pad_token": "[PAD]", "eos_token": {"__type": "AddedToken", **token("<|im_end|>")}}, {}),
    "changed flags": (
        {"eos_token": "<|endoftext|>", "added_tokens_decoder": {"299": token("<|endoftext|>", lstrip=True)}},
        {},
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_tokens_of_every_file_have_the_ids_of_the_reference_library(way, tmp_path):
    config, files = WAYS[way]
    path = folder(tmp_path, trained("bpe").source, config, **files)
    ours, reference = Tokenizer.load(path), theirs(path)
    assert (ours.eos, ours.pad, ours.vocab_size) == (reference.eos_token_id, reference.pad_token_id, len(reference))
    text = "hi <|im_start|>you<|im_end|> <t> [PAD]x<|endoftext|>"
    ids = reference(text)["input_ids"]
    assert ours.encode(text, parse=True) == ids
    assert ours.decode(ids) == reference.decode(ids, skip_special_tokens=True)
    assert ours.decode(ids, special=True) == reference.decode(ids)
    ours.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").encode(text, parse=True) == ids
    assert theirs(tmp_path / "again")(text)["input_ids"] == ids


def test_a_folder_that_declares_nothing_new_keeps_its_file_byte_for_byte(tmp_path):
    source = trained("bpe").source
    assert (
        Tokenizer.load(folder(tmp_path, source, {"added_tokens_decoder": {"299": token("<|endoftext|>")}})).source
        == source
    )


def test_contradictions_between_the_files_are_named(tmp_path):
    folder(tmp_path, trained("bpe").source, {"added_tokens_decoder": {"350": token("<x>")}})
    with pytest.raises(CheckpointError, match=naming("<x>", 350, 300)):
        Tokenizer.load(tmp_path)


def test_a_padding_token_that_the_model_has_no_row_for_is_left_out_and_ordinary_tokens_stay_text():
    small = trained("bpe")
    assert Tokenizer(small.source, {"pad_token": "[PAD]"}, {"vocab_size": 300}).pad is None
    assert Tokenizer(small.source, {"pad_token": "[PAD]"}, {"vocab_size": 301}).pad == 300
    marked = Tokenizer(small.source, {"pad_token": "!"})
    assert marked.pad == small.encode("!")[0] and marked.decode(marked.encode("a!")) == "a!"


def test_ids_beyond_the_vocabulary_decode_to_nothing():
    small = trained("bpe")
    ids = small.encode("the fox")
    assert small.decode([*ids, 300, 4500]) == "the fox" == small.decode([4500, *ids], special=True)


def built(kind: str) -> Tokenizer:
    """A tokenizer whose vocabulary itself holds the names of special tokens, as T5's and Llama's do."""
    letters = list("▁abcdefghijklmnopqrstuvwxyz</>[]|_0123456789 ABEHKMNPSTU")
    special = ["<unk>", "<s>", "</s>", "[MASK]"]
    if kind == "Unigram":
        made = tokenizers.Tokenizer(models.Unigram([(one, -1.0 - n) for n, one in enumerate(special + letters)], 0))
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    elif kind == "WordLevel":
        made = tokenizers.Tokenizer(models.WordLevel({one: n for n, one in enumerate(special + letters)}, "<unk>"))
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    elif kind == "WordPiece":
        words = special + letters + ["##" + one for one in letters]
        made = tokenizers.Tokenizer(models.WordPiece(vocab={one: n for n, one in enumerate(words)}, unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        parts = ["</", "s>"]
        words = {one: n for n, one in enumerate(special + letters + parts)}
        merges = [("<", "/"), ("s", ">"), ("</", "s>")]
        made = tokenizers.Tokenizer(models.BPE(words, merges, unk_token="<unk>", ignore_merges=kind == "whole words"))
        made.normalizer = normalizers.Replace(" ", "▁")
    made.add_special_tokens([AddedToken(one, normalized=kind == "BPE", special=True) for one in special[1:]])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return Tokenizer(made.to_str(), {"bos_token": "<s>", "eos_token": "</s>", "mask_token": "[MASK]"})


@pytest.mark.parametrize("kind", ["Unigram", "WordLevel", "WordPiece", "BPE", "whole words"])
def test_no_text_becomes_a_special_token(kind):
    tokenizer = built(kind)
    pieces = st.sampled_from(["</s>", "<s>", "[MASK]", "<unk>", " ", "</", "s>", "a", "[", "MASK]", "x00x"])

    @given(st.lists(pieces, max_size=8).map("".join))
    @settings(max_examples=200)
    def check(text):
        ids = tokenizer.encode(text, special=False)
        assert not {1, 2, 3} & set(ids)
        assert tokenizer.encode(text) == [1, *ids]
        assert not {1, 2, 3} & set(tokenizer.encode(text, special=False, follows=True))

    check()
    for name, number in (("</s>", 2), ("<s>", 1), ("[MASK]", 3)):
        assert tokenizer.encode(f"a {name} b", special=False, parse=True).count(number) == 1
        assert name in tokenizer.decode([5, number], special=True) and name not in tokenizer.decode([5, number])


def test_t5_reads_its_own_marks_in_a_text_as_text(tmp_path):
    source = shared("tokenizers/t5_small_tokenizer.json").read_text(encoding="utf-8")
    tokenizer = Tokenizer(source, {"eos_token": "</s>", "pad_token": "<pad>"})
    reference = tokenizers.Tokenizer.from_str(source)
    for text in ("Ignore this.</s> New text", "fill <extra_id_0> here <pad>", "a </s> b", "x</s>"):
        ids = tokenizer.encode(text, special=False)
        assert not (tokenizer.special - {tokenizer.unk}) & set(ids)
        assert tokenizer.encode(text, parse=True) == reference.encode(text).ids
    plain = "The house is wonderful, isn't it?  Two  spaces."
    assert tokenizer.encode(plain) == reference.encode(plain).ids


def test_parts_of_a_template_become_ids_and_a_users_text_does_not():
    tokenizer = Tokenizer(trained("bpe").source, DECODER | {"additional_special_tokens": ["<|im_start|>"]})
    start, end = tokenizer.encode("<|im_start|>", parse=True)[0], 300
    parts = [
        ("<|im_start|>user\n", True),
        ("say <|im_end|> twice<|im_", False),
        ("end|>", True),
        ("<|im_end|>\n", True),
    ]
    ids = tokenizer.encode_parts(parts)
    assert ids.count(end) == ids.count(start) == 1 and ids[0] == start
    assert tokenizer.decode(ids, special=True) == "".join(text for text, _ in parts)
    harmless = [("<|im_start|>user\n", True), ("the quick fox", False), ("<|im_end|>\n", True)]
    assert tokenizer.encode_parts(harmless) == tokenizer.encode("".join(text for text, _ in harmless), parse=True)


def test_marks_of_turns_in_the_template_are_special_even_where_the_file_forgot_to_say_so():
    config = {"added_tokens_decoder": {"300": token("<|im_end|>", False), "301": token("<tool_call>", False)}}
    tokenizer = Tokenizer(trained("bpe").source, config | {"chat_template": "{{ m }}<|im_end|><tool_call>"})
    assert 300 not in tokenizer.encode("a<|im_end|>b") and 301 in tokenizer.encode("a<tool_call>b")
    assert 300 in tokenizer.encode("a<|im_end|>b", parse=True)


PREFIXES = {
    "prepend": {"normalizer": normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])},
    "always": {"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="always", split=False)},
    "first": {"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="first", split=False)},
    "never": {"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="never", split=False)},
}


def prefixed(scheme: str) -> Tokenizer:
    """A tokenizer like Llama 2's: a blank before the text, and bytes for what it does not know."""
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{number:02X}>" for number in range(256)),
        "▁",
        *"abcdefghijklmnopqrstuvwxyz",
    ]
    model = models.BPE(
        {one: n for n, one in enumerate(words)}, [], byte_fallback=True, unk_token="<unk>", fuse_unk=True
    )
    made = tokenizers.Tokenizer(model)
    for part, value in PREFIXES[scheme].items():
        setattr(made, part, value)
    strip = [] if scheme == "never" else [decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return Tokenizer(made.to_str(), {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})


@pytest.mark.parametrize("scheme", PREFIXES)
def test_a_text_that_follows_another_reads_as_one_text_would(scheme):
    tokenizer = prefixed(scheme)
    first = tokenizer.encode("once upon")
    for text in ("\nlily said hi", " a time", "  two", "x", "你好", "", "\n\nquestion: who</s> is he?\nanswer:"):
        ids = first + tokenizer.encode(text, special=False, follows=True)
        assert tokenizer.decode(ids) == "once upon" + text
        assert ids == tokenizer.encode("once upon" + text)
    parts = [("\nhi ", False), ("</s>", True), ("you", False)]
    joined = [("once upon", False), *parts]
    assert first + tokenizer.encode_parts(parts, follows=True) == tokenizer.encode_parts(joined, special=True)
