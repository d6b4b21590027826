"""How a checkpoint folder is served on vLLM: its command, with the settings that vLLM does not take from the folder.

Read from vLLM's code and threads of 2026 (docs/deploy.md names them); vLLM itself is not run here.
"""

import json
import math
import shlex
from pathlib import Path
from typing import NamedTuple

from handscroll.base.errors import ConfigError
from handscroll.base.gguf import is_gguf
from handscroll.models.positions import write_positions
from handscroll.models.weights import read_config
from handscroll.nn.positions.rotary import Rotary


class Serving(NamedTuple):
    """A command line for vLLM, and what is different there."""

    command: str
    notes: tuple[str, ...]


def serving(folder: Path) -> Serving:
    """How vLLM serves a folder with the numbers that it has here.

    Raises:
        ConfigError: it is no folder of a decoder, or vLLM does not compute its positions.
    """
    if is_gguf(folder):
        raise ConfigError(f"{folder} is a GGUF file: give a folder (handscroll export {folder} FOLDER --type bf16)")
    _, config = read_config(folder)
    config.spec.require("serving on vLLM", forward=True, one_text=True, head=True)
    words = ["vllm", "serve", str(folder), "--max-model-len", str(config.context)]
    positions = config.spec.positions[0]
    if positions.only_ours:
        raise ConfigError(
            f"vLLM does not compute these positions ({config.describe_positions()}): serve the model from here "
            "(handscroll serve), or lengthen it by yarn (handscroll extend ... --method yarn)"
        )
    if not isinstance(positions, Rotary):
        return Serving(shlex.join(words), ())
    scaling, notes = positions.scaling, []
    if scaling.name == "yarn" and (usual := 1.0 + 0.1 * math.log(scaling.factor)) != scaling.attention_factor(None):
        if len(config.spec.positions) > 1:
            raise ConfigError("its layers differ in their positions, and vLLM takes no factor for some of them alone")
        written = write_positions(positions)
        own = scaling.attention_factor(None)
        table = written["rope_scaling"] | {"rope_theta": written["rope_theta"], "attention_factor": own}
        table |= {"attn_factor": own / usual}
        words += ["--hf-overrides", json.dumps({"rope_parameters": table})]
        notes.append("attention_factor: releases of vLLM that do not read it multiply their own by attn_factor")
    if scaling.name == "longrope":
        notes.append(
            f"vLLM takes the long factors for every text, short ones too, unless --max-model-len is {positions.trained}"
        )
    if scaling.name == "dynamic-ntk":
        notes.append("vLLM takes the base of its longest text for every text, so short texts are not exact there")
    return Serving(shlex.join(words), tuple(notes))
