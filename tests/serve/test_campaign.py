"""Longer campaigns against a live server: evaluation by another library, and every endpoint with random bodies."""

import json
import shutil
import subprocess

import pytest

import handscroll
from tests.serve.material import TEXT

pytestmark = pytest.mark.long


@pytest.mark.filterwarnings("ignore")
def test_lm_eval_scores_by_completions_as_the_library_does(server, served_models):
    completions = pytest.importorskip("lm_eval.models.openai_completions")
    from lm_eval.api.instance import Instance

    folder = served_models["tiny"]
    api = completions.LocalCompletionsAPI(
        base_url=f"{server.url}/v1/completions",
        model="tiny",
        tokenizer_backend="huggingface",
        tokenizer=str(folder),
        max_length=1000,
        batch_size=2,
    )
    pairs = [("def walk", "(top):"), ("import", " os"), (TEXT.strip(), " def")]
    asked = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    lm = handscroll.load(folder)
    want = lm.loglikelihood(pairs)
    for (logprob, greedy), one in zip(api.loglikelihood(asked), want, strict=True):
        assert logprob == pytest.approx(one.logprob, abs=1e-3) and greedy == one.greedy
    settings = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}
    asked = [Instance("generate_until", {}, ("def walk", settings), 0)]
    assert api.generate_until(asked) == [lm.generate("def walk", max_tokens=8, stop=["\n"])]


@pytest.mark.promise("R27")
def test_random_bodies_find_nothing(server, tmp_path):
    """Every endpoint by its schema; `schemathesis` is a command of its own (pip install schemathesis)."""
    command = shutil.which("schemathesis")
    if command is None:
        pytest.skip("the command schemathesis is not installed")
    (tmp_path / "schema.json").write_text(json.dumps(server.http.get("/openapi.json").json()))
    checks = "not_a_server_error,response_schema_conformance,negative_data_rejection,content_type_conformance"
    done = subprocess.run(
        [command, "run", str(tmp_path / "schema.json"), "--url", server.url, "--checks", checks,
         "--max-examples", "20", "--seed", "1", "--exclude-path-regex", "events"],
        capture_output=True, text=True, timeout=900, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
