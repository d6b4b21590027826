"""The eight needle tasks of RULER, and the needle that shares no word with its question.

A task differs by its haystack (noise, prose, or other needles), by the number of keys, of values of a key and of keys
asked for, and by the kind of values. Hsieh et al. 2024, "RULER: What's the Real Context Size of Your Long-Context
Language Models?", table 2 and appendix B.
"""

from dataclasses import dataclass

from handscroll.evaluate.ruler.ask import Ask, Planted
from handscroll.evaluate.ruler.bench import Bench
from handscroll.evaluate.ruler.wording import LANDMARKS
from handscroll.evaluate.ruler.words import Draw

ROOM = 128  # tokens for the answer, as published


@dataclass(frozen=True)
class Needles:
    """The numbers of a needle task: `keys` in the text, `values` of each, `asked` keys of the question."""

    keys: int = 1
    values: int = 1
    asked: int = 1
    key: str = "words"
    value: str = "numbers"


FORMS = {
    "niah_single_1": Needles(),
    "niah_single_2": Needles(),
    "niah_single_3": Needles(value="uuids"),
    "niah_multikey_1": Needles(keys=4),
    "niah_multikey_2": Needles(),
    "niah_multikey_3": Needles(key="uuids", value="uuids"),
    "niah_multivalue": Needles(values=4),
    "niah_multiquery": Needles(keys=4, asked=4),
}


def key_of(draw: Draw, kind: str) -> str:
    return draw.identifier() if kind == "uuids" else draw.pair()


def value_of(draw: Draw, kind: str) -> str:
    return draw.identifier() if kind == "uuids" else draw.number()


def sentence(bench: Bench, kind: str, key: str, value: str) -> str:
    """The sentence that hides a value."""
    one, several = bench.say.kinds[kind]
    return bench.say.needle.format(kind=one, kinds=several, key=key, value=value)


def needles(bench: Bench, draw: Draw, task: str) -> Planted:
    """A sample of one of the needle tasks."""
    form, say = FORMS[task], bench.say
    pairs = {
        key_of(draw, form.key): tuple(value_of(draw, form.value) for _ in range(form.values)) for _ in range(form.keys)
    }
    hidden = [sentence(bench, form.value, key, value) for key, values in pairs.items() for value in values]
    draw.random.shuffle(hidden)
    asked = draw.random.sample(list(pairs), form.asked)
    references = tuple(value for key in asked for value in pairs[key])
    one, several = say.kinds[form.value]
    words = {"kind": one, "kinds": several, "keys": say.listed(asked)}
    question, lead = say.needle_one if len(references) == 1 else say.needle_all
    ask = Ask(
        task=task,
        about=say.needle_about.replace("{kinds}", several),
        question=question.format(**words),
        lead=lead.format(**words),
        references=references,
        rule="all",
        said=say.listed(list(references)),
        room=ROOM,
        details={"keys": form.keys, "values": form.values, "asked": form.asked},
    )
    return Planted(ask, tuple(hidden))


def unlike(bench: Bench, draw: Draw, task: str) -> Planted:
    """A needle that shares no word with its question: who walks past a landmark has been to its city or country.

    The form is that of NoLiMa (Modarressi et al. 2025, "NoLiMa: Long-Context Evaluation Beyond Literal Matching").
    """
    say, name = bench.say, draw.forename()
    landmark, city, country = draw.random.choice(LANDMARKS[bench.language])
    steps = draw.random.choice((1, 2))
    question, lead = (text.format(place=city if steps == 1 else country) for text in say.lives_ask)
    ask = Ask(
        task, say.lives_about, question, lead, (name,), "part", name, 32, details={"steps": steps, "landmark": landmark}
    )
    return Planted(ask, (say.lives.format(name=name, landmark=landmark),))
