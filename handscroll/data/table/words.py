"""Words of a text, for tasks that count them: Chinese by jieba or by character, without stop words if asked."""

from collections.abc import Collection
from functools import cache
from typing import Any

from handscroll.base.errors import ConfigError, nearest
from handscroll.data.survey.letters import ENGLISH
from handscroll.data.survey.shingles import WORDS
from handscroll.text.words import segmenter

STOP = {
    "english": ENGLISH,
    "chinese": frozenset(
        "的 了 是 在 和 与 也 就 都 而 及 着 或 一个 没有 我们 你们 他们 她们 它们 我 你 他 她 "
        "它 这 那 这个 那个 之 于 以 为 被 把 给 让 向 从 到 对 由 等 并 但 但是 因为 所以 "
        "如果 虽然 还 又 很 吗 呢 吧 啊 呀 嘛 哦 上 下 中 里 不 有 要 会 们 個 這 這個 "
        "沒有 我們 他們 與 於 為 對 從 給 讓 還 會 嗎".split()
    ),
}


def words(text: str, stop: str | Collection[str] = (), jieba: bool = False) -> list[str]:
    """The words of a text in order: runs of letters and digits, and each Chinese character, or jieba's words.

    stop: words to leave out, or the name of a list (`english`, `chinese`); case does not count.

    Raises:
        ConfigError: there is no such list, or jieba is not installed.
    """
    if isinstance(stop, str):
        if stop not in STOP:
            raise ConfigError(f"stop words '{stop}': {nearest(stop, STOP)}; or give the words themselves")
        stop = STOP[stop]
    found = [word for word in _jieba().cut(text) if WORDS.search(word)] if jieba else WORDS.findall(text)
    return [word for word in found if word.lower() not in stop] if stop else found


@cache
def _jieba() -> Any:
    return segmenter("words of Chinese texts need", "or do without it (each Chinese character is then a word)")[1]
