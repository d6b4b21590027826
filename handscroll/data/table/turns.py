"""Lists of turns to messages: OpenAI's role/content, ShareGPT's from/value, speaker/utterance and their relatives."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from handscroll.base.errors import DataError
from handscroll.text.chat.messages import REASONING, plain

Message = dict[str, Any]
LISTS = ("messages", "conversations", "conversation", "turns", "dialogue", "dialog", "utterances")
_SPEAKERS, _TEXTS = ("role", "from", "speaker", "author"), ("content", "value", "utterance", "text", "message")
_ROLES = {
    **dict.fromkeys(("user", "usr", "human", "customer", "client", "visitor"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatbot", "agent", "chatgpt", "bing", "bard"), "assistant"),
    **dict.fromkeys(("system", "sys", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation"), "tool"),
    "function_call": "call",
}
_KEPT = ("name", "tool_calls", "tool_call_id", "weight", *REASONING)
_HH = re.compile(r"\n\n(Human|Assistant):")


def turn_list(value: Any) -> tuple[list[Message], list[str]] | None:
    """(messages, names of keys that were not read) of a list of turns, or None where it is none.

    A turn is an object with a speaker (role, from, speaker, author) and a text (content, value, utterance, text,
    message); OpenAI's other keys are kept. In a list of texts user and assistant take turns. Where nobody is the
    assistant and "system" speaks after the user, it is a dialogue system, the assistant (CrossWOZ, SGD).

    Raises:
        DataError: a turn has a speaker who is not known, or no text.
    """
    if not isinstance(value, list) or not value:
        return None
    if all(isinstance(one, str) for one in value) and len(value) > 1:
        return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(value)], []
    if not all(isinstance(one, Mapping) for one in value):
        return None
    speaker = next((key for key in _SPEAKERS if all(isinstance(one.get(key), str) for one in value)), None)
    text = next((key for key in _TEXTS if any(key in one for one in value)), None)
    if speaker is None or text is None:
        return None
    roles = [_role(one[speaker], number) for number, one in enumerate(value)]
    if not {"assistant", "call"} & set(roles) and "system" in roles and "user" in roles[: _last(roles, "system")]:
        roles = ["assistant" if role == "system" else role for role in roles]
    messages = [_message(one, role, text, at) for at, (one, role) in enumerate(zip(value, roles, strict=True))]
    known = {speaker, text, *_KEPT}
    return messages, sorted({key for one in value for key, inner in one.items() if key not in known and inner})


def _role(speaker: str, number: int) -> str:
    role = _ROLES.get(speaker.strip().lower())
    if role is None:
        raise DataError(
            f"turn {number + 1} is spoken by '{speaker}', who is not known as user, assistant, system or tool"
        )
    return role


def _last(roles: Sequence[str], role: str) -> int:
    return max(at for at, one in enumerate(roles) if one == role)


def _message(turn: Mapping[str, Any], role: str, text: str, at: int) -> Message:
    where = f"turn {at + 1}"
    content = plain(turn.get(text), where)
    if role == "call":
        return {"role": "assistant", "content": "", "tool_calls": [_called(content, where)]}
    kept = {key: plain(turn[key], where) for key in _KEPT if turn.get(key) not in (None, [], "")}
    if isinstance(content, list):
        texts = [part["text"] for part in content if _is_text(part)]
        if len(texts) < len(content):
            raise DataError(f"{where} holds a part that is not text")
        content = "".join(texts)
    if content is None and "tool_calls" in kept:
        content = ""
    if not isinstance(content, str):
        raise DataError(f"{where} has no text under '{text}'")
    return {"role": role, "content": content, **kept}


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _called(content: Any, where: str) -> dict[str, Any]:
    """A call of a tool that is written as JSON in the text of a turn, in OpenAI's form."""
    try:
        call = json.loads(content) if isinstance(content, str) else content
        return {"type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
    except (ValueError, KeyError, TypeError):
        raise DataError(f'{where} is not a call of a function; write {{"name": ..., "arguments": ...}}') from None


def written_turns(text: str) -> list[Message] | None:
    """The turns of a text in the form of HH-RLHF (blank line, Human: or Assistant:), or None where it is none."""
    parts = _HH.split(text)
    if len(parts) < 3 or parts[0].strip():
        return None
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": said.strip()} for who, said in zip(parts[1::2], parts[2::2], strict=True)]


def tools_of(values: Mapping[str, Any]) -> list[Any]:
    """The tools that a row offers (`tools` or `functions`, as a list or as its JSON).

    Raises:
        DataError: they are neither.
    """
    found = values.get("tools") or values.get("functions") or []
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except ValueError:
            raise DataError("its tools are not JSON") from None
    if not isinstance(found, list):
        raise DataError("its tools are not a list")
    return plain(found, "tools")
