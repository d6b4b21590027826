"""The choice of a strategy that fits, and the message of a refusal."""

import math
import re

import pytest
import torch

from handscroll.base.config import apply_override
from handscroll.base.errors import CapacityError
from handscroll.base.workload import Footprint
from handscroll.generate.prefill import prefill_chunk
from handscroll.plan.choose import afford, check, fits, longest, options, resolve
from handscroll.plan.forecast import beside, predict
from handscroll.plan.show import plan
from handscroll.train.step import Memory
from tests.naming import naming


def test_the_fastest_is_taken_where_all_fit(workload, machine):
    assert resolve(workload(strategy="auto"), machine(20_000)).strategy == "plain"


@pytest.mark.parametrize("megabytes", [1900, 1100, 800, 600, 540, 505])
def test_what_is_taken_fits_and_is_the_fastest(workload, machine, megabytes):
    here = machine(megabytes)
    taken = resolve(workload(strategy="auto", length=8192), here)
    assert fits(predict(taken, here), here)
    assert taken.chunk % 64 == 0
    Memory(strategy=taken.strategy, chunk=taken.chunk, stage_layers=taken.stage_layers, offload=taken.offload)
    for other in options(workload(strategy="auto", length=8192), here):
        same_place = other.workload.offload == taken.offload
        assert not (same_place and fits(other, here)) or other.seconds >= predict(taken, here).seconds


def test_less_memory_never_gives_a_faster_strategy(workload, machine):
    times = []
    for megabytes in (2500, 1900, 1100, 800, 600, 540, 505):
        here = machine(megabytes)
        times.append(predict(resolve(workload(strategy="auto", length=8192), here), here).seconds)
    assert times == sorted(times)
    assert times[0] < times[-1]


def test_the_same_numbers_give_the_same_choice(workload, machine):
    assert len({resolve(workload(strategy="auto", length=8192), machine(700)) for _ in range(3)}) == 1


def test_given_settings_stay(workload, machine):
    assert resolve(workload(strategy="staged", stage_layers=3), machine(20_000)).stage_layers == 3
    assert resolve(workload(strategy="chunk-outer", chunk=192), machine(20_000)).chunk == 192
    assert resolve(workload(strategy="auto", chunk=256), machine(20_000)).chunk == 256
    assert resolve(workload(strategy="layer-outer", offload="disk"), machine(20_000)).offload == "disk"


def test_a_refusal_names_a_setting_that_passes(workload, machine):
    here = machine(700)
    refused = workload(length=8192)
    with pytest.raises(CapacityError, match=naming("'plain'", "630 MB", "700 MB")) as error:
        check(refused, here)
    values: dict = {}
    for option in re.findall(r"--set (\S+)", str(error.value)):
        apply_override(values, option)
    settings = Memory.parse(values["memory"], "refusal")
    names = ("strategy", "chunk", "stage_layers", "offload")
    named = workload(length=8192, **{name: getattr(settings, name) for name in names})
    assert settings.strategy != "plain"
    assert check(named, here).host <= here.usable


def test_a_refusal_without_a_way_out_names_the_longest_length(workload, machine):
    here = machine(520)
    refused = workload(length=1 << 20, strategy="auto")
    with pytest.raises(CapacityError, match=r"Rows of up to ([\d,]+) tokens would") as error:
        check(refused, here)
    found = re.search(r"up to ([\d,]+) tokens", str(error.value))
    assert found is not None
    most = int(found[1].replace(",", ""))
    assert most == longest(refused, here)
    check(workload(length=most, strategy="auto"), here)
    with pytest.raises(CapacityError):
        check(workload(length=most + 128, strategy="auto"), here)


def test_nothing_fits(workload, machine):
    with pytest.raises(CapacityError, match="length"):
        check(workload(strategy="auto"), machine(300))


def test_a_full_disk_is_refused(workload, machine):
    with pytest.raises(CapacityError, match=r"\b1 MB"):
        check(workload(), machine(20_000, disk=10**6))


def test_a_stage_that_is_not_the_widest_is_refused_too(workload, machine):
    """Fewer tokens, but several micro-batches: gradients and activations at once."""
    wide, several = workload(length=1024, strategy="plain"), workload(length=1000, micro=4, strategy="plain")
    hosts = [predict(one, machine(20_000)).host for one in (wide, several)]
    assert hosts[0] < hosts[1]
    between = machine(sum(hosts) // 2 // 1_000_000 * 10 // 9)
    assert not plan([wide], between).refusal
    made = plan([wide, several], between)
    assert "1 x 1,000 tokens on strategy 'plain' would take" in made.refusal
    assert "This fits" in made.refusal


def test_a_cache_of_another_kind_takes_what_it_says(workload, machine):
    kept = Footprint(each=10.5, most=100, fixed=7)
    one = workload(kind="generate", strategy="auto", length=2048, new=9, cache=kept, rows=2)
    assert predict(one, machine(2000)).parts["cache"] == 2 * math.ceil(7 + 10.5 * (100 + 1024))
    assert predict(one.changed(chunk=64), machine(2000)).parts["cache"] == 2 * math.ceil(7 + 10.5 * 164)
    assert predict(one.changed(length=50), machine(2000)).parts["cache"] == 2 * math.ceil(7 + 10.5 * 58)
    whole = kept.model_copy(update={"whole": True})
    assert whole.peak(2048, 9, 64) == math.ceil(7 + 10.5 * 2048)
    away = Footprint(each=0, fixed=1000, reading=24, filed=24)
    stored = predict(one.changed(cache=away), machine(2000))
    assert stored.parts["cache"] == 2 * (1000 + 24 * 1024) and stored.disk == 2 * 24 * 2056


def test_a_prompt_is_planned_in_the_chunks_in_which_the_device_reads_it(workload):
    prompt = workload(kind="generate", strategy="auto", length=20_000, new=9)
    for device in ("cpu", "cuda"):
        one = prompt.changed(device=device)
        assert beside(one) == beside(one.changed(chunk=prefill_chunk(torch.device(device))))


def test_a_request_beside_a_loaded_model_is_refused_with_what_fits(workload):
    full = workload(kind="generate", strategy="auto", length=100_000, new=100)
    half = full.changed(cache=Footprint(each=2 * 6 * 128 * 2))
    away = full.changed(cache=Footprint(each=0, fixed=10**6, filed=2 * 6 * 128 * 4))
    parts = beside(full)
    assert "weights" not in parts and parts["cache"] == 2 * 6 * 128 * 4 * 100_099
    need, others = sum(parts.values()), {"--a half": half, "--a disk": away}
    afford(full, int(need / 0.9) + 2, 0, others)
    with pytest.raises(CapacityError) as refused:
        afford(full, int(need / 0.9) - 2, 10**10, others)
    said = str(refused.value)
    assert "--a half (" in said and "--a disk (" in said and "615 MB of disk)" in said
    room = int((int(need / 0.9) - 2) * 0.9)
    longest = int(re.search(r"a prompt of up to ([\d,]+) tokens", said)[1].replace(",", ""))
    assert sum(beside(full.changed(length=longest)).values()) <= room
    assert sum(beside(full.changed(length=longest + 1)).values()) > room
    with pytest.raises(CapacityError) as refused:
        afford(full, need // 3, 10**6, others)
    assert "--a" not in str(refused.value), "neither half nor a full disk fits"
    afford(away, need, 10**6, {})
