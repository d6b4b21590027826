"""Puts adapters on a model: low-rank updates over its matrices in any format, whole tensors in place of its own.

An adapter changes the weights of its base from W to W'. With a weight w it changes them by w (W' - W), and several
adapters add up, all measured from the base. The base stays as it is, in the bytes of its file.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.base.runs import write_file
from handscroll.base.spec import HeadSpec
from handscroll.models.foreign import Entry
from handscroll.models.model import Decoder, Model
from handscroll.models.new import with_head
from handscroll.models.peft import Adapter, LowRank, named_base, read_adapter
from handscroll.models.table import family
from handscroll.models.unpack import unpack
from handscroll.models.weights import TASK, is_adapter, spellings
from handscroll.nn.adapted import AT_ONCE, Adapted, AdaptedHead, AdaptedTable, Update
from handscroll.nn.linear import Linear, TokenTable
from handscroll.nn.quantised import Quantised, QuantisedTable

TABLE, HEAD = "embedding.weight", "projection.weight"
LONGEST = 1024  # a name of a base that is longer is no path
One = str | Path | tuple[str | Path, float]


@dataclass(frozen=True)
class Weighted:
    """An adapter folder and the share of its change that is taken."""

    folder: Path
    weight: float = 1.0

    def resolved(self) -> "Weighted":
        """The same with an absolute path."""
        return replace(self, folder=self.folder.resolve())

    def __str__(self) -> str:
        return str(self.folder) if self.weight == 1.0 else f"{self.folder}={self.weight:g}"


def weighted(adapter: One | Sequence[One] | None) -> tuple[Weighted, ...]:
    """Adapters from what a user gives: a folder, "FOLDER=WEIGHT", (folder, weight), or several of these.

    Raises:
        ConfigError: a weight is no finite number.
    """
    if adapter is None:
        return ()
    pair = isinstance(adapter, tuple) and len(adapter) == 2 and isinstance(adapter[1], (int, float))
    given: Any = [adapter] if pair or isinstance(adapter, (str, Path)) else adapter
    return tuple(map(_one, given))


def _one(given: One) -> Weighted:
    if isinstance(given, tuple):
        folder, weight = given
    else:
        folder, weight = given, 1.0
        name, _, number = str(given).rpartition("=")
        if name and not Path(given).exists():
            try:
                folder, weight = name, float(number)
            except ValueError:
                raise ConfigError(f"--adapter {given}: '{number}' is no number; give FOLDER or FOLDER=0.5") from None
    if not isfinite(weight):
        raise ConfigError(f"adapter {folder}: the weight {weight} is not finite")
    return Weighted(Path(folder), float(weight))


def over_base(source: str | Path, adapters: tuple[Weighted, ...]) -> tuple[str | Path, tuple[Weighted, ...]]:
    """A model and its adapters; a model that is itself an adapter becomes the base that it names, if that is here."""
    folder = Path(source)
    if not is_adapter(folder) or not (name := named_base(folder)):
        return source, adapters
    base = next((path for path in (Path(name), folder / name) if len(name) < LONGEST and path.exists()), None)
    return (source, adapters) if base is None else (base, (Weighted(folder), *adapters))


def task_of(base: Path, adapters: tuple[Weighted, ...]) -> bytes | None:
    """What `task.json` says of the task for which adapters over a model, or else the model itself, were tuned.

    None: they were tuned for none, or the adapters for different ones.
    """
    own = {path.read_bytes() for one in adapters if (path := one.folder / TASK).exists()}
    if not own and (path := base / TASK).exists():
        own = {path.read_bytes()}
    return own.pop() if len(own) == 1 else None


def write_task(task: bytes | None, folder: Path) -> None:
    """Write the task of a model into its folder; that of another model there is removed."""
    if task is None:
        (folder / TASK).unlink(missing_ok=True)
    else:
        write_file(folder / TASK, task)


def adapt(model: Decoder, adapters: Sequence[Weighted]) -> Decoder:
    """Put adapters on `model`, in place; a model that lacks the head of an adapter is returned with that head.

    Raises:
        CheckpointError: a folder is damaged, or belongs to another base. ConfigError: it is of another kind.
    """
    found = [(read_adapter(one.folder), one.weight) for one in adapters]
    for adapter, _ in found:
        if adapter.head is not None and not _same_head(adapter.head, model.spec.head):
            model = with_head(model, adapter.head, torch.Generator().manual_seed(0))
    places = _Places(model)
    apart = [places.part_head(adapter) for adapter, _ in found]
    if any(apart):
        untie(model)
        places = _Places(model)
    changes: dict[str, _Changes] = {}
    for (adapter, weight), own in zip(found, apart, strict=True):
        places.gather(adapter, weight, changes, both=any(apart) and not own)
    for name, change in changes.items():
        if change.whole:
            _replace(model, name, change.whole)
    for name, change in changes.items():
        if change.low or change.head or change.rows:
            _put(model, name.removesuffix(".weight"), change)
    return model


def whole_tensors(model: Model, adapter: Adapter) -> set[str]:
    """The names, in a model that an adapter is over, of the tensors that the adapter holds whole."""
    with torch.device("meta"):
        places = _Places(family(model.config.family).build(model.config))
    return {name for name, _ in places.whole(adapter)}


def _same_head(wanted: HeadSpec, own: HeadSpec | None) -> bool:
    """Whether a model has a head already; PEFT's folders do not tell the names of the labels."""
    return own is not None and (own.kind, own.outputs) == (wanted.kind, wanted.outputs)


@dataclass(eq=False)
class _Changes:
    """All changes of one tensor of ours, the base being `base`.

    `low` are updates of a projection or of what a table looks up, `head` of a tied head.
    """

    low: list[Update] = field(default_factory=list)
    head: list[Update] = field(default_factory=list)
    whole: list[tuple[Tensor, float]] = field(default_factory=list)
    rows: list[tuple[Tensor, Tensor, float]] = field(default_factory=list)


class _Places:
    """Where tensors of the reference library lie in a model."""

    def __init__(self, model: Decoder):
        self.model, kind = model, family(model.config.family)
        self.entries: dict[str, Entry] = {}
        for entry in kind.entries(model.config):
            self.entries |= dict.fromkeys((entry.theirs, *entry.also), entry)
        self.copies = {theirs: ours for theirs, ours in kind.copies(model.config).items() if ours is not None}
        self.shapes = {name: tuple(tensor.shape) for name, tensor in _numbers(model)}

    def find(self, theirs: str, adapter: Adapter) -> Entry:
        """The entry of a foreign tensor, with or without the prefix of the base model.

        Raises:
            CheckpointError: the base has no such tensor.
        """
        names = spellings(theirs)
        for name in names:
            if name in self.entries:
                return self.entries[name]
        for name in names:
            if name in self.copies:
                return Entry(name, (self.copies[name],))
        raise CheckpointError(
            f"{adapter.folder} changes '{theirs}', which this model of family '{self.model.config.family}' does not "
            f"have; the adapter was made for {adapter.base or 'a base that it does not name'}"
        )

    def part_head(self, adapter: Adapter) -> bool:
        """Whether an adapter changes a tied head otherwise than the token table, so that it needs a matrix of its own.

        PEFT replaces one of two tied modules if it saves one of them, and leaves the other as it is.
        """
        names = {theirs for theirs, ours in self.copies.items() if ours == TABLE}
        whole = {self.find(name, adapter).theirs: tensor for name, tensor in adapter.whole.items()}
        table = next((entry.theirs for entry in self.entries.values() if entry.ours == (TABLE,)), "")
        own, others = whole.get(table), names & whole.keys()
        rows = names & {self.find(f"{module}.weight", adapter).theirs for module in adapter.rows}
        parents = accumulate(table.split(".")[:-1], "{}.{}".format)
        alone = own is not None and bool(names) and any(name.endswith(adapter.saved) for name in parents)
        apart = alone if not others else own is None or not all(torch.equal(own, whole[name]) for name in others)
        if self.model.spec.encoder and (rows or apart) and (alone or rows | others != {"lm_head.weight"}):
            raise self._one_of_several(table, adapter)
        return bool(rows) or apart

    def _one_of_several(self, name: str, adapter: Adapter) -> ConfigError:
        return ConfigError(
            f"{adapter.folder} changes '{name}', one of several names of a table; merge it with PEFT and load the "
            "merged folder"
        )

    def gather(self, adapter: Adapter, weight: float, changes: "dict[str, _Changes]", both: bool = False) -> None:
        """Add what an adapter changes, by names of ours; `both`: what it does to the table it does to the head too."""

        def named(name: str) -> tuple[str, ...]:
            return (name, HEAD) if both and name == TABLE else (name,)

        for module, low in adapter.low.items():
            entry = self.find(f"{module}.weight", adapter)
            head = entry.theirs in self.copies
            if head and low.table:
                raise self._one_of_several(module, adapter)
            for name, part in self._parts(entry, low, adapter):
                own = changes.setdefault(name, _Changes())
                (own.head if head else own.low).append(_update(self.model, name, part, weight))
        for name, part in self.whole(adapter):
            for one in named(name):
                changes.setdefault(one, _Changes()).whole.append((part, weight))
        for module, (ids, vectors) in adapter.rows.items():
            (name,) = self.find(f"{module}.weight", adapter).ours
            if vectors.shape[1:] != self.shapes[name][1:] or int(ids[-1]) >= self.shapes[name][0]:
                raise CheckpointError(f"{adapter.folder}: tokens of '{module}' do not fit a table {self.shapes[name]}")
            for one in named(name):
                changes.setdefault(one, _Changes()).rows.append((ids, vectors, weight))
        for theirs, tensor in adapter.same.items():
            self._check_same(theirs, tensor, adapter)

    def whole(self, adapter: Adapter) -> Iterator[tuple[str, Tensor]]:
        """Whole tensors by our names, each once."""
        taken: dict[str, Tensor] = {}
        for theirs, tensor in adapter.whole.items():
            entry = self.find(theirs, adapter)
            turned = tensor.T if entry.transposed and tensor.dim() == 2 else tensor
            for name, part in self._unpacked(entry, turned, tuple(turned.shape), adapter):
                if name in taken and not torch.equal(taken[name], part):
                    raise CheckpointError(f"{adapter.folder} holds '{theirs}' twice, with different numbers")
                taken[name] = part
        yield from taken.items()

    def _parts(self, entry: Entry, low: LowRank, adapter: Adapter) -> Iterator[tuple[str, LowRank]]:
        """The update of each of our tensors; rows of B belong to rows of the matrix, however these are ordered."""
        shape, rank = (low.b.shape[0], low.a.shape[1]), low.b.shape[1]
        vectors = [each for each in (low.magnitude, low.bias) if each is not None]
        if wrong := [tuple(each.shape) for each in vectors if each.shape != shape[:1]]:
            raise CheckpointError(f"{adapter.folder}: '{entry.theirs}' has {shape[0]} rows, not {wrong[0]}")
        columns = torch.cat([low.b, *(each.to(low.b).unsqueeze(1) for each in vectors)], 1)
        for name, part in self._unpacked(entry, columns, shape, adapter):
            rest = iter(part[:, rank:].unbind(1))
            magnitude, bias = (None if each is None else next(rest) for each in (low.magnitude, low.bias))
            yield name, replace(low, b=part[:, :rank].contiguous(), magnitude=magnitude, bias=bias)

    def _unpacked(
        self, entry: Entry, tensor: Tensor, shape: tuple[int, ...], adapter: Adapter
    ) -> Iterator[tuple[str, Tensor]]:
        yield from unpack(replace(entry, transposed=False), tensor, shape, self.shapes, adapter.folder)

    def _check_same(self, theirs: str, tensor: Tensor, adapter: Adapter) -> None:
        """Compare the copy of a tensor of the base with the base, if that is in floats."""
        entry = self.find(theirs, adapter)
        turned = tensor.T if entry.transposed else tensor
        for name, part in self._unpacked(entry, turned, tuple(turned.shape), adapter):
            ours = dict(_numbers(self.model))[name].detach()
            if ours.is_floating_point():
                far = float((part.to(ours) - ours).abs().max())
                if far > 0.01 * float(ours.abs().max()):
                    raise CheckpointError(f"{adapter.folder} was trained over another base: its '{theirs}' is another")


def _numbers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names of weights and biases, with a tensor of their shape; of a quantised matrix no numbers are made."""
    for name, module in model.named_modules():
        if isinstance(module, Quantised):
            size = (module.raw.shape[0], module.inner)
            yield f"{name}.weight", torch.empty(size, dtype=torch.uint8, device="meta")
            if module.bias is not None:
                yield f"{name}.bias", module.bias
    yield from model.named_parameters()


def _widened(module: Any) -> Iterator[tuple[slice, Tensor]]:
    """The base matrix in float32, some rows at a time."""
    quantised = isinstance(module, Quantised)
    rows, size = (len(module.raw), module.inner) if quantised else module.weight.shape
    step = max(1, AT_ONCE // size)
    for first in range(0, rows, step):
        part = slice(first, first + step)
        yield part, module.format.dequantise(module.raw[part]) if quantised else module.weight[part].detach().float()


def _update(model: Decoder, name: str, low: LowRank, weight: float) -> Update:
    """One update as it is computed: the scale is in B, and DoRA's magnitudes have become a gain."""
    module = model.get_submodule(name.removesuffix(".weight"))
    device = model.device
    a, b = low.a.to(device), low.b.to(device) * low.scale
    gain = shift = None
    if low.magnitude is not None:
        norms = torch.cat([torch.linalg.norm(wide + b[part] @ a, dim=1) for part, wide in _widened(module)])
        factor = low.magnitude.to(device) / norms
        gain, b = weight * (factor - 1), factor.unsqueeze(1) * b
    if low.bias is not None:
        shift = weight * low.scale * low.bias.to(device)
    return Update(a, b * weight, gain=gain, shift=shift, folded=low.scale)


def _joined(updates: Sequence[Update]) -> Update | None:
    """One update that does what several do together."""
    if len(updates) < 2:
        return updates[0] if updates else None
    sums = [_sum([getattr(one, name) for one in updates]) for name in ("gain", "shift")]
    a, b = torch.cat([one.a for one in updates]), torch.cat([one.b for one in updates], 1)
    return Update(a, b, gain=sums[0], shift=sums[1])


def _sum(parts: Sequence[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return None if not there else torch.stack(there).sum(0)


def _put(model: Decoder, path: str, change: _Changes) -> None:
    """Put updates over one matrix of the model."""
    base, low = model.get_submodule(path), _joined(change.low)
    if isinstance(base, (TokenTable, QuantisedTable)):
        made: nn.Module = AdaptedTable(base, low, _joined(change.head), _trained(base, change.rows))
    elif isinstance(base, (nn.Linear, Quantised)) and change.rows and base.bias is None:
        made = AdaptedHead(base, None, low, _trained(base, change.rows))
    elif isinstance(base, (nn.Linear, Quantised)) and low is not None and not change.rows:
        made = Adapted(base, low)
    else:
        what = "trained tokens, which are for token tables and heads without a bias"
        what = what if change.rows else "an update of low rank, which is for projections and tables"
        raise ConfigError(f"an adapter changes '{path}' by {what}; merge it with PEFT and load the merged folder")
    model.set_submodule(path, made)


def _trained(base: nn.Module, rows: Sequence[tuple[Tensor, Tensor, float]]) -> tuple[Tensor, Tensor] | None:
    """Ids, in order, and the vectors that all adapters together give them."""
    if not rows:
        return None
    raw: Tensor = base.raw if isinstance(base, Quantised) else base.weight  # type: ignore[assignment]
    ids = torch.cat([own for own, _, _ in rows]).unique().to(raw.device)
    before = base.format.dequantise(raw[ids]) if isinstance(base, Quantised) else raw[ids].to(torch.float32)
    after = before.clone()
    for own, vectors, weight in rows:
        place = torch.searchsorted(ids, own.to(ids.device))
        after[place] += weight * (vectors.to(before) - before[place])
    return ids, after


def _replace(model: Decoder, name: str, whole: Sequence[tuple[Tensor, float]]) -> None:
    """Put whole tensors in the place of one of the base; a quantised matrix becomes one in floats."""
    path, _, part = name.rpartition(".")
    module = model.get_submodule(path)
    if isinstance(module, Quantised) and part == "weight":
        table, rows, size = isinstance(module, QuantisedTable), module.raw.shape[0], module.inner
        bare = TokenTable(rows, size, device="meta") if table else Linear(size, rows, bias=False, device="meta")
        before, bias = module.weight, module.bias
        model.set_submodule(path, bare)
        if bias is not None:
            bare.register_parameter("bias", nn.Parameter(bias, requires_grad=False))
        module = bare
    else:
        before = getattr(module, part).detach()
    wide = before.to(torch.float32)
    after = wide.clone()
    for tensor, weight in whole:
        after += weight * (tensor.to(wide) - wide)
    if len(whole) == 1 and whole[0][1] == 1.0:
        after = whole[0][0]  # exactly, whatever the base is
    made = after.to(before).contiguous()
    setattr(module, part, made if isinstance(module, Quantised) else nn.Parameter(made, requires_grad=False))


def merge(model: Model) -> None:
    """Add all updates to the weights of their base, in place and in the dtype of the base.

    Raises:
        ConfigError: the base is quantised, or has no place for a change.
    """
    changed = {name: one for name, one in model.named_modules() if isinstance(one, (Adapted, AdaptedTable))}
    for name, module in changed.items():
        if not isinstance(module.base, (nn.Linear, TokenTable)):
            raise ConfigError(
                f"'{name}' is quantised, and an update cannot be added to rounded weights: load the model with "
                "weights='float' (the command does) and merge then"
            )
        if isinstance(module, Adapted) and module.update.shift is not None and module.base.bias is None:
            raise ConfigError(
                f"the adapter adds a bias to '{name}', which has none in this family; it cannot be merged"
            )
    with torch.no_grad():
        for name, module in changed.items():
            base = module.base
            assert isinstance(base, (nn.Linear, TokenTable))
            if isinstance(module, AdaptedTable):
                _merge_table(model, module, base)
            else:
                shift, bias = module.update.shift, base.bias
                base.weight = _parameter(module.weight, base)
                if shift is not None and isinstance(bias, Tensor):
                    base.bias = _parameter(bias + shift.to(bias), base)
            model.set_submodule(name, base)


def _merge_table(model: Model, module: AdaptedTable, base: nn.Linear | TokenTable) -> None:
    """Merge a table; where the head changes otherwise than the table, it becomes a matrix of its own."""
    if getattr(model, "projection", None) is None and (module.lookup is not None or module.head is not None):
        untie(model)
        model.get_submodule("projection").weight = _parameter(module.merged(module.head), base)
    changed = module.weight if isinstance(module, AdaptedHead) else module.merged(module.lookup)
    base.weight = _parameter(changed, base)


def untie(model: Model) -> None:
    """Give a tied head a matrix of its own, with the numbers of the token table.

    Raises:
        ConfigError: the family always ties its head.
    """
    if "tied" not in type(model.config).model_fields:
        raise ConfigError(
            f"the adapter changes the token table and the head differently, but family '{model.config.family}' always "
            "ties them"
        )
    table: Any = model.embedding
    if isinstance(table, Quantised):
        own: nn.Module = Quantised(table.format, table.raw, None, table.dtype)
    else:
        weight = table.weight.detach().clone()
        own = Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        own.weight = nn.Parameter(weight, requires_grad=False)
    model.projection, model.config = own, model.config.model_copy(update={"tied": False})


def _parameter(tensor: Tensor, like: nn.Module) -> nn.Parameter:
    return nn.Parameter(tensor.contiguous(), requires_grad=next(like.parameters()).requires_grad)
