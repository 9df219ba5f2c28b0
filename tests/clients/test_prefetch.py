import threading
import traceback
from collections.abc import Iterator

import pytest

from wardround.clients.prefetch import AHEAD, ahead


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")]


def square(number: int) -> int:
    return number * number


def failing_at_three(number: int) -> int:
    if number == 3:
        raise ValueError("three is not made")
    return number


@pytest.mark.parametrize("count", [0, 1, AHEAD, 7])
def test_it_is_map_and_leaves_no_thread(count: int) -> None:
    assert list(ahead(square, range(count))) == [square(number) for number in range(count)]
    assert threads() == []


def test_things_are_made_in_a_thread_and_items_taken_in_ours() -> None:
    takers, makers = set(), set()

    def items() -> Iterator[int]:
        for number in range(4):
            takers.add(threading.get_ident())
            yield number

    for _ in ahead(lambda _: makers.add(threading.get_ident()), items()):
        pass
    assert takers == {threading.get_ident()}
    assert len(makers) == 1
    assert makers.isdisjoint(takers)


def test_so_many_are_made_before_they_are_asked_for_and_no_more() -> None:
    """When the first result is there, the first and ``AHEAD`` items after it were taken; each further one takes one."""
    taken = []

    def items() -> Iterator[int]:
        for number in range(10):
            taken.append(number)
            yield number

    results = ahead(square, items())
    assert taken == []
    for used in range(1, 4):
        next(results)
        assert len(taken) == used + AHEAD
    results.close()


def test_they_are_made_while_the_last_one_is_used() -> None:
    """Nobody asks for the second result, and it is made all the same."""
    made = threading.Event()
    results = ahead(lambda number: made.set() if number == 1 else None, range(5))
    next(results)
    assert made.wait(timeout=10)
    results.close()


def test_an_error_comes_in_the_place_of_its_result_and_says_where_it_arose() -> None:
    results = ahead(failing_at_three, range(10))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three is not made") as caught:
        next(results)
    assert "failing_at_three" in {frame.name for frame in traceback.extract_tb(caught.value.__traceback__)}
    assert threads() == []


def test_an_error_of_the_items_ends_the_thread() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("no more items")

    with pytest.raises(ValueError, match="no more items"):
        list(ahead(square, items()))
    assert threads() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_who_stops_in_the_middle_leaves_no_thread(error: type[BaseException]) -> None:
    results = ahead(square, range(1000))

    def stop() -> None:
        for _ in results:
            raise error

    with pytest.raises(error):
        stop()
    assert len(threads()) == 1
    results.close()
    assert threads() == []


def test_a_dropped_iterator_leaves_no_thread() -> None:
    results = ahead(square, range(1000))
    next(results)
    del results
    assert threads() == []
