"""The bytes that autograd keeps of a token, counted tensor by tensor, beside what the planner says."""

import pytest
import torch

from handscroll.base.workload import Workload
from handscroll.nn.marks import Marks
from handscroll.plan.layer import kept_by_all
from tests.conformance.families import FORMS

TOKENS = 256
WIDE = {"hidden_size": 192, "num_attention_heads": 6, "head_dim": 32, "intermediate_size": 320}
LONG = {"max_position_embeddings": 512, "sliding_window": None}


def kept(model) -> int:
    """Bytes of all tensors that the backward of the layers will read, without the weights."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found = {}

    def pack(tensor):
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in own:
            found[memory.data_ptr()] = (memory.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    marks = Marks.run(0, TOKENS)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        x = model.embed(torch.randint(20, 97, (1, TOKENS)), marks)
        model.through(x, model.context(x, marks, model.mask(), TOKENS))
    return sum(size for size, _ in found.values())


@pytest.mark.parametrize(
    "name", ["llama", "qwen3", "olmo2", "granite", "smollm3", "starcoder2", "mixtral", "qwen3_moe"]
)
def test_what_a_layer_keeps_is_foretold(name):
    model = FORMS[name].build(torch.float32, foreign=FORMS[name].foreign | WIDE | LONG)
    told = kept_by_all(Workload(spec=model.spec, length=TOKENS, strategy="plain")) * TOKENS
    assert told == pytest.approx(kept(model), rel=0.01)
