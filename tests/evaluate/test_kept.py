"""Parts of a measurement in a file: what is there is kept, and a damaged line is named."""

import pytest

from handscroll.base.errors import CheckpointError
from handscroll.evaluate.kept import Kept


@pytest.mark.parametrize("line", ['{"x": 1}', '{"part": "b"}', "[1]", "{"])
def test_a_damaged_line_is_named(line, tmp_path):
    path = tmp_path / "kept.jsonl"
    with Kept(path, {"kind": "some"}) as kept:
        kept["a"] = 1
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    with pytest.raises(CheckpointError, match=r"kept\.jsonl, line 3"):
        Kept(path, {"kind": "some"})
