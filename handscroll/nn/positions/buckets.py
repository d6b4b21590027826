"""T5's learned relative bias: a number per head and bucket of distances is added to the scores."""

import math
from typing import Any, ClassVar, Literal

from handscroll.base.spec import LayerSpec, Positions
from handscroll.nn.positions.candidate import Candidate

DISTANCE = 96  # bytes that one distance of a relative bias takes while the bias is computed


class Buckets(Positions):
    """`buckets` of distances up to `reach` tokens, after dividing them by `factor` (`nn/bias.py: Buckets`)."""

    words = "a learned relative bias"
    bias = "learned"
    methods: ClassVar = {
        "none": "the learned relative bias as it is",
        "divide": "distances divided by the factor before they are sorted into buckets",
        "reach": "buckets up to a distance as many times longer; those that hold one distance stay",
    }
    way: Literal["buckets"] = "buckets"
    context: int
    trained: int
    buckets: int
    reach: int
    factor: float = 1.0

    @property
    def only_ours(self) -> bool:
        return self.factor != 1.0

    def making(self, to: int, width: int) -> int:
        return DISTANCE * to

    def describe(self, layer: LayerSpec) -> str:
        divided = f", distances divided by {self.factor:g}" if self.factor != 1.0 else ""
        return f"learned relative bias: {self.buckets} buckets up to {self.reach:,} tokens{divided}"

    def candidates(
        self, method: str, to: int, first: "Buckets", layer: LayerSpec, factors: Any = None
    ) -> list[Candidate]:
        """Chen et al. 2023's interpolation applied to buckets, or a stretch of their logarithmic part only.

        Both reach as far as the buckets of training would reach if they were stretched once. An earlier stretch is
        taken into account.
        """
        last = first.reach * first.factor * to / first.trained  # the distance from which on nothing changes
        factor = max(1.0, last / self.reach)
        far = max(self.reach, math.ceil(last / self.factor))
        alone = int(self.factor * (self.buckets // 4))  # distances that keep their own buckets in both methods
        changed = {"context": to, "original": first.trained}
        made = [
            Candidate("none", "", changed, exact=to),
            Candidate("divide", f"factor {factor:g}", {"factor": factor} | changed),
            Candidate("reach", f"buckets up to {far:,} tokens", {"reach": far} | changed, exact=alone),
        ]
        return made if method in ("auto", "all") else [one for one in made if one.method == method]

    def origin(self) -> "Buckets":
        return self.model_copy(update={"trained": self.context})

    def remembered(self) -> dict[str, Any]:
        return {"reach": self.reach, "factor": self.factor}

    def restored(self, before: dict[str, Any] | None, trained: int) -> "Buckets":
        if before is None:
            return self.origin()
        return self.model_copy(update=before | {"trained": trained})
