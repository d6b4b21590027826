"""Quantised folders: the weights are those of the published layouts, exactly, and stay in few bits.

Every folder is written here from the layout's definition, element by element, together with the values that it means.
"""

import json
import weakref

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import handscroll
from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.models.packed import layouts
from handscroll.models.weights import load_model, save_model, weight_sizes
from handscroll.nn.quantised import Quantised, round_one
from tests.conformance.families import FORMS
from tests.text.small import trained

FORM = FORMS["llama-mha"]
SIZES = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 4,
         "head_dim": 32, "vocab_size": 300, "num_hidden_layers": 2}  # fmt: skip
TOKENS = torch.tensor([[3, 50, 97, 200, 4, 4, 120]])


def word(numbers, bits):
    """Numbers in one int32, the first in the lowest bits."""
    whole = sum(int(number) << bits * place for place, number in enumerate(numbers))
    return whole - (1 << 32) if whole >= 1 << 31 else whole


def gptq(random, rows, columns, bits=4, group=32, version=1, order=False, zero=None):
    group = group or columns
    groups = columns // group
    numbers = random.integers(0, 1 << bits, (columns, rows))
    zeros = random.integers(0, 1 << bits, (groups, rows)) if zero is None else np.full((groups, rows), zero)
    scales = (random.random((groups, rows)) * 0.02 + 0.001).astype(np.float16)
    index = random.permutation(columns) // group if order else np.arange(columns) // group
    per = 32 // bits
    stored = (zeros - 1) % (1 << bits) if version == 1 else zeros
    tensors = {
        "qweight": [[word(numbers[k : k + per, n], bits) for n in range(rows)] for k in range(0, columns, per)],
        "qzeros": [[word(stored[g, n : n + per], bits) for n in range(0, rows, per)] for g in range(groups)],
        "g_idx": index.tolist(),
    }
    values = [
        [
            np.float32(scales[index[k], n]) * np.float32(int(numbers[k, n]) - int(zeros[index[k], n]))
            for k in range(columns)
        ]
        for n in range(rows)
    ]
    made = {name: torch.tensor(value, dtype=torch.int32) for name, value in tensors.items()}
    return made | {"scales": torch.from_numpy(scales)}, torch.tensor(np.array(values))


AWQ = (0, 2, 4, 6, 1, 3, 5, 7)  # which column the nibble of each place belongs to


def awq(random, rows, columns, group=64):
    groups = columns // group
    numbers, zeros = random.integers(0, 16, (columns, rows)), random.integers(0, 16, (groups, rows))
    scales = (random.random((groups, rows)) * 0.02 + 0.001).astype(np.float16)

    def packed(row):
        return [word([row[n + place] for place in AWQ], 4) for n in range(0, rows, 8)]

    values = scales[np.arange(columns) // group].astype(np.float32) * (numbers - zeros[np.arange(columns) // group])
    tensors = {"qweight": [packed(row) for row in numbers], "qzeros": [packed(row) for row in zeros]}
    made = {name: torch.tensor(value, dtype=torch.int32) for name, value in tensors.items()}
    return made | {"scales": torch.from_numpy(scales)}, torch.from_numpy(values.T.astype(np.float32))


def fp8(random, rows, columns, block=(64, 32), name="weight_scale_inv"):
    wide = torch.from_numpy(random.normal(size=(rows, columns)).astype(np.float32))
    weight = (wide * 50).to(torch.float8_e4m3fn)
    if block:
        scales = torch.from_numpy(
            random.random((-(-rows // block[0]), -(-columns // block[1]))).astype(np.float32) * 0.003
        )
        each = scales[torch.arange(rows) // block[0]][:, torch.arange(columns) // block[1]]
    else:
        scales = each = torch.tensor(0.0021)
    return {"weight": weight, name: scales}, weight.float() * each


def compressed(random, rows, columns, bits=4, group=32, symmetric=True, dtype=torch.bfloat16):
    half = 1 << bits - 1
    numbers = random.integers(-half, half, (rows, columns))
    scales = torch.from_numpy(random.random((rows, columns // group)) * 0.02 + 0.001).to(dtype)
    zeros = random.integers(-half, half, scales.shape) if not symmetric else np.zeros(scales.shape, int)
    per = 32 // bits
    pack = [[word(row[k : k + per] + half, bits) for k in range(0, columns, per)] for row in numbers]
    tensors = {
        "weight_packed": torch.tensor(pack, dtype=torch.int32),
        "weight_scale": scales,
        "weight_shape": torch.tensor([rows, columns]),
    }
    if not symmetric:
        turned = [
            [word(zeros[n : n + per, g] + half, bits) for g in range(zeros.shape[1])] for n in range(0, rows, per)
        ]
        tensors["weight_zero_point"] = torch.tensor(turned, dtype=torch.int32)
    group_of = np.arange(columns) // group
    shifted = torch.from_numpy((numbers - zeros[:, group_of]).astype(np.float32))
    return tensors, shifted * scales.float()[:, group_of]


def int8_rows(random, rows, columns):
    numbers = torch.from_numpy(random.integers(-128, 128, (rows, columns))).to(torch.int8)
    scales = torch.from_numpy(random.random((rows, 1)) * 0.003).to(torch.bfloat16)
    return {"weight": numbers, "weight_scale": scales}, numbers.float() * scales.float()


def method(name, **settings):
    return {"quant_method": name, **settings}


CASES = {
    "gptq": (gptq, {}, method("gptq", bits=4, group_size=32), "Q5_0"),
    "gptq symmetric": (gptq, {"zero": 8, "group": 128}, method("gptq", bits=4, checkpoint_format="gptq"), "Q4_0"),
    "gptq v2": (gptq, {"version": 2}, method("gptq", bits=4, checkpoint_format="gptq_v2"), "Q5_0"),
    "gptq 8 bits": (gptq, {"bits": 8, "zero": 128}, method("gptq", bits=8), "Q8_0"),
    "gptq 8 bits, one group": (
        gptq,
        {"bits": 8, "group": 0, "zero": 128},
        method("gptq", bits=8, group_size=-1),
        "int8",
    ),
    "gptq 2 bits": (gptq, {"bits": 2}, method("gptq", bits=2), "Q4_0"),
    "gptq act-order": (gptq, {"order": True}, method("gptq", bits=4, desc_act=True), None),
    "awq": (awq, {}, method("awq", bits=4, version="GEMM", zero_point=True), "Q5_0"),
    "fp8": (fp8, {}, method("fp8", weight_block_size=[64, 32], fmt="e4m3"), "FP8"),
    "fp8 ragged blocks": (fp8, {"block": (96, 80)}, method("fp8", weight_block_size=[96, 80]), None),
    "fp8 a matrix": (fp8, {"block": (), "name": "weight_scale"}, method("fp8", activation_scheme="static"), "FP8"),
    "compressed int4": (compressed, {}, method("compressed-tensors", format="pack-quantized"), "Q4_0"),
    "compressed zero points": (
        compressed,
        {"symmetric": False, "group": 64},
        method("compressed-tensors", format="pack-quantized"),
        "Q5_0",
    ),
    "compressed int8 groups": (compressed, {"bits": 8}, method("compressed-tensors", format="pack-quantized"), "Q8_0"),
    "compressed a scale a row": (int8_rows, {}, method("compressed-tensors", format="int-quantized"), "int8"),
    "compressed float8": (
        fp8,
        {"block": (1, 64), "name": "weight_scale"},
        method("compressed-tensors", format="float-quantized"),
        "FP8",
    ),
}


def folder_of(path, make, settings, quantisation):
    """A folder whose projections are quantised, and the model of the values that they mean."""
    random = np.random.default_rng(3)
    model = FORM.build(torch.float32, foreign=FORM.foreign | SIZES | {"tie_word_embeddings": False})
    tensors, values = {}, {}
    for entry in FORM.kind.entries(model.config):
        tensor = model.state_dict()[entry.ours[0]]
        module = entry.theirs.removesuffix(".weight")
        if tensor.dim() == 2 and "proj" in module:
            if module not in values:
                group = settings.get("group", 32)
                fields = settings | {"group": 64} if group and tensor.shape[1] % group else settings
                made, values[module] = make(random, *tensor.shape, **fields)
                tensors |= {f"{module}.{name}": one for name, one in made.items()}
            tensor.copy_(values[module])
        else:
            tensors[entry.theirs] = tensor.clone()
    path.mkdir()
    save_model(model, path)
    config = json.loads((path / "config.json").read_text()) | {"quantization_config": quantisation}
    (path / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")
    return model


@pytest.mark.parametrize("case", CASES)
def test_the_weights_are_those_of_the_layout(tmp_path, case):
    make, settings, quantisation, format = CASES[case]
    want = folder_of(tmp_path / "q", make, settings, quantisation)
    found = load_model(tmp_path / "q", as_stored=True)
    formats = {one.format.name for one in found.modules() if isinstance(one, Quantised)}
    assert formats == ({format} if format else set())
    for model in (found, load_model(tmp_path / "q")):
        for name, module in model.named_modules():
            if isinstance(module, (Quantised, torch.nn.Linear)):
                assert torch.equal(module.weight, want.get_parameter(f"{name}.weight")), name
    with torch.no_grad():
        torch.testing.assert_close(found(TOKENS), want(TOKENS), atol=1e-2, rtol=2e-3)  # inputs in 16 bits


@pytest.mark.parametrize("bits, rows, columns", [(4, 16, 40), (8, 16, 40), (8, 8, 64)])
def test_one_group_of_any_width_is_read(bits, rows, columns):
    tensors, values = gptq(np.random.default_rng(3), rows, columns, bits, group=0, zero=1 << bits - 1)
    found = layouts.gptq(tensors.get)
    assert found is not None and (raw := found.raw()) is not None
    assert torch.equal(raw[0].dequantise(raw[1]), values) and torch.equal(found.floats(torch.float32), values)


@pytest.mark.parametrize("number", [0.0, 0.5])
def test_a_bias_that_the_family_lacks_must_be_zero_beside_a_quantised_matrix(tmp_path, number):
    make, settings, quantisation, _ = CASES["gptq"]
    want = folder_of(tmp_path / "q", make, settings, quantisation)
    tensors = load_file(tmp_path / "q" / "model.safetensors")
    for name in [name for name in tensors if name.endswith(".qweight")]:
        tensors[name.replace("qweight", "bias")] = torch.zeros(tensors[name].shape[1], dtype=torch.float16)
    tensors["model.layers.1.mlp.up_proj.bias"][3] = number
    save_file(tensors, tmp_path / "q" / "model.safetensors")
    if number:
        with pytest.raises(CheckpointError, match=r"1 tensors .*: model.layers.1.mlp.up_proj.bias"):
            load_model(tmp_path / "q", as_stored=True)
    else:
        found = load_model(tmp_path / "q")
        assert torch.equal(found.get_parameter("layers.1.mlp.up.weight"), want.get_parameter("layers.1.mlp.up.weight"))


def test_a_quantised_folder_is_a_model_like_any_other(tmp_path):
    make, settings, quantisation, _ = CASES["awq"]
    folder_of(tmp_path / "q", make, settings, quantisation)
    trained("bpe").save(tmp_path / "q")
    lm = handscroll.load(tmp_path / "q")
    assert lm.generate("a", max_tokens=4) == lm.generate("a", max_tokens=4)
    floats = handscroll.load(tmp_path / "q", weights="float")
    torch.testing.assert_close(lm.nll([5, 9, 100, 7]), floats.nll([5, 9, 100, 7]), atol=1e-3, rtol=1e-3)
    floats.save(tmp_path / "whole")
    assert torch.equal(handscroll.load(tmp_path / "whole").logits([5, 9]), floats.logits([5, 9]))


@pytest.mark.parametrize(
    "quantisation, said",
    [
        ({"load_in_4bit": True}, "bitsandbytes"),
        (method("bitsandbytes", load_in_8bit=True), "--weights int8 or int4"),
        (method("hqq"), "by 'hqq', which is not read"),
        (method("awq", version="gemv"), "version"),
        (method("awq", bits=3), "bits"),
        (method("gptq", checkpoint_format="marlin"), "marlin"),
        (method("fp8", fmt="e5m2"), "e5m2"),
        (method("compressed-tensors", format="marlin-24"), "marlin-24"),
        (method("compressed-tensors", sparsity_config={"format": "sparse-24-bitmask"}), "sparse-24"),
        (method("compressed-tensors", transform_config={"R1": {}}), "transform_config"),
        ([1], "expected a table"),
        (method(["gptq"]), "is not read"),
        (method("compressed-tensors", sparsity_config=3, config_groups=[1], format=["x"]), "format"),
    ],
)
def test_methods_that_are_not_read_are_refused_with_what_to_do(tmp_path, quantisation, said):
    make, settings, _, _ = CASES["awq"]
    folder_of(tmp_path / "q", make, settings, quantisation)
    with pytest.raises(ConfigError, match=said):
        load_model(tmp_path / "q", as_stored=True)


@pytest.mark.parametrize(
    "case, name, change, said",
    [
        ("gptq", "qzeros", None, "no 'qzeros'"),
        ("gptq", "scales", lambda one: one[:-1], "do not fit"),
        ("gptq", "g_idx", lambda one: one + 100, "g_idx names groups"),
        ("gptq", "qweight", lambda one: one[:-1], "do not fit"),
        ("awq", "scales", lambda one: one[:, :-8], "do not fit|words"),
        ("fp8", "weight_scale_inv", None, "neither"),
        ("fp8", "weight", lambda one: torch.full_like(one, float("nan")), "not a number"),
        ("compressed int4", "weight_shape", lambda one: one * 3, "words"),
        ("gptq", "qweight", lambda one: one[0], "not that of a matrix"),
        ("compressed int4", "weight_shape", lambda one: one[:1], "two sizes"),
        ("compressed int4", "extra", torch.ones(3), "does not explain"),
    ],
)
def test_damaged_matrices_are_named(tmp_path, case, name, change, said):
    make, settings, quantisation, _ = CASES[case]
    folder_of(tmp_path / "q", make, settings, quantisation)
    tensors = load_file(tmp_path / "q" / "model.safetensors")
    key = f"model.layers.1.mlp.up_proj.{name}"
    if callable(change):
        changed = change(tensors[key].float())
        assert isinstance(changed, torch.Tensor)
        tensors[key] = changed.to(tensors[key].dtype).contiguous()
    else:
        tensors = {one: tensor for one, tensor in tensors.items() if one != key}
        tensors |= {key: change} if change is not None else {}
    save_file(tensors, tmp_path / "q" / "model.safetensors")
    with pytest.raises(CheckpointError, match=said):
        load_model(tmp_path / "q", as_stored=True)


@pytest.mark.parametrize("form", ["llama", "gpt2", "bloom", "t5"])
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_rounded_models_are_saved_and_loaded_again(tmp_path, form, weights):
    form = FORMS[form]
    sizes = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 300, "n_embd": 64, "n_inner": 96, "n_head": 4}
    sizes |= {"d_model": 64, "d_ff": 96, "d_kv": 16, "num_heads": 4, "num_attention_heads": 8}
    foreign = form.foreign | {key: sizes[key] for key in sizes.keys() & form.foreign.keys()}
    save_model(form.build(torch.float32, foreign=foreign), tmp_path / "whole")
    rounded = load_model(tmp_path / "whole", rounded=weights)
    save_model(rounded, tmp_path / "rounded")
    again = load_model(tmp_path / "rounded", as_stored=True)
    state = again.state_dict()
    assert state.keys() == rounded.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in rounded.state_dict().items())
    if not form.config.spec.encoder:
        with torch.no_grad():
            want = rounded(TOKENS % 97)
            assert torch.equal(again(TOKENS % 97), want)
            torch.testing.assert_close(load_model(tmp_path / "rounded")(TOKENS % 97), want, atol=2e-3, rtol=2e-3)
    (count, names, size), (whole, _, floats) = (weight_sizes(tmp_path / name) for name in ("rounded", "whole"))
    assert count == whole and "handscroll" in names and size < floats / 2
    config = json.loads((tmp_path / "rounded" / "config.json").read_text())
    config["quantization_config"]["formats"] = {"layers.0": "int8"}
    (tmp_path / "rounded" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"no tensor|stored as|does not have"):
        load_model(tmp_path / "rounded", as_stored=True)


def test_rounding_while_loading_never_holds_all_floats(tmp_path, monkeypatch):
    """Each matrix is rounded before the next is widened."""
    save_model(FORM.build(torch.float64, foreign=FORM.foreign | SIZES), tmp_path / "whole")
    alive, rounds = [], 0

    def counted(model, name, weight, weights, once=round_one):
        nonlocal rounds
        rounds += 1
        alive.append(weakref.ref(weight))
        assert sum(one() is not None and one().dim() == 2 for one in alive) <= 2
        return once(model, name, weight, weights)

    monkeypatch.setattr("handscroll.models.weights.round_one", counted)
    load_model(tmp_path / "whole", torch.float32, rounded="int8")
    assert rounds > 10
