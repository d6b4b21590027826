"""One question about a document, and how the question is put and the answer judged: by name, so that a record says it.

The instructions are this package's own, so scores are comparable between models here, and with published tables only
as far as a different wording allows.
"""

from collections.abc import Mapping
from dataclasses import dataclass

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # of choices


@dataclass(frozen=True)
class Item:
    """A question, what is right, and where it stands.

    `asks` and `judge` are names of `ASKS` and `JUDGES`. `wanted` are the right answers; under "blanks" one for each
    mark, in the order of `marks`. `worked` is what an example in the prompt answers (a worked solution), where that is
    more than the answer. `most` is the largest number of tokens of an answer.
    """

    task: str
    place: str
    asks: str
    judge: str
    question: str
    wanted: tuple[str, ...]
    document: str = ""
    choices: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    language: str = "en"
    worked: str = ""
    most: int = 0


@dataclass(frozen=True)
class Ask:
    """How a question is put, by language: `says` is the whole turn with {question}, without the document, which stands
    before it. In plain text `cue` follows, and one of `stop` ends the answer."""

    says: Mapping[str, str]
    cue: Mapping[str, str]
    stop: tuple[str, ...] = ("\n",)


_ANSWER = {"en": "\nAnswer:", "zh": "\n回答："}
_NONE = {"en": "", "zh": ""}
ASKS: Mapping[str, Ask] = {
    "answer": Ask(
        {
            "en": "Answer the question from the text above, in as few words as possible.\n\nQuestion: {question}",
            "zh": "请根据上文，用尽量少的字回答问题。\n\n问题：{question}",
        },
        _ANSWER,
    ),
    "summary": Ask(
        {"en": "{question}\nAnswer in one paragraph.", "zh": "{question}\n请用一段话回答。"},
        {"en": "\nSummary:", "zh": "\n摘要："},
        ("\n\n",),
    ),
    "choice": Ask(
        {
            "en": "Question: {question}\n{choices}\n\nAnswer with the letter of the right choice.",
            "zh": "问题：{question}\n{choices}\n\n请回答正确选项的字母。",
        },
        _ANSWER,
    ),
    "blanks": Ask(
        {
            "en": "In the sentences below, names are hidden behind marks such as <mask-0>. Find in the text above what "
            'each mark hides, and write one a line, such as "<mask-0>: name".\n\n{question}',
            "zh": "下面的句子中，名称用 <mask-0> 这样的记号代替。请根据上文写出每个记号代表的内容，每行一个，例如"
            "“<mask-0>: 名称”。\n\n{question}",
        },
        {"en": "\nAnswer:\n", "zh": "\n回答：\n"},
        ("\n\n",),
    ),
    "worked": Ask(
        {
            "en": "Question: {question}\nThink step by step, and end with #### and the number.",
            "zh": "问题：{question}\n请逐步思考，并以 #### 和数字结束。",
        },
        _ANSWER,
        ("\n\n", "\nQuestion:", "\n问题："),
    ),
    "short": Ask({"en": "Question: {question}", "zh": "问题：{question}"}, _ANSWER),
    "paragraph": Ask(
        {
            "en": "Which paragraph of the text above is summarised here? Answer with its number.\n\n{question}",
            "zh": "下面是上文哪一段的摘要？请回答段落编号。\n\n{question}",
        },
        _ANSWER,
    ),
    "count": Ask(
        {
            "en": "Some paragraphs of the text above are the same. How many different ones are there? Answer with the "
            "number.{question}",
            "zh": "上文中有些段落是相同的。不同的段落有多少个？请回答数字。{question}",
        },
        _ANSWER,
    ),
    "examples": Ask({"en": "{question}", "zh": "{question}"}, _NONE),
    "code": Ask({"en": "{question}", "zh": "{question}"}, _NONE),
}
# What a summary is asked for where the row asks nothing.
WHOLE = {"en": "Summarise the text above.", "zh": "请概括上文的内容。"}


def turn(item: Item) -> str:
    """The question as it is put, without the document."""
    letters = "\n".join(f"{chr(65 + at)}. {choice}" for at, choice in enumerate(item.choices))
    says = ASKS[item.asks].says[item.language]
    return says.replace("{choices}", letters).replace("{question}", item.question)
