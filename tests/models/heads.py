"""Small models with heads, and tokenizers for them."""

import json

from handscroll.base.spec import HeadSpec
from tests.conformance.families import FORMS

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the ##s ##ly cat dog run sat quick on a b c . , 猫 狗".split()
KINDS = {"text": ("good", "bad", "neither"), "tokens": ("O", "B-NAME", "I-NAME"), "answer": ()}
PLAIN = {name: form for name, form in FORMS.items() if not form.name and not form.kind.own}


def foreign_of(form, kind, **more):
    """The `config.json` of a form with a head."""
    labels = {"id2label": {str(number): label for number, label in enumerate(KINDS[kind])}} if KINDS[kind] else {}
    return form.foreign | {"architectures": [class_of(form, kind)], "pad_token_id": 1, **labels, **more}


def class_of(form, kind):
    head = HeadSpec(kind=kind, labels=KINDS[kind])
    config = form.config.model_copy(update={"head": head, "masked": False, "following": False})
    return form.kind.write(config)["architectures"][0]


def words(post=None):
    vocabulary = {f"w{number}": number for number in range(97)}
    spec = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "post_processor": post}
    return json.dumps(spec | {"model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"}})
