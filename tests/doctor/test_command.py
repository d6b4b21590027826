"""`handscroll doctor`: the page, the record and the exit status."""

import json

import pytest
from typer.testing import CliRunner

from handscroll.cli.main import app
from tests.doctor.material import edited, saved, spelling, theirs
from tests.doctor.server import serving

RUN = CliRunner()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(theirs(), spelling(), tmp_path_factory.mktemp("doctor") / "model")


def test_a_healthy_folder_in_both_runtimes(folder, tmp_path):
    for runtime in ("handscroll", "transformers"):
        record = tmp_path / "record.json"
        done = RUN.invoke(app, ["doctor", str(folder), "--runtime", runtime, "--json", str(record)])
        assert done.exit_code == 0, done.output
        assert "0 wrong" in done.output and "reference" in done.output and "does not apply" in done.output
        found = json.loads(record.read_text())
        assert found["kind"] == "doctor" and found["wrong"] == [] and found["runtime"] == runtime


def test_a_head_whose_tie_was_lost_on_disk(tmp_path):
    """The file has no head, and the key that ties it is gone: the library makes one of random numbers."""
    folder = saved(theirs(tie_word_embeddings=True), spelling(), tmp_path / "model")
    edited(folder, tie_word_embeddings=False)
    done = RUN.invoke(app, ["doctor", str(folder), "--runtime", "transformers", "--only", "head"])
    assert done.exit_code == 1 and "made of random numbers" in done.output and "to mend" in done.output
    refused = RUN.invoke(app, ["doctor", str(folder)])  # ours does not load it
    assert refused.exception is not None and "lm_head" in str(refused.exception)


def test_two_runtimes_part_where_their_settings_differ(folder, tmp_path):
    other = saved(theirs(rope_theta=100.0), spelling(), tmp_path / "other")
    done = RUN.invoke(app, ["doctor", str(folder), "--against", str(other), "--length", "60"])
    assert done.exit_code == 1 and "leaves handscroll" in done.output
    same = RUN.invoke(
        app, ["doctor", str(folder), "--against", str(folder), "--against-runtime", "transformers", "--length", "60"]
    )
    assert same.exit_code == 0 and "agree on all 60 tokens" in same.output


def test_an_endpoint_on_the_command_line():
    with serving(cut=512) as url:
        done = RUN.invoke(app, ["doctor", "--endpoint", url, "--longest", "2000"])
    assert done.exit_code == 1 and "was cut without an error" in done.output


def test_wrong_use_is_told():
    for options, word in (
        ([], "no model was given"),
        (["x", "--only", "cash"], "unknown check 'cash'"),
        (["x", "--runtime", "lama"], "unknown runtime 'lama'"),
    ):
        done = RUN.invoke(app, ["doctor", *options])
        assert word in str(done.exception), done.output
