"""Streams that pause, that fail, and whose reader disconnects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from farm.errors import AdapterFileError
from farm.serving.http import events
from farm.serving.http import sse as api_stream
from farm.serving.http.sse import EventStream

Message = dict[str, Any]


class Reader:
    """The far end of a connection: takes what is sent, and disconnects on request."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.leaves = asyncio.Event()

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def receive(self) -> Message:
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()


def read(
    stream: AsyncGenerator[bytes], *, silence_s: float = 60, leave_after_s: float = 0
) -> Reader:
    """Send a stream to a reader, to its end."""

    async def run() -> Reader:
        reader = Reader()
        if leave_after_s:
            asyncio.get_running_loop().call_later(leave_after_s, reader.leaves.set)
        await EventStream(stream, silence_s)({"type": "http"}, reader.receive, reader.send)
        return reader

    return asyncio.run(run())


def test_a_stream_is_sent_as_it_comes_and_ended() -> None:
    async def two() -> AsyncGenerator[bytes]:
        yield b"data: 1\n\n"
        yield events.DONE

    reader = read(two())
    assert reader.text == "data: 1\n\ndata: [DONE]\n\n"
    assert [message.get("more_body") for message in reader.sent] == [None, True, True, False]
    headers = dict(reader.sent[0]["headers"])
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert b"content-length" not in headers


def test_silence_is_filled_with_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_stream, "HEARTBEAT_S", 0.01)

    async def slow() -> AsyncGenerator[bytes]:
        await asyncio.sleep(0.1)
        yield b"data: 1\n\n"

    text = read(slow()).text
    assert text.startswith(events.KEEP_ALIVE.decode())
    assert text.endswith("data: 1\n\n")


def test_a_stream_that_stays_silent_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_stream, "HEARTBEAT_S", 0.01)

    async def never() -> AsyncGenerator[bytes]:
        await asyncio.sleep(3600)
        yield b""

    assert '"deadline_exceeded"' in read(never(), silence_s=0.05).text


def test_an_error_on_the_way_is_the_last_event_and_tells_no_path() -> None:
    async def fails() -> AsyncGenerator[bytes]:
        yield b"data: 1\n\n"
        raise AdapterFileError("it lies at /srv/secret/place and is bad")

    last = read(fails()).text.split("\n\n")[1]
    assert last.startswith("event: error\ndata: ")
    error = json.loads(last.split("data: ")[1])["error"]
    assert error["code"] == "adapter_invalid"
    assert "/srv" not in error["message"]


def test_a_reader_who_leaves_ends_the_work() -> None:
    ended = []

    async def work() -> AsyncGenerator[bytes]:
        try:
            yield b"data: 1\n\n"
            await asyncio.sleep(3600)
        finally:
            ended.append(True)

    read(work(), leave_after_s=0.05)
    assert ended == [True]
