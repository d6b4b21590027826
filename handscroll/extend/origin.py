"""What a lengthened checkpoint was trained with, so that lengthening it once more starts from there.

A `config.json` cannot say it of a longer context that was only declared, of a larger rope base, or of stretched buckets
and slopes: the folder's `handscroll.json` does, under `trained` and `before`. A checkpoint that was tuned since, or
trained on (which leaves no such record), has learned the positions that it has, and they are its origin.
"""

from typing import Any

from handscroll.lm import LM
from handscroll.models.positions import Positions

STRETCHED = {"buckets": ("reach", "factor"), "slopes": ("factor",)}


def origin(lm: LM) -> Any:
    """The configuration that `lm` was trained with, as far as lengthening asks: its positions, and their length.

    Of a record of before 2026-11-26, which has no `before`, only method `none` tells what it was; after others the
    positions are taken as trained with.
    """
    config, record = lm.model.config, lm.provenance
    tuned = record.get("tuned")
    if "trained" not in record or (tuned is not None and tuned.get("kept", True)):
        return config.model_copy(update={"original": None}) if config.told in ("learned", *STRETCHED) else config
    before = record.get("before")
    if before is None and str(record.get("method", "")).startswith("none"):
        before = remembered(config)
    if before is None:
        return config.model_copy(update={"original": None}) if config.told in STRETCHED else config
    if config.told in STRETCHED:
        return config.model_copy(update=before | {"original": lm.trained})
    if config.told == "rotary" and config.positions.scaling.name == "none":
        plain = {"scaling": {"name": "none"}, "context": config.context, "trained": lm.trained}
        positions = Positions.parse(plain | before, "handscroll.json: before")
        return config.model_copy(update={"positions": positions})
    return config


def remembered(first: Any) -> dict[str, Any] | None:
    """What `origin` needs of a configuration and no `config.json` holds once it is lengthened; None: nothing."""
    if first.told == "rotary":
        return {"base": first.positions.base}
    return {name: getattr(first, name) for name in STRETCHED[first.told]} if first.told in STRETCHED else None
