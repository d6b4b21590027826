"""Leaks between packed documents: none in our own packing, in any family, and every injected one is found."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import transformers

from handscroll.base.errors import DataError
from handscroll.data.pack import pack
from handscroll.evaluate import leak
from handscroll.evaluate.leak import drawn, foreign, leak_record, leaks, ours
from handscroll.nn.marks import Marks
from handscroll.objectives.causal import Causal
from handscroll.objectives.settings import objective_from
from tests.conformance.families import FORMS, reference
from tests.naming import naming

READ = [
    name
    for name, form in FORMS.items()
    if form.config.spec.predicts and form.config.spec.reads in ("forward", "both") and form.config.spec.head is None
]
TEXTS = drawn(97, count=3, size=14, avoid=range(20))
ROW = 14 + 11 + 8


@pytest.mark.parametrize("name", READ)
def test_our_packing_leaks_in_no_family(name):
    model = FORMS[name].build(torch.float32)
    objective = objective_from("masked" if model.spec.both_ways else "causal").objective(model)
    assert leaks(ours(model, objective, ROW), TEXTS) == []


def found(packing):
    return {(one.source, one.into, one.by, one.loss) for one in leaks(packing, TEXTS)}


def test_a_lost_mask_is_found():
    class Open(Causal):
        def mask(self, model, marks):
            return model.mask()

    for name in ("llama", "bloom"):
        some = found(ours(FORMS[name].build(torch.float32), Open(), ROW))
        assert {(0, 1, "tokens", False), (0, 2, "tokens", False), (1, 2, "tokens", False)} <= some
        assert not any(source > into for source, into, _, _ in some), "nothing is read backwards"


def test_positions_that_go_on_are_found(monkeypatch):
    """With a learned table the place of a document in its row shows; with rotary angles it does no harm."""
    objective = Causal()
    for name, harmful in (("gpt2", True), ("llama", False)):
        model = FORMS[name].build(torch.float32)
        embed, hidden = model.embed, model.hidden

        def going_on(marks):
            return Marks.of(marks.index, marks.segment, marks.index.clamp_min(0))  # padding has no place

        monkeypatch.setattr(model, "embed", lambda tokens, marks, embed=embed: embed(tokens, going_on(marks)))
        monkeypatch.setattr(
            model, "hidden", lambda x, marks, mask, length, hidden=hidden: hidden(x, going_on(marks), mask)
        )
        some = found(ours(model, objective, ROW))
        assert {by for _, _, by, _ in some} == ({"size"} if harmful else set())


def test_a_target_across_the_seam_is_found(monkeypatch):
    def across(documents, length):
        for row in pack(documents, length):
            targets = row.targets.copy()
            targets[:-1] = row.tokens[1:]
            yield replace(row, targets=targets)

    monkeypatch.setattr(leak, "pack", across)
    some = found(ours(FORMS["llama"].build(torch.float32), Causal(), ROW))
    assert (1, 0, "tokens", True) in some and (2, 1, "tokens", True) in some and (2, 0, "tokens", True) not in some


class Padding:
    """A collator that gives each document a row of its own."""

    def __call__(self, features):
        longest = max(len(feature["input_ids"]) for feature in features)
        rows = [feature["input_ids"] + [0] * (longest - len(feature["input_ids"])) for feature in features]
        seen = [[1] * len(f["input_ids"]) + [0] * (longest - len(f["input_ids"])) for f in features]
        return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(seen)}


def flat(positions, labels):
    """A collator that puts all documents into one row."""

    def collate(features):
        texts = [feature["input_ids"] for feature in features]
        made = {"input_ids": torch.tensor([[token for text in texts for token in text]])}
        if positions:
            made["position_ids"] = torch.tensor([[n for text in texts for n in range(len(text))]])
        if labels:
            cut = [token if n or labels != "kept" else -100 for text in texts for n, token in enumerate(text)]
            made["labels"] = torch.tensor([cut])
        return made

    return collate


def test_models_and_collators_of_transformers():
    """Rows of their own and the flattening collator leak nothing; a row without positions, or with a cache, all."""
    whole = reference("llama")
    assert leaks(foreign(whole, transformers.DataCollatorWithFlattening()), TEXTS), "a cache hides that it is packed"
    model = partial(whole, use_cache=False)
    assert leaks(foreign(model, Padding()), TEXTS) == []
    assert leaks(foreign(model, transformers.DataCollatorWithFlattening()), TEXTS) == []
    assert leaks(foreign(model, flat(positions=True, labels="kept")), TEXTS) == []
    some = found(foreign(model, flat(positions=False, labels="")))
    assert {(0, 1, "tokens", False), (0, 2, "tokens", False), (1, 2, "tokens", False)} <= some
    some = found(foreign(model, flat(positions=True, labels="all")))
    assert some >= {(0, 1, "tokens", True), (1, 2, "tokens", True)}, "the first token is predicted across the seam"


def test_a_test_that_sees_nothing_is_refused():
    for packing, words in (
        (lambda documents: [torch.zeros(len(one), 2) for one in documents], "change nothing"),
        (lambda documents: [torch.zeros(3, 2) for one in documents], naming(14, 11, 8)),
    ):
        with pytest.raises(DataError, match=words):
            leaks(packing, TEXTS)
    with pytest.raises(DataError, match="two documents"):
        leaks(lambda documents: [], TEXTS[:1])
    with pytest.raises(DataError, match="not whole"):
        leaks(foreign(reference("llama"), lambda features: {"input_ids": torch.zeros(1, 9, dtype=torch.long)}), TEXTS)


def test_the_record_names_every_leak():
    class Open(Causal):
        def mask(self, model, marks):
            return model.mask()

    model = FORMS["llama"].build(torch.float32)
    record = leak_record("m", ours(model, Open(), ROW), TEXTS, "causal")
    assert record["leaks"] and "document 0" in record["said"][0] and record["certificate"]["seen"] == 14 + 11 + 8
    assert leak_record("m", ours(model, Causal(), ROW), TEXTS, "causal")["leaks"] == []
