from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from serving import TEXT, TRIAGE, decided, rationales, triage_bundle

from reason2decide.errors import DataError
from reason2decide.model.decision import Decision
from reason2decide.serve import batching
from reason2decide.serve.batching import Batcher, DeadlineExceeded, Overloaded
from reason2decide.serve.served_model import ServedModel

LONG = f"{TEXT}, " + "no fever, " * 60
HOME, DOCTOR, AMBULANCE = TRIAGE.values


class Gated(ServedModel):
    """A model whose decisions wait until they are let through; it remembers its batches."""

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name, path)
        self.begun, self.gate = threading.Event(), threading.Event()
        self.batches: list[list[str]] = []

    def decide(self, texts: Sequence[str]) -> list[Decision | DataError]:
        self.batches.append(list(texts))
        self.begun.set()
        assert self.gate.wait(60)
        return super().decide(texts)


class SlowWriter(ServedModel):
    """A model whose every streamed rationale takes 0.3 seconds at least."""

    def stream(self, text: str, label: str) -> Iterator[str]:
        time.sleep(0.3)
        yield from super().stream(text, label)


class Failing(ServedModel):
    def decide(self, texts: Sequence[str]) -> list[Decision | DataError]:
        raise RuntimeError("out of memory")


@pytest.fixture(scope="module")
def bundle() -> Path:
    return triage_bundle()


@pytest.fixture(scope="module")
def model(bundle: Path) -> ServedModel:
    return ServedModel("triage", bundle)


@pytest.fixture
def gated(bundle: Path) -> Iterator[Gated]:
    model = Gated("gated", bundle)
    yield model
    model.gate.set()


@pytest.fixture
def batcher() -> Iterator[Batcher]:
    batcher = Batcher(max_requests=8, max_batch=4, max_streams=2)
    yield batcher
    batcher.close()


def soon(seconds: float = 60.0) -> float:
    return time.monotonic() + seconds


async def begun(model: Gated) -> None:
    assert await asyncio.to_thread(model.begun.wait, 60)


def test_a_decision_does_not_depend_on_its_company(model: ServedModel) -> None:
    texts = [TEXT, LONG, "rash", f"{LONG} {LONG}", "20 yo with high fever since 1 days"]
    alone = [decided(model, text)[0] for text in texts]
    for company in (texts, texts[::-1]):
        for text, found in zip(company, decided(model, *company), strict=True):
            expected = alone[texts.index(text)]
            assert found.label == expected.label
            assert dict(found.probabilities) == pytest.approx(dict(expected.probabilities), abs=1e-4)
    assert len({round(own.confidence, 3) for own in alone}) > 3  # the texts do not all look the same to the model


def test_answers_are_the_model_s_own(model: ServedModel, batcher: Batcher) -> None:
    async def ask() -> None:
        texts = [TEXT, LONG, "mild rash", "high fever"]
        found = await asyncio.gather(*(batcher.decide(model, text, soon()) for text in texts))
        assert [own.label for own in found] == [own.label for own in decided(model, *texts)]
        assert (await batcher.explain(model, TEXT, HOME, soon())).text == rationales(model, [TEXT], [HOME])[0] != ""

    asyncio.run(ask())


def test_a_stream_is_the_rationale_in_pieces_and_its_tokens_are_counted(model: ServedModel, batcher: Batcher) -> None:
    async def ask() -> None:
        with batcher.admit(model, soon(), streams=1) as request:
            pieces = [piece async for piece in request.stream(TEXT, HOME)]
            whole = (await request.explain(TEXT, HOME)).text
        assert len(pieces) > 2 and "".join(pieces) == whole
        assert request.output_tokens == 2 * model.tokens([whole])[0]

    asyncio.run(ask())


def test_more_streams_than_run_at_a_time(model: ServedModel, batcher: Batcher) -> None:
    async def read() -> str:
        with batcher.admit(model, soon(), streams=1) as request:
            return "".join([piece async for piece in request.stream(TEXT, HOME)])

    async def ask() -> None:
        found = await asyncio.gather(*(read() for _ in range(5)), batcher.decide(model, TEXT, soon()))
        assert set(found[:5]) == {rationales(model, [TEXT], [HOME])[0]}

    asyncio.run(ask())


def test_what_waits_is_batched_by_length(gated: Gated, batcher: Batcher) -> None:
    async def ask() -> None:
        first = asyncio.create_task(batcher.decide(gated, "first", soon()))
        await begun(gated)
        texts = [LONG, "a", "b", f"{LONG} and so on", "c", "d", "e"]
        others = [asyncio.create_task(batcher.decide(gated, text, soon())) for text in texts]
        await asyncio.sleep(0)
        gated.gate.set()
        await asyncio.gather(first, *others)
        assert gated.batches == [["first"], [LONG, f"{LONG} and so on"], ["a", "b", "c", "d"], ["e"]]

    asyncio.run(ask())


def test_company_comes_from_near_so_that_nobody_is_overtaken_by_many(
    gated: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where the machine is busy the gate opens late, and batches of calls that took so long would be small.
    monkeypatch.setattr(batching, "BATCH_SECONDS", {"decide": 600.0, "explain": 600.0})
    batcher = Batcher(max_requests=16, max_batch=4, max_streams=2)

    async def ask() -> None:
        first = asyncio.create_task(batcher.decide(gated, "first", soon()))
        await begun(gated)
        others = [asyncio.create_task(batcher.decide(gated, text, soon())) for text in [LONG, *"abcdefg", f"{LONG} 2"]]
        await asyncio.sleep(0)
        gated.gate.set()
        await asyncio.gather(first, *others)
        # The other long one is the ninth: two batches are eight.
        assert gated.batches == [["first"], [LONG], [*"abcd"], [*"efg"], [f"{LONG} 2"]]

    asyncio.run(ask())
    batcher.close()


def test_over_the_bound_it_refuses_at_once(gated: Gated, batcher: Batcher) -> None:
    async def ask() -> None:
        taken = [asyncio.create_task(batcher.decide(gated, TEXT, soon())) for _ in range(8)]
        await begun(gated)
        assert batcher.requests == 8
        with pytest.raises(Overloaded) as refused:
            await batcher.decide(gated, TEXT, soon())
        assert refused.value.retry_after_seconds >= 1
        with pytest.raises(Overloaded):
            batcher.admit(gated, soon(), streams=1)
        gated.gate.set()
        assert len(await asyncio.gather(*taken)) == 8
        assert batcher.requests == 0
        await batcher.decide(gated, TEXT, soon())

    asyncio.run(ask())


def test_what_could_not_be_answered_in_time_is_refused(gated: Gated, batcher: Batcher) -> None:
    async def ask() -> None:
        first = asyncio.create_task(batcher.decide(gated, TEXT, soon()))
        await begun(gated)
        await asyncio.sleep(0.3)  # the first call takes so long at least, and is what the next are judged by
        gated.gate.set()
        await first
        gated.gate.clear()
        gated.begun.clear()
        taken = asyncio.create_task(batcher.decide(gated, TEXT, soon()))
        await begun(gated)
        with pytest.raises(Overloaded):
            await batcher.decide(gated, TEXT, soon(0.3))
        patient = asyncio.create_task(batcher.decide(gated, TEXT, soon(60)))
        gated.gate.set()
        await asyncio.gather(taken, patient)

    asyncio.run(ask())


def test_streams_that_wait_are_counted_against_the_time_of_the_next(bundle: Path, batcher: Batcher) -> None:
    """Two admitted streams take 0.6 s, which is over half of one second and under half of a minute."""
    model = SlowWriter("slow", bundle)

    async def ask() -> None:
        with batcher.admit(model, soon(), streams=1) as first:
            assert [piece async for piece in first.stream(TEXT, HOME)]
        batcher.admit(model, soon(1))  # nothing waits
        with batcher.admit(model, soon(), streams=2):
            with pytest.raises(Overloaded):
                batcher.admit(model, soon(1), streams=1)
            batcher.admit(model, soon(60), streams=1)
        batcher.admit(model, soon(1))

    asyncio.run(ask())


def test_deadlines(gated: Gated, batcher: Batcher) -> None:
    async def ask() -> None:
        first = asyncio.create_task(batcher.decide(gated, "first", soon()))
        await begun(gated)
        with pytest.raises(DeadlineExceeded):
            await batcher.decide(gated, "late", soon(0.05))
        with batcher.admit(gated, soon(0.05), streams=1) as request, pytest.raises(DeadlineExceeded):
            async for _ in request.stream("late", HOME):
                pass
        gated.gate.set()
        await first
        await batcher.decide(gated, "next", soon())
        assert gated.batches == [["first"], ["next"]]  # nobody waited for "late" any more
        assert batcher.requests == 0

    asyncio.run(ask())


def test_a_cancelled_call_is_not_begun(gated: Gated, batcher: Batcher) -> None:
    async def ask() -> None:
        first = asyncio.create_task(batcher.decide(gated, "first", soon()))
        await begun(gated)
        gone = asyncio.create_task(batcher.decide(gated, "gone", soon()))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        gated.gate.set()
        await first
        await batcher.decide(gated, "next", soon())
        assert gated.batches == [["first"], ["next"]] and batcher.requests == 0

    asyncio.run(ask())


def test_an_error_reaches_its_callers_and_nobody_else(bundle: Path, model: ServedModel, batcher: Batcher) -> None:
    async def ask() -> None:
        failing = Failing("failing", bundle)
        with pytest.raises(RuntimeError):
            await batcher.decide(failing, TEXT, soon())
        assert (await batcher.decide(model, TEXT, soon())).label in TRIAGE.values
        assert batcher.works and batcher.requests == 0

    asyncio.run(ask())


def test_closing_ends_what_waits(gated: Gated) -> None:
    batcher = Batcher(max_requests=8, max_batch=4, max_streams=2)

    async def ask() -> None:
        first = asyncio.create_task(batcher.decide(gated, "first", soon()))
        await begun(gated)
        waiting = asyncio.create_task(batcher.decide(gated, f"{LONG} {LONG}", soon()))
        await asyncio.sleep(0)
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        await asyncio.sleep(0.05)
        gated.gate.set()
        await closing
        assert (await first).label in TRIAGE.values
        with pytest.raises(DeadlineExceeded):
            await waiting
        with pytest.raises(DeadlineExceeded):
            await batcher.decide(gated, TEXT, soon())

    asyncio.run(ask())
    assert not batcher.works


def test_batches_are_observed(model: ServedModel) -> None:
    seen: list[tuple[str, str, int]] = []
    batcher = Batcher(max_requests=8, max_batch=4, max_streams=2, observe=lambda m, k, n, s: seen.append((m, k, n)))

    async def ask() -> None:
        await batcher.decide(model, TEXT, soon())
        await batcher.explain(model, TEXT, HOME, soon())
        with batcher.admit(model, soon(), streams=1) as request:
            async for _ in request.stream(TEXT, HOME):
                pass

    asyncio.run(ask())
    batcher.close()
    assert seen == [("triage", "decide", 1), ("triage", "explain", 1), ("triage", "stream", 1)]
