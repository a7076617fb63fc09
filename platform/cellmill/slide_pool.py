"""Slides one after the other through a few processes, in order, with few results waiting. The thin shell of reports.

In: a picklable function and its items, one a slide. Out: item and result, or what went wrong, in the order of the
items. Memory is that of as many slides as there are workers.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TypeVar

__all__ = ["Failed", "over_slides"]

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Failed:
    """A slide that could not be done."""

    reason: str
    """Why, in words."""


def over_slides(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    num_workers: int,
    expected: tuple[type[Exception], ...],
) -> Iterator[tuple[Item, Result | Failed]]:
    """Every item with its result, in order.

    Args:
        function: a module's function; with one worker it runs here.
        items: one a slide.
        num_workers: processes.
        expected: errors that are one slide's own and stop no other; any other error is raised.
    """
    if num_workers == 1:
        for item in items:
            yield item, _caught(function, item, expected)
        return
    waiting: deque[tuple[Item, Future[Result | Failed]]] = deque()
    left = iter(items)
    pool = _new_pool(num_workers)
    try:
        while True:
            while len(waiting) < 2 * num_workers and (item := next(left, None)) is not None:
                waiting.append((item, _submit(pool, function, item, expected)))
            if not waiting:
                return
            item, future = waiting.popleft()
            try:
                yield item, future.result()
            except BrokenProcessPool:
                # One of the slides under way took its process down: each is done again alone, to find which.
                again = [item, *(other for other, _ in waiting)]
                waiting.clear()
                pool.shutdown(wait=False, cancel_futures=True)
                yield from _one_by_one(function, again, expected)
                pool = _new_pool(num_workers)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _new_pool(num_workers: int) -> ProcessPoolExecutor:
    # spawn: forking a process with threads of polars and Arrow in it hangs.
    return ProcessPoolExecutor(num_workers, mp_context=get_context("spawn"))


def _submit(
    pool: ProcessPoolExecutor,
    function: Callable[[Item], Result],
    item: Item,
    expected: tuple[type[Exception], ...],
) -> Future[Result | Failed]:
    """The item under way; on a pool that broke meanwhile a future that says so, like those of the items before it."""
    try:
        return pool.submit(_caught, function, item, expected)
    except BrokenProcessPool as error:
        broken: Future[Result | Failed] = Future()
        broken.set_exception(error)
        return broken


def _one_by_one(
    function: Callable[[Item], Result], items: Iterable[Item], expected: tuple[type[Exception], ...]
) -> Iterator[tuple[Item, Result | Failed]]:
    """One process for all, and a new one after each slide that ends it."""
    pool = _new_pool(1)
    try:
        for item in items:
            try:
                yield item, pool.submit(_caught, function, item, expected).result()
            except BrokenProcessPool:
                reason = "Its process was ended from outside, for want of memory most likely; use fewer workers."
                yield item, Failed(reason)
                pool.shutdown(wait=False)
                pool = _new_pool(1)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _caught(function: Callable[[Item], Result], item: Item, expected: tuple[type[Exception], ...]) -> Result | Failed:
    try:
        return function(item)
    except expected as error:
        return Failed(str(error))
