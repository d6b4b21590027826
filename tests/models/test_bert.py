"""BERT and RoBERTa against the reference library: every head, both directions, padded and packed rows."""

import json

import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel

import handscroll
from handscroll.base.errors import CapacityError, CheckpointError, ConfigError, DataError
from handscroll.lm import LM
from handscroll.models.weights import load_model, save_model
from handscroll.nn.marks import Marks
from handscroll.nn.mask import SameSegment
from handscroll.text.tokenizer import Tokenizer
from handscroll.text.wordpiece import wordpiece_json
from tests.naming import naming

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
}
KINDS = {
    "pretraining": (BertForPreTraining, {}),
    "masked": (BertForMaskedLM, {"hidden_act": "gelu_new"}),
    "untied": (BertForMaskedLM, {"tie_word_embeddings": False}),
    "bare": (BertModel, {"type_vocab_size": 3}),
    "roberta": (transformers.RobertaForMaskedLM, {"max_position_embeddings": 66, "type_vocab_size": 1}),
    "roberta, bare": (transformers.RobertaModel, {"max_position_embeddings": 66, "hidden_act": "relu"}),
    "classifier": (transformers.BertForSequenceClassification, {"num_labels": 3}),
    "roberta, classifier": (
        transformers.RobertaForSequenceClassification,
        {"max_position_embeddings": 66, "id2label": {0: "no", 1: "yes"}},
    ),
}


def reference(kind):
    build, extra = KINDS[kind]
    config = (transformers.RobertaConfig if "roberta" in kind else BertConfig)(**{**SIZES, **extra})
    torch.manual_seed(0)
    model = build(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.15 if parameter.dim() > 1 else 0.1
            parameter.add_(torch.randn_like(parameter) * scale)
    return model


@torch.no_grad()
def theirs_say(model, ids, kinds=None, lengths=None):
    """What the reference gives: hidden or logits, pooled, next-sentence logits; attention masked past `lengths`."""
    seen = torch.ones_like(ids)
    if lengths is not None:
        seen = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    out = model(ids, attention_mask=seen, token_type_ids=torch.zeros_like(ids) if kinds is None else kinds)
    names = {"last_hidden_state": 0, "prediction_logits": 0, "logits": 0, "pooler_output": 1}
    found = {names[name]: value for name, value in out.items() if name in names}
    return found.get(0), found.get(1), out.get("seq_relationship_logits")


@torch.no_grad()
def ours_say(model, ids, marks):
    mask = model.mask() if marks.plain else model.mask() & SameSegment()
    hidden = model.hidden(model.embed(ids, marks), marks, mask)
    first = hidden[:, 0]
    if model.classifier is not None:
        at = torch.zeros_like(ids, dtype=torch.bool).index_fill(1, torch.tensor([0]), True)
        return model.classify(hidden, marks, at), None, None
    return (
        hidden if model.masked is None else model.logits(hidden),
        None if model.pooler is None else model.pooled(first),
        None if model.following is None else model.following_logits(first),
    )


def tokens(rows, length):
    return torch.randint(5, 97, (rows, length), generator=torch.Generator().manual_seed(length))


def near(got, want):
    for ours, theirs in zip(got, want, strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_outputs_both_ways(kind, tmp_path):
    theirs = reference(kind)
    theirs.save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs")
    save_model(model, tmp_path / "ours")
    again = type(theirs).from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert written["architectures"] == [type(theirs).__name__]
    if model.spec.labels:
        assert model.spec.labels == tuple(theirs.config.id2label.values()) and again.config.id2label == (
            theirs.config.id2label
        )
    ours, given = (load_file(tmp_path / name / "model.safetensors").keys() for name in ("ours", "theirs"))
    assert ours == given - ({"cls.predictions.bias"} if kind == "untied" else set())
    for length in (1, 7, 64):
        ids, run = tokens(2, length), Marks.run(0, length)
        want = theirs_say(theirs, ids)
        near(ours_say(model, ids, run), want)
        near(theirs_say(again, ids), want)
    kinds = (torch.arange(20) > 8).long().expand(2, -1) % theirs.config.type_vocab_size
    index = torch.arange(20).expand(2, -1)
    near(ours_say(model, tokens(2, 20), Marks.of(index, kinds=kinds)), theirs_say(theirs, tokens(2, 20), kinds))


@pytest.mark.parametrize("kind", ["pretraining", "roberta"])
def test_padded_and_packed_rows_are_those_alone(kind, tmp_path):
    theirs = reference(kind)
    theirs.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    lengths, ids = torch.tensor([30, 9, 17]), tokens(3, 30)
    ids = ids.masked_fill(torch.arange(30) >= lengths[:, None], theirs.config.pad_token_id)
    want = theirs_say(theirs, ids, lengths=lengths)[0]
    got = ours_say(model, ids, Marks.rows(torch.zeros(3, dtype=torch.int64), lengths))[0]
    rows = [ids[row, :length] for row, length in enumerate(lengths)]
    alone = [theirs_say(theirs, row[None], kinds=_pair(row, theirs)) for row in rows]
    for row, length in enumerate(lengths):
        torch.testing.assert_close(got[row, :length], want[row, :length], atol=1e-5, rtol=1e-5)
    segment = torch.repeat_interleave(torch.arange(3), lengths)[None]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    kinds = torch.cat([_pair(row, theirs)[0] for row in rows])[None]
    marks = Marks.of(torch.arange(56)[None], segment, positions, kinds)
    packed = ours_say(model, torch.cat(rows)[None], marks)[0]
    for part, (logits, *_) in zip(packed[0].split(lengths.tolist()), alone, strict=True):
        torch.testing.assert_close(part, logits[0], atol=1e-5, rtol=1e-5)


def _pair(row, theirs):
    """Second half of type 1, where there is one."""
    return (torch.arange(len(row)) >= len(row) // 2).long()[None] % theirs.config.type_vocab_size


def test_files_of_the_first_release(tmp_path):
    """gamma and beta, a position buffer, repeated decoder, heads that `architectures` does not name."""
    theirs = reference("pretraining")
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
           for name, tensor in state.items()}  # fmt: skip
    old["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"].clone()
    old["cls.predictions.decoder.bias"] = state["cls.predictions.bias"].clone()
    old["bert.embeddings.position_ids"] = torch.arange(64)[None]
    config = json.loads((tmp_path / "config.json").read_text()) | {"architectures": ["BertForMaskedLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config | {"pooler_type": "first_token_transform"}))
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ids = tokens(1, 12)
    near(ours_say(load_model(tmp_path), ids, Marks.run(0, 12)), theirs_say(theirs, ids))
    bare = {name.removeprefix("bert."): tensor for name, tensor in old.items() if not name.startswith("cls.")}
    save_file(bare, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = load_model(tmp_path)
    assert model.config.pooler and not model.config.masked and not model.config.following
    near(ours_say(model, ids, Marks.run(0, 12))[1:2], theirs_say(theirs.bert, ids)[1:2])
    old["cls.predictions.decoder.bias"] += 1
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="repeat"):
        load_model(tmp_path)


WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the ##s ##ly cat dog run sat quick on a b c . , 猫 狗".split()


@pytest.fixture
def folder(tmp_path):
    theirs = reference("masked")
    theirs.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return tmp_path


def test_sentence_vectors_equal_those_of_each_text_alone(folder):
    lm = handscroll.load(folder)
    theirs = BertForMaskedLM.from_pretrained(folder).eval()
    texts = ["The cats sat.", "a", "Quickly, the dogs run on 猫 " * 5, "b c"]
    slow = transformers.BertTokenizer(str(folder / "vocab.txt"))
    for pooling, take in (("mean", lambda hidden: hidden.mean(dim=1)), ("cls", lambda hidden: hidden[:, 0])):
        with torch.no_grad():
            states = [theirs.bert(torch.tensor([slow(text)["input_ids"]])).last_hidden_state for text in texts]
        want = torch.cat([take(hidden) for hidden in states])
        torch.testing.assert_close(lm.embed(texts, pooling, normalise=False), want, atol=1e-5, rtol=1e-5)
    unit = torch.nn.functional.normalize(want, dim=1)
    torch.testing.assert_close(lm.embed(texts, "cls"), unit, atol=1e-5, rtol=1e-5)
    assert lm.embed([]).shape == (0, 48)


def test_long_texts_are_refused_or_read_in_windows(folder):
    lm = handscroll.load(folder)
    long = "the cat sat on a dog . " * 14
    assert len(lm.encode(long)) == 100
    with pytest.raises(CapacityError, match=naming("text 1", 100, 64)):
        lm.embed(["a", long])
    halves = lm.embed(["the cat sat on a dog . " * 7] * 2, normalise=False)
    torch.testing.assert_close(lm.embed([long], windows=True, normalise=False)[0], halves.mean(dim=0))
    with pytest.raises(ConfigError, match="list"):
        lm.embed(long)
    with pytest.raises(ConfigError, match=naming("mean", "cls")):
        lm.embed(["a"], pooling="most")


def test_what_an_encoder_cannot_do_is_refused(folder, tiny_folder):
    lm = handscroll.load(folder)
    assert lm.logits("the cat").shape == (4, 97)
    with pytest.raises(ConfigError, match=r"continued|causal"):
        lm.generate("the cat")
    with pytest.raises(ConfigError, match=r"continued|causal"):
        lm.beams("the cat")
    with pytest.raises(ConfigError, match="likelihood"):
        lm.nll("the cat sat")
    with pytest.raises(ConfigError, match="cache"):
        lm.model.new_cache()
    with pytest.raises(CapacityError, match=naming("position 64", "table of 64")):
        lm.logits([5] * 65)
    with pytest.raises(DataError, match="token type 2"):
        lm.model.embed(tokens(1, 3), Marks.of(torch.arange(3)[None], kinds=torch.tensor([[0, 1, 2]])))
    with pytest.raises(ConfigError, match="causal"):
        handscroll.load(tiny_folder).embed(["a"])
    bare = reference("bare")
    bare.save_pretrained(folder / "bare")
    with pytest.raises(ConfigError, match="masked-LM"):
        load_model(folder / "bare")(tokens(1, 3))
    with pytest.raises(ConfigError, match="next-sentence"):
        load_model(folder / "bare").following_logits(torch.zeros(1, 48))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"position_embedding_type": "relative_key"}, "'absolute'"),
        ({"is_decoder": True}, "False"),
        ({"hidden_act": "silu"}, "gelu_new"),
        ({"rope_theta": 1e4}, "'rope_theta'"),
    ],
)
def test_unknown_forms_are_refused(folder, change, words):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ConfigError, match=words):
        load_model(folder)


def test_a_saved_encoder_loads_in_the_reference_with_its_tokenizer(folder, tmp_path):
    lm = handscroll.load(folder)
    lm.save(tmp_path / "saved")
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "saved").eval()
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")("The cats sat.", return_tensors="pt")
    assert ids["input_ids"][0].tolist() == lm.encode("The cats sat.")
    with torch.no_grad():
        torch.testing.assert_close(lm.logits("The cats sat."), theirs(**ids).logits[0], atol=1e-5, rtol=1e-5)
    roles = {role: getattr(lm.tokenizer, role) for role in ("pad", "unk", "cls", "sep", "mask")}
    assert roles == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert lm.tokenizer.special == frozenset(range(5))
    assert isinstance(lm, LM) and isinstance(lm.tokenizer, Tokenizer)


def test_a_damaged_vocabulary_is_refused():
    with pytest.raises(CheckpointError, match=naming("[SEP]")):
        wordpiece_json("[UNK]\n[CLS]\na\n", {}, "vocab.txt")
    with pytest.raises(CheckpointError, match="twice"):
        wordpiece_json("[UNK]\n[CLS]\n[SEP]\na\na\n", {}, "vocab.txt")
    assert tokenizers.Tokenizer.from_str(wordpiece_json("\n".join(WORDS), {}, "")).encode("cats").ids == [2, 8, 6, 3]
