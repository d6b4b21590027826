"""Questions over documents: RULER's two question-answering tasks, and the n-th of several pieces that are alike."""

import string
from collections.abc import Iterator

from handscroll.evaluate.ruler.ask import Ask, Planted
from handscroll.evaluate.ruler.bench import Bench
from handscroll.evaluate.ruler.questions import Item
from handscroll.evaluate.ruler.wording import DOCUMENTS, HOPS, VERSES
from handscroll.evaluate.ruler.words import Draw

ROOM = 32  # tokens for the answer, as published
ALIKE, LINES, PREFIX = 4, 4, 10  # pieces of one title, sentences of a piece, letters of the prefix


def answering(bench: Bench, draw: Draw, task: str) -> Planted:
    """A question whose answer stands in one document (qa_1) or follows from two (qa_2)."""
    asked = bench.asked.get(task)
    if asked is not None:
        item = draw.random.choice(list(asked.items))
        return _plant(bench, task, item, [asked.documents[number] for number in item.documents])
    if task == "qa_1":
        text, fields, kind = invented(bench, draw)
        question, name = draw.random.choice(DOCUMENTS[bench.language][kind][1])
        return _plant(bench, task, Item(question.format(**fields), (fields[name],), ()), [text])
    kind = draw.random.choice(sorted(HOPS[bench.language]))
    first, fields, _ = invented(bench, draw, kind)
    second, others, _ = invented(bench, draw, "town", fields["town"])
    question, name = draw.random.choice(HOPS[bench.language][kind])
    return _plant(bench, task, Item(question.format(**fields), (others[name],), ()), [first, second])


def distractors(bench: Bench, draw: Draw, one: Planted) -> Iterator[str]:
    """Documents of the kind of those that belong to a question: given ones, each once, or invented ones without end."""
    if one.ask.rule == "alike":
        while True:
            yield _titled(bench, draw, draw.random.choice(bench.say.alike_kinds), draw.pair())
    asked = bench.asked.get(one.ask.task)
    while asked is None:
        yield invented(bench, draw)[0]
    order = list(range(len(asked.documents)))
    draw.random.shuffle(order)
    yield from (asked.documents[number] for number in order if asked.documents[number] not in one.documents)


def invented(bench: Bench, draw: Draw, kind: str = "", town: str = "") -> tuple[str, dict[str, str], str]:
    """A document about a place that does not exist, what it says by name, and its kind."""
    forms = DOCUMENTS[bench.language]
    kind = kind or draw.random.choice(sorted(forms))
    fields = {
        "name": draw.person() if bench.language == "zh" else draw.new(lambda: draw.random.choice(draw.words.last)),
        "town": town or draw.town(),
        "person": draw.person(),
        "year": str(draw.random.randint(1650, 1990)),
        "number": str(draw.random.randint(120, 990)),
        "thing": draw.pair(),
    }
    return forms[kind][0].format(**fields), fields, kind


def again(bench: Bench, draw: Draw, task: str) -> Planted:
    """Several short pieces have one title, and one of them is to be written again behind a random prefix.

    The form, and the grader, are those of MRCR (Vodrahalli et al. 2024, "Michelangelo"; OpenAI's MRCR, 2025).
    """
    say, kind, topic = bench.say, draw.random.choice(bench.say.alike_kinds), draw.pair()
    texts = [_titled(bench, draw, kind, topic) for _ in range(ALIKE)]
    chosen = draw.random.randrange(ALIKE)
    wanted = texts[chosen].partition("\n")[2]
    prefix = draw.letters(PREFIX, string.ascii_letters + string.digits)
    spoken = kind.removeprefix("A ")  # "A poem" in a title, "the second poem" in a question
    question = say.alike.format(ordinal=say.ordinals[chosen], kind=spoken, topic=topic, prefix=prefix)
    details = {"alike": ALIKE, "chosen": chosen}
    ask = Ask(task, say.alike_about, question, "", (prefix, wanted), "alike", f"{prefix}{wanted}", 0, details=details)
    return Planted(ask, documents=tuple(texts), ordered=True)


def _titled(bench: Bench, draw: Draw, kind: str, topic: str) -> str:
    lines = draw.random.sample(VERSES[bench.language], LINES)
    nouns, title = draw.words.nouns, bench.say.alike_title.format(kind=kind, topic=topic)
    return title + bench.say.blank.join(line.format(n=draw.random.choice(nouns), a=draw.pair()) for line in lines)


def _plant(bench: Bench, task: str, item: Item, texts: list[str]) -> Planted:
    question, lead = bench.say.documents
    ask = Ask(
        task=task,
        about=bench.say.documents_about,
        question=question.format(question=item.question),
        lead=lead,
        references=item.answers,
        rule="part",
        said=item.answers[0],
        room=ROOM,
        details={"documents": len(texts)},
    )
    return Planted(ask, documents=tuple(texts))
