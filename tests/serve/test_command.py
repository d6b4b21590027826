"""The command: keys that are made, models that are named, and a process that is told to stop."""

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import httpx2
import pytest

from handscroll.base.errors import ConfigError
from handscroll.serve.keys import read_keys
from handscroll.serve.models import sources
from tests.cli.material import run


def test_a_key_is_shown_once(tmp_path):
    key = run("serve", "--keys", tmp_path / "keys.toml", "--make-key", "ann").strip().splitlines()[-1]
    assert key.startswith("hs-") and list(read_keys(tmp_path / "keys.toml")) == ["ann"]
    run("serve", "--make-key", "ann", fails="needs --keys")
    run("serve", fails="no model is named")
    run("serve", "model", "--memory", "0", fails="holds nothing")


def test_models_have_names(tmp_path):
    (tmp_path / "a.gguf").touch()
    found = sources([str(tmp_path / "a.gguf"), f"b={tmp_path}"], ["x=one", "b:y=two"])
    assert [one.name for one in found] == ["a", "b", "a:x", "b:y"] and found[3].source == str(tmp_path)
    with pytest.raises(ConfigError, match="names two models"):
        sources(["x/a", "y/a"], [])
    with pytest.raises(ConfigError, match="no model 'c'"):
        sources(["a"], ["c:x=one"])


def test_a_process_serves_and_stops_when_it_is_told(served_models, tmp_path):
    command = [sys.executable, "-m", "handscroll", "serve", f"tiny={served_models['tiny']}", "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, "--store", str(tmp_path), "--memory", "0.01"], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        url = next(line for line in process.stderr if "listening at" in line).split("listening at ")[1].split(";")[0]
        end = time.monotonic() + 30
        while httpx2.get(f"{url}/health").status_code != 200:
            assert time.monotonic() < end
            time.sleep(0.05)
        asked = {"model": "tiny", "prompt": "def", "max_tokens": 2}
        assert httpx2.post(f"{url}/v1/completions", json=asked).status_code == 200
        port = url.rpartition(":")[2]
        run("serve", served_models["tiny"], "--port", port, fails=f"port {port} of 127.0.0.1 is in use")
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
        assert "POST /v1/completions 200" in said
        assert not re.search("GET .* 200", said)  # what went well and only looked is not told
        assert said.index("stopping: open answers have 30 s") < said.index("documents and readings are kept")
        assert process.wait(20) in (0, -signal.SIGTERM)


def test_a_model_that_is_not_there_starts_no_server(tmp_path):
    where = ("--port", 0, "--store", tmp_path / "store")
    run("serve", tmp_path / "no.gguf", *where, fails="there is no file")
    run("serve", tmp_path / "no" / "folder", *where, fails="neither a folder, a GGUF file nor a hub id")
    assert not (tmp_path / "store").exists()
    assert not logging.getLogger("handscroll.serve").handlers  # what it said it does not say for others


def test_a_server_without_a_model_that_could_be_loaded_ends(served_models, tmp_path):
    shutil.copytree(served_models["tiny"], tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"no tensors")
    command = [sys.executable, "-m", "handscroll", "serve", str(tmp_path / "broken"), "--port", "0"]
    done = subprocess.run([*command, "--store", str(tmp_path)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode not in (0, None) and "no model could be loaded: broken: " in " ".join(done.stderr.split())
