"""Real `config.json` files of published models, with small sizes: each loads and equals `transformers`, or is refused.

Every other key of a file is as people have it. The files lie beside the repository; without them the test is skipped.
"""

import json
import re
import shutil

import pytest
import torch
import transformers

from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.models.weights import load_model
from tests.conformance.checks import said, theirs_say
from tests.conformance.families import scatter
from tests.conftest import SHARED

FOLDER = SHARED.parent / "cases" / "configs"
FILES = sorted(FOLDER.glob("*.json"))


def reference(foreign):
    """A random model of `transformers` for a file, in float32, of the class that the file names."""
    known = {key: value for key, value in foreign.items() if key not in ("auto_map", "quantization_config")}
    known = {key: value for key, value in known.items() if key not in ("torch_dtype", "dtype")}
    config = transformers.AutoConfig.for_model(**known)
    kind = getattr(transformers, (foreign.get("architectures") or [""])[0], None)
    torch.manual_seed(0)
    if kind is None:
        source = foreign.get("is_encoder_decoder")
        auto = transformers.AutoModelForSeq2SeqLM if source else transformers.AutoModelForCausalLM
        return auto.from_config(config).float().eval()
    return kind._from_config(config).float().eval()


@pytest.mark.skipif(not FILES, reason="the real files are absent: ../shared/cases/configs")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@torch.no_grad()
def test_a_real_file_loads_and_equals_the_reference(path, tmp_path):
    foreign = json.loads(path.read_text(encoding="utf-8"))
    theirs = reference(foreign)
    scatter(theirs)
    theirs.save_pretrained(tmp_path)
    shutil.copy(path, tmp_path / "config.json")
    try:
        ours = load_model(tmp_path)
    except (ConfigError, CheckpointError) as error:
        reason = "remote code" if foreign.get("auto_map") else "quanti[sz]"
        assert re.search(reason, str(error)), str(error)
        return
    rotary = ours.spec.positions[0].way == "rotary"
    tokens = torch.randint(5, ours.config.vocab, (1, min(3 * ours.config.context, 200) if rotary else 60))
    source = torch.randint(5, ours.config.vocab, (1, 60))
    assert (said(ours, tokens, source) - theirs_say(theirs, tokens, source)).abs().max() < 1e-3
