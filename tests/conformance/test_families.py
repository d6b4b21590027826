"""Every check of `checks.py` on every form of every family of the table."""

import pytest

from handscroll.models.table import FAMILIES
from tests.conformance.checks import CHECKS
from tests.conformance.families import FORMS
from tests.conformance.matrix import checks, matrix
from tests.conftest import ROOT


@pytest.mark.promise("R7")
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("form", FORMS)
def test_conformance(form, check, tmp_path):
    held = CHECKS[check]
    (held.run if held.can(FORMS[form]) else held.refused)(FORMS[form], tmp_path)


def test_every_family_of_the_table_is_here():
    assert {form.family for form in FORMS.values()} == set(FAMILIES)


@pytest.mark.parametrize(("page", "table"), [("models.md", matrix), ("adding/family.md", checks)])
def test_the_pages_say_what_is_checked(page, table):
    """A capability that a family loses, or gains, changes a table: nothing is left out in silence."""
    assert table() in (ROOT / "docs" / page).read_text(encoding="utf-8"), f"docs/{page} needs this table:\n{table()}"
