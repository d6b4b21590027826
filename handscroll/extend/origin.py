"""What a lengthened checkpoint was trained with, so that lengthening it once more starts from there.

A `config.json` cannot say it of a longer context that was only declared, of a larger rope base or of stretched buckets:
the folder's `handscroll.json` does, under `trained` and `before`. A checkpoint that was tuned since has learned the
positions that it has, and they are its origin.
"""

from typing import Any

from handscroll.lm import LM
from handscroll.models.positions import Positions


def origin(lm: LM) -> Any:
    """The configuration that `lm` was trained with, as far as lengthening asks.

    Rotary positions that were not scaled: with the base and length of before. Buckets: with their reach and factor of
    before, or, of a checkpoint that was tuned since, as they are and trained to its whole context.
    """
    config, before = lm.model.config, lm.provenance.get("before")
    tuned = lm.provenance.get("tuned")
    if before is None or (tuned is not None and tuned.get("kept", True)):
        return config.model_copy(update={"original": None}) if config.told == "buckets" else config
    if config.told == "buckets":
        return config.model_copy(update=before)
    if config.told == "rotary" and config.positions.scaling.name == "none":
        plain = {"scaling": {"name": "none"}, "context": config.context, "trained": lm.trained}
        positions = Positions.parse(plain | before, "handscroll.json: before")
        return config.model_copy(update={"positions": positions})
    return config


def remembered(first: Any) -> dict[str, Any] | None:
    """What `origin` needs of a configuration and no `config.json` holds once it is lengthened; None: nothing."""
    if first.told == "rotary":
        return {"base": first.positions.base}
    return {"reach": first.reach, "factor": first.factor} if first.told == "buckets" else None
