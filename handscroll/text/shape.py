"""The shape of a `tokenizer.json`, checked before the library reads it: there a wrong one may end the whole process."""

import json
from collections.abc import Mapping
from typing import Any

from handscroll.base.errors import CheckpointError
from handscroll.text.special import ROLES

MOST = 10_000_000  # tokens; the largest vocabularies in use have 300,000
LONGEST = 65_536  # characters of one token
DEEPEST = 64  # levels of nesting
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def checked_spec(source: str | dict[str, Any]) -> dict[str, Any]:
    """The content of a `tokenizer.json` whose vocabulary, merges and added tokens have the right types.

    Raises:
        CheckpointError: it is no JSON, or a part has another shape; names the part.
    """
    try:
        spec = json.loads(source) if isinstance(source, str) else source
    except (ValueError, RecursionError) as error:
        raise _wrong(f"it is not valid JSON ({error})") from None
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        raise _wrong("it has no 'model' object")
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        _check_part(spec.get(part), part)
    model = spec["model"]
    check_vocabulary(model.get("vocab"))
    _check_merges(model.get("merges", []))
    _check_model(model)
    added = spec.get("added_tokens")
    if added is not None and not isinstance(added, list):
        raise _wrong("'added_tokens' is no list")
    for token in added or []:
        _check_token(token, "added_tokens")
        if not _is_id(token.get("id")):
            raise _wrong(f"an added token has the id {token.get('id')!r}")
    return spec


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check the tokens that the settings of a tokenizer name.

    Raises:
        CheckpointError: names what is wrong.
    """
    decoder = settings.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise _wrong("'added_tokens_decoder' is no object", "tokenizer_config.json")
    for number, token in decoder.items():
        if not number.isdecimal() or not _is_id(int(number[:12])):
            raise _wrong(f"'added_tokens_decoder' has the id {number[:40]!r}", "tokenizer_config.json")
        _check_token(token, "added_tokens_decoder", "tokenizer_config.json")
    for role in ROLES:
        token = settings.get(f"{role}_token")
        if isinstance(token, dict):
            _check_token(token, f"{role}_token", "tokenizer_config.json")
    for key in ("extra_special_tokens", "additional_special_tokens"):
        extra = settings.get(key) or []
        if not isinstance(extra, list | dict):
            raise _wrong(f"'{key}' is neither a list nor an object", "tokenizer_config.json")
        for token in extra.values() if isinstance(extra, dict) else extra:
            if not isinstance(token, str):
                _check_token(token, key, "tokenizer_config.json")


def flag(settings: Mapping[str, Any], name: str, usual: bool | None) -> bool | None:
    """A setting of a tokenizer that is true, false or null.

    Raises:
        CheckpointError: it is something else.
    """
    value = settings.get(name, usual)
    if value is not None and not isinstance(value, bool):
        raise _wrong(f"'{name}' is {str(value)[:60]}, neither true nor false", "tokenizer_config.json")
    return usual if value is None else value


def names_of(model: Mapping[str, Any]) -> dict[int, str]:
    """The tokens of a vocabulary by id."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        return {number: name for name, number in vocabulary.items()}
    return {number: name for number, (name, _) in enumerate(vocabulary)}


def _wrong(what: str, where: str = "tokenizer.json") -> CheckpointError:
    return CheckpointError(f"not a readable {where}: {what}; copy or export the tokenizer again")


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < MOST


def check_vocabulary(vocabulary: Any, where: str = "tokenizer.json") -> None:
    """Check a vocabulary: ids by token, or tokens with their scores.

    Raises:
        CheckpointError: names what is wrong.
    """
    if not isinstance(vocabulary, dict | list):
        raise _wrong("'model' has no 'vocab'", where)
    if not vocabulary:
        raise _wrong("its vocabulary is empty", where)
    if isinstance(vocabulary, dict):
        bad = next(((name, number) for name, number in vocabulary.items() if not _is_id(number)), None)
        if bad is not None:
            raise _wrong(f"the token {bad[0][:40]!r} has the id {str(bad[1])[:40]}", where)
        if len(set(vocabulary.values())) < len(vocabulary):
            raise _wrong("two tokens of its vocabulary have the same id", where)
        return
    for entry in vocabulary:
        pair = isinstance(entry, list) and len(entry) == 2
        if not pair or not isinstance(entry[0], str) or type(entry[1]) not in (int, float):
            raise _wrong(f"an entry of its vocabulary is {str(entry)[:60]}, not a token with a score", where)
        if not entry[1] - entry[1] == 0:
            raise _wrong(f"the token {entry[0][:40]!r} has the score {entry[1]}", where)


def _check_merges(merges: Any) -> None:
    if not isinstance(merges, list):
        raise _wrong("'merges' is no list")
    for merge in merges:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list | tuple) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise _wrong(f"a merge is {str(merge)[:60]}, not two tokens")


def _check_model(model: Mapping[str, Any]) -> None:
    for key, kinds in (("unk_token", str), ("continuing_subword_prefix", str), ("end_of_word_suffix", str)):
        if model.get(key) is not None and not isinstance(model[key], kinds):
            raise _wrong(f"'{key}' is {str(model[key])[:60]}, not a text")
    number = model.get("unk_id")
    if number is not None and not (_is_id(number) and number < len(model["vocab"])):
        raise _wrong(f"'unk_id' is {number!r}, outside of its vocabulary of {len(model['vocab'])}")
    most = model.get("max_input_chars_per_word")
    if most is not None and not _is_id(most):
        raise _wrong(f"'max_input_chars_per_word' is {most!r}")


def _check_token(token: Any, part: str, where: str = "tokenizer.json") -> None:
    if not isinstance(token, dict) or not isinstance(token.get("content"), str):
        raise _wrong(f"'{part}' holds {str(token)[:60]}, not a token", where)
    if not token["content"] or len(token["content"]) > LONGEST:
        raise _wrong(f"'{part}' holds a token of {len(token['content'])} characters", where)
    for flag in _FLAGS:
        if flag in token and not isinstance(token[flag], bool):
            raise _wrong(f"the token {token['content'][:40]!r} has {flag} = {token[flag]!r}", where)


def _check_part(part: Any, name: str, depth: int = 0) -> None:
    """Parts are objects, or sequences of them; the library reads nested ones without a limit."""
    if depth > DEEPEST:
        raise _wrong(f"'{name}' is nested too deeply")
    if part is None:
        return
    if not isinstance(part, dict):
        raise _wrong(f"'{name}' is {str(part)[:60]}, not an object")
    for key in ("normalizers", "pretokenizers", "processors", "decoders"):
        parts = part.get(key)
        if parts is not None and not isinstance(parts, list):
            raise _wrong(f"'{key}' of '{name}' is {str(parts)[:60]}, not a list")
        for inner in parts or []:
            _check_part(inner, name, depth + 1)
