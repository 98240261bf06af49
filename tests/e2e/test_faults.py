"""Two gateways on one Redis, with publishers and subscribers of every kind, while something breaks.

After each fault: every acknowledged event is in the log once, and every subscriber has exactly what its filter
matches, in order, or a gap that tells what it lacks. `tests/support/faults` keeps the books.
"""

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.support.faults.load import STREAMS
from tests.support.faults.looks import holders, node_id
from tests.support.faults.trial import Trial, running_trial
from tests.support.redis_server import RedisFactory

PAUSE_SECONDS = 3  # Redis answers nobody
CUT_SECONDS = 2  # the network is gone
FROZEN_SECONDS = 10  # longer than any lease lasts

Fault = Callable[[Trial], Awaitable[None]]

pytestmark = pytest.mark.timeout(
    400
)  # what does not come is told by the trial, whose own patience ends before


async def holder(trial: Trial) -> int:
    """Which gateway stores what comes by pub/sub; streams may be either's."""
    names = [await node_id(each) for each in trial.nodes]
    return names.index((await holders(trial.redis))["pubsub"])


async def kill_a_gateway(trial: Trial) -> None:
    await restart(trial, 1 - await holder(trial))


async def kill_the_lease_holder(trial: Trial) -> None:
    await restart(trial, await holder(trial))


async def kill_one_after_the_other(trial: Trial) -> None:
    for number in (0, 1, 0):
        await restart(trial, number)
        await trial.recovered()
        await trial.progress(2)


async def restart(trial: Trial, number: int) -> None:
    node = trial.nodes[number]
    trial.note(f"kill -9 of gateway {number}")
    await asyncio.to_thread(node.kill9)
    await trial.progress(2)
    trial.note(f"start of gateway {number}")
    await asyncio.to_thread(node.start)


async def end_a_gateway(trial: Trial) -> None:
    number = await holder(trial)
    node = trial.nodes[number]
    trial.note(f"SIGTERM for gateway {number}")
    node.terminate()
    assert await asyncio.to_thread(node.wait) == 0
    await trial.progress(2)
    trial.note(f"start of gateway {number}")
    await asyncio.to_thread(node.start)


async def freeze_the_lease_holder(trial: Trial) -> None:
    """All leases go to the other gateway, and what the frozen one had begun is refused when it goes on."""
    number = await holder(trial)
    node, other = trial.nodes[number], await node_id(trial.nodes[1 - number])
    os.kill(node.pid, signal.SIGSTOP)
    trial.note(f"gateway {number} is frozen")
    try:
        await asyncio.gather(asyncio.sleep(FROZEN_SECONDS), all_leases_go_to(trial, other))
    finally:
        os.kill(node.pid, signal.SIGCONT)
    trial.note(f"gateway {number} goes on")


async def all_leases_go_to(trial: Trial, name: str) -> None:
    async def done() -> bool:
        held = await holders(trial.redis)
        return len(held) == 1 + len(STREAMS) and set(held.values()) == {name}

    await trial.until(done, lambda: f"all leases go to {name}")
    trial.note("all leases are the other's")


async def kill_redis(trial: Trial) -> None:
    trial.note("kill -9 of Redis")
    await asyncio.to_thread(trial.redis.kill9)
    await asyncio.to_thread(trial.redis.start)
    trial.note("Redis is there again")


async def kill_all_connections(trial: Trial) -> None:
    for kind in ("normal", "pubsub"):
        await asyncio.to_thread(trial.redis.call, "CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
    trial.note("all connections of Redis are killed")


async def pause_redis(trial: Trial) -> None:
    await asyncio.to_thread(trial.redis.call, "CLIENT", "PAUSE", PAUSE_SECONDS * 1000, "ALL")
    trial.note(f"Redis answers nobody for {PAUSE_SECONDS} s")
    await asyncio.sleep(PAUSE_SECONDS)


async def cut_the_network(trial: Trial) -> None:
    for each in trial.proxies:
        each.cut()
    trial.note("the network is cut")
    await asyncio.sleep(CUT_SECONDS)
    for each in trial.proxies:
        await each.heal()
    trial.note("the network is whole")


async def cut_one_node_off(trial: Trial) -> None:
    trial.proxies[0].stall()
    trial.note("what gateway 0 sends to Redis vanishes")
    await asyncio.gather(asyncio.sleep(CUT_SECONDS), trial.progress(2))
    await trial.proxies[0].heal()
    trial.note("gateway 0 reaches Redis again")


FAULTS: dict[str, Fault] = {
    "kill -9 of a gateway": kill_a_gateway,
    "kill -9 of one gateway after the other": kill_one_after_the_other,
    "kill -9 of the lease holder": kill_the_lease_holder,
    "SIGTERM of a gateway": end_a_gateway,
    "SIGSTOP of the lease holder for 10 s": freeze_the_lease_holder,
    "kill -9 of Redis": kill_redis,
    "CLIENT KILL of all connections": kill_all_connections,
    "CLIENT PAUSE for 3 s": pause_redis,
    "the network is cut for 2 s": cut_the_network,
    "one gateway is cut off in silence": cut_one_node_off,
}
# What takes long, or is much like another, is left to `make torture`.
LONG: frozenset[str] = frozenset(
    (
        "SIGTERM of a gateway",
        "SIGSTOP of the lease holder for 10 s",
        "one gateway is cut off in silence",
    )
)


@pytest.mark.parametrize(
    "fault", [pytest.param(each, marks=[pytest.mark.torture] if each in LONG else []) for each in FAULTS]
)
async def test_nothing_is_lost_or_doubled(fault: str, tmp_path: Path, redis_factory: RedisFactory) -> None:
    """Whatever breaks while 14 publish over HTTP, channels and streams, and 50 listen over all transports."""
    async with running_trial(tmp_path, redis_factory) as trial:
        await trial.progress(4)
        await FAULTS[fault](trial)
        await trial.recovered()
        await trial.progress(4)
        await trial.judge()


async def test_a_lost_log_is_told_to_everybody(tmp_path: Path, redis_factory: RedisFactory) -> None:
    """After FLUSHALL each subscriber gets one gap for the epoch, and everything that is published after it."""
    async with running_trial(tmp_path, redis_factory) as trial:
        await trial.progress(4)
        await asyncio.to_thread(trial.redis.call, "FLUSHALL")
        trial.lose_log()
        trial.note("FLUSHALL")
        await trial.recovered()
        await trial.progress(4)
        await trial.judge()


@pytest.mark.torture
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(6))
async def test_fault_after_fault(seed: int, tmp_path: Path, redis_factory: RedisFactory) -> None:
    """Eight of them in one trial, in an order that the seed gives."""
    async with running_trial(tmp_path, redis_factory) as trial:
        for fault in random.Random(seed).choices(sorted(FAULTS), k=8):
            trial.note(f"now: {fault}")
            await trial.progress(4)
            await FAULTS[fault](trial)
            await trial.recovered()
        await trial.progress(4)
        await trial.judge()
