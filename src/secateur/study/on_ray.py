"""The same worker, as Ray actors: on the cores of this machine or on a cluster."""

import os
import socket
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from secateur.errors import UserError
from secateur.study.cells import Cell
from secateur.study.spec import Study
from secateur.study.worker import Done, Worker

LOCAL = "local"
Group = tuple[str, int]


def run_on_ray(study: Study, cells: list[Cell], address: str, jobs: int | None) -> Iterator[Done]:
    """Outcomes as they come, from `jobs` workers (default: one per `study.threads` cores).

    `address` is `local`, or that of a cluster whose machines see the same paths. UserError where
    Ray is not installed or the cluster does not answer.
    """
    ray = _ray()
    _connect(ray, address)
    try:
        cores = int(ray.cluster_resources().get("CPU", os.cpu_count() or 1))
        count = min(jobs or max(1, cores // study.threads), len(cells))
        remote = ray.remote(num_cpus=study.threads, max_restarts=1)(Worker)
        yield from _spread(ray, [remote.remote(study) for _ in range(count)], cells)
    finally:
        ray.shutdown()


def _spread(ray: Any, workers: list[Any], cells: list[Cell]) -> Iterator[Done]:
    """Give every worker its next cell as soon as it is free, of the group it is at if possible."""
    waiting: dict[Group, list[Cell]] = defaultdict(list)
    for cell in reversed(cells):
        waiting[cell.model, cell.seed].append(cell)
    order = list(dict.fromkeys((cell.model, cell.seed) for cell in cells))
    place: dict[int, Group] = {}
    busy: dict[Any, int] = {}

    def give(number: int) -> None:
        group = _next_group(number, order, waiting, place)
        if group is not None:
            place[number] = group
            busy[workers[number].run.remote(waiting[group].pop())] = number

    for number in range(len(workers)):
        give(number)
    while busy:
        ready, _ = ray.wait(list(busy), num_returns=1)
        number = busy.pop(ready[0])
        done: Done = ray.get(ready[0])
        give(number)
        yield done


def _next_group(
    number: int, order: list[Group], waiting: dict[Group, list[Cell]], place: dict[int, Group]
) -> Group | None:
    """Its own group, else one that nobody is at, else that with the most left; None if all done."""
    left = [group for group in order if waiting[group]]
    if not left:
        return None
    if place.get(number) in left:
        return place[number]
    taken = {group for other, group in place.items() if other != number}
    free = [group for group in left if group not in taken]
    return free[0] if free else max(left, key=lambda group: len(waiting[group]))


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "--ray needs Ray, which is not installed: pip install 'secateur[study]'."
        ) from error
    return ray


def _connect(ray: Any, address: str) -> None:
    options = {"log_to_driver": False, "logging_level": "ERROR"}
    _require_answer(address)
    try:
        if address == LOCAL:
            ray.init(address="local", include_dashboard=False, **options)
        else:
            ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no answer"
        raise UserError(f"no Ray cluster at '{address}': {reason}") from error


def _require_answer(address: str) -> None:
    """UserError where nothing listens at HOST:PORT, which Ray would wait for during minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"no Ray cluster at '{address}': {reason}.") from error
