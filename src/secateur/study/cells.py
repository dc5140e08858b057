"""The cells of a grid, in the order in which they are run."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from secateur.errors import UserError
from secateur.study.spec import Study
from secateur.study.structures import BY_NAME, OWN, SEARCHES, can_score


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
    for seed in study.seeds:
        for model in study.models:
            for structure, score, repairs in _rows(study):
                for budget in study.budgets:
                    for repair in repairs:
                        yield Cell(
                            model=model,
                            structure=structure,
                            score=score,
                            budget=budget,
                            repair=repair,
                            seed=seed,
                        )


def _rows(study: Study) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Structure, score and repairs of every row that makes sense; slow searches come last."""
    for score in [score for score in study.scores if score not in SEARCHES]:
        yield from _row(study, score)
    for preset in study.presets:
        yield OWN, preset, (OWN,)
    for score in [score for score in study.scores if score in SEARCHES]:
        yield from _row(study, score)


def _row(study: Study, score: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    for structure in study.structures:
        if can_score(score, BY_NAME[structure]):
            yield structure, score, study.repair
