"""Holes in code: the parts in the order of the model, the middle and its end trained, tokens in the text stay text."""

import json

import numpy as np
import pytest
import tokenizers

from handscroll.base.errors import ConfigError
from handscroll.data.infill import EXCERPT, Cuts, Hole, Infill, hole_in, infill_examples
from handscroll.text.document import Document
from handscroll.text.tokenizer import Tokenizer
from tests.text.chat_tokenizers import built

KINDS = {
    "qwen": "<|fim_prefix|> <|fim_suffix|> <|fim_middle|> <|endoftext|> <|im_end|>",
    "starcoder": "<fim_prefix> <fim_suffix> <fim_middle> <|endoftext|>",
    "codellama": "▁<PRE> ▁<SUF> ▁<MID> ▁<EOT> </s>",
    "deepseek": "<｜fim▁begin｜> <｜fim▁hole｜> <｜fim▁end｜> </s>",
}
CODE = "import os\n\n\ndef walk(top):\n    for name in os.listdir(top):\n        yield os.path.join(top, name)\n"


def infill_of(kind: str, way: str = "byte-level") -> Infill:
    return Infill.of(Tokenizer(built(KINDS[kind], way), {"eos_token": KINDS[kind].split()[-1]}))


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_stand_in_the_order_of_the_model_and_the_middle_is_trained(kind):
    infill = infill_of(kind)
    before, after, middle, end = KINDS[kind].split()[:4]
    hole = Hole(CODE[:20], CODE[20:50], CODE[50:])
    one = infill.encode(hole)
    tokenizer = infill.tokenizer
    assert tokenizer.decode(one.ids, special=True) == f"{before}{hole[0]}{after}{hole[2]}{middle}{hole[1]}{end}"
    asked = infill.prompt(hole.prefix, hole.suffix)
    assert one.ids[: len(asked)] == asked and one.trained == [n >= len(asked) for n in range(len(one))]
    other = infill.encode(hole, "spm")
    assert tokenizer.decode(other.ids, special=True) == f"{before}{after}{hole[2]}{middle}{hole[0]}{hole[1]}{end}"
    assert tokenizer.decode(other.ids[other.trained.index(True) :]) == hole.middle
    with pytest.raises(ConfigError, match="'spm'"):
        infill.prompt("", "", "other")


@pytest.mark.parametrize("way", ["byte-level", "prepend", "first"])
@pytest.mark.parametrize("special", [True, False])
def test_a_token_that_stands_in_the_code_is_text(way, special):
    """Also where the files do not call it special, as some do."""
    spec = json.loads(built("<|endoftext|>", way))
    made = tokenizers.Tokenizer.from_str(json.dumps(spec))
    names = [tokenizers.AddedToken(name, normalized=False, special=special) for name in KINDS["qwen"].split()[:3]]
    made.add_special_tokens(names) if special else made.add_tokens(names)
    infill = Infill.of(Tokenizer(made.to_str(), {"eos_token": "<|endoftext|>"}))
    text = "a <|fim_middle|> b<|fim_prefix|><|endoftext|>"
    one = infill.encode(Hole(text, text, text))
    for mark in (infill.prefix, infill.suffix, infill.middle, infill.end):
        assert one.ids.count(mark) == 1
    assert infill.tokenizer.decode(one.ids[one.trained.index(True) : -1], special=True) == text


def test_holes_are_whole_lines_or_any_characters_and_never_blank():
    for level in ("line", "character"):
        seen = set()
        for seed in range(50):
            hole = hole_in(CODE, np.random.default_rng(seed), level, most=2 if level == "line" else 9)
            assert "".join(hole) == CODE and hole.middle.strip()
            assert len(hole.middle) <= 9 or level == "line"
            if level == "line":
                assert hole.middle.endswith("\n") and hole.prefix[-1:] in ("", "\n") and hole.middle.count("\n") <= 2
            seen.add(hole)
        assert len(seen) > 4
    assert hole_in("one line\n", np.random.default_rng(0), "line") is None
    assert hole_in("\n\n\n", np.random.default_rng(0), "line") is None
    with pytest.raises(ConfigError, match="'word'"):
        hole_in(CODE, np.random.default_rng(0), "word")


def test_long_files_give_excerpts_of_whole_lines_and_what_is_left_out_is_returned():
    infill = infill_of("qwen")
    documents = [Document(CODE, "a.py"), Document(CODE * 40, "b.py"), Document("x = 1 + " * 900, "c.py")]
    kept, left = infill_examples(infill, documents, 96, seed=1, cuts=Cuts(each=3))
    assert [one.place for one in kept] == ["a.py"] * 3 + ["b.py"] * 3 and {one.place for one in left} == {"c.py"}
    assert [one.note for one in kept] == [""] * 3 + [EXCERPT] * 3 and all(len(one) <= 96 for one in kept)
    assert len(left[0]) == len(infill.tokenizer.encode(documents[2].text))
    assert kept[0] != kept[1] and infill_examples(infill, documents, 96, seed=1, cuts=Cuts(each=3)) == (kept, left)
    assert infill_examples(infill, documents, 96, seed=2, cuts=Cuts(each=3))[0] != kept


def test_a_model_without_such_tokens_is_refused():
    with pytest.raises(ConfigError, match="no tokens for filling"):
        Infill.of(Tokenizer(built("<s> </s>"), {}))
