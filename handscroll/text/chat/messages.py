"""Messages as a chat template takes them: checked, and copied into plain values that hold nothing but data."""

from collections.abc import Mapping, Sequence
from typing import Any

from handscroll.base.errors import DataError

REASONING = ("reasoning_content", "thinking", "reasoning")  # the names under which a message's thinking is found
Message = Mapping[str, Any]


def checked(messages: Sequence[Message], answered: bool = False) -> list[dict[str, Any]]:
    """The messages as plain data; they end with one that the assistant answers, unless all is `answered`.

    A key without a value is left out, as templates expect it. What an assistant thought is given under all the names
    that templates use.

    Raises:
        DataError: no messages; a message without a role, or with something else than text; the assistant's last.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise DataError(
            f"expected a list of messages such as [{{'role': 'user', 'content': ...}}], got {str(messages)[:60]!r}"
        )
    found = [_checked(message, number) for number, message in enumerate(messages)]
    if found[-1]["role"] == "assistant" and not answered:
        raise DataError("the last message is the assistant's, so there is nothing to answer: add the user's next one")
    return found


def _checked(message: Any, number: int) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or not message["role"]:
        raise DataError(f"message {number} has no role (system, user, assistant, tool): {str(message)[:80]!r}")
    made = {str(key): plain(value, f"message {number}") for key, value in message.items() if value is not None}
    content = made.get("content")
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise DataError(f"message {number} holds a part that is no text: {str(part)[:80]!r}; give text only")
    elif content is not None and not isinstance(content, str | dict):
        raise DataError(f"the content of message {number} is a {type(content).__name__}; give a text")
    thought = next((made[key] for key in REASONING if key in made), None)
    return made if thought is None else {"thinking": thought, **made, "reasoning_content": thought}


def plain(value: Any, where: str) -> Any:
    """A copy of a value that is made of JSON's types only.

    Raises:
        DataError: it holds an object of another type.
    """
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {str(key): plain(one, where) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one, where) for one in value]
    raise DataError(f"{where} holds a {type(value).__name__}; give texts, numbers, lists and dictionaries")
