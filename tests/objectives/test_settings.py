"""The table of objectives: names, settings, and which models each is for."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from handscroll.base.errors import ConfigError
from handscroll.data.stream import Listed
from handscroll.models.new import NEW, About, new_model
from handscroll.models.table import FAMILIES
from handscroll.objectives.head import cross_entropy
from handscroll.objectives.settings import OBJECTIVES, objective_from
from handscroll.text.training import TokenizerConfig, train_tokenizer
from tests.naming import naming

SPECIAL = ("<|endoftext|>", "[MASK]", "[gMASK]", "[sop]", "[eop]")
SIZES = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 32}
OWN = {
    "llama": {"kv_heads": 1, "head_size": 8, "context": 32},
    "gpt2": {"context": 32},
    "glm": {"kv_heads": 1, "head_size": 8},
    "gemma2": {"kv_heads": 1, "head_size": 8, "context": 32},
    "gemma3_text": {"kv_heads": 1, "head_size": 8, "context": 32},
    "bert": {"context": 32},
    "glm-blank": {},
    "t5": {"encoder_layers": 1, "head_size": 8},
}
LEARNED = {
    "llama": "causal",
    "gpt2": "causal",
    "glm": "causal",
    "gemma2": "causal",
    "gemma3_text": "causal",
    "bert": "masked",
    "glm-blank": "blanks",
    "t5": "span-corruption",
    "lstm": "causal",
}


@pytest.fixture(scope="module")
def about():
    return About(train_tokenizer(["hello " * 50], TokenizerConfig(vocab=261, special=SPECIAL)), 32)


def test_settings_come_back_with_their_name():
    for name in OBJECTIVES:
        task = objective_from(name)
        assert task.name == name and objective_from(task.model_dump(mode="json")) == task
    assert objective_from({"name": "masked", "rate": 0.3}).share({}) == 0.3
    for wrong, told in (("masks", "'masked'"), ({"name": "causal", "rate": 1}, "'rate'"), ({}, "name")):
        with pytest.raises(ConfigError, match=told):
            objective_from(wrong)


@pytest.mark.parametrize("family", sorted(NEW))
def test_every_new_model_is_learned_by_one_objective(family, about):
    assert family in FAMILIES
    sizes = {"width": 16, "layers": 1} if family == "lstm" else SIZES | OWN[family]
    cases = [(new_model(family, sizes, about), LEARNED[family])]
    if family in ("lstm", "bert"):
        cases.append((new_model(family, sizes, About(about.tokenizer, 32, ("a", "b"))), "classify"))
    for model, wanted in cases:
        assert [name for name in OBJECTIVES if objective_from(name).fits(model)] == [wanted]
        for name in set(OBJECTIVES) - {wanted}:
            with pytest.raises(ConfigError, match=naming(f"'{name}'", f"'{family}'", f"'{wanted}'")):
                objective_from(name).objective(model)


def test_items_at_hand_are_a_stream():
    stream = Listed([3, 4, 5])
    (first, state), *rest = stream
    assert [first, *(item for item, _ in rest)] == [3, 4, 5] == [3, *(item for item, _ in stream.resume(state))]


def test_validation_forms_no_slopes():
    hidden, head = torch.randn(6, 8, requires_grad=True), torch.randn(16, 8, requires_grad=True)
    targets = torch.arange(6)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        cross_entropy(hidden, head, targets)
    assert counter.get_total_flops() == 2 * 6 * 8 * 16
