"""The command as tests call it."""

from typer.testing import CliRunner

from handscroll.base.errors import HandscrollError
from handscroll.cli.main import app


def run(*words: str, fails: str | None = None, **options) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], **options)
    if fails is not None:
        assert isinstance(result.exception, HandscrollError), result.output
        assert fails in str(result.exception), str(result.exception)
        return ""
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.stdout
