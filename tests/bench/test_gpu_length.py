"""The benchmark of far lengths on a GPU: its commands and its recipe are ones that Handscroll takes."""

import tomllib
from pathlib import Path

import pytest
import typer

from bench.gpu_length import GPU, SMALL, arguments, commands
from handscroll.cli.main import app
from handscroll.train.recipe import Recipe


@pytest.mark.parametrize("sizes", [GPU, SMALL], ids=["gpu", "small"])
def test_every_step_is_a_command_and_the_recipe_is_one(sizes, tmp_path):
    words = ["--model", "m.gguf", "--train", "a.txt", "--text", "b.txt", "c.txt", "--out", str(tmp_path)]
    steps = commands(arguments().parse_args(words), sizes)
    assert [step for step, _, _ in steps] == ["ruler", "ruler", "train", "compare", "compare"]
    for _, left, told in steps:
        command, rest = typer.main.get_command(app), list(told)
        while hasattr(command, "commands"):
            command = command.commands[rest.pop(0)]
        context = command.make_context(told[0], rest)
        assert str(left) in told or left.name == "model"
        if told[0] == "extend" and "--compare" in told:
            assert context.params["search"] and context.params["text"] == ["b.txt", "c.txt"]
    recipe = Recipe.parse(tomllib.loads(sizes.recipe(["a.txt"])), "recipe")
    assert recipe.stages[0].length == sizes.trained and recipe.text.files == (str(Path("a.txt").resolve()),)


def test_steps_can_be_chosen(tmp_path):
    words = ["--model", "m.gguf", "--train", "a.txt", "--text", "b.txt", "--out", str(tmp_path), "--steps", "train"]
    assert [step for step, _, _ in commands(arguments().parse_args(words), GPU)] == ["train"]
