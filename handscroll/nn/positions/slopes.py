"""ALiBi (Press et al. 2022): a fixed bias on the scores grows with the distance, at each head's own rate."""

from typing import Any, ClassVar, Literal

from handscroll.base.spec import LayerSpec, Positions
from handscroll.nn.positions.candidate import Candidate


class Slopes(Positions):
    """ALiBi's slopes, divided by `factor`."""

    words = "ALiBi"
    bias = "fixed"
    methods: ClassVar = {
        "none": "ALiBi's slopes as they are",
        "slopes": "ALiBi's slopes divided by the factor, or by less",
    }
    way: Literal["slopes"] = "slopes"
    context: int
    trained: int
    factor: float = 1.0

    @property
    def only_ours(self) -> bool:
        return self.factor != 1.0

    def describe(self, layer: LayerSpec) -> str:
        return "ALiBi" + (f", slopes divided by {self.factor:g}" if self.factor != 1.0 else "")

    def candidates(
        self, method: str, to: int, first: "Slopes", layer: LayerSpec, factors: Any = None
    ) -> list[Candidate]:
        """Al-Khateeb et al. 2023: slopes divided by to / trained.

        Smaller factors are tried too, since ALiBi reads somewhat past its trained length unchanged.
        """
        changed = {"context": to, "original": first.trained}
        made = [Candidate("none", "", {"factor": self.factor} | changed, exact=to)]
        factor = first.factor * to / first.trained
        found = sorted({max(1.0, share * factor) for share in (0.25, 0.5, 1.0)} - {self.factor, 1.0})
        made += [Candidate("slopes", f"factor {each:g}", {"factor": each} | changed) for each in found]
        if method == "auto" and not self.only_ours:  # a form that other libraries can read
            return [one for one in made if one.changes["factor"] == 1.0]
        return made if method in ("auto", "all") else [one for one in made if one.method == method]

    def origin(self) -> "Slopes":
        return self.model_copy(update={"trained": self.context})

    def remembered(self) -> dict[str, Any]:
        return {"factor": self.factor}

    def restored(self, before: dict[str, Any] | None, trained: int) -> "Slopes":
        if before is None:
            return self.origin()
        return self.model_copy(update=before | {"trained": trained})
