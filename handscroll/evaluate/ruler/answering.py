"""Answers to the questions about one text, which is read once. Greedy decoding, so equal runs give equal answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from handscroll.cache.table import DEFAULT
from handscroll.evaluate.branching import read
from handscroll.evaluate.certificate import Certificate, certify, require_whole
from handscroll.evaluate.ruler.exams import Exam, Question
from handscroll.evaluate.ruler.score import score, settled
from handscroll.generate.budget import Demand
from handscroll.generate.chooser import Chooser
from handscroll.generate.decode import follow
from handscroll.generate.prepare import afford_demand
from handscroll.generate.request import Request
from handscroll.generate.sample import Sampling
from handscroll.lm import LM


@dataclass(frozen=True)
class Answer:
    """What the model said to a question, why it ended, its score, and the proof that the whole prompt was read.

    `finish` is "eos", "length" (no room left), or "settled": all that is asked for stands in the answer, so more text
    cannot change a score by substrings.
    """

    question: Question
    text: str
    tokens: int
    finish: str
    score: float
    certificate: Certificate


def answers(lm: LM, exam: Exam, ends: frozenset[int]) -> Iterator[Answer]:
    """The answers to the questions of an exam, each as soon as it has ended; the text is read once.

    Raises:
        CapacityError: there is too little memory, or the length exceeds a learned position table.
    """
    head, questions = exam.head.ids, exam.questions
    most = max(len(one.tail.ids) + one.room for one in questions)
    afford_demand(lm.model, Demand(head, most, samples=len(questions)), DEFAULT)
    prefix = read(lm, head, reach=exam.length)
    choosers = [_chooser(lm, head, one, row, ends) for row, one in enumerate(questions)]
    said = [""] * len(questions)
    counts = [0] * len(questions)
    for step in follow(lm.model, prefix.cache, choosers, prefix.declared):
        for new in step:
            one, chooser = questions[new.row], choosers[new.row]
            said[new.row] += new.text
            counts[new.row] += 1
            if chooser.finish is None and settled(one.ask, said[new.row]):
                chooser.finish = "settled"
            if chooser.finish is not None:
                fed = chooser.request.prompt
                proof = certify(fed, len(head) + len(one.tail.ids))
                require_whole(proof, f"{exam.name}, {one.ask.task}")
                text = said[new.row]
                yield Answer(one, text, counts[new.row], chooser.finish, score(one.ask, text), proof)


def _chooser(lm: LM, head: Sequence[int], question: Question, row: int, ends: frozenset[int]) -> Chooser:
    sampling = Sampling(max_tokens=question.room)
    request = Request([*head, *question.tail.ids], sampling, beyond=True, ends=ends)
    return Chooser(request, lm.model, row, lm.tokenizer)
