"""Runs the checks over a runtime: `doctor(...)` for what is in memory, `diagnose` for a runtime."""

from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from typing import Any

from handscroll.base.errors import ConfigError, HandscrollError, nearest
from handscroll.base.tables import resolve
from handscroll.doctor.finding import Absent, Cannot, Check, Diagnosis, Examined
from handscroll.doctor.runtime import Runtime
from handscroll.doctor.table import CHECKS
from handscroll.lm import LM

Told = Callable[[str], None]


def doctor(
    model: Any,
    tokenizer: Any = None,
    config: Mapping[str, Any] | None = None,
    only: Iterable[str] = (),
    skip: Iterable[str] = (),
) -> Diagnosis:
    """Examine a model in memory: an `LM` of this package, or a model of `transformers` with its tokenizer.

    `config` is the content of the `config.json` that the model is held to (default: what it says of itself). `only` and
    `skip` name checks of `CHECKS`.

    Raises:
        ConfigError: a check is unknown.
    """
    if isinstance(model, LM):
        from handscroll.doctor.runtimes.ours import Ours

        return diagnose(Ours(model, config), only, skip)
    from handscroll.doctor.runtimes.theirs import Theirs

    return diagnose(Theirs(model, tokenizer, config), only, skip)


def diagnose(
    runtime: Runtime, only: Iterable[str] = (), skip: Iterable[str] = (), told: Told | None = None
) -> Diagnosis:
    """All checks over a runtime; `told(name)` is called before each."""
    names = chosen(only, skip)
    found = []
    for name in names:
        if told is not None:
            told(name)
        found.append(_one(runtime, name))
    return Diagnosis(runtime.source, runtime.kind, tuple(found))


def chosen(only: Iterable[str] = (), skip: Iterable[str] = ()) -> list[str]:
    """The names of the checks to make.

    Raises:
        ConfigError: a name is unknown, or none is left.
    """
    only, skip = list(only), list(skip)
    for name in (*only, *skip):
        if name not in CHECKS:
            raise ConfigError(f"unknown check '{name}': {nearest(name, CHECKS)}")
    names = [name for name in CHECKS if (name in only or not only) and name not in skip]
    if not names:
        raise ConfigError("no check is left: name fewer checks in --skip, or others in --only")
    return names


def _one(runtime: Runtime, name: str) -> Examined:
    check: Check = resolve(CHECKS, name, "check")
    begun = monotonic()
    try:
        seen = check.run(runtime)
    except Absent as error:
        return Examined(name, check.question, "absent", monotonic() - begun, why=str(error))
    except Cannot as error:
        return Examined(name, check.question, "unexamined", monotonic() - begun, why=str(error))
    except HandscrollError as error:  # what the model itself refuses: the check does not fit it
        return Examined(name, check.question, "unexamined", monotonic() - begun, why=str(error))
    verdict = "wrong" if seen.faults else "healthy"
    return Examined(name, check.question, verdict, monotonic() - begun, seen)
