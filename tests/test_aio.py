"""The asyncio twins: the same results, driven by the loop alone."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

import pytest
from patience import PATIENCE
from starts import host_said, is_gone, wait_until

import containerkit as ck
from containerkit import DEVNULL, PIPE, STDOUT, Limits, Outcome, aio

pytestmark = pytest.mark.both


@pytest.fixture(autouse=True)
def loudly() -> Iterator[None]:
    """A transport or task that nobody closed warns when it is collected, which is a failure of this test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gc.collect()


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """In a loop in debug mode, which complains of slow callbacks and of calls from the wrong thread."""
    return asyncio.run(main, debug=True)


# ---- the same as without asyncio ---------------------------------------------------------------------------

CASES: list[tuple[list[str], dict[str, Any]]] = [
    (["echo", "hello"], {}),
    (["sh", "-c", "echo out; echo err >&2; exit 7"], {}),
    (["sh", "-c", "kill -SEGV $$"], {}),
    (["cat"], {"input": "text \u00e4"}),
    (["cat"], {"input": b"\xff\0", "text": False}),
    (["true"], {"input": bytes(1 << 18)}),
    (["sh", "-c", "pwd; echo $MINE; hostname"], {"cwd": "/tmp", "env": {"MINE": "1"}, "hostname": "twin"}),
    (["seq", "1000"], {"limits": Limits(output_max=1000)}),
    (["yes"], {"limits": Limits(output_max=1000)}),
    (["sh", "-c", "while :; do :; done"], {"limits": Limits(cpu_seconds=0.1)}),
    (["sleep", "60"], {"timeout": 0.1}),
    (["sh", "-c", "trap 'echo bye; exit 3' TERM; while :; do sleep 0.01; done"], {"timeout": 0.2}),
    (["sh", "-c", "trap '' TERM; while :; do sleep 0.01; done"], {"timeout": 0.1, "grace": 0.1}),
    (["sh", "-c", "exec >&- 2>&-; sleep 0.1; exit 5"], {}),
    (["sh", "-c", "sleep 60 & exit 4"], {}),
]


@pytest.mark.parametrize(("args", "options"), CASES, ids=[f"{n}-{args[-1][:20]}" for n, (args, _) in enumerate(CASES)])
def test_run_gives_what_its_twin_gives(args: list[str], options: dict[str, Any]) -> None:
    here, there = ck.run(args, **options), run(aio.run(args, **options))
    told = ["args", "returncode", "outcome", "stdout", "stderr", "stderr_cut"]
    if args == ["yes"]:  # a flood is stopped at some point
        told.remove("stdout")
    assert [getattr(there, name) for name in told] == [getattr(here, name) for name in told]
    assert there.timeline.start_ns > 0
    assert there.usage.wall_seconds > 0


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda: aio.run(["no-such-program"]), ck.ProgramNotFound),
        (lambda: aio.run(["false"], check=True), ck.ProcessFailed),
        (lambda: aio.run(["true"], timeot=1), TypeError),
        (lambda: aio.run("true"), TypeError),
        (lambda: aio.run(["true"], network="bridge"), ck.InvalidValue),
        (lambda: aio.Process.start(["no-such-program"]), ck.ProgramNotFound),
        (lambda: aio.Process.start(["true"], rootfs="/"), TypeError),
    ],
    ids=["missing", "check", "unknown", "string", "invalid", "start-missing", "start-unknown"],
)
def test_errors_are_those_of_its_twin(call: Callable[[], Awaitable[Any]], kind: type[Exception]) -> None:
    async def main() -> None:
        with pytest.raises(kind):
            await call()

    run(main())


def test_without_capturing_the_output_is_the_callers(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(aio.run(["echo", "out"], capture_output=False)).stdout is None
    assert capfd.readouterr().out == "out\n"


# ---- many, and the loop ------------------------------------------------------------------------------------


def test_fifty_runs_at_once_get_their_own_answers() -> None:
    async def main() -> list[ck.Completed[str]]:
        return await asyncio.gather(*(aio.run(["sh", "-c", f"echo {n}; exit {n}"]) for n in range(50)))

    assert [(done.stdout, done.returncode) for done in run(main())] == [(f"{n}\n", n) for n in range(50)]


def test_the_loop_goes_on_while_a_program_runs() -> None:
    async def main() -> int:
        ticks = 0
        running = asyncio.ensure_future(aio.run(["sleep", "0.2"]))
        while not running.done():
            await asyncio.sleep(0.005)
            ticks += 1
        assert (await running).ok
        return ticks

    assert run(main()) > 15


def test_no_thread_is_started() -> None:
    async def main() -> int:
        await asyncio.gather(*(aio.run(["true"]) for _ in range(5)))
        async with await aio.Process.start(["cat"], stdin=PIPE, stdout=PIPE) as process:
            await process.communicate(b"x")
        return len(os.listdir("/proc/self/task"))

    before = len(os.listdir("/proc/self/task"))
    assert run(main()) == before


def test_it_works_in_a_loop_of_another_thread() -> None:
    """The child watchers of asyncio need the main thread, or a thread of their own."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(run(aio.run(["echo", "x"]))))
    thread.start()
    thread.join()
    assert results[0].stdout == "x\n"


def test_who_ignores_or_reaps_children_loses_no_status() -> None:
    code = """
    import asyncio
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print(asyncio.run(ck.aio.run(["sh", "-c", "exit 9"])).returncode)
    """
    assert host_said(code) == ["9"]


def test_sigchld_has_no_handler_of_ours() -> None:
    run(aio.run(["true"]))
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL


# ---- cancelled ---------------------------------------------------------------------------------------------


async def cancelled_after(seconds: float, work: Coroutine[Any, Any, Any]) -> None:
    task = asyncio.ensure_future(work)
    await asyncio.sleep(seconds)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


@pytest.mark.parametrize("step", range(5))
def test_cancelling_a_run_at_any_moment_leaves_nothing(step: int) -> None:
    async def main() -> None:
        for part in range(4):
            await cancelled_after((step * 4 + part) / 1000, aio.run(["sleep", "60"], input=bytes(1 << 18)))
            assert not children()

    run(main())


def test_cancelling_fifty_runs_ends_all() -> None:
    async def main() -> None:
        tasks = [asyncio.ensure_future(aio.run(["sleep", "60"])) for _ in range(50)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(each) for each in ended} == {asyncio.CancelledError}
        assert not children()

    run(main())


def test_cancelling_again_while_it_cleans_up_changes_nothing() -> None:
    async def main() -> None:
        task = asyncio.ensure_future(aio.run(["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]))
        await asyncio.sleep(0.05)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not children()

    run(main())


def test_a_timeout_of_asyncio_ends_the_run() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await aio.run(["sleep", "60"])
        assert not children()

    run(main())


def test_a_loop_that_ends_early_leaves_nothing() -> None:
    async def main() -> None:
        asyncio.ensure_future(aio.run(["sleep", "60"]))  # noqa: RUF006  asyncio.run cancels what is left
        await asyncio.sleep(0.05)

    run(main())
    assert not children()


def children() -> list[str]:
    found: list[str] = []
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/children") as file:
            found += file.read().split()
    return found


# ---- Process -----------------------------------------------------------------------------------------------


def test_streams_are_those_of_asyncio() -> None:
    async def main() -> None:
        async with await aio.Process.start(["cat"], stdin=PIPE, stdout=PIPE, stderr=DEVNULL) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is None
            process.stdin.write(b"one\n")
            await process.stdin.drain()
            assert await process.stdout.readline() == b"one\n"
            process.stdin.write(b"two\n")
            process.stdin.close()
            assert await process.stdout.read() == b"two\n"
            assert await process.wait() == process.returncode == 0

    run(main())


def test_communicate_feeds_and_reads_more_than_a_pipe_holds() -> None:
    data = os.urandom(1 << 20)

    async def main() -> tuple[bytes | None, bytes | None]:
        async with await aio.Process.start(["cat"], stdin=PIPE, stdout=PIPE) as process:
            return await process.communicate(data)

    assert run(main()) == (data, None)


def test_both_outputs_may_go_one_way() -> None:
    async def main() -> tuple[bytes | None, bytes | None]:
        async with await aio.Process.start(["sh", "-c", "echo a; echo b >&2"], stdout=PIPE, stderr=STDOUT) as process:
            return await process.communicate()

    assert run(main()) == (b"a\nb\n", None)


def test_waiting_has_a_timeout_and_may_go_on() -> None:
    async def main() -> None:
        async with await aio.Process.start(["sleep", "0.2"]) as process:
            with pytest.raises(ck.TimeoutExpired) as caught:
                await process.wait(0.01)
            assert caught.value.timeout == 0.01
            assert process.returncode is None
            assert await process.wait(5) == 0

    run(main())


def test_several_tasks_may_wait_for_one_process() -> None:
    async def main() -> list[int]:
        async with await aio.Process.start(["sh", "-c", "sleep 0.1; exit 3"]) as process:
            return await asyncio.wait_for(asyncio.gather(*(process.wait() for _ in range(3))), 5)

    assert run(main()) == [3, 3, 3]


def test_one_who_gives_up_waiting_does_not_disturb_the_others() -> None:
    async def main() -> int:
        async with await aio.Process.start(["sh", "-c", "sleep 0.2; exit 3"]) as process:
            waiting = asyncio.ensure_future(process.wait())
            await asyncio.sleep(0)
            with pytest.raises(ck.TimeoutExpired):
                await process.wait(0.02)
            return await asyncio.wait_for(waiting, 5)

    assert run(main()) == 3


def test_signals_reach_the_program() -> None:
    async def main() -> None:
        for send, expected in (("terminate", signal.SIGTERM), ("kill", signal.SIGKILL)):
            async with await aio.Process.start(["sleep", "60"]) as process:
                getattr(process, send)()
                assert await process.wait() == -expected
        async with await aio.Process.start(["sleep", "60"]) as process:
            process.send_signal(signal.SIGUSR1)
            assert await process.wait() == -signal.SIGUSR1

    run(main())


def test_leaving_the_block_kills_and_reaps() -> None:
    async def main() -> None:
        async with await aio.Process.start(["sleep", "60"], stdout=PIPE, stdin=PIPE) as process:
            pid = process.pid
            assert "sleep" in repr(process)
        assert is_gone(pid)
        assert process.returncode == -signal.SIGKILL
        await process.close()

    run(main())


@pytest.mark.parametrize("milliseconds", [0, 1, 2, 4, 8])
def test_cancelling_a_start_leaves_nothing(milliseconds: int) -> None:
    async def start() -> None:
        async with await aio.Process.start(["sleep", "60"], stdin=PIPE, stdout=PIPE, stderr=PIPE):
            await asyncio.sleep(60)

    async def main() -> None:
        await cancelled_after(milliseconds / 1000, start())
        assert not children()

    run(main())


# ---- Sandbox -----------------------------------------------------------------------------------------------


def test_a_sandbox_runs_programs_at_the_same_time() -> None:
    async def main() -> None:
        async with aio.Sandbox(env={"WORD": "kept"}) as box:
            ended = await asyncio.gather(*(box.run(["sh", "-c", f"echo $WORD {n} > /tmp/{n}"]) for n in range(10)))
            assert all(done.ok for done in ended)
            assert (await box.run(["sh", "-c", "cat /tmp/?"])).stdout == "".join(f"kept {n}\n" for n in range(10))
            assert (await box.run(["sh", "-c", "exit 3"], limits=Limits(nofile=50), cwd="/tmp")).returncode == 3
            assert "no_new_privs" in box.enforced()
            async with await box.process(["cat"], stdin=PIPE, stdout=PIPE) as process:
                assert await process.communicate(b"x") == (b"x", None)
        assert not children()

    run(main())


def test_leaving_a_sandbox_ends_what_runs_in_it() -> None:
    async def main() -> list[int]:
        async with aio.Sandbox() as box:
            process = await box.process(["sleep", "60"])
        pids = [process.pid]
        assert await process.wait(5) == -signal.SIGKILL
        await process.close()
        return pids

    begin = time.monotonic()
    assert all(is_gone(pid) for pid in run(main()))
    assert time.monotonic() - begin < 5 * PATIENCE


def test_a_run_in_a_sandbox_can_be_cancelled_and_the_sandbox_goes_on() -> None:
    async def main() -> None:
        async with aio.Sandbox() as box:
            for milliseconds in (0, 2, 5, 20):
                await cancelled_after(milliseconds / 1000, box.run(["sleep", "60"]))
            assert (await box.run(["echo", "on"])).stdout == "on\n"

    run(main())


def test_a_sandbox_outside_its_block_is_refused() -> None:
    async def main() -> None:
        box = aio.Sandbox()
        with pytest.raises(RuntimeError, match="async with"):
            await box.run(["true"])
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            async with aio.Sandbox(timeout=1):  # type: ignore[call-arg]
                pass
        async with box:
            pass
        with pytest.raises(ck.ClosedHandle):
            await box.run(["true"])

    run(main())


def test_cancelling_the_start_of_a_sandbox_leaves_nothing() -> None:
    async def start() -> None:
        async with aio.Sandbox():
            await asyncio.sleep(60)

    async def main() -> None:
        for milliseconds in (0, 1, 2, 4, 8):
            await cancelled_after(milliseconds / 1000, start())
            assert not children()

    run(main())


def test_a_run_keeps_its_outcome_when_the_loop_is_late() -> None:
    """The program ends while the loop is busy elsewhere, for longer than the timeout."""

    async def main() -> ck.Completed[str]:
        task = asyncio.ensure_future(aio.run(["sh", "-c", "echo x; exit 3"], timeout=30))
        await asyncio.sleep(0.02)
        time.sleep(0.1)  # noqa: ASYNC251  that is the point
        return await task

    done = asyncio.run(main())
    assert (done.outcome, done.stdout, done.returncode) == (Outcome.EXITED, "x\n", 3)
    wait_until(lambda: not children())
