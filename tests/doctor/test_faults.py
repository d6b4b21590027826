"""Injected faults are found, each by the check that names it; and seven bugs that other tools had."""

import math

import pytest
import torch
import torch.nn.functional as F
import transformers

from handscroll.doctor.examine import doctor
from tests.doctor.material import CHATML, SPECIALS, ours, plain, rotary, settings, spelling, theirs, turned

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def scaled_after_loading(monkeypatch):
    model = theirs()
    model.config.max_position_embeddings = 256
    model.config.rope_parameters = model.config.rope_parameters | YARN
    return model, spelling()


def scaled_twice(monkeypatch):
    model = theirs(scaling="linear")
    return turned(model, plain(model) / 16), spelling()


def base_lost(monkeypatch):
    model = theirs(rope_theta=500.0)
    return turned(model, plain(model, 10_000.0)), spelling()


def cache_off_by_one(monkeypatch):
    kind, own = transformers.cache_utils.DynamicCache, transformers.cache_utils.DynamicCache.get_seq_length

    def counted(self, *args, **kwargs):
        found = own(self, *args, **kwargs)
        return found + 1 if found else found

    monkeypatch.setattr(kind, "get_seq_length", counted)
    return theirs(), spelling()


def table_wraps(monkeypatch):
    model = theirs("gpt2")
    table = model.transformer.wpe
    monkeypatch.setattr(table, "forward", lambda ids: F.embedding(ids % len(table.weight), table.weight))
    return model, spelling()


def dynamic_over_a_cache(monkeypatch):
    return theirs(scaling="dynamic"), spelling()


def halves_swapped(monkeypatch):
    def swapped(x):
        first, second = x.chunk(2, dim=-1)
        return torch.cat((second, -first), dim=-1)

    monkeypatch.setattr(transformers.models.llama.modeling_llama, "rotate_half", swapped)
    return theirs(), spelling()


def padded_on_the_right(monkeypatch):
    return theirs(), spelling(padding_side="right")


def packing_leaks(monkeypatch):
    monkeypatch.setattr(transformers.masking_utils, "find_packed_sequence_indices", lambda positions: None)
    return theirs(), spelling()


def bos_missing(monkeypatch):
    made = spelling()
    made.init_kwargs["add_bos_token"] = True
    return theirs(), made


def factor_left_out(monkeypatch):
    model = theirs(scaling="yarn")
    rotary(model).attention_scaling = 1.0
    return model, spelling()


def window_ignored(monkeypatch):
    library = transformers.models.mistral.modeling_mistral
    monkeypatch.setattr(library, "create_sliding_window_causal_mask", library.create_causal_mask)
    return theirs("mistral-window"), spelling()


def tied_head_lost(monkeypatch):
    model = theirs(tie_word_embeddings=True)
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    return model, spelling()


def positions_in_bfloat16(monkeypatch):
    model = theirs(max_position_embeddings=4096)
    module, own = rotary(model), rotary(model).forward
    monkeypatch.setattr(module, "forward", lambda x, places: own(x, places.to(torch.bfloat16)))
    return model, spelling()


def template_of_another(monkeypatch):
    """ChatML over a tokenizer that has none of its tokens."""
    bare = "<s> </s> <pad>"
    model = theirs()
    model.config.eos_token_id = model.generation_config.eos_token_id = spelling(bare, eos_token="</s>").eos_token_id
    return model, spelling(bare, eos_token="</s>", chat_template=CHATML)


FAULTS = {  # the fault: the check that must name it, a word of its sentence, and the checks in which it shows too
    scaled_after_loading: ("frequencies", "is not applied", {"attention-factor", "reference"}),
    scaled_twice: ("frequencies", "twice", {"reference"}),
    base_lost: ("frequencies", "10000", {"reference"}),
    cache_off_by_one: ("cache", "behind the first piece", set()),
    table_wraps: ("past-end", "256 rows", set()),
    dynamic_over_a_cache: ("cache", "grows past 64", set()),
    halves_swapped: ("reference", "halves of each rotated head are swapped", set()),
    padded_on_the_right: ("padding", "taken from padding", set()),
    packing_leaks: ("packing", "the first one", set()),
    bos_missing: ("bos", "<s>", set()),
    factor_left_out: ("attention-factor", "left out", {"reference"}),
    window_ignored: ("window", "ignored", {"reference", "cache"}),
    tied_head_lost: ("head", "another matrix", {"reference"}),
    positions_in_bfloat16: ("precision", "bfloat16", {"offsets"}),
    template_of_another: ("template", "does not know", set()),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_found_and_named(fault, monkeypatch):
    check, word, also = FAULTS[fault]
    found = doctor(*fault(monkeypatch))
    assert check in found.wrong and set(found.wrong) <= {check} | also, found.wrong
    (one,) = [one for one in found.checks if one.name == check]
    assert any(word in each.what for each in one.seen.faults), [each.what for each in one.seen.faults]
    assert all(each.shows and each.mend for each in one.seen.faults)
    assert found.status == 1


def soup_793():
    """Scaling set after the model was loaded changes nothing."""
    return scaled_after_loading(None)[0], "is not applied"


def mlx_vlm_1710():
    """rope_scaling is ignored."""
    model = theirs(scaling="yarn")
    return turned(model, plain(model)), "is not applied"


def unsloth_6907():
    """Unscaled inverse frequencies of a llama3 scaling."""
    model = theirs(scaling="llama3")
    return turned(model, plain(model)), "is not applied"


def unsloth_6197():
    """Tables that end: gibberish from there on."""
    model = theirs(max_position_embeddings=32_768)
    module, own = rotary(model), rotary(model).forward
    module.forward = lambda x, places: own(x, places.clamp_max(29_000))
    return model, "wrong from position 29,001 on"


def mlxcel_1688():
    """llama3 is read as linear."""
    model = theirs(scaling="llama3")
    return turned(model, plain(model) / 4), "read as 'linear'"


def safe_synthesizer_623():
    """The factor is applied twice."""
    model = theirs(scaling="linear")
    return turned(model, plain(model) / 16), "twice"


def qwen3_1424():
    """The factor is the ratio of max_position_embeddings and the original length, not the one that is stated."""
    stated = {"rope_scaling": {**YARN, "factor": 4.0}, "max_position_embeddings": 80}
    model = theirs(**stated)
    wrong = theirs(rope_scaling={**YARN, "factor": 1.25}, max_position_embeddings=80)
    return turned(model, rotary(wrong).inv_freq), "max_position_embeddings / original = 1.25 instead of 4"


DATED = (soup_793, mlx_vlm_1710, unsloth_6907, unsloth_6197, mlxcel_1688, safe_synthesizer_623, qwen3_1424)


@pytest.mark.parametrize("bug", DATED, ids=lambda bug: bug.__name__)
def test_bugs_that_other_tools_had_are_named(bug):
    model, word = bug()
    found = doctor(model, only=("frequencies", "precision"))
    sentences = [fault.what for one in found.of("wrong") for fault in one.seen.faults]
    assert any(word in sentence for sentence in sentences), sentences


def test_our_own_frequencies_are_held_to_the_configuration_too(monkeypatch):
    from handscroll.nn.scaling.yarn import YaRN, plain_frequencies

    rope = {"rope_scaling": YARN}
    lm = ours(**rope, max_position_embeddings=256)
    assert doctor(lm).wrong == ()
    monkeypatch.setattr(YaRN, "inverse_frequencies", lambda self, size, base, length: plain_frequencies(size, base))
    monkeypatch.setattr(YaRN, "attention_factor", lambda self, length: math.sqrt(2))
    wrong = doctor(ours(**rope, max_position_embeddings=256, rope_theta=700.0)).wrong  # no table is remembered of it
    assert wrong == ("frequencies", "attention-factor")


@pytest.mark.parametrize(
    ("more", "check", "word"),
    [
        (
            {"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"},
            "template",
            "nothing behind a question",
        ),
        ({"chat_template": CHATML.replace("{{ m.content }}", "...")}, "template", "does not arrive"),
        ({"add_bos_token": True}, "bos", "<s>"),
    ],
)
def test_faults_of_our_own_tokenizers(more, check, word):
    from handscroll.lm import LM
    from handscroll.text.tokenizer import Tokenizer
    from tests.doctor.material import spec

    lm = LM(ours().model, Tokenizer(spec(SPECIALS), settings(**more)), "x")
    found = doctor(lm, only=("template", "bos", "special", "tokenizer", "generation"))
    assert found.wrong == (check,)
    assert any(word in fault.what for one in found.of("wrong") for fault in one.seen.faults)


def test_a_turn_that_ends_with_no_stop_token_is_found():
    found = doctor(theirs(), spelling(chat_template=CHATML.replace("<|im_end|>", "</s>")), only=("template",))
    assert "generation stops at" in found.checks[0].seen.faults[0].what
