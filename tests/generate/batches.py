"""Files of requests, the command that answers them, and its answers."""

import json

from typer.testing import CliRunner

from handscroll.base.errors import HandscrollError
from handscroll.cli.main import app


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def run(*words, fails=None):
    result = CliRunner().invoke(app, [str(word) for word in words])
    if fails is not None:
        assert isinstance(result.exception, HandscrollError), repr(result.exception)
        assert fails in str(result.exception), str(result.exception)
        return ""
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.stdout


def records(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
