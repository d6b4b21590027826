"""Texts around what questions need: noise, prose, needles, documents, each filled up to a number of tokens.

Every function gives pieces that together have at most `budget` tokens, the last one ending a line. What a question
needs is never left out; `Unfit` says how many tokens are missing.
"""

from collections.abc import Sequence

from handscroll.evaluate.ruler.ask import Planted, Unfit
from handscroll.evaluate.ruler.bench import Bench, Piece, size
from handscroll.evaluate.ruler.documents import distractors
from handscroll.evaluate.ruler.needles import FORMS, key_of, sentence, value_of
from handscroll.evaluate.ruler.words import Draw

DEPTHS = tuple(round(100 * n / 39) for n in range(40))  # places of needles in percent of the sentences, as published
EDGE = 4  # tokens more that a paragraph may have, since its ends are encoded anew
TOGETHER = 12  # sentences of prose in one document
MISSES = 8  # documents or sentences that were too long, after which no other is tried
SHARE = 0.2  # of the tokens of a shared text: documents of each question-answering task


def placed(draw: Draw, count: int, planted: Sequence[Planted], depths: Sequence[int] = ()) -> list[tuple[int, str]]:
    """A place among `count` sentences for each planted sentence, in order of the places.

    Places are drawn from `depths` in percent, if there are enough of them; sentences in order keep it.
    """
    found: list[tuple[int, str]] = []
    for one in planted:
        number = len(one.sentences)
        if len(depths) >= number:
            places = [int(count * depth / 100) for depth in draw.random.sample(depths, number)]
        else:
            places = [draw.random.randint(0, count) for _ in range(number)]
        found += zip(sorted(places) if one.ordered else places, one.sentences, strict=True)
    return sorted(found, key=lambda pair: pair[0])


def noise(bench: Bench, draw: Draw, planted: Sequence[Planted], budget: int) -> list[Piece]:
    """Lines of one repeated noise, with the sentences of what is planted as lines among them."""
    spell, say = bench.speller, bench.say
    hidden = size([spell.once(f"{text}\n") for one in planted for text in one.sentences])
    line = spell(f"{say.noise}\n")
    left = budget - hidden
    if left < 0:
        raise Unfit(-left)
    lines = [line] * (left // len(line.ids))
    left -= size(lines)
    for part in say.noise.split(say.stop)[:-1]:  # the rest of the room takes single sentences
        short = spell(f"{part.strip()}{say.stop}\n")
        if len(short.ids) <= left:
            lines.append(short)
            left -= len(short.ids)
    return _with(lines, [(place, spell.once(f"{text}\n")) for place, text in placed(draw, len(lines), planted)])


def needles(bench: Bench, draw: Draw, planted: Sequence[Planted], budget: int) -> list[Piece]:
    """Lines that are all needles of the same kinds as those asked for; at least one other of each kind."""
    spell = bench.speller
    own = [(spell.once(f"{text}\n")) for one in planted for text in one.sentences]
    left, lines, turn = budget - size(own), list[Piece](), 0
    while True:
        form = FORMS[planted[turn % len(planted)].ask.task]
        text = sentence(bench, form.value, key_of(draw, form.key), value_of(draw, form.value))
        line = spell.once(f"{text}\n")
        if len(line.ids) > left:
            break
        lines.append(line)
        left, turn = left - len(line.ids), turn + 1
    if len(lines) < len(planted):
        raise Unfit(len(line.ids) * (len(planted) - len(lines)) - left)
    draw.random.shuffle(lines)
    places = sorted(draw.random.randint(0, len(lines)) for _ in own)
    draw.random.shuffle(own)
    return _with(lines, list(zip(places, own, strict=True)))


def prose(bench: Bench, draw: Draw, planted: Sequence[Planted], budget: int) -> list[Piece]:
    """Sentences of the haystack from a random one on, with the planted ones among them, in one paragraph."""
    spell, blank = bench.speller, bench.say.blank
    hidden = [spell.once(blank + text) for one in planted for text in one.sentences]
    left = budget - size(hidden) - EDGE
    if left < 0:
        raise Unfit(-left)
    run = _sentences(bench, draw, left)
    depths = DEPTHS if sum(len(one.sentences) for one in planted) <= len(DEPTHS) else ()
    places = [(place, spell.once(blank + text)) for place, text in placed(draw, len(run), planted, depths)]
    return _paragraph(bench, _with(run, places), "\n")


def documents(bench: Bench, draw: Draw, planted: Sequence[Planted], budget: int) -> list[Piece]:
    """Numbered documents: the planted ones, and others of the same kind until no more fit, at least one.

    Where the documents of a given set run out, prose of the haystack fills the text.
    """
    header, own = _header(bench, budget), _own(bench, planted)
    left = _left(budget, own, header)
    others = _others(bench, draw, planted[0], left, header)
    left -= sum(size(block) + header for block in others)
    if bench.asked.get(planted[0].ask.task) is not None and left > 2 * (header + EDGE):
        others += _prose(bench, _sentences(bench, draw, left - header - EDGE, (header + EDGE) / TOGETHER))
    if not others:
        raise Unfit(header + len(_whole(bench, next(distractors(bench, draw, planted[0]), "")).ids) - left)
    draw.random.shuffle(others)
    return _numbered(bench, _merged(draw, others, own), budget)


def mixed(bench: Bench, draw: Draw, planted: Sequence[Planted], budget: int) -> list[Piece]:
    """Numbered documents for many tasks at once: prose in which their sentences are hidden, and their documents."""
    spell, blank = bench.speller, bench.say.blank
    header, own = _header(bench, budget), _own(bench, planted)
    hidden = size([spell.once(blank + text) for one in planted for text in one.sentences])
    left = _left(budget - hidden - header - EDGE, own, header)
    others = []
    for one in (one for one in planted if one.documents):
        found = _others(bench, draw, one, min(left, int(SHARE * budget)), header)
        others += found
        left -= sum(size(document) + header for document in found)
    run = _sentences(bench, draw, left, (header + EDGE) / TOGETHER)
    run = _with(run, [(place, spell.once(blank + text)) for place, text in placed(draw, len(run), planted)])
    blocks = _prose(bench, run)
    for block in others:
        blocks.insert(draw.random.randint(0, len(blocks)), block)
    return _numbered(bench, _merged(draw, blocks, own), budget)


Block = list[Piece]  # of a document without its heading


def _prose(bench: Bench, run: Sequence[Piece]) -> list[Block]:
    """Sentences as documents of about `TOGETHER` each."""
    each = -(-len(run) // max(1, round(len(run) / TOGETHER))) or 1
    return [_paragraph(bench, run[at : at + each], "\n\n") for at in range(0, len(run), each)]


def _own(bench: Bench, planted: Sequence[Planted]) -> list[tuple[Planted, Block]]:
    return [(one, [_whole(bench, text)]) for one in planted for text in one.documents]


def _left(budget: int, own: Sequence[tuple[Planted, Block]], header: int) -> int:
    left = budget - sum(size(block) + header for _, block in own)
    if left < 0:
        raise Unfit(-left)
    return left


def _merged(draw: Draw, blocks: list[Block], own: Sequence[tuple[Planted, Block]]) -> list[Block]:
    """The planted documents at random places among others; ordered ones keep their order."""
    ordered = [block for one, block in own if one.ordered]
    loose = [block for one, block in own if not one.ordered]
    for block in loose:
        blocks.insert(draw.random.randint(0, len(blocks)), block)
    places = sorted((draw.random.randint(0, len(blocks)) for _ in ordered), reverse=True)
    for place, block in zip(places, reversed(ordered), strict=True):
        blocks.insert(place, block)
    return blocks


def _others(bench: Bench, draw: Draw, one: Planted, budget: int, header: int) -> list[Block]:
    """Documents beside the planted ones, as long as they fit; after eight that are too long it ends."""
    found, misses = list[Block](), 0
    for text in distractors(bench, draw, one):
        piece = _whole(bench, text)
        if len(piece.ids) + header <= budget:
            budget -= len(piece.ids) + header
            found.append([piece])
        elif (misses := misses + 1) == MISSES:
            break
    return found


def _numbered(bench: Bench, blocks: Sequence[Block], budget: int) -> list[Piece]:
    pieces: list[Piece] = []
    for number, block in enumerate(blocks, start=1):
        pieces += [bench.speller(bench.say.document.format(number=number)), *block]
    if (over := size(pieces) - budget) > 0:
        raise Unfit(over)
    return pieces


def _header(bench: Bench, budget: int) -> int:
    """The most tokens of a document's heading in a text of so many tokens."""
    digits = len(str(max(10, budget // 30)))
    return len(bench.speller(bench.say.document.format(number="9" * digits)).ids)


def _whole(bench: Bench, text: str) -> Piece:
    return bench.speller.once(f"{text}\n\n")


def _sentences(bench: Bench, draw: Draw, budget: int, more: float = 0.0) -> list[Piece]:
    """Sentences of the haystack that fit into the budget, each with `more` tokens beside its own."""
    found, used, misses = list[Piece](), 0.0, 0
    for piece in bench.haystack.run(draw.random.randrange(len(bench.haystack.sentences))):
        cost = len(piece.ids) + more
        if used + cost <= budget:
            used += cost
            found.append(piece)
        elif (misses := misses + 1) == MISSES:
            break
    return found


def ended(bench: Bench, run: Sequence[Piece], end: str) -> list[Piece]:
    """Pieces with `end` in the last of them, as a tokenizer would join the two."""
    return [*run[:-1], bench.speller.once(run[-1].text + end)]


def _paragraph(bench: Bench, run: Sequence[Piece], end: str) -> list[Piece]:
    """Sentences as a paragraph: without the blank at its beginning, and with `end` behind it."""
    return ended(bench, [bench.speller.once(run[0].text.lstrip()), *run[1:]], end)


def _with(lines: Sequence[Piece], places: Sequence[tuple[int, Piece]]) -> list[Piece]:
    """Pieces put among lines: each before the line of its place; equal places keep their order."""
    found: list[Piece] = []
    at = 0
    for place, piece in places:
        found += [*lines[at:place], piece]
        at = max(at, place)
    return [*found, *lines[at:]]
