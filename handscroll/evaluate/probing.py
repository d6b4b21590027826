"""Needles for the search of the effective length (`length.py`): a round has a needle in each stratum of a haystack."""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from handscroll.evaluate.certificate import Certificate, require_whole, together
from handscroll.evaluate.kept import Kept
from handscroll.evaluate.length import Found, LengthSearch, Tested, rows_of, search
from handscroll.evaluate.needle import NeedleGrid, arranged, check_grid, form_of, needle_grid
from handscroll.evaluate.placing import places
from handscroll.lm import LM


def effective_length(
    lm: LM,
    filler: Sequence[int],
    settings: LengthSearch,
    grid: NeedleGrid,
    on_round: Callable[[Tested], None] | None = None,
    keep: Path | None = None,
) -> dict[str, Any]:
    """Search the effective length of a model with the needles of `grid`, and return the JSON record.

    Of `grid` the form of the needles counts (language, digits, needles, distractors) and `batch_tokens`; lengths,
    depths and samples are those of the search. Each round takes another piece of the filler, and a random depth in each
    stratum. Rounds are kept in the file `keep` as they are made, and a search that was stopped goes on from it.

    Raises:
        DataError, ConfigError, CapacityError: as `needle_grid`. CheckpointError: `keep` holds another measurement.
    """
    check_grid(lm, filler, grid.model_copy(update={"lengths": settings.lengths}))
    depths = tuple((stratum + 0.5) / settings.strata for stratum in range(settings.strata))
    first = {"lengths": settings.lengths[:1], "depths": depths, "samples": 1, "haystacks": 1}
    arranged(lm, filler, grid.model_copy(update=first))  # what does not fit is refused before anything is read
    about = {} if keep is None else _about(lm, filler, settings, grid)
    made = []
    with Kept(keep, about) as kept:

        def probe(length: int, number: int) -> list[float]:
            key = f"{length}/{number}"
            if key not in kept:
                kept[key] = _round(lm, filler, settings, grid, (length, number))
            made.append(kept[key])
            return kept[key]["found"]

        found = search(settings, probe, on_round)
    certificate = together(Certificate(**part["certificate"]) for part in made)
    require_whole(certificate, "the search of the effective length")
    return {
        "kind": "length",
        "model": lm.source,
        "label": "needle",
        "trained": lm.trained,
        "format": form_of(grid),
        **_verdict(settings, found, grid.needles),
        "tokens": sum(part["tokens"] for part in made),
        "tokens_grid": _grid_tokens(settings),
        "certificate": certificate.record(),
    }


def _round(
    lm: LM, filler: Sequence[int], settings: LengthSearch, grid: NeedleGrid, where: tuple[int, int]
) -> dict[str, Any]:
    """Ask for the needles of each stratum at a length; `found` is the share of each stratum that was found."""
    length, number = where
    draw = random.Random(f"{settings.seed}/{length}/{number}")
    depths = tuple((stratum + draw.random()) / settings.strata for stratum in range(settings.strata))
    change = {"lengths": (length,), "depths": depths, "samples": 1, "haystacks": 1, "seed": draw.randrange(1 << 30)}
    change["distractors"] = grid.distractors * length // settings.lengths[0]  # as many for each token
    record = needle_grid(lm, filler, grid.model_copy(update=change), "round")
    found = [outcome["correct"].count("1") / len(outcome["correct"]) for outcome in record["outcomes"]]
    return {"found": found, "tokens": record["tokens"], "certificate": record["certificate"]}


def _verdict(settings: LengthSearch, found: Found, needles: int) -> dict[str, Any]:
    """What the search found. `hits` and `trials` count needles, of which `needles` stand together."""
    return {
        "lengths": list(settings.lengths),
        "threshold": settings.threshold,
        "strata": settings.strata,
        "rounds": settings.rounds,
        "error": settings.error,
        "seed": settings.seed,
        "effective": found.length,
        "low": found.low,
        "high": found.high,
        "tests": [
            {**row, "hits": round(needles * row["hits"]), "trials": needles * row["trials"]}
            for row in rows_of(settings, found)
        ],
    }


def _grid_tokens(settings: LengthSearch) -> dict[str, int]:
    """What a grid of as many depths and samples at every length takes: its cells alone, and with shared readings."""
    depths = [(stratum + 0.5) / settings.strata for stratum in range(settings.strata)]
    shared = places(settings.lengths, settings.lengths, depths, settings.rounds).tokens
    alone = sum(settings.lengths) * settings.strata
    return {"alone": settings.rounds * alone, "shared": round(settings.rounds * shared)}


def _about(lm: LM, filler: Sequence[int], settings: LengthSearch, grid: NeedleGrid) -> dict[str, Any]:
    """What the file of rounds is about."""
    return {
        "kind": "length rounds",
        "outcome": "share of the needles of a stratum",
        "model": asdict(lm.identity(max(settings.lengths))),
        "search": settings.model_dump(mode="json"),
        "grid": grid.model_dump(mode="json", exclude={"lengths", "depths", "samples", "haystacks", "seed"}),
        "text_sha256": hashlib.sha256(np.asarray(filler, dtype="<i8").tobytes()).hexdigest(),
    }
