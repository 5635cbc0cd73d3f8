"""Tests of requests, their limits and tickets."""

import math
import pickle
import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest

from farm.base.loading import load_base
from farm.errors import RequestRefused, TooBusy
from farm.schedulers import SCHEDULERS
from farm.serving.engine.row import size_of
from farm.serving.engine.sizing.capacity import Capacity
from farm.serving.http.schemas import GenerateRequest
from farm.serving.request import (
    AdapterRef,
    GenerationRequest,
    Picture,
    Progress,
    RequestLimits,
    Ticket,
)


def request(**fields):
    return GenerationRequest(**{"id": "r", "prompt": "a cat", **fields})


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_of_the_base_may_be_asked_for(name):
    RequestLimits().check(request(scheduler=name))
    assert GenerateRequest(prompt="a cat", scheduler=name).scheduler == name
    assert load_base("tiny").scheduler(name) is not None


def test_a_request_survives_pickling():
    asked = request(adapters=((AdapterRef("k" * 32, "default", "cat"), 0.5),), deadline_s=3.0)
    assert pickle.loads(pickle.dumps(asked)) == asked


def test_a_guided_request_costs_two_rows_a_step_and_an_unguided_one_costs_one():
    base = load_base("tiny")
    capacity = Capacity.unmeasured(base, 4)
    size = size_of(base, request())
    costs = [capacity.cost(request(guidance=scale, steps=3), size) for scale in (5, 1, 0)]
    assert costs == [6, 3, 3]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 151}, "steps"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"guidance": math.nan}, "guidance"),
        ({"guidance": math.inf}, "guidance"),
        ({"guidance": -1.0}, "guidance"),
        ({"width_px": 0}, "width_px"),
        ({"height_px": 10**9}, "height_px"),
        ({"deadline_s": -1.0}, "deadline_s"),
        ({"deadline_s": math.nan}, "deadline_s"),
        ({"scheduler": "magic"}, "scheduler"),
        ({"prompt": "x" * 4001}, "prompt"),
        ({"negative_prompt": "x" * 4001}, "negative_prompt"),
        ({"adapters": ((AdapterRef("k"), math.nan),)}, "adapters"),
        ({"adapters": ((AdapterRef("k"), 9.0),)}, "adapters"),
        ({"adapters": tuple((AdapterRef(str(i)), 1.0) for i in range(5))}, "adapters"),
    ],
)
def test_what_cannot_be_generated_is_refused_by_the_name_of_its_field(fields, param):
    with pytest.raises(RequestRefused) as refusal:
        RequestLimits().check(request(**fields))
    assert refusal.value.param == param
    assert refusal.value.remedy


def test_what_can_be_generated_is_let_through():
    RequestLimits().check(request(steps=150, seed=2**63 - 1, guidance=0, width_px=512))


def test_a_ticket_ends_once():
    ticket = Ticket(request())
    ticket.succeed(Picture(np.zeros((1, 1, 3), np.uint8)))
    ticket.fail(TooBusy("late"))
    assert not ticket.cancel()
    assert ticket.result(0).pixels.shape == (1, 1, 3)


def test_a_cancelled_ticket_takes_no_picture():
    ticket = Ticket(request())
    assert ticket.cancel()
    ticket.succeed(Picture(np.zeros((1, 1, 3), np.uint8)))
    assert ticket.cancelled
    with pytest.raises(CancelledError):
        ticket.result(0)


def test_listeners_hear_progress_until_the_end_and_a_broken_one_is_dropped():
    ticket, heard = Ticket(request()), []

    def broken(progress):
        raise RuntimeError("the event loop is closed")

    ticket.listen(broken)
    ticket.listen(heard.append)
    ticket.report(Progress("denoising", 1, 25))
    ticket.fail(TooBusy("no"))
    ticket.report(Progress("denoising", 2, 25))
    assert heard == [Progress("denoising", 1, 25)]


def test_waiting_for_a_picture_gives_up_in_time():
    ticket = Ticket(request())
    with pytest.raises(TimeoutError):
        ticket.result(0.01)
    threading.Timer(0.01, ticket.fail, [TooBusy("no")]).start()
    with pytest.raises(TooBusy):
        ticket.result(10)


def test_a_label_is_the_name_where_there_is_one():
    assert AdapterRef("k1", "ns", "cat").label == "cat@k1"
    assert AdapterRef("k1").label == "k1"
