"""The scheduler alone, driven at random: blocks add up, everyone ends, nobody writes where others read."""

import random
from collections import Counter
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handscroll.cache.pool import Layout, reach
from handscroll.generate.engine.blocks import Blocks, beginning, following
from handscroll.generate.engine.job import Job
from handscroll.generate.engine.scheduler import AGEING, PATIENCE, Scheduler
from handscroll.generate.request import Request
from handscroll.generate.sample import Sampling


def request(number, prompt, new, priority=0, owner=""):
    return Job(
        number=number,
        request=Request(list(prompt), Sampling(max_tokens=new)),
        chooser=None,
        bucket=0,
        declared=len(prompt) + new,
        begin=beginning(owner, 0, ""),
        cancel=lambda: None,
        priority=priority,
        owner=owner,
    )


class World:
    """Runs a scheduler without a model: a block's content is the list of tokens that were written to it."""

    def __init__(self, blocks, size, budget, most, fixed=0, windows=()):
        spaces = Layout(windows, size, most, budget).spaces(blocks)
        self.content = [[[] for _ in range(space.count)] for space in spaces]
        made = [Blocks(space.count, partial(self.give_up, number)) for number, space in enumerate(spaces)]
        windowed = {space.window: held for space, held in zip(spaces[1:], made[1:], strict=True)}
        self.scheduler = Scheduler(made[0], size, budget, most, fixed, windowed)
        self.live, self.steps, self.random = [], 0, random.Random(blocks)

    def give_up(self, space, block):
        self.content[space][block].clear()

    def check(self):
        scheduler = self.scheduler
        for number, (window, blocks) in enumerate(scheduler.spaces):
            held = Counter(block for one in scheduler.running for block in one.held[number].blocks)
            assert all(blocks.references(block) == held[block] for block in range(blocks.count))
            assert blocks.available == blocks.count - len(held)
            assert not any(one.held[number].blocks for one in scheduler.waiting)
            most = blocks.count if window is None else reach(window, scheduler.size, scheduler.budget)
            assert all(len(one.held[number].blocks) <= most for one in scheduler.running)
        assert sorted(map(id, scheduler.running + scheduler.waiting)) == sorted(map(id, self.live))
        assert len(scheduler.running) <= scheduler.most

    def write(self, one, first, last):
        """What a forward would do: write some tokens, having read all before them, or the windows."""
        size = self.scheduler.size
        for number, (window, blocks) in enumerate(self.scheduler.spaces):
            held, content = one.held[number], self.content[number]
            begin = held.dropped * size
            assert begin <= max(0, first - (first if window is None else window - 1)), "a window is not there"
            read = [token for block in held.blocks for token in content[block]][: first - begin]
            assert read == one.tokens[begin:first], "a forward reads what was not written, or by another"
            for token in range(first, last):
                block = held.blocks[token // size - held.dropped]
                assert blocks.references(block) == 1, "a forward writes where others read"
                del content[block][token % size :]
                content[block].append(one.tokens[token])
        self.scheduler.advance(one, last)
        if last == len(one.tokens):
            one.tokens.append(self.random.randrange(4))
            if len(one.answer) == one.request.sampling.max_tokens:
                self.end(one)

    def end(self, one):
        one.finish = "length"
        self.live.remove(one)
        self.scheduler.drop(one)

    def step(self):
        plan, fixed = self.scheduler.plan(), self.scheduler.fixed
        self.check()
        self.steps += 1
        assert sum(last - first for _, first, last in plan.chunks) <= self.scheduler.budget
        assert len({id(one) for one in plan.rows}) == len(plan.rows)
        assert not {id(one) for one in plan.rows} & {id(chunk.job) for chunk in plan.chunks}
        assert plan.rows or plan.chunks or not self.live, "nobody is read for, and somebody waits"
        for one in plan.rows:
            self.write(one, one.done, one.done + 1)
        for one, first, last in plan.chunks:
            assert first == one.done and (not fixed or last == one.asked or last % fixed == 0)
            assert not fixed or (first % fixed == 0 and last > first + 1)
            self.write(one, first, last)
        self.check()
        return plan


prompts = st.lists(st.integers(0, 1), min_size=1, max_size=40)
moves = st.one_of(
    st.tuples(st.just("add"), prompts, st.integers(1, 12), st.integers(0, 2), st.sampled_from(["", "anna"])),
    st.tuples(st.just("step"), st.integers(1, 6)),
    st.tuples(st.just("cancel"), st.integers(0, 99)),
)


@pytest.mark.promise("R37")
@settings(max_examples=400)
@given(
    st.lists(moves, max_size=40),
    st.integers(1, 5),
    st.sampled_from([0, 1, 2]),
    st.integers(13, 30),
    st.integers(1, 5),
    st.sampled_from([(), (3,), (1, 8), (20, 4)]),
)
def test_blocks_add_up_and_everyone_ends(moves, size, multiple, blocks, most, windows):
    fixed = multiple * size if multiple * size > 1 else 0
    world = World(max(blocks, -(-52 // size)), size, max(7, fixed), most, fixed, windows)
    number = 0
    for kind, *values in moves:
        if kind == "add":
            one = request(number, *values)
            number += 1
            world.live.append(one)
            world.scheduler.add(one)
        elif kind == "step":
            for _ in range(values[0]):
                world.step()
        elif world.live:
            world.end(world.live[values[0] % len(world.live)])
        world.check()
    bound = world.steps + 60 * (number + 1)
    while world.live:
        world.step()
        assert world.steps <= bound, "somebody waits for ever"
    assert all(blocks.available == blocks.count for _, blocks in world.scheduler.spaces)


def test_a_beginning_is_shared_only_where_its_windows_are_there():
    """Of 40 tokens that two prompts share, the windows before the end alone are still in the blocks of the first."""
    shared, tails = [n % 5 for n in range(40)], ([1] * 9, [2] * 9)
    for windows, room, begun in (((), 0, 40), ((10,), 0, 40), ((10,), 12, 0)):
        world = World(30, 4, 60, 3, windows=windows)
        for number, tail in enumerate(tails):
            one = request(number, shared + tail, 2)
            world.live.append(one)
            world.scheduler.add(one)
            plan = world.scheduler.plan()
            if number:
                assert plan.chunks[0].first == begun
                break
            world.write(one, 0, 40)
            world.write(one, 40, 49)
            world.step()
            assert one.finish
            taken = [world.scheduler.spaces[-1][1].take() for _ in range(room and world.scheduler.spaces[-1][1].count)]
            world.scheduler.spaces[-1][1].release(taken)  # others have had all the blocks since


@pytest.mark.promise("R37")
@pytest.mark.parametrize("windows", [(), (7, 30)])
def test_a_thousand_requests_in_a_small_pool(windows):
    world, draw = World(20, 4, 16, 6, windows=windows), random.Random(1)
    for number in range(1000):
        prompt = [draw.randrange(2) for _ in range(draw.randrange(1, 60))]
        one = request(number, prompt, draw.randrange(1, 20), draw.randrange(3))
        world.live.append(one)
        world.scheduler.add(one)
        for _ in range(draw.randrange(12)):
            world.step()
        if draw.random() < 0.2 and world.live:
            world.end(draw.choice(world.live))
    while world.live:
        world.step()


def test_waiting_raises_the_priority():
    """Somebody of priority 2 comes in every step; the one of priority 0 is served after two times AGEING."""
    world = World(50, 4, 8, 1)
    low = request(0, [1] * 8, 1)
    world.live.append(low)
    world.scheduler.add(low)
    for number in range(1, 1000):
        one = request(number, [number % 2] * 8, 1, priority=2)
        world.live.append(one)
        world.scheduler.add(one)
        world.step()
        if low.finish:
            break
    assert world.steps == 2 * AGEING


@pytest.mark.parametrize("blocks", range(36, 44))
def test_rows_that_give_their_blocks_back_are_not_read_for(blocks):
    """Two answers grow into the room of a more important prompt that is read slowly."""
    world = World(blocks, 1, 2, 5)
    for number, (length, new, priority) in enumerate(((2, 25, 0), (2, 25, 0), (20, 2, 1))):
        world.live.append(request(number, [number] * length, new, priority))
        world.scheduler.add(world.live[-1])
        for _ in range(3):
            world.step()
    low = world.live[1]
    assert len(low.answer) > 1
    while low.blocks:
        world.step()
    assert low.finish is None and len(low.answer) > 1  # it was sent away in the middle
    while world.live:
        world.step()


def test_a_request_of_one_token_that_is_sent_away_is_not_read_for():
    world = World(1, 1, 8, 2)
    first, second = (request(number, [1], 5) for number in range(2))
    world.live.append(first)
    world.scheduler.add(first)
    world.step()
    world.scheduler.running.append(second)
    plan = world.scheduler.plan()
    assert not plan.rows and not second.blocks and world.scheduler.waiting == [second]


def test_a_large_request_is_passed_for_a_while_and_then_let_in():
    world = World(10, 4, 64, 8)

    def add(number, length, new):
        one = request(number, [number % 3] * length, new)
        world.live.append(one)
        world.scheduler.add(one)
        return one

    add(0, 8, 12)
    world.step()
    large, passed = add(1, 36, 4), 0
    for number in range(2, 400):
        if len(world.live) < 4:
            add(number, 5, 7)
        world.step()
        if large.finish:
            break
        passed += any(one.number > 1 and one.answer for one in world.live)
    assert passed > PATIENCE // 2 and PATIENCE <= world.steps <= PATIENCE + 40


def test_lookups_follow_the_whole_beginning_and_its_owner():
    a, b = [1, 2, 3], [4, 5, 6]
    begin = beginning("anna", 0, "")
    assert len({begin, beginning("bert", 0, ""), beginning("anna", 128, ""), beginning("anna", 0, "x")}) == 4
    assert beginning("a", 1, "1x") != beginning("a", 11, "x")
    assert following(following(begin, a), b) != following(following(begin, b), b)
    assert following(begin, a) != following(begin, [*a, 0])
    assert following(begin, a) == following(beginning("anna", 0, ""), list(a))


def test_the_least_recently_used_block_goes_first_and_ends_before_beginnings():
    gone = []
    blocks = Blocks(4, gone.append)
    first = [blocks.take(), blocks.take()]
    second = [blocks.take()]
    for block, name in ((first[0], b"a"), (first[1], b"ab"), (second[0], b"c")):
        blocks.name(block, name)
    blocks.release(first)
    blocks.release(second)
    assert (blocks.available, blocks.kept, gone) == (4, 3, [])
    blocks.share(first[0])
    blocks.release([first[0]])  # used again: now the most recent
    assert [blocks.take() for _ in range(4)][1:] == [first[1], second[0], first[0]]
    assert gone == [first[1], second[0], first[0]] and blocks.take() is None
    assert blocks.find(b"a") is None


def test_our_own_mistakes_are_found():
    blocks = Blocks(2)
    block = blocks.take()
    with pytest.raises(AssertionError, match="no name"):
        blocks.share(block)
    blocks.release([block])
    with pytest.raises(AssertionError, match="more often"):
        blocks.release([block])
