"""Starts from a large and busy host program, and starts at a rate: ours against the reference."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

from area import Area
from contestants import Bubblewrap, Contestant, Ours, PlainSubprocess, Reference
from timing import Unavailable, first_reason, summary, timed_command, timed_run
from worker import Worker

HOST_BYTES = 2 << 30
HOST_THREADS = 32
LIGHT_PAUSE = 0.05  # seconds between bursts of half a millisecond: all threads together fill a third of a core
HOST_ROUNDS = 10
STARTS, AT_ONCE, CHUNKS = 1000, 8, 5

Starts = Callable[[int], list[float]]


def prepared(area: Area, contestants: list[Contestant]) -> tuple[list[Contestant], dict[str, str]]:
    """Those that can start, and the reasons of the others."""
    ready, reasons = [], {}
    for contestant in contestants:
        try:
            contestant.prepare(area)
            contestant.starts(1)
            ready.append(contestant)
        except Exception as error:
            reasons[contestant.name] = first_reason(error)
    return ready, reasons


def sample(starts: dict[str, Starts], rounds: int, block: int) -> dict[str, list[float]]:
    """Interleaved; the first start of each block only warms up what the others have cooled."""
    seconds: dict[str, list[float]] = {name: [] for name in starts}
    for _ in range(rounds):
        for name, start in starts.items():
            seconds[name] += start(block + 1)[1:]
    return seconds


# ---- a large and busy host program ------------------------------------------------------------------------


def states(host: Worker) -> dict[str, Callable[[], object]]:
    """How the host process becomes larger and busier, step by step."""
    return {
        "unloaded": lambda: None,
        "memory": lambda: host.ask("memory", bytes=HOST_BYTES),
        "memory_and_light_threads": lambda: host.ask("threads", count=HOST_THREADS, pause=LIGHT_PAUSE),
        "memory_and_saturating_threads": lambda: host.ask("threads", count=HOST_THREADS, pause=0),
    }


def in_host(host: Worker, contestant: Contestant, area: Area) -> Starts:
    """The start as the loaded process makes it. The reference is no part of any process but its own."""
    if isinstance(contestant, Ours):
        return lambda count: host.ask("run", rootfs=area.rootfs, count=count)
    if isinstance(contestant, PlainSubprocess):
        return lambda count: host.ask("command", argv=contestant.argv, count=count)
    return contestant.starts


def ratios(result: dict[str, dict[str, Any]]) -> None:
    """Over the unloaded start; and that over the reference's, which meets the same competition for processors
    from a small process of its own: what remains is the share of the host program's size and threads."""
    for state in result.values():
        for name, row in state.items():
            row["over_unloaded"] = round(row["median_ms"] / result["unloaded"][name]["median_ms"], 3)
        for row in state.values():
            row["of_reference"] = round(row["over_unloaded"] / state["reference"]["over_unloaded"], 3)


def host_load(area: Area, runs: int) -> dict[str, Any]:
    reference = Reference()
    ready, reasons = prepared(area, [reference, Ours(), PlainSubprocess()])
    if reference not in ready:
        raise Unavailable(f"reference: {reasons['reference']}")
    host = Worker(area)
    starts = {contestant.name: in_host(host, contestant, area) for contestant in ready}
    result: dict[str, dict[str, Any]] = {}
    for state, enter in states(host).items():
        enter()
        seconds = sample(starts, HOST_ROUNDS, max(runs // HOST_ROUNDS, 1))
        result[state] = {name: dict(summary(values)) for name, values in seconds.items()}
    host.close()
    ratios(result)
    conditions = {"host_bytes": HOST_BYTES, "host_threads": HOST_THREADS, "light_pause_s": LIGHT_PAUSE}
    return {"conditions": conditions, "states": result, "unavailable": reasons}


# ---- many starts at once ----------------------------------------------------------------------------------


def threaded(pool: ThreadPoolExecutor, contestant: Contestant) -> Callable[[int], float]:
    """Seconds that `count` starts take from the threads of this process."""
    if isinstance(contestant, Ours):
        rootfs = contestant.rootfs
        start = lambda _: timed_run(rootfs)  # noqa: E731
    else:
        assert isinstance(contestant, Bubblewrap)
        argv = contestant.argv
        start = lambda _: timed_command(argv)  # noqa: E731

    def together(count: int) -> float:
        begin = perf_counter()
        for _ in pool.map(start, range(count)):
            pass
        return perf_counter() - begin

    return together


def throughput(area: Area) -> dict[str, Any]:
    reference = Reference()
    ready, reasons = prepared(area, [reference, Ours(), Bubblewrap()])
    if reference not in ready:
        raise Unavailable(f"reference: {reasons['reference']}")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        together = {c.name: threaded(pool, c) for c in ready if c is not reference}
        together["reference"] = lambda count: reference.parallel(count, AT_ONCE)[1]
        wall = dict.fromkeys(together, 0.0)
        for _ in range(CHUNKS):
            for name, run in together.items():
                wall[name] += run(STARTS // CHUNKS)
    rates = {name: {"starts_per_second": round(STARTS / seconds, 1)} for name, seconds in wall.items()}
    for row in rates.values():
        row["of_reference"] = round(row["starts_per_second"] / rates["reference"]["starts_per_second"], 3)
    return {"conditions": {"starts": STARTS, "at_once": AT_ONCE}, "rates": rates, "unavailable": reasons}
