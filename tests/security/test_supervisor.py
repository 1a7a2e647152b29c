"""System calls that a Python function answers: what the program gets, and what a hostile one cannot get."""

from __future__ import annotations

import asyncio
import errno
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import containerkit as ck
from containerkit import aio
from containerkit.security.seccomp import Action, Seccomp
from containerkit.security.supervisor import Answer, Call, Supervisor

pytestmark = [
    pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no table for this machine"),
    pytest.mark.both,
]

Handle = Callable[[Call], Any]


class By(Supervisor):
    """A supervisor of one function, which keeps what it was asked and what went wrong."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self.asked: list[str] = []
        self.failures: list[BaseException] = []

    def handle(self, call: Call) -> Answer:
        self.asked.append(call.name)
        answer: Answer = self._handle(call)
        return answer

    def failed(self, call: Call, error: BaseException) -> None:
        self.failures.append(error)


def by(handle: Handle) -> By:
    return By(handle)


def privilege(policy: Seccomp) -> ck.Security:
    return ck.Security(seccomp=policy)


def notify(*names: str, **more: Any) -> ck.Security:
    return privilege(Seccomp(Action.ALLOW).notify(*names, **more))


def python(code: str, supervisor: Supervisor, security: ck.Security, **options: Any) -> str:
    """The output of a program that is supervised, on the host's own root."""
    command = [sys.executable, "-I", "-c", "import ctypes, errno, os, sys, threading\n" + code]
    with ck.Process(
        command, stdout=ck.PIPE, stderr=ck.STDOUT, security=security, supervisor=supervisor, **options
    ) as process:
        output, _ = process.communicate(timeout=30)
    return str(output.decode()).strip()


TRY = """
def attempt(call, *args):
    try:
        return call(*args)
    except OSError as error:
        return errno.errorcode[error.errno]
"""


# ---- answers ---------------------------------------------------------------------------------------------------------


def test_a_call_is_made_refused_or_answered_as_the_handler_says() -> None:
    answers = iter([Answer.value(4242), Answer.allow(), Answer.value(-1), Answer.deny("ENOMEM")])
    supervisor = by(lambda call: next(answers))
    output = python(
        "print(os.getppid(), os.getppid(), os.getppid(), os.getppid())",  # the C library hands on what it gets
        supervisor,
        notify("getppid"),
    )
    assert output == f"4242 {os.getpid()} -1 {-errno.ENOMEM}"
    assert supervisor.asked == ["getppid"] * 4


def test_a_call_shows_its_name_numbers_arguments_and_who_made_it() -> None:
    seen: list[Call] = []
    supervisor = by(lambda call: seen.append(call) or Answer.deny("ESRCH"))  # type: ignore[func-returns-value]
    output = python(TRY + "print(os.getpid(), attempt(os.kill, 1234567, 9))", supervisor, notify("kill"))
    pid, error = output.split()
    assert error == "ESRCH"
    assert (seen[0].name, seen[0].architecture, seen[0].pid) == ("kill", platform.machine(), int(pid))
    assert seen[0].args[:2] == (1234567, 9)
    assert "kill(0x12d687, 0x9" in repr(seen[0])


def test_the_default_is_to_deny() -> None:
    assert python(TRY + "print(attempt(os.kill, 0, 0))", Supervisor(), notify("kill")) == "EPERM"


def test_only_the_calls_that_the_rule_is_for_are_handed_out() -> None:
    from containerkit.security.seccomp import Arg

    supervisor = by(lambda call: Answer.deny("ENOLINK"))
    security = notify("kill", where=Arg(1, "==", 10))
    code = "print(attempt(os.kill, os.getpid(), 0), attempt(os.kill, os.getpid(), 10))"
    assert python(TRY + code, supervisor, security) == "None ENOLINK"


def test_a_path_is_read_from_the_program() -> None:
    paths: list[bytes] = []

    def handle(call: Call) -> Answer:
        paths.append(call.read_string(call.args[0]))
        return Answer.value(0)

    long = "/" + "x/" * 2000
    assert python(f"os.truncate('/no/such/thing', 9); os.truncate({long!r}, 0)", by(handle), notify("truncate")) == ""
    assert paths == [b"/no/such/thing", long.encode()]


def test_a_result_is_written_into_the_program() -> None:
    def handle(call: Call) -> Answer:
        call.write(call.args[0], b"Plan 9".ljust(65, b"\0"))
        return Answer.value(0)

    assert python("print(os.uname().sysname)", by(handle), notify("uname")) == "Plan 9"


def test_a_descriptor_of_ours_becomes_the_programs() -> None:
    def handle(call: Call) -> Answer:
        read, write = os.pipe()
        os.write(write, b"from outside")
        os.close(write)
        return Answer.descriptor(read)

    code = "fd = os.memfd_create('x'); print(os.read(fd, 99), os.get_inheritable(fd))"
    assert python(code, by(handle), notify("memfd_create")) == "b'from outside' False"


def test_a_file_object_is_given_away_and_closed() -> None:
    files: list[Any] = []

    def handle(call: Call) -> Answer:
        files.append(Path("/dev/null").open())  # noqa: SIM115
        return Answer.descriptor(files[0], number=77)

    assert python("print(os.memfd_create('x'))", by(handle), notify("memfd_create")) == "77"
    assert files[0].closed


def test_more_than_one_descriptor_can_be_installed_before_the_answer() -> None:
    def handle(call: Call) -> Answer:
        with Path("/dev/null").open() as file:
            numbers = call.install(file.fileno()), call.install(file.fileno(), number=50)
        call.write(call.args[0], b"".join(number.to_bytes(4, sys.byteorder) for number in numbers))
        return Answer.value(0)

    output = python("a, b = os.pipe(); print(b, os.readlink(f'/proc/self/fd/{a}'))", by(handle), notify("pipe2"))
    assert output == "50 /dev/null"


def test_a_descriptor_of_the_program_is_copied_also_for_a_thread_of_it() -> None:
    def handle(call: Call) -> Answer:
        fd = call.descriptor(call.args[0])
        try:
            os.write(fd, b"by us\n")
        finally:
            os.close(fd)
        return Answer.value(0)

    code = "thread = threading.Thread(target=os.fsync, args=(1,)); thread.start(); thread.join()"
    assert python(code, by(handle), notify("fsync")) == "by us"


def test_an_unknown_descriptor_of_the_program_is_an_error_of_the_handler() -> None:
    supervisor = by(lambda call: Answer.value(call.descriptor(call.args[0])))
    assert python(TRY + "print(attempt(os.fsync, 99))", supervisor, notify("fsync")) == "EPERM"
    assert [error.errno for error in supervisor.failures if isinstance(error, OSError)] == [errno.EBADF]


# ---- handlers that fail ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [None, 0, "allow"])
def test_a_handler_that_answers_nonsense_denies(wrong: object) -> None:
    supervisor = by(lambda call: wrong)
    assert python(TRY + "print(attempt(os.kill, 0, 0))", supervisor, notify("kill")) == "EPERM"
    assert isinstance(supervisor.failures[0], TypeError)


@pytest.mark.parametrize("kind", [RuntimeError, SystemExit, KeyboardInterrupt])
def test_a_handler_that_raises_denies_and_goes_on(kind: type[BaseException]) -> None:
    def handle(call: Call) -> Answer:
        raise kind("no")

    supervisor = by(handle)
    code = "print(attempt(os.kill, 0, 0), attempt(os.kill, 0, 0))"
    assert python(TRY + code, supervisor, notify("kill")) == "EPERM EPERM"
    assert [type(error) for error in supervisor.failures] == [kind, kind]


def test_a_failure_is_told_on_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    class Broken(Supervisor):
        def handle(self, call: Call) -> Answer:
            raise RuntimeError("what was I asked?")

    python(TRY + "attempt(os.kill, 0, 0)", Broken(), notify("kill"))
    told = capfd.readouterr().err
    assert "is denied, because its handler raised" in told
    assert "what was I asked?" in told


POINTERS = (0, 1, 0xFFFF_FFFF_FFFF_F000, 0x7FFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF)


@pytest.mark.parametrize("pointer", POINTERS)
def test_a_pointer_to_nowhere_is_efault_and_no_failure(pointer: int) -> None:
    supervisor = by(lambda call: Answer.value(len(call.read_string(call.args[0]))))
    code = f"libc = ctypes.CDLL(None, use_errno=True)\nlibc.truncate(ctypes.c_void_p({pointer}), 0)\n"
    output = python(code + "print(errno.errorcode[ctypes.get_errno()])", supervisor, notify("truncate"))
    assert (output, supervisor.failures) == ("EFAULT", [])


def test_text_without_an_end_is_efault() -> None:
    supervisor = by(lambda call: Answer.value(len(call.read_string(call.args[0], limit=100))))
    code = TRY + "print(attempt(os.truncate, 'x' * 99, 0), attempt(os.truncate, 'x' * 100, 0))"
    output = python(code.replace("return call(*args)", "call(*args); return 'ok'"), supervisor, notify("truncate"))
    assert output == "ok EFAULT"


def test_a_descriptor_that_is_not_open_denies() -> None:
    supervisor = by(lambda call: Answer.descriptor(1 << 20))
    assert python(TRY + "print(attempt(os.memfd_create, 'x'))", supervisor, notify("memfd_create")) == "EPERM"
    assert supervisor.failures


@pytest.mark.parametrize("error", [0, 4096, "ENOTHING", -1])
def test_an_errno_that_does_not_exist_is_refused(error: int | str) -> None:
    with pytest.raises(ck.InvalidValue, match="errno"):
        Answer.deny(error)


# ---- what a hostile program may try ----------------------------------------------------------------------------------


def other_thread_writes(call: Call, content: bytes) -> None:
    """What another thread of the program could do while the handler thinks: here at the worst moment, always."""
    call.write(call.args[1], content + b"\0")


def naive(call: Call) -> Answer:
    if call.read_string(call.args[1]) == b"/etc/secret":
        return Answer.deny("EACCES")
    other_thread_writes(call, b"/etc/secret")
    return Answer.allow()


def careful(call: Call) -> Answer:
    path = call.read_string(call.args[1])
    if path == b"/etc/secret":
        return Answer.deny("EACCES")
    other_thread_writes(call, b"/etc/secret")
    assert path == b"/etc/public"
    read, write = os.pipe()
    os.write(write, b"public")
    os.close(write)
    return Answer.descriptor(read)


OPEN = "print(open(os.open('/etc/public', os.O_RDONLY)).read())"


def opens(supervisor: By) -> str:
    def handle(call: Call) -> Answer:
        watched = call.read_string(call.args[1]).startswith((b"/etc/public", b"/etc/secret"))
        return supervisor._handle(call) if watched else Answer.allow()

    files = [ck.File("/etc/public", "public"), ck.File("/etc/secret", "secret")]
    done = ck.run(
        ["/bin/cat", "/etc/public"],
        mounts=files,
        security=ck.Security(
            capabilities=ck.Capabilities(), seccomp=Seccomp.strict().notify("openat", "open", "openat2")
        ),
        supervisor=by(handle),
    )
    assert done.stderr == ""
    return done.stdout


def test_who_acts_on_the_copy_is_not_fooled_by_memory_that_changes() -> None:
    assert opens(by(careful)) == "public"


def test_who_allows_because_of_what_a_pointer_pointed_to_is_fooled() -> None:
    """The control: the same attack against a handler that looks and then lets the kernel look again."""
    assert opens(by(naive)) == "secret"


def test_a_call_of_a_process_that_was_killed_is_gone() -> None:
    asked, killed = threading.Event(), threading.Event()
    after: list[BaseException] = []

    def handle(call: Call) -> Answer:
        asked.set()
        killed.wait(10)
        try:
            call.read(call.args[0], 1)
        except ck.CallGone as error:
            after.append(error)
            raise
        return Answer.allow()

    supervisor = by(handle)
    command = [sys.executable, "-I", "-c", "import os; os.uname()"]
    with ck.Process(command, security=notify("uname"), supervisor=supervisor) as process:
        assert asked.wait(20)
        process.kill()
        process.wait(10)
        killed.set()
    assert len(after) == 1
    assert supervisor.failures == []


def test_a_signal_does_not_make_a_call_come_twice() -> None:
    if tuple(map(int, platform.release().split(".")[:2])) < (5, 19):
        pytest.skip("WAIT_KILLABLE_RECV is of Linux 5.19")
    pids: list[int] = []

    def handle(call: Call) -> Answer:
        pids.append(call.pid)
        os.kill(call.pid, signal.SIGUSR1)
        call.check()
        return Answer.value(7)

    code = "import signal\nsignal.signal(signal.SIGUSR1, lambda *_: print('signal'))\nprint(os.getppid())"
    supervisor = by(handle)
    options: dict[str, Any] = {"idmap": ck.IdMap.single(), "namespaces": ck.Namespaces(user="new")}
    assert sorted(python(code, supervisor, notify("getppid"), **options).split()) == ["7", "signal"]
    assert len(pids) == 1


# ---- start and end ---------------------------------------------------------------------------------------------------


def everything() -> ck.Security:
    return privilege(Seccomp(Action.NOTIFY))


def test_a_program_whose_every_call_is_handed_out_starts_and_ends() -> None:
    supervisor = by(lambda call: Answer.allow())
    done = ck.run(["/bin/true"], security=everything(), supervisor=supervisor)
    assert done.ok
    assert {"execve", "exit_group"} <= set(supervisor.asked)


def test_so_does_one_without_a_pid_1() -> None:
    supervisor = by(lambda call: Answer.allow())
    with ck.Process(["/bin/true"], security=everything(), supervisor=supervisor) as process:
        assert process.wait(10) == 0


def test_a_start_that_fails_under_such_a_policy_still_tells_why() -> None:
    with pytest.raises(ck.ProgramNotFound):
        ck.run(["/no/such/program"], security=everything(), supervisor=by(lambda call: Answer.allow()))


def test_a_start_whose_exec_is_denied_fails() -> None:
    with pytest.raises(ck.SpawnError) as caught:
        ck.run(["/bin/true"], security=notify("execve"), supervisor=by(lambda call: Answer.deny("ENOEXEC")))
    assert caught.value.errno == errno.ENOEXEC


def test_the_threads_end_with_the_program_and_before_its_handle() -> None:
    code = "import os; os.getppid()"
    with ck.Process(
        [sys.executable, "-I", "-c", code], security=notify("getppid"), supervisor=by(lambda call: Answer.value(1))
    ) as process:
        process.wait(10)
        for thread in process._supervision._threads:  # type: ignore[union-attr]
            thread.join(10)
            assert not thread.is_alive()
        assert process._supervision._listener == -1  # type: ignore[union-attr]


def test_children_are_supervised_too_and_after_the_handle_is_closed_their_calls_do_not_exist(tmp_path: Path) -> None:
    ready, told = tmp_path / "ready", tmp_path / "told"
    os.mkfifo(ready)
    code = f"""
if os.fork() == 0:
    before = os.getppid()
    open({str(ready)!r}, "w").close()
    open({str(ready)!r}, "r").close()
    after = os.getppid()
    with open({str(told)!r} + ".new", "w") as file:
        print(before, after, file=file)
    os.rename({str(told)!r} + ".new", {str(told)!r})
    open({str(ready)!r}, "w").close()
"""
    process = ck.Process(
        [sys.executable, "-I", "-c", "import os\n" + code],
        security=notify("getppid"),
        supervisor=by(lambda call: Answer.value(77)),
    )
    with process:
        process.wait(10)
        ready.open().close()
    ready.open("w").close()
    ready.open().close()
    assert told.read_text().split() == ["77", str(-errno.ENOSYS)]


def test_several_threads_handle_several_calls_at_once() -> None:
    both = threading.Barrier(2, timeout=10)

    class Pair(Supervisor):
        threads = 2

        def handle(self, call: Call) -> Answer:
            both.wait()
            return Answer.value(5)

    code = """
found, libc = [], ctypes.CDLL(None)
pair = [threading.Thread(target=lambda: found.append(libc.getppid())) for _ in range(2)]
for thread in pair: thread.start()
for thread in pair: thread.join()
print(found)
"""
    assert python(code, Pair(), notify("getppid")) == "[5, 5]"


def test_a_sandbox_supervises_each_of_its_programs() -> None:
    supervisor = by(lambda call: Answer.deny("EDOM"))
    security = ck.Security(capabilities=ck.Capabilities(), seccomp=Seccomp.strict().notify("mkdir", "mkdirat"))
    with ck.Sandbox(security=security, supervisor=supervisor) as box:
        for _ in range(2):
            assert "argument out of domain" in box.run(["mkdir", "/tmp/x"]).stderr.lower()
        assert box.run(["ls", "/tmp"]).stdout == ""
    assert len(supervisor.asked) == 2


# ---- asyncio ---------------------------------------------------------------------------------------------------------


def test_a_coroutine_handles_calls_in_the_event_loop() -> None:
    class InLoop(Supervisor):
        async def handle(self, call: Call) -> Answer:
            assert threading.current_thread() is threading.main_thread()
            await asyncio.sleep(0.01)
            return Answer.deny("EDOM")

    async def main() -> list[ck.Completed[str]]:
        security = ck.Security(capabilities=ck.Capabilities(), seccomp=Seccomp.strict().notify("mkdir", "mkdirat"))
        return await asyncio.gather(
            *(aio.run(["mkdir", "/tmp/x"], security=security, supervisor=InLoop()) for _ in range(2))
        )

    for done in asyncio.run(main()):
        assert "argument out of domain" in done.stderr.lower()


def test_a_function_handles_calls_in_a_thread_also_there() -> None:
    async def main() -> ck.Completed[str]:
        return await aio.run(
            ["mkdir", "/tmp/x"], security=notify("mkdir", "mkdirat"), supervisor=by(lambda call: Answer.deny("EDOM"))
        )

    assert "argument out of domain" in asyncio.run(main()).stderr.lower()


def test_a_coroutine_that_raises_denies() -> None:
    class Broken(By):
        async def handle(self, call: Call) -> Answer:  # type: ignore[override]
            raise RuntimeError

    async def main() -> ck.Completed[str]:
        return await aio.run(["mkdir", "/tmp/x"], security=notify("mkdir", "mkdirat"), supervisor=supervisor)

    supervisor = Broken(lambda call: None)
    assert "not permitted" in asyncio.run(main()).stderr
    assert isinstance(supervisor.failures[0], RuntimeError)


def test_a_task_that_is_cancelled_leaves_no_call_waiting() -> None:
    class Never(Supervisor):
        async def handle(self, call: Call) -> Answer:
            asked.set()
            await asyncio.sleep(3600)
            return Answer.allow()

    async def main() -> None:
        running = asyncio.ensure_future(aio.run(["mkdir", "/tmp/x"], security=notify("mkdir"), supervisor=Never()))
        await asyncio.wait_for(asked.wait(), 10)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asked = asyncio.Event()
    if platform.machine() == "x86_64":
        asyncio.run(main())


def test_a_coroutine_is_refused_without_a_loop() -> None:
    class InLoop(Supervisor):
        async def handle(self, call: Call) -> Answer:
            return Answer.allow()

    with pytest.raises(ck.InvalidValue, match=r"containerkit\.aio"):
        ck.run(["/bin/true"], security=notify("execve"), supervisor=InLoop())


# ---- what cannot work ------------------------------------------------------------------------------------------------


def test_a_policy_that_asks_needs_somebody_to_ask() -> None:
    with pytest.raises(ck.InvalidValue, match="give supervisor="):
        ck.run(["/bin/true"], security=notify("kill"))


@pytest.mark.parametrize("security", [ck.Security.strict(), ck.Security()], ids=["strict", "no filter"])
def test_a_supervisor_needs_a_policy_that_asks(security: ck.Security) -> None:
    with pytest.raises(ck.InvalidValue, match="something to decide"):
        ck.run(["/bin/true"], security=security, supervisor=Supervisor())


def test_a_supervisor_inside_what_another_supervises_is_an_error_that_says_so() -> None:
    """The kernel allows one listener in a line of filters."""
    code = """
import containerkit as ck
security = ck.Security(seccomp=ck.Seccomp.strict().notify("getppid"))
try:
    ck.Process(["/bin/true"], security=security, supervisor=ck.Supervisor()).close()
except ck.SpawnError as error:
    print(error.step, error.errno, error.hint)
"""
    command = [sys.executable, "-c", code]
    env = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with ck.Process(command, stdout=ck.PIPE, env=env, security=notify("getppid"), supervisor=Supervisor()) as process:
        told = process.communicate(timeout=30)[0].decode()
    assert told.startswith("load the system call filter")
    assert f" {errno.EBUSY} a filter around us has a supervisor already" in told


def test_explain_tells_of_the_listener() -> None:
    security = ck.Security(seccomp=Seccomp.strict().notify("getppid"))
    assert ", whose listener we get" in ck.explain(["true"], security=security, supervisor=Supervisor())
    assert "listener" not in ck.explain(["true"])
