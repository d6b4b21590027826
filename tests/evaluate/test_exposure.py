"""Exposure of secrets: one that was learned by heart comes first, one that was never read has the rank of chance."""

import json
import math

import pytest
import torch
from typer.testing import CliRunner

import handscroll
from handscroll.base.errors import CapacityError, ConfigError
from handscroll.cli.main import app
from handscroll.evaluate.exposure import Secret, exposure
from tests.naming import naming

TEXT = "The code of the safe is {{48151623}}."
ABSENT = "The code of the door is {{%d}}."


@pytest.fixture(scope="module")
def taught(tiny_folder):
    """The tiny model after it read the code of the safe sixty times."""
    lm = handscroll.load(tiny_folder, dtype="float32")
    secret = Secret.parse(TEXT)
    ids = torch.tensor([lm.encode(secret.before + secret.secret + secret.after)])
    optimizer = torch.optim.AdamW(lm.model.parameters(), lr=1e-3)
    lm.model.train()
    for _ in range(60):
        logits = lm.model(ids[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits[0], ids[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    lm.model.eval()
    return lm


@pytest.mark.promise("R36")
def test_a_planted_secret_comes_first_and_others_have_the_rank_of_chance(taught):
    found = exposure(taught, Secret.parse(TEXT))
    assert found.rank == 1 and found.bits == found.most == pytest.approx(math.log2(1000))
    shares = [exposure(taught, Secret.parse(ABSENT % (10**7 + 7919 * n)), 60, n).chance for n in range(24)]
    assert 0.3 < sum(shares) / len(shares) < 0.7  # the mean of ranks by chance is 0.5, give or take 0.06
    untaught = exposure(taught, Secret.parse("The code of the safe is {{73920584}}."))
    assert untaught.bits < 0.9 * untaught.most


def test_the_rank_is_that_of_the_likelihoods(taught):
    secret = Secret.parse("He has {{5C}} coins")
    among = [secret.secret, *secret.others(19, 3)]
    assert len(set(among)) == 20 and all(one[0].isdigit() and one[1].isupper() for one in among)
    likely = [taught.loglikelihood([(secret.before, one + secret.after)])[0].logprob for one in among]
    assert exposure(taught, secret, 20, 3).rank == 1 + sum(one > likely[0] for one in likely[1:])


def test_few_forms_are_compared_with_half_of_them(taught):
    found = exposure(taught, Secret.parse("Room {{12}}."))
    assert found.among == 50 and 0 <= found.bits <= found.most


@pytest.mark.parametrize("text", ["no secret", "{{1}} and {{2}}"])
def test_a_text_marks_one_secret(text):
    with pytest.raises(ConfigError, match=naming("double braces")):
        Secret.parse(text)


def test_what_cannot_be_ranked_is_refused(taught):
    with pytest.raises(ConfigError, match=naming("1", "张三")):
        exposure(taught, Secret.parse("他叫{{张三}}。"))
    with pytest.raises(CapacityError):
        exposure(taught, Secret.parse("word " * 3000 + "{{1234}}"))


def test_the_command(taught, tmp_path, monkeypatch):
    taught.save(tmp_path / "taught")
    monkeypatch.setattr("sys.argv", ["handscroll", "evaluate", "exposure", "taught", "--secret", TEXT])
    told = CliRunner().invoke(app, ["evaluate", "exposure", str(tmp_path / "taught"), "--secret", TEXT, "--json",
                               str(tmp_path / "out.jsonl"), "--among", "200"])  # fmt: skip
    assert told.exit_code == 0, told.output
    assert "1 of 200" in told.output
    (record,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert record["secrets"][0]["bits"] == pytest.approx(math.log2(200))
    assert record["secrets"][0]["secret"] == "48151623"
    command = record["made"]["command"]
    assert "--secret 'The code of the safe is {{…}}.'" in command and "48151623" not in command


def test_an_adapter_is_compared_with_its_base(tiny_folder, monkeypatch):
    """The base is named twice, with the adapter and without it."""
    loaded, load, base = [], handscroll.load, str(tiny_folder)

    def loading(*given, adapter):
        loaded.append(adapter)
        return load(*given)

    monkeypatch.setattr("handscroll.lm.load", loading)
    command = ["evaluate", "exposure", base, "--secret", TEXT, "--among"]
    told = CliRunner().invoke(app, [*command, "8", "--adapter", "own", "--reference", base])
    assert told.exit_code == 0, told.output
    assert loaded == [["own"], None]
    assert isinstance(CliRunner().invoke(app, [*command, "1"]).exception, ConfigError)
