"""`handscroll doctor`: the page, the record and the exit status."""

import json

import pytest
from typer.testing import CliRunner

from handscroll.base.errors import ConfigError
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


@pytest.mark.parametrize(
    ("options", "idle"),
    [
        (["x", "--only", "frequencies", "--length", "5"], "--length"),
        (["x", "--length", "1024"], "--length"),  # also where it is what it would be anyway
        (["x", "--text", "one.txt"], "--text"),
        (["x", "--name", "x"], "--name"),
        (["x", "--longest", "3"], "--longest"),
        (["x", "--against", "y", "--only", "frequencies"], "--only"),
        (["x", "--against", "y", "--skip", "frequencies"], "--skip"),
        (["x", "--against", "http://127.0.0.1:9/v1", "--name", "x"], "--name"),
        (["x", "--against", "http://127.0.0.1:9/v1", "--against-runtime", "transformers"], "--against-runtime"),
        (["--endpoint", "http://127.0.0.1:9/v1", "--runtime", "transformers"], "--runtime"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options, idle):
    done = RUN.invoke(app, ["doctor", *options])
    assert isinstance(done.exception, ConfigError) and f"{idle} " in str(done.exception), done.output


def test_a_length_of_no_tokens_is_refused():
    done = RUN.invoke(app, ["doctor", "x", "--against", "y", "--length", "-5"])
    assert isinstance(done.exception, SystemExit) and done.exit_code == 2 and "'--length'" in done.output


def test_wrong_use_is_told():
    for options, word in (
        ([], "no model was given"),
        (["x", "--only", "cash"], "unknown check 'cash'"),
        (["x", "--runtime", "lama"], "unknown runtime 'lama'"),
    ):
        done = RUN.invoke(app, ["doctor", *options])
        assert word in str(done.exception), done.output
