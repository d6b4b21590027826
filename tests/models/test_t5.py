"""T5 in all its forms against the reference library: logits, padding, cached decoding, what is refused."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.lm import LM, load
from handscroll.models.new import About, new_model
from handscroll.models.t5 import T5
from handscroll.models.weights import load_model, save_model
from handscroll.nn.marks import Marks
from handscroll.text.training import TokenizerConfig, train_tokenizer
from tests.models.t5 import FORMS, save, theirs_at, tokens
from tests.naming import naming

LENGTHS = ((1, 1), (9, 40), (150, 33), (300, 170))


@pytest.mark.parametrize("form", FORMS)
def test_equal_logits_both_ways(form, tmp_path):
    theirs = save(form, tmp_path / "theirs")
    model = load_model(tmp_path / "theirs")
    assert isinstance(model, T5)
    save_model(model, tmp_path / "ours")
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    assert type(again) is type(theirs)
    for source_length, length in LENGTHS:
        source, target = tokens(2, source_length), tokens(2, length, 7)
        want = theirs_at(theirs, source, target)
        with torch.no_grad():
            assert (model(source, target) - want).abs().max() < 1e-5 * max(1.0, float(want.abs().max()))
        assert (theirs_at(again, source, target) - want).abs().max() < 1e-5 * max(1.0, float(want.abs().max()))
    assert model.config.scaled == (form in ("v1.0", "few buckets")) == model.config.tied


@pytest.mark.parametrize("form", ["v1.0", "v1.1"])
def test_rows_of_different_lengths(form, tmp_path):
    theirs, source, target = save(form, tmp_path), tokens(3, 60), tokens(3, 20, 9)
    model = load_model(tmp_path)
    lengths, target_lengths = torch.tensor([60, 7, 33]), torch.tensor([5, 20, 11])
    source_marks = Marks.rows(torch.zeros(3, dtype=torch.long), lengths)
    marks = Marks.rows(torch.zeros(3, dtype=torch.long), target_lengths)
    with torch.no_grad():
        ours = model(source, target, source_marks, marks)
    want = theirs_at(theirs, source, target, lengths)
    for row, length in enumerate(target_lengths):
        assert (ours[row, :length] - want[row, :length]).abs().max() < 1e-5 * float(want.abs().max())


def test_a_decoder_without_a_source_is_refused(tmp_path):
    save("v1.0", tmp_path)
    model, marks = load_model(tmp_path), Marks.run(0, 5)
    with pytest.raises(ConfigError, match="source"):
        model.hidden(model.embed(tokens(1, 5), marks), marks, model.mask())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_start_token_id": None}, "decoder_start_token_id"),
        ({"feed_forward_proj": "gated-relu"}, "feed_forward_proj"),
        ({"dense_act_fn": "silu"}, "silu"),
        ({"is_decoder": True}, "is_decoder|encoder-decoder"),
        ({"global_block_size": 16}, "global_block_size"),
        ({"hidden_size": 99}, naming(99)),
        ({"relative_attention_max_distance": 16}, "16 tokens"),
        ({"decoder_start_token_id": 97}, naming(97)),
    ],
)
def test_configurations_that_are_refused(changes, message, tmp_path):
    save("v1.0", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ConfigError, match=message):
        load_model(tmp_path)


def test_copies_of_the_token_table_must_be_copies(tmp_path):
    theirs = save("v1.0", tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    unread = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"  # old releases have it
    more = {"encoder.embed_tokens.weight": state["shared.weight"].clone(), unread: torch.ones(32, 6)}
    save_file(state | more, path)
    want = theirs_at(theirs, tokens(1, 9), tokens(1, 4))
    with torch.no_grad():
        assert (load_model(tmp_path)(tokens(1, 9), tokens(1, 4)) - want).abs().max() < 1e-4
    save_file(state | {"encoder.embed_tokens.weight": state["shared.weight"] + 1}, path)
    with pytest.raises(CheckpointError, match=r"encoder\.embed_tokens"):
        load_model(tmp_path)


def test_a_new_t5_reads_and_pads_as_it_was_trained(tmp_path):
    """A trained tokenizer ends sources as span corruption does; the folder names its padding token, not token 0."""
    settings = TokenizerConfig(vocab=275, special=("<pad>", "</s>"), sentinels=4)
    tokenizer = train_tokenizer(["once upon a time there was a text " * 40], settings)
    end, pad = tokenizer.eos, tokenizer.pad
    assert tokenizer.encode("once")[-1] == end and end not in tokenizer.encode("once", special=False)
    sizes = {"width": 32, "encoder_layers": 1, "layers": 1, "heads": 2, "head_size": 16, "mlp_width": 32}
    model = new_model("t5", sizes | {"context": 64}, About(tokenizer, 64))
    LM(model.eval(), tokenizer, "new").save(tmp_path)
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path)
    assert theirs.config.pad_token_id == pad != 0 and theirs.config.decoder_start_token_id == pad
    again = load(tmp_path)
    again.generate("", max_tokens=2, temperature=0.0)  # its end token is a source
    save_model(model, tmp_path / "other", pad=end)  # an end token is trained: no row that is never
    assert json.loads((tmp_path / "other" / "config.json").read_text())["pad_token_id"] == pad
    texts = transformers.AutoTokenizer.from_pretrained(tmp_path)(["once upon", ""], padding=True, return_tensors="pt")
    assert texts["input_ids"][1].tolist()[0] == end and set(texts["input_ids"][1].tolist()[1:]) == {pad}
