"""Heads of every family against the reference library, heads that are missing or unknown, what heads say of texts."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import handscroll
from handscroll.base.errors import CapacityError, CheckpointError, ConfigError, DataError
from handscroll.base.spec import HeadSpec
from handscroll.models import new
from handscroll.models.classes import SUFFIXES, named_head
from handscroll.models.describe import facts
from handscroll.models.heads import labels_of, read_head
from handscroll.models.labels import Tag, entities
from handscroll.models.new import as_classifier, with_head
from handscroll.models.weights import load_model, save_model
from handscroll.nn.init import initialise
from handscroll.nn.marks import Marks
from tests.conformance.checks import holds_to_the_reference
from tests.conformance.families import FORMS
from tests.models.heads import KINDS, PLAIN, WORDS, foreign_of, words
from tests.naming import naming

HEADED = [(name, kind) for name, form in PLAIN.items() for kind in KINDS if kind in type(form.config).head_kinds]


@pytest.mark.parametrize(("name", "kind"), HEADED)
def test_heads_equal_those_of_the_reference(name, kind, tmp_path):
    form = PLAIN[name]
    foreign = foreign_of(form, kind)
    if not hasattr(transformers, foreign["architectures"][0]):
        with pytest.raises(ConfigError, match=naming(foreign["architectures"][0], f"'{form.family}'")):
            form.kind.parse(foreign)
        return
    config = form.kind.parse(foreign)
    assert config.head.kind == kind and config.head.labels == KINDS[kind] and not config.spec.predicts
    assert form.kind.write(config)["architectures"] == foreign["architectures"]
    holds_to_the_reference(form, tmp_path, foreign)


def test_a_new_head_is_drawn_on_the_cpu_and_moved_to_the_device(monkeypatch):
    """The generator is one of the CPU. The meta device stands for a GPU."""
    model, drawn = PLAIN["bert"].build(torch.float32).to("meta"), []

    def initialised(part, *rest):
        initialise(part, *rest)
        drawn.extend(one.device.type for one in part.parameters())

    monkeypatch.setattr(new, "initialise", initialised)
    made = with_head(model, HeadSpec(kind="text", labels=("a", "b")), torch.Generator().manual_seed(0))
    assert set(drawn) == {"cpu"} and {one.device.type for one in made.parameters()} == {"meta"}


def test_every_family_of_the_reference_with_heads_has_them():
    without = {form.family for form in PLAIN.values() if not type(form.config).head_kinds}
    assert without == {"t5", "mt5"}  # encoder-decoders


def test_the_last_token_that_is_no_padding_is_read(tmp_path):
    """Texts of different lengths, and one that ends in the padding token itself."""
    form = PLAIN["qwen2"]
    save_model(form.build(torch.float32, foreign=foreign_of(form, "text")), tmp_path)
    (tmp_path / "tokenizer.json").write_text(words(), encoding="utf-8")
    lm = handscroll.load(tmp_path)
    theirs = transformers.Qwen2ForSequenceClassification.from_pretrained(tmp_path).eval()
    texts = ["w20 w21 w22", "w23", "w30 w31 w32 w33 w1 w1"]
    with torch.no_grad():
        want = torch.cat([theirs(torch.tensor([lm.encode(text)])).logits for text in texts])
    torch.testing.assert_close(lm.scores(texts), want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lm.classify(texts), want.softmax(dim=1), atol=1e-5, rtol=1e-5)
    assert lm.labels == KINDS["text"]


def test_numbers_and_several_labels(tmp_path):
    form = PLAIN["bert"]
    reward = foreign_of(form, "text", id2label={"0": "LABEL_0"})
    several = foreign_of(form, "text", problem_type="multi_label_classification")
    for name, foreign in (("reward", reward), ("several", several)):
        save_model(form.build(torch.float32, foreign=foreign), tmp_path / name)
        (tmp_path / name / "tokenizer.json").write_text(words(), encoding="utf-8")
    lm = handscroll.load(tmp_path / "reward")
    assert lm.scores(["w20 w21"]).shape == (1, 1) and ("head", "one number a text (regression or reward)") in facts(
        tmp_path / "reward"
    )
    with pytest.raises(ConfigError, match=r"lm\.scores"):
        lm.classify(["w20"])
    lm = handscroll.load(tmp_path / "several")
    torch.testing.assert_close(lm.classify(["w20 w21"]), lm.scores(["w20 w21"]).sigmoid())
    written = json.loads((tmp_path / "several" / "config.json").read_text())
    assert written["problem_type"] == "multi_label_classification" and written["label2id"]["bad"] == 1


def test_a_decoder_becomes_a_classifier_that_reads_its_last_token():
    model, marks = PLAIN["llama"].build(torch.float32), Marks.run(0, 5)
    made = as_classifier(model, ("a", "b"), "xavier", torch.Generator().manual_seed(0))
    assert made.spec.labels == ("a", "b") and made.spec.pool == "last" and made.projection is None
    ids = torch.arange(20, 25)[None]
    same, new = (one.hidden(one.embed(ids, marks), marks, one.mask(), length=5) for one in (model, made))
    assert torch.equal(same, new) and made.judge(new).shape == (1, 5, 2)
    assert as_classifier(made, ("a", "b"), "xavier", torch.Generator()) is made


def test_a_model_with_a_head_is_lengthened_by_a_named_method(tmp_path):
    save_model(PLAIN["llama"].build(torch.float32, foreign=foreign_of(PLAIN["llama"], "text")), tmp_path)
    (tmp_path / "tokenizer.json").write_text(words(), encoding="utf-8")
    lm = handscroll.load(tmp_path)
    longer = handscroll.extend(lm, to=128, method="yarn")
    assert longer.context == 128 and longer.labels == lm.labels and longer.scores(["w20 " * 100]).isfinite().all()
    with pytest.raises(ConfigError, match=naming("no head", "name a method", "yarn")):
        handscroll.extend(lm, to=128)


# --- what is wrong with a head is said ---


def test_a_head_that_is_missing_or_not_named_is_said_as_what_it_is(tmp_path):
    form = PLAIN["llama"]
    save_model(form.build(torch.float32), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    named = config | {"architectures": ["LlamaForSequenceClassification"]}
    (tmp_path / "config.json").write_text(json.dumps(named))
    with pytest.raises(CheckpointError, match=r"lacks a head for classification.*score\.weight"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    state = load_file(tmp_path / "model.safetensors")
    value = state | {"v_head.summary.weight": torch.ones(1, 48)}
    save_file(value, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"the value head of reinforcement learning.*architectures"):
        load_model(tmp_path)
    del state["lm_head.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks a head for tokens.*lm_head"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaModel"]}))
    bare = load_model(tmp_path)
    assert bare.config.head.kind == "none" and not bare.spec.predicts
    with pytest.raises(ConfigError, match="predicts no tokens"):
        bare.logits(torch.zeros(1, 1, 48))
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert load_model(tmp_path).spec.predicts  # a whole model under the name of the bare one
    assert not any(name == "head" for name, _ in facts(tmp_path))


def test_a_head_for_tokens_beside_another_one_is_not_read(tmp_path):
    form = PLAIN["llama"]
    model = form.build(torch.float32, foreign=foreign_of(form, "text"))
    save_model(model, tmp_path)
    state = load_file(tmp_path / "model.safetensors") | {"lm_head.weight": torch.ones(97, 48)}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert load_model(tmp_path).config == model.config


def test_an_encoder_with_a_head_that_nothing_names(tmp_path):
    form = PLAIN["bert"]
    save_model(form.build(torch.float32, foreign=foreign_of(form, "tokens")), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["BertModel"]}))
    with pytest.raises(CheckpointError, match=r"a head for classification \(classifier"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"architectures": ["BertForMultipleChoice"]}, ("BertForMultipleChoice", "MultipleChoice", "not known")),
        ({"architectures": ["T5ForSequenceClassification"]}, ("T5ForSequenceClassification", "head", "'t5'")),
        ({"architectures": ["BertForRewardModel"]}, ("BertForRewardModel", "RewardModel", "not known")),
        ({"architectures": ["T5EncoderModel"]}, ("T5EncoderModel", "model", "'t5'")),
        ({"architectures": "BertModel"}, ("architectures", "list")),
        ({"id2label": ["a", "b"]}, ("id2label", "table")),
        ({"id2label": {"0": "a", "2": "b"}}, ("id2label", "0, 2")),
        ({"num_labels": 3, "id2label": {"0": "a", "1": "b"}}, ("num_labels is 3", "2 labels")),
        ({"num_labels": True}, ("num_labels",)),
        ({"problem_type": "ranking"}, ("problem_type", "ranking", "regression")),
    ],
)
def test_contradictory_heads_are_refused(changes, told):
    form = PLAIN["t5" if "T5" in str(changes) else "bert"]
    foreign = form.foreign if form.family == "t5" else foreign_of(form, "text", id2label=None)
    with pytest.raises(ConfigError, match=naming(*told)):
        form.kind.parse(foreign | changes)


def test_labels_of_a_file():
    assert labels_of({}) == ("LABEL_0", "LABEL_1") and labels_of({"num_labels": 3})[2] == "LABEL_2"
    assert labels_of({"id2label": {"1": "b", "0": "a", **{str(n): f"l{n}" for n in range(2, 11)}}})[10] == "l10"
    assert named_head({"architectures": ["SteelForCausalLM"]}, "llama") == "" == named_head({}, "llama")
    assert [named_head({"architectures": [f"X{suffix}"]}, "llama") for suffix in SUFFIXES.values()] == list(SUFFIXES)
    assert read_head({"problem_type": "single_label_classification", "num_labels": 1}, "text").problem == "number"


# --- what heads say of texts ---


@pytest.fixture
def encoder(tmp_path):
    """A folder with a BERT that has a head of a kind."""

    def made(kind, **more):
        save_model(PLAIN["bert"].build(torch.float32, foreign=foreign_of(PLAIN["bert"], kind, **more)), tmp_path)
        (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
        return tmp_path

    return made


def test_pairs_of_texts_have_two_types(encoder):
    folder = encoder("text")
    lm = handscroll.load(folder)
    theirs = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
    slow = transformers.BertTokenizer(str(folder / "vocab.txt"))
    pairs = [("the cat", "a dog sat on the cat ."), ("a", "b c"), ("the cats", "猫")]
    with torch.no_grad():
        want = torch.cat([theirs(**slow(*pair, return_tensors="pt")).logits for pair in pairs])
    torch.testing.assert_close(lm.scores(pairs), want, atol=1e-5, rtol=1e-5)
    assert (lm.scores(pairs) - lm.scores([" ".join(pair) for pair in pairs])).abs().max() > 1e-3
    with pytest.raises(ConfigError, match="pair"):
        lm.scores([("a", "b", "c")])
    for wrong, error in (("a", ConfigError), ([None], DataError)):
        with pytest.raises(error):
            lm.scores(wrong)


def test_long_texts_are_refused_or_read_in_windows(encoder):
    lm = handscroll.load(encoder("text"))
    long = "the cat sat on a dog . " * 14
    with pytest.raises(CapacityError, match=naming("text 1", 100, 64, "windows")):
        lm.classify(["a", long])
    half = lm.scores(["the cat sat on a dog . " * 7])[0]
    torch.testing.assert_close(lm.scores([long], windows=True)[0], half)
    with pytest.raises(CapacityError, match=naming("text 0", "first text")):
        lm.scores([(long, long)], windows=True)


def test_tokens_are_tagged_at_their_places(encoder):
    folder = encoder("tokens")
    lm = handscroll.load(folder)
    theirs = transformers.BertForTokenClassification.from_pretrained(folder).eval()
    slow = transformers.BertTokenizer(str(folder / "vocab.txt"))
    text = "The cats  sat on 猫 ."
    with torch.no_grad():
        want = theirs(**slow(text, return_tensors="pt")).logits[0, 1:-1].softmax(dim=1)
    found = lm.tag([text, "a"])[0]
    assert [tag.text for tag in found] == ["The", "cat", "s", "sat", "on", "猫", "."]
    assert all(text[tag.start : tag.end] == tag.text for tag in found)
    assert [tag.label for tag in found] == [KINDS["tokens"][number] for number in want.argmax(dim=1)]
    assert [tag.score for tag in found] == pytest.approx(want.amax(dim=1).tolist(), abs=1e-5)
    long = "the cat sat on a dog . " * 30
    with pytest.raises(CapacityError, match="windows"):
        lm.tag([long])
    tags = lm.tag([long], windows=True)[0]
    assert [tag.text for tag in tags] == long.split()
    alone = lm.tag([" ".join(long.split()[:55])])[0]  # the first of five windows
    assert [tag.label for tag in tags[:20]] == [tag.label for tag in alone[:20]]
    with pytest.raises(ConfigError, match=naming("labels or numbers of texts", "token classification")):
        lm.classify([text])


def test_places_leave_out_the_blank_before_a_word(tmp_path):
    """As SentencePiece's tokenizers count it to the word."""
    form = PLAIN["xlm-roberta"]
    save_model(form.build(torch.float32, foreign=foreign_of(form, "tokens")), tmp_path)
    spec = json.loads(words())
    spec["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}
    spec["model"]["vocab"] = {"w0": 0, "▁Ada": 20, "▁met": 21, "▁Bob": 22}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    found = handscroll.load(tmp_path).tag(["Ada met  Bob"])[0]
    assert [(tag.start, tag.text) for tag in found if tag.text in ("Ada", "met", "Bob")] == [
        (0, "Ada"),
        (4, "met"),
        (9, "Bob"),
    ]


def test_names_are_joined_from_their_tokens():
    text = "Ada Lovelace met Bob in Paris"
    labels = ["B-PER", "I-PER", "O", "B-PER", "O", "B-LOC"]
    places = [(0, 3), (4, 12), (13, 16), (17, 20), (21, 23), (24, 29)]
    tags = [Tag(a, b, text[a:b], label, 0.9 - a / 100) for (a, b), label in zip(places, labels, strict=True)]
    assert [(tag.text, tag.label) for tag in entities(tags, text)] == [
        ("Ada Lovelace", "PER"),
        ("Bob", "PER"),
        ("Paris", "LOC"),
    ]
    assert entities(tags, text)[0].score == tags[1].score
    plain = [tag._replace(label="X") for tag in tags[:2]]
    assert entities(plain, text) == [Tag(0, 12, "Ada Lovelace", "X", tags[1].score)]


def test_answers_are_the_best_spans(encoder):
    folder = encoder("answer")
    lm = handscroll.load(folder)
    theirs = transformers.BertForQuestionAnswering.from_pretrained(folder).eval()
    slow = transformers.BertTokenizer(str(folder / "vocab.txt"))
    question, text = "the cat", "a dog sat on the cat . b c 狗"
    with torch.no_grad():
        out = theirs(**slow(question, text, return_tensors="pt"))
    size = len(text.split())
    starts, ends = (logits[0, -1 - size : -1] for logits in (out.start_logits, out.end_logits))
    best = max((float(starts[a] + ends[b]), a, b) for a in range(size) for b in range(a, size))
    (found,) = lm.answers(question, text)
    assert found.score == pytest.approx(best[0], abs=1e-5)
    assert found.text.split() == text.split()[best[1] : best[2] + 1] and text[found.start : found.end] == found.text
    three = lm.answers(question, text, count=3)
    assert len({answer[:2] for answer in three}) == 3 and three[0] == found
    long = text * 12
    with pytest.raises(CapacityError, match="windows"):
        lm.answers(question, long)
    assert lm.answers(question, long, windows=True)[0].text in long
    with pytest.raises(ConfigError, match="at least one"):
        lm.answers(question, text, count=0)


def test_a_model_without_such_a_head_says_so(tiny_folder):
    lm = handscroll.load(tiny_folder)
    assert lm.labels == ()
    for ask in (lambda: lm.classify(["a"]), lambda: lm.tag(["a"]), lambda: lm.answers("a", "b"), lambda: lm.scores([])):
        with pytest.raises(ConfigError, match="a head for tokens, and no head for"):
            ask()


def test_a_discriminator_says_which_tokens_were_replaced(tmp_path):
    form = FORMS["electra-discriminator"]
    save_model(form.build(torch.float32), tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    lm = handscroll.load(tmp_path)
    theirs = transformers.ElectraForPreTraining.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        want = theirs(torch.tensor([lm.encode("the cat sat")])).logits[0, 1:-1].sigmoid()
    assert [tag.score for tag in lm.tag(["the cat sat"])[0]] == pytest.approx(want.tolist(), abs=1e-5)


def test_a_model_that_reads_both_ways_gives_vectors_and_keeps_nothing(tmp_path):
    """As gte-Qwen2 is published; every token sees those after it."""
    form = FORMS["qwen2-encoder"]
    save_model(form.build(torch.float32), tmp_path)
    (tmp_path / "tokenizer.json").write_text(words(), encoding="utf-8")
    state = load_file(tmp_path / "model.safetensors")
    assert load_model(tmp_path).spec.predicts and state.pop("lm_head.weight").shape == (97, 48)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})  # as it is published, without a head
    lm = handscroll.load(tmp_path)
    theirs = transformers.Qwen2Model.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        want = theirs(torch.tensor([lm.encode("w20 w21 w22")])).last_hidden_state[:, -1]
    torch.testing.assert_close(lm.embed(["w20 w21 w22"], "last", normalise=False), want, atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match="both directions"):
        lm.generate("w20")
    with pytest.raises(ConfigError, match="cache"):
        lm.model.hidden(
            torch.zeros(1, 1, 48), Marks.run(0, 1), lm.model.mask(), cache=FORMS["qwen2"].build().new_cache()
        )
    with pytest.raises(ConfigError, match="windows"):
        form.kind.parse(form.foreign | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0})
