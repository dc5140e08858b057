"""The cells of a grid, in the order in which they are run."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from secateur.errors import UserError
from secateur.study.spec import Study
from secateur.study.structures import BY_NAME, SEARCHES, can_score


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run: a model pruned in one way."""

    model: str
    structure: str
    score: str
    budget: str
    repair: str
    seed: int

    @property
    def id(self) -> str:
        """The cell's name in the store."""
        return "/".join(str(value) for value in asdict(self).values())


def cells_of(study: Study) -> list[Cell]:
    """All cells that make sense, seed by seed, so that an unfinished study is a smaller one.

    Scores that cannot choose among the units of a structure are left out; UserError when that
    leaves nothing.
    """
    cells = list(_cells(study))
    if not cells:
        raise UserError(
            f"none of the scores {', '.join(study.scores)} can choose among "
            f"{', '.join(study.structures)}, so the grid has no cell; name others."
        )
    return cells


def _cells(study: Study) -> Iterator[Cell]:
    quick = [score for score in study.scores if score not in SEARCHES]
    slow = [score for score in study.scores if score in SEARCHES]
    for seed in study.seeds:
        for model in study.models:
            for score in [*quick, *slow]:
                for structure in study.structures:
                    if not can_score(score, BY_NAME[structure]):
                        continue
                    for budget in study.budgets:
                        for repair in study.repair:
                            yield Cell(
                                model=model,
                                structure=structure,
                                score=score,
                                budget=budget,
                                repair=repair,
                                seed=seed,
                            )
