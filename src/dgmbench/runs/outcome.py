"""What a run ends in."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgmbench.runs.origin import in_words
from dgmbench.runs.record import unlabelled_words


@dataclass(frozen=True)
class Outcome:
    """What ``train`` gives back: the run's folder, its ``result.json``, and a word on what happened."""

    run: Path
    result: dict[str, Any]
    message: str

    @property
    def objective(self) -> float:
        """The validation objective of the best checkpoint."""
        return self.result["objective"]["value"]

    @property
    def remarks(self) -> list[str]:
        """What a reader of the numbers must know: where the weights come from, examples without a label, what was
        done with the data.
        """
        unlabelled = unlabelled_words(self.result["data"], self.result.get("unlabelled", {}))
        origin = [f"origin: {text}" for text in in_words(self.result.get("origin", {}))]
        return [*origin, *unlabelled, *(f"data: {note}" for note in self.result.get("data_notes", []))]

    @property
    def objective_text(self) -> str:
        """The validation objective in words."""
        best = self.result["objective"]
        if not best.keys() >= {"name", "value", "unit", "images"}:
            return "the result does not tell the objective on validation"
        found = f"best {best['name']} on validation: {best['value']:.6g} {best['unit']} after {best['images']:,} images"
        return f"{found} ({best['note']})" if best.get("note") else found
