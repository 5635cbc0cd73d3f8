"""Tests of the order of a thread's tasks."""

import threading

import pytest

from farm.serving.engine.sharing.urgent_first import UrgentFirst


def test_urgent_tasks_overtake_and_calls_precede_all_tasks() -> None:
    worker, may_begin, done = UrgentFirst("test"), threading.Event(), []
    urgent: set[str] = set()

    def add(name: str) -> None:
        worker.submit(lambda: done.append(name), lambda: name in urgent)

    has_ended = threading.Event()

    worker.submit(lambda: may_begin.wait(10) and None)
    for name in "abcd":
        add(name)
    urgent.update("cd")  # after they were submitted
    ready = worker.submit_first(lambda: done.append("first"))
    again = worker.submit_first(lambda: done.append("second"))
    worker.submit(has_ended.set)
    may_begin.set()
    for future in (ready, again):
        future.result(10)
    assert has_ended.wait(10)
    worker.close()
    assert done == ["first", "second", *"cdab"]


def test_an_error_ends_its_own_task_alone() -> None:
    worker = UrgentFirst("test")

    def fail() -> None:
        raise RuntimeError("as expected")

    worker.submit(fail)
    with pytest.raises(RuntimeError, match="as expected"):
        worker.submit_first(fail).result(10)
    done = threading.Event()
    worker.submit(done.set)
    assert done.wait(10)
    worker.close()
