"""Recipes that tests of runs share."""

from pathlib import Path

TINY = Path(__file__).parents[2] / "recipes" / "tiny" / "bert.toml"
