"""lm-eval with our model: equal to its own model task by task, and nothing cut."""

import json
import logging

import pytest
import torch

from handscroll.base.errors import CapacityError, ConfigError
from handscroll.evaluate import harness
from handscroll.evaluate.harness import rolling
from tests.naming import naming
from tests.tasks.chats import talker

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install 'handscroll[harness]')")

ROWS = [
    {"question": f"What is the colour of the {name}?", "choices": [f" {a}", f" {b}", " no colour at all"], "right": at}
    for name, a, b, at in (
        ("quick fox", "brown", "blue", 0), ("lazy dog", "green", "grey", 1), ("sky", "blue", "brown", 0),
        ("grass", "red", "green", 1), ("cat", "black", "purple", 0), ("moon", "white", "yellow", 1),
    )
]  # fmt: skip
TASK = {
    "dataset_path": "json", "test_split": "test", "doc_to_text": "Question: {{question}}\nAnswer:",
    "fewshot_split": "test", "metadata": {"version": 1.0},
}  # fmt: skip
TASKS = {
    "choice": {
        "output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "{{right}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "write": {
        "output_type": "generate_until", "doc_to_target": "{{choices[right]}}",
        "generation_kwargs": {"until": ["\n", "e"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
    "whole": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{question}} {{choices | join}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model that chats, as a folder that `transformers` loads."""
    lm = talker(context=256)
    lm.tokenizer.settings.update({"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"})
    return lm.save(tmp_path_factory.mktemp("harness") / "model")


@pytest.fixture(scope="module")
def manager(tmp_path_factory):
    """The tasks over a local file."""
    import yaml
    from lm_eval.tasks import TaskManager

    place = tmp_path_factory.mktemp("tasks")
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    files = {"dataset_kwargs": {"data_files": {"test": str(place / "rows.jsonl")}, "cache_dir": str(place)}}
    for name, about in TASKS.items():
        (place / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **TASK, **files, **about}), encoding="utf-8")
    return TaskManager(include_path=str(place), include_defaults=False)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No socket is opened."""
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def evaluated(manager, model, args, shots, chat):
    harness.adapter()
    return lm_eval.simple_evaluate(
        model=model, model_args=args, tasks=list(TASKS), num_fewshot=shots, task_manager=manager, bootstrap_iters=0,
        apply_chat_template=chat, fewshot_as_multiturn=chat, log_samples=True, random_seed=0, device="cpu",
    )  # fmt: skip


@pytest.mark.promise("R15")
@pytest.mark.filterwarnings("ignore")  # of lm-eval, datasets and transformers
@pytest.mark.parametrize(("shots", "chat"), [(0, False), (2, True)])
def test_every_answer_is_that_of_lm_evals_own_model(folder, manager, shots, chat):
    ours = evaluated(manager, "handscroll", f"path={folder},dtype=float32", shots, chat)
    theirs = evaluated(manager, "hf", f"pretrained={folder},dtype=float32", shots, chat)
    for name in TASKS:
        mine, other = (
            {key: value for key, value in one["results"][name].items() if isinstance(value, float)}
            for one in (ours, theirs)
        )
        assert mine == pytest.approx(other, rel=1e-4) and mine
        for one, two in zip(ours["samples"][name], theirs["samples"][name], strict=True):
            assert one["arguments"] == two["arguments"]
            for said, known in zip(one["resps"], two["resps"], strict=True):
                if name == "write":
                    assert said == known
                else:
                    values = [
                        torch.tensor([float(x) for x in (r[0] if isinstance(r[0], tuple | list) else r)])
                        for r in (said, known)
                    ]
                    torch.testing.assert_close(values[0], values[1], atol=2e-4, rtol=1e-4)


def instance(*arguments):
    return type("Instance", (), {"args": arguments})()


def model_of(folder, **arguments):
    return harness.adapter()(path=str(folder), dtype="float32", **arguments)


def test_nothing_is_cut(folder, tmp_path):
    model = model_of(folder, max_length=40, certificate=str(tmp_path / "seen.jsonl"))
    long = "the quick fox jumps over the lazy dog. " * 9
    with pytest.raises(CapacityError, match=naming("request 1", 40, "Nothing is cut")):
        model.loglikelihood([instance("a", " b"), instance(long, " b")])
    with pytest.raises(CapacityError, match=naming("request 0", 40, "max_gen_toks")):
        model.generate_until([instance("the quick fox", {"max_gen_toks": 60})])
    assert not (tmp_path / "seen.jsonl").exists()
    (value,) = model.loglikelihood_rolling([instance(long)])
    (record,) = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text(encoding="utf-8").splitlines()]
    seen = record["certificate"]
    assert value < 0 and record["count"] > 1 and seen["offered"] == seen["seen"] > len(model.encode(long))


def test_windows_score_every_token_once():
    ids = list(range(1, 24))
    for length in (1, 4, 7, 23, 40):
        windows = list(rolling(ids, 0, length))
        assert [token for _, new in windows for token in new] == ids
        assert all(len(before) + len(new) - 1 <= length for before, new in windows)
        assert windows[0][0] == [0] and all(len(before) + len(new) - 1 == length for before, new in windows[1:])
    assert list(rolling([], 0, 4)) == []


def test_what_is_not_known_is_refused(folder):
    for arguments in ({"max_lenght": 4}, {"batch_size": 8}, {"max_length": 1000}):
        with pytest.raises(ConfigError, match=naming(next(iter(arguments)).split("_")[0])):
            model_of(folder, **arguments)
    with pytest.raises(ConfigError, match="num_beams"):
        model_of(folder).generate_until([instance("the", {"num_beams": 4, "max_gen_toks": 2})])


def test_what_requests_begin_with_is_read_once(folder, monkeypatch):
    model = model_of(folder)
    shared = "the quick brown fox jumps over the lazy dog. " * 7
    asked = [instance(f"{shared}{word}", {"max_gen_toks": 3, "until": []}) for word in ("one", "two", "three", "four")]
    alone = [model.generate_until([one])[0] for one in asked]
    read = []
    real = type(model.model.model).hidden
    monkeypatch.setattr(
        type(model.model.model), "hidden", lambda self, x, *a: read.append(x.shape[:2].numel()) or real(self, x, *a)
    )
    assert model.generate_until(asked) == alone
    assert sum(read) < 1.5 * len(model.encode(shared)) + 60


def test_the_command_fills_in_model_and_device():
    given = ["--model_args", "path=x", "--tasks", "a"]
    assert harness.arguments_of(given) == [*given, "--model", "handscroll", "--device", "cpu"]
    assert harness.arguments_of(["run", "--model=hf", "--device", "cuda"]) == ["run", "--model=hf", "--device", "cuda"]
    assert harness.HandscrollLM is harness.adapter()  # what the entry point of later releases names
    for words in ([], ["--help"], ["ls", "tasks"]):
        assert harness.arguments_of(words) == words


@pytest.mark.parametrize(
    "words",
    [
        ["--model_args", "path=x,device=cpu"], ["--model_args", "path=x", "device=cuda"], ["-a", "device=cpu,path=x"],
        ["--model_args=path=x,device=cpu"], ["--model_args", '{"path": "x", "device": "cpu"}'],
    ],
)  # fmt: skip
def test_a_device_among_the_models_arguments_is_the_only_one(words):
    given = [*words, "--tasks", "a"]
    assert harness.arguments_of(given) == [*given, "--model", "handscroll"]
    with pytest.raises(ConfigError, match=naming("--device", "--model_args")):
        harness.arguments_of([*given, "--device", "cpu"])


def test_a_path_that_ends_in_device_names_none():
    given = ["--model_args", "path=my_device=cpu", "--tasks", "device=a", "--model", "hf"]
    assert harness.arguments_of(given) == [*given, "--device", "cpu"]


def test_a_misspelt_argument_is_shown_all_names(folder):
    with pytest.raises(ConfigError, match=naming("devise", "did you mean 'device'", "path", "dtype", "max_length")):
        harness.adapter()(str(folder), devise="cpu")
