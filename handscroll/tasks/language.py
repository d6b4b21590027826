"""The language of the answers: the one of the data, by which prompts are chosen and texts cut into words for scores."""

from collections.abc import Sequence
from typing import Any

from handscroll.base.errors import DataError
from handscroll.metrics.texts import language_told
from handscroll.tasks.task import Example


def check_language(language: str, truths: Sequence[Any], examples: Sequence[Example]) -> None:
    """All answers of a part together tell a language; `truths` are texts, lists of texts, or None.

    Raises:
        DataError: it is another one than `language`.
    """
    texts = [text for one in truths if one is not None for text in ([one] if isinstance(one, str) else one)]
    found = language_told(texts)
    if found not in (None, language):
        raise DataError(
            f"{examples[0].place} and on: the {len(texts):,} answers look like '{found}', but the task's language is "
            f"'{language}', by which prompts and scores are chosen: set task.language={found}"
        )
