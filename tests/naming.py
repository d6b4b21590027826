"""What an error message must name, however it is worded."""

import re


def naming(*values: object) -> str:
    """A pattern for `match=`: the message holds each of these values, in any order; numbers are whole, not 4 of 64."""
    return "(?s)" + "".join(f"(?=.*{_whole(str(value))})" for value in values)


def _whole(value: str) -> str:
    before, after = r"(?<![\w.])" if value[0].isdigit() else "", r"(?!\w)" if value[-1].isdigit() else ""
    return before + re.escape(value) + after
