"""The errors of the tokenizers library as errors for users: it raises bare Exceptions, and panics."""

from collections.abc import Iterator
from contextlib import contextmanager

from handscroll.base.errors import CheckpointError, HandscrollError

PANIC = "PanicException"  # of pyo3: derived from BaseException, and not to be imported from anywhere


@contextmanager
def reported(what: str, where: str = "the tokenizer") -> Iterator[None]:
    """Whatever the library raises while it does `what` becomes a CheckpointError: its file is damaged.

    Raises:
        CheckpointError: with the library's own words.
    """
    try:
        yield
    except HandscrollError:
        raise
    except Exception as error:  # the library raises bare Exceptions for anything that it cannot do
        raise _damaged(what, where, error) from error
    except BaseException as error:
        if type(error).__name__ != PANIC:
            raise
        raise _damaged(what, where, error) from error


def _damaged(what: str, where: str, error: BaseException) -> CheckpointError:
    return CheckpointError(f"{where} cannot {what} ({error}); copy or export the tokenizer again")
