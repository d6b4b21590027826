"""Nothing is found in healthy models: every form of every family here, and the reference library's."""

import pytest
import torch

from handscroll.base.errors import ConfigError
from handscroll.doctor.examine import chosen, diagnose, doctor
from handscroll.doctor.runtimes.ours import Ours
from handscroll.doctor.table import CHECKS
from handscroll.lm import LM
from tests.conformance.families import FORMS
from tests.conformance.material import tokenizer
from tests.conftest import ROOT
from tests.doctor.material import ours, spelling, theirs
from tests.naming import naming

FIRST = {form.family: name for name, form in reversed(FORMS.items())}.values()
FORMS_OF_OURS = [name if name in FIRST else pytest.param(name, marks=pytest.mark.long) for name in FORMS]


@pytest.mark.parametrize("form", FORMS_OF_OURS)
def test_no_alarm_on_a_form_of_ours(form):
    lm = LM(FORMS[form].build(torch.float32), tokenizer(), form)
    found = diagnose(Ours(lm, FORMS[form].foreign), skip=("reference",))
    assert found.wrong == (), [fault for one in found.of("wrong") for fault in one.seen.faults]
    assert found.status == 0
    unexamined = {one.name: one.why for one in found.of("unexamined")}
    assert set(unexamined) <= {"offsets", "window", "repeats", "packing", "padding"}, unexamined


HEALTHY = (
    ("llama", "none"),
    ("llama", "yarn"),
    ("llama", "llama3"),
    ("llama", "linear"),
    ("mistral-window", "none"),
    ("qwen2", "none"),
    ("qwen3", "yarn"),
    ("gemma2", "none"),
    ("gemma3_text", "none"),
    ("glm4", "none"),
    ("gpt_neox", "none"),
    ("gpt2", "none"),
    ("bloom", "none"),
)


@pytest.mark.parametrize(("form", "scaling"), HEALTHY)
def test_no_alarm_on_a_model_of_the_reference_library(form, scaling):
    found = doctor(theirs(form, scaling), spelling())
    assert found.wrong == (), [fault for one in found.of("wrong") for fault in one.seen.faults]
    examined = {one.name for one in found.of("healthy")}
    assert {"cache", "batch", "padding", "head", "reference", "template", "bos", "special"} <= examined


def test_the_record_of_a_model_is_the_same_twice():
    one, other = doctor(ours()), doctor(ours())
    assert one.record() == other.record()
    assert {each["verdict"] for each in one.record()["checks"]} <= {"healthy", "absent", "unexamined"}


def test_checks_are_chosen_by_name():
    assert chosen(("cache",)) == ["cache"] and len(chosen(skip=("cache",))) == len(CHECKS) - 1
    with pytest.raises(ConfigError, match=naming("'cash'", "'cache'")):
        chosen(("cash",))
    with pytest.raises(ConfigError, match="no check is left"):
        chosen(("cache",), ("cache",))


def test_the_pages_name_every_check_and_show_real_code():
    page = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    for name in CHECKS:
        assert f"| `{name}` |" in page, name
    guide = (ROOT / "docs" / "adding" / "check.md").read_text(encoding="utf-8")
    shown = guide.split("```python\n")[1].split("```")[0].splitlines()
    source = (ROOT / "handscroll" / "doctor" / "checks" / "past_end.py").read_text(encoding="utf-8").splitlines()
    assert len(shown) > 20 and set(shown) <= set(source), set(shown) - set(source)
