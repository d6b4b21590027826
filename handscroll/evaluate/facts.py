"""Facts to hide in a long text and to ask for: sentences with a key and a number, in English and Chinese."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from handscroll.base.errors import DataError
from handscroll.data.recall import NEEDLE, RESERVED, needle_pieces
from handscroll.text.tokenizer import Tokenizer

# Common nouns of two characters, none of which is a part of another.
CHINESE = """
    苹果 河狸 蜡烛 海豚 猎鹰 花园 锤子 岛屿 丛林 水壶 灯笼 草地 果园 胡椒 石英 丝带
    马鞍 木材 雨伞 提琴 核桃 酸奶 斑马 铁锚 纽扣 峡谷 沙漠 引擎 森林 吉他 港口 昆虫
    外套 小猫 梯子 镜子 餐巾 牡蛎 枕头 兔子 白银 隧道 山谷 巫师 琥珀 大桥 石榴 巨龙
    老鹰 羽毛 冰川 头盔 象牙 珠宝 柠檬 玉石 花蜜 铜钟 竹篮 毛笔 茶杯 风筝 石狮 油灯
""".split()
FORMS = {"en": (NEEDLE, RESERVED), "zh": (("{key}的秘密数字是", "{value}", "。\n"), CHINESE)}


@dataclass(frozen=True)
class Ask:
    """Token ids of a question and of its answer."""

    question: list[int]
    answer: list[int]


@dataclass(frozen=True)
class Facts:
    """Sentences that stand together (`block`), and a question for each of them."""

    block: list[int]
    asks: list[Ask]

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of all parts; facts of equal shapes can be read as rows of one batch."""
        return (len(self.block), *(size for ask in self.asks for size in (len(ask.question), len(ask.answer))))

    @property
    def most(self) -> int:
        """The tokens of the block with its longest question and answer."""
        return len(self.block) + max(len(ask.question) + len(ask.answer) for ask in self.asks)


@dataclass(frozen=True)
class Teller:
    """Makes facts in one language: numbers of `digits` digits, `count` facts together, none with a key of `others`."""

    tokenizer: Tokenizer
    language: str = "en"
    digits: int = 5
    count: int = 1
    others: int = 0

    @property
    def form(self) -> tuple[str, str, str]:
        return FORMS[self.language][0]

    @property
    def before(self) -> list[int]:
        """The tokens before a text."""
        return needle_pieces(self.tokenizer, self._keys[0], "0", self.form)[0]

    def facts(self, draw: random.Random) -> Facts:
        """Facts with different keys."""
        keys = draw.sample(self._keys[self.others :], self.count)
        pieces = [needle_pieces(self.tokenizer, key, self._value(draw), self.form) for key in keys]
        block = pieces[0][1]
        for _, needle, _, _ in pieces[1:]:
            block = block + needle
        return Facts(block, [Ask(question, answer) for _, _, question, answer in pieces])

    def distractor(self, draw: random.Random) -> list[int]:
        """A sentence of the same form with a key that no question asks for."""
        key = draw.choice(self._keys[: self.others])
        return needle_pieces(self.tokenizer, key, self._value(draw), self.form)[1]

    def check(self) -> None:
        """Refuse a tokenizer that cannot encode the facts.

        Raises:
            DataError: it does not know a part of them.
        """
        for key in self._keys:
            ids = needle_pieces(self.tokenizer, key, "0" * self.digits, self.form)[1]
            unknown = self.tokenizer.unknown(ids)
            if unknown:
                raise DataError(
                    f"the tokenizer cannot encode {unknown} tokens of the needle {self.tokenizer.decode(ids)!r}, so "
                    "this model cannot be measured"
                )

    @property
    def _keys(self) -> Sequence[str]:
        return FORMS[self.language][1]

    def _value(self, draw: random.Random) -> str:
        return "".join(draw.choice("0123456789") for _ in range(self.digits))
