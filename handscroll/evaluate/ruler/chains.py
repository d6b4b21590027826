"""Facts that build on each other: RULER's variable tracking, and facts scattered over a book."""

import string
from dataclasses import dataclass, field
from itertools import pairwise

from handscroll.evaluate.ruler.ask import Ask, Planted
from handscroll.evaluate.ruler.bench import Bench
from handscroll.evaluate.ruler.wording import PLACES, THINGS
from handscroll.evaluate.ruler.words import Draw

HOPS, LETTERS, ROOM = 4, 5, 30  # one chain of four hops, names of five letters, as published
SHORT = 3  # letters of names in an example


def tracking(bench: Bench, draw: Draw, task: str, example: bool = False) -> Planted:
    """One chain of assignments: the first variable gets a value, and each other one that of the one before."""
    letters = SHORT if example else LETTERS
    names = [draw.letters(letters, string.ascii_uppercase) for _ in range(HOPS + 1)]
    value = draw.number(5)
    lines = [f"VAR {names[0]} = {value}"]
    lines += [f"VAR {new} = VAR {old}" for old, new in pairwise(names)]
    question, lead = (text.format(value=value, count=HOPS + 1) for text in bench.say.chain)
    details = {"chains": 1, "hops": HOPS}
    ask = Ask(task, bench.say.chain_about, question, lead, tuple(names), "all", " ".join(names), ROOM, (), details)
    return Planted(ask, tuple(lines), ordered=True)


@dataclass(eq=False)
class Scene:
    """People who go to places and carry things; every event is a sentence. `path[thing]` are the places it was in."""

    bench: Bench
    draw: Draw
    people: list[str]
    things: list[str]
    at: dict[str, str] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)
    path: dict[str, list[str]] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)

    def go(self, name: str) -> None:
        """A person goes to another place, with what they carry."""
        place = self.draw.random.choice([one for one in PLACES[self.bench.language] if one != self.at.get(name)])
        self.at[name] = place
        for thing, holder in self.held.items():
            if holder == name:
                self.path[thing].append(place)
        self.events.append(self.bench.say.goes.format(name=name, place=place))

    def take(self, name: str, thing: str) -> None:
        self.held[thing] = name
        self.path.setdefault(thing, []).append(self.at[name])
        self.events.append(self.bench.say.takes.format(name=name, thing=thing))

    def drop(self, thing: str) -> None:
        name = self.held.pop(thing)
        self.events.append(self.bench.say.drops.format(name=name, thing=thing))


def scattered(bench: Bench, draw: Draw, task: str) -> Planted:
    """Facts scattered over a text; the answer needs the last one, two or three of them.

    The form is that of BABILong (Kuratov et al. 2024, "BABILong: Testing the Limits of LLMs with Long Context
    Reasoning-in-a-Haystack"), whose facts are those of bAbI's first three tasks; the scene here is our own.
    """
    facts = int(task.rpartition("_")[2])
    people = [draw.forename() for _ in range(2)]
    free = [one for one in THINGS[bench.language] if one not in draw.used]
    things = draw.random.sample(free, 1 if facts < 2 else 2)
    draw.used.update(things)
    scene = Scene(bench, draw, people, things)
    for name in people:
        scene.go(name)
    if facts > 1:
        for thing, name in zip(things, people, strict=True):
            scene.take(name, thing)
    for _ in range(4):
        scene.go(draw.random.choice(people))
    name, thing = people[0], things[0]
    if facts > 1:
        scene.go(name)
        scene.drop(thing)
        scene.go(name)
    else:
        scene.go(name)
        scene.go(people[1])
    words = {"name": name, "thing": thing, "place": ""}
    right = scene.at[name] if facts == 1 else scene.path[thing][-1]
    if facts == 3:
        words["place"], right = right, scene.path[thing][-2]
    question, lead = (text.format(**words) for text in bench.say.facts[facts - 1])
    wrong = tuple(one for one in PLACES[bench.language] if one not in (right, words["place"]))
    details = {"facts": facts, "events": len(scene.events)}
    ask = Ask(task, bench.say.facts_about, question, lead, (right,), "alone", right, 16, wrong, details)
    return Planted(ask, tuple(scene.events), ordered=True)
