"""Marks are made on the device of the model. The meta device stands for a GPU: it computes nothing."""

import pytest
import torch

from handscroll.doctor.runtime import Trial
from handscroll.doctor.runtimes import ours as runtime
from handscroll.doctor.runtimes.ours import Ours
from handscroll.evaluate import leak
from handscroll.evaluate.samples import Sample
from handscroll.evaluate.similarity import token_vectors
from handscroll.extend.windows import Window, losses
from handscroll.lm import LM
from handscroll.objectives.causal import Causal
from tests.conformance.families import FORMS
from tests.conformance.material import tokenizer

ROWS = (list(range(20, 32)), list(range(30, 37)))
READS = {
    "following": ("llama", lambda lm: Ours(lm, FORMS["llama"].foreign).following(ROWS)),
    "packed": ("llama", lambda lm: Ours(lm, FORMS["llama"].foreign).read(Trial(ROWS, packed=True))),
    "pieces": ("llama", lambda lm: Ours(lm, FORMS["llama"].foreign).read(Trial(ROWS[:1], pieces=(5, 7), shift=3))),
    "leak": ("llama", lambda lm: leak.ours(lm.model, Causal(), 32)(ROWS)),
    "leaping": ("llama", lambda lm: losses(lm, Window.leaping(Sample(list(range(20, 36)), "", 0), 8, 64))),
    "similarity": ("bert", lambda lm: token_vectors(lm, "the cat")),
}


class Read(Exception):
    """The model was called."""


@pytest.mark.parametrize("name", READS)
def test_marks_lie_beside_the_tokens(name, monkeypatch):
    form, read = READS[name]
    lm = LM(FORMS[form].build(torch.float32).to("meta"), tokenizer(), form)

    def look(model, tokens, marks, *rest, **more):
        assert {one.device.type for one in (tokens, *marks.tensors(tokens.device))} == {"meta"}
        raise Read

    monkeypatch.setattr(type(lm.model), "embed", look)
    monkeypatch.setattr(runtime, "prefill", look)
    with pytest.raises(Read):
        read(lm)
