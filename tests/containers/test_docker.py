"""The same scenarios through docker and through us: the same exit codes, words, files and answers of inspect.

A scenario is a function of an engine, and returns what it has seen, by name. What differs on purpose is said above it,
with the reason; a reason whose facts do not differ any more fails, too.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import peers
import pytest
from engines import Docker, Engine, Ours, Refused
from made_containers import busybox_image

from containerkit.containers.spec import Health
from containerkit.store import Store

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(180)]

IMAGE, WITH_ENTRYPOINT, WITH_VOLUME = "ck-diff:1", "ck-diff:entry", "ck-diff:volume"
CHANGES: Mapping[str, Mapping[str, Any]] = {
    IMAGE: {"env": {"PATH": "/bin", "WORD": "image"}, "cmd": ["echo", "default"], "cwd": "/srv", "labels": {"a": "b"}},
    WITH_ENTRYPOINT: {"env": {"PATH": "/bin"}, "entrypoint": ["echo", "entry"], "cmd": ["cmd"], "user": "bob"},
    WITH_VOLUME: {"env": {"PATH": "/bin"}, "cmd": ["ls", "/etc"], "volumes": ["/etc"]},
}

Facts = dict[str, Any]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[peers.Peer, Path]]:
    """dockerd, and the path of a store with the same images."""
    directory = tmp_path_factory.mktemp("docker")
    with Store(directory / "store") as store:
        for name, changes in CHANGES.items():
            busybox_image(store, name, **changes)
        store.images.save(list(CHANGES), directory / "images.tar")
    with peers.docker(directory) as peer:
        peer.call("load", "--input", str(directory / "images.tar"))
        yield peer, directory / "store"


@pytest.fixture
def docker(daemon: tuple[peers.Peer, Path]) -> Iterator[Engine]:
    engine = Docker(daemon[0], IMAGE)
    yield engine
    engine.clear()


@pytest.fixture
def ours(daemon: tuple[peers.Peer, Path]) -> Iterator[Engine]:
    with Store(daemon[1]) as store:
        engine = Ours(store, IMAGE)
        yield engine
        engine.clear()


class Scenario(NamedTuple):
    name: str
    play: Callable[[Engine, Path], Facts]
    differs: Mapping[str, str]


SCENARIOS: list[Scenario] = []


def scenario(**differs: str) -> Callable[[Callable[[Engine, Path], Facts]], Callable[[Engine, Path], Facts]]:
    """``differs`` says which facts differ, and why."""

    def add(play: Callable[[Engine, Path], Facts]) -> Callable[[Engine, Path], Facts]:
        SCENARIOS.append(Scenario(play.__name__, play, differs))
        return play

    return add


def compare(scenario: Scenario, docker: Facts, ours: Facts) -> None:
    assert docker.keys() == ours.keys()
    unequal = {name for name in docker if docker[name] != ours[name]}
    told = [f"{name}:\n  docker: {docker[name]}\n  ours:   {ours[name]}" for name in unequal - set(scenario.differs)]
    told += [f"{name}: it does not differ any more" for name in set(scenario.differs) - unequal]
    if told:
        pytest.fail("\n".join(told), pytrace=False)


# ---- one program -----------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """Arguments and options of a container, whose end and output are compared. ``differs`` says why they do."""

    args: tuple[str, ...]
    options: Mapping[str, Any] = {}
    differs: str = ""


def sh(script: str, differs: str = "", **options: Any) -> Run:
    return Run(("sh", "-c", script), options, differs)


RUNS: Mapping[str, Run] = {
    # Entrypoint and Cmd
    "the image's cmd": Run(()),
    "args replace it": Run(("echo", "mine")),
    "an entrypoint takes the image's cmd away": Run((), {"entrypoint": "pwd"}),
    "an entrypoint has the args": Run(("a", "b c"), {"entrypoint": "echo"}),
    "the image's entrypoint and cmd": Run((), {"image": WITH_ENTRYPOINT}),
    "args stand after the entrypoint": Run(("mine",), {"image": WITH_ENTRYPOINT}),
    "another entrypoint": Run(("-u",), {"image": WITH_ENTRYPOINT, "entrypoint": "id"}),
    "no entrypoint": Run(("echo", "alone"), {"image": WITH_ENTRYPOINT, "entrypoint": ""}),
    # the environment
    "all of the environment": sh("env | sort | grep -v -e SHLVL -e LANG", hostname="box"),
    "a language": sh("echo ${LANG-none}", "without one, Python and others take all text for ASCII"),
    "another value": sh("echo $WORD", env={"WORD": "mine"}),
    "an empty value": sh('echo "[$WORD]" ${WORD-unset}', env={"WORD": ""}),
    "a variable taken away": sh("echo ${WORD-unset}", env={"WORD": None}),
    "a value with everything in it": sh('echo "$ODD"', env={"ODD": "a=b 'c' \"d\" $e\nf\tü"}),
    "another path": Run(("echo", "no"), {"env": {"PATH": "/nowhere"}, "init": False}),
    # users
    "root by default": sh("id; echo $HOME"),
    "a user by name": sh("id; echo $HOME", user="bob"),
    "a user by id": sh("id; echo $HOME", user="1000"),
    "a user nobody knows": sh("id -u; id -g; echo $HOME", user="4242"),
    "a user and a group": sh("id -u; id -g", user="bob:root"),
    "an id and a group's id": sh("id -u; id -g", user="7:8"),
    "the image's user": Run(("-u",), {"image": WITH_ENTRYPOINT, "entrypoint": "id"}),
    # where it starts
    "the image's directory, which is made": sh("pwd; stat -c '%a %u %g' ."),
    "another directory": sh("pwd; stat -c '%a %u %g' . ..", workdir="/a/b"),
    "a directory that is made for a user": sh("pwd; stat -c '%a %u %g' .", workdir="/a/b", user="bob"),
    "a directory that is there": sh("pwd", workdir="/tmp"),
    "a directory with dots": sh("pwd", workdir="/tmp/../etc/."),
    # what it is called
    "a host name": sh("hostname; cat /etc/hostname", hostname="box"),
    "names in /etc/hosts": sh("grep -e localhost$ -e db /etc/hosts", extra_hosts={"db": "10.1.2.3"}),
    "its own name in /etc/hosts": sh(
        "grep -c box /etc/hosts", "docker has it with a network only, and programs look for it", hostname="box"
    ),
    # input and output
    "without input": sh("cat; echo end"),
    "a terminal": sh("tty; test -t 1 && echo yes; echo err >&2", tty=True),
    "two streams": sh("echo out; echo err >&2"),
    "no newline at the end": sh("echo one; printf two"),
    "no text": sh("printf '\\001\\000\\177'"),
    "a long line": sh("head -c 100000 /dev/zero | tr '\\000' x"),
    # its end
    "a status": sh("exit 3"),
    "status 255": sh("exit 255"),
    "status 128": sh("exit 128"),
    "SIGKILL": sh("kill -9 $$"),
    "SIGTERM": sh("kill -15 $$"),
    "SIGSEGV": sh("kill -11 $$"),
    "no such program": Run(("nonesuch",), {"init": False}),
    "no such path": Run(("/bin/nonesuch",), {"init": False}),
    "a file that may not be executed": Run(("/etc/passwd",), {"init": False}),
    "a directory": Run(("/etc",), {"init": False}),
    # what it may do
    "read-only": sh("touch /x || touch /tmp/x || echo no", read_only=True),
    "a write to its own file system": sh("echo x > /new; cat /new"),
    "its own processes alone": sh("echo /proc/[0-9]*", init=False),
    "PID 1, without init": sh("echo $$", init=False),
    "mounting": sh("mount -t tmpfs none /tmp 2>/dev/null || echo no"),
    "devices": sh("ls /dev | grep -v -e console -e core -e fd -e std | sort"),
    "a device that is not its own": sh("cat /dev/sda 2>/dev/null || echo no"),
    "settings of the kernel": sh("echo 1 > /proc/sys/vm/drop_caches || echo no"),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_program_says_the_same_and_ends_the_same(docker: Engine, ours: Engine, name: str) -> None:
    run = RUNS[name]
    theirs, mine = (engine.run(*run.args, **run.options) for engine in (docker, ours))
    if run.differs:
        assert theirs != mine, "it does not differ any more"
    else:
        assert theirs == mine


# ---- its life --------------------------------------------------------------------------------------------------------

STATE = ("Status", "Running", "Paused", "Restarting", "Dead", "OOMKilled", "ExitCode")


def state(engine: Engine, name: str) -> tuple[Any, ...]:
    found = engine.inspect(name)
    return (*(found["State"][key] for key in STATE), found["RestartCount"], found["State"]["Pid"] > 0)


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it has not come to that"
        time.sleep(0.02)


@scenario()
def states_from_created_to_exited(engine: Engine, here: Path) -> Facts:
    name = engine.create("sh", "-c", "echo up; read x; exit 3", stdin_open=True)
    created = state(engine, name)
    engine.start(name)
    running = state(engine, name)
    engine.pause(name)
    paused = state(engine, name)
    engine.unpause(name)
    engine.kill(name, "KILL")
    until(lambda: not engine.inspect(name)["State"]["Running"])
    killed = state(engine, name)
    engine.start(name)
    return {"created": created, "running": running, "paused": paused, "killed": killed, "again": state(engine, name)}


@scenario()
def a_program_that_is_not_there(engine: Engine, here: Path) -> Facts:
    name = engine.create("nonesuch", init=False)
    code = engine.start(name)
    status = engine.inspect(name)["State"]
    return {"code": code, "status": status["Status"], "error": bool(status["Error"])}


@scenario()
def a_stop_ends_by_its_own_signal(engine: Engine, here: Path) -> Facts:
    name = engine.running("trap 'exit 9' USR1; while :; do sleep 0.05; done", stop_signal="USR1")
    engine.stop(name, 10)
    return {"state": state(engine, name)}


@scenario()
def a_stop_kills_after_its_time(engine: Engine, here: Path) -> Facts:
    name = engine.running("trap '' TERM; while :; do sleep 0.05; done")
    engine.stop(name, 1)
    before = state(engine, name)
    engine.stop(name, 1)
    return {"state": before, "stopped again": state(engine, name)}


@scenario()
def pid_1_without_init_does_not_end_by_a_signal_that_it_does_not_handle(engine: Engine, here: Path) -> Facts:
    name = engine.create("sleep", "60", init=False)
    engine.start(name)
    engine.stop(name, 1)
    return {"state": state(engine, name)}


@scenario()
def with_init_it_does(engine: Engine, here: Path) -> Facts:
    name = engine.create("sleep", "60")
    engine.start(name)
    engine.stop(name, 10)
    return {"state": state(engine, name)}


@scenario()
def signals(engine: Engine, here: Path) -> Facts:
    name = engine.running("trap 'echo got' USR2; trap 'exit 4' HUP; while :; do sleep 0.05; done")
    engine.kill(name, "USR2")
    until(lambda: "got" in engine.logs(name)[0])
    engine.kill(name, "SIGHUP")
    code = engine.wait(name)
    return {
        "code": code,
        "a dead one": engine.refuses(lambda: engine.kill(name, "KILL")),
        "no signal": engine.refuses(lambda: engine.kill(name, "NONESUCH")),
    }


@scenario()
def restarts_on_failure(engine: Engine, here: Path) -> Facts:
    name = engine.create("sh", "-c", "echo try; exit 5", restart="on-failure:2")
    engine.start(name)
    until(lambda: engine.inspect(name)["State"]["Status"] == "exited", 60)
    return {"code": engine.wait(name), "said": engine.logs(name), "state": state(engine, name)}


@scenario()
def no_restart_of_what_went_well(engine: Engine, here: Path) -> Facts:
    name = engine.create("sh", "-c", "echo once", restart="on-failure:2")
    engine.start(name)
    return {"code": engine.wait(name), "said": engine.logs(name), "state": state(engine, name)}


@scenario()
def a_stop_is_for_good(engine: Engine, here: Path) -> Facts:
    name = engine.running("sleep 60", restart="always")
    engine.stop(name, 10)
    return {"state": state(engine, name)}


@scenario()
def a_kill_is_for_good(engine: Engine, here: Path) -> Facts:
    name = engine.running("while :; do sleep 0.05; done", restart="always")
    engine.kill(name, "KILL")
    until(lambda: not engine.inspect(name)["State"]["Running"])
    return {"state": state(engine, name)}


@scenario()
def another_policy_while_it_runs(engine: Engine, here: Path) -> Facts:
    name = engine.running("sleep 1; exit 2", restart="always")
    engine.update(name, "no")
    return {"code": engine.wait(name), "policy": engine.inspect(name)["HostConfig"]["RestartPolicy"]}


@scenario()
def restart_by_hand(engine: Engine, here: Path) -> Facts:
    name = engine.running("exec sleep 60")
    engine.restart(name, 1)
    until(lambda: engine.logs(name)[0].count("up") == 2)
    return {"state": state(engine, name)}


@scenario()
def what_is_refused_in_which_state(engine: Engine, here: Path) -> Facts:
    name = engine.create("sh", "-c", "sleep 60")
    facts: Facts = {
        "pause a new one": engine.refuses(lambda: engine.pause(name)),
        "kill a new one": engine.refuses(lambda: engine.kill(name, "TERM")),
        "exec in a new one": engine.refuses(lambda: engine.exec(name, "true")),
        "stop a new one": engine.refuses(lambda: engine.stop(name, 1)),
        "unpause a new one": engine.refuses(lambda: engine.unpause(name)),
    }
    engine.start(name)
    facts |= {
        "start a running one": engine.start(name),
        "unpause a running one": engine.refuses(lambda: engine.unpause(name)),
        "remove a running one": engine.refuses(lambda: engine.remove(name)),
    }
    engine.pause(name)
    facts |= {
        "pause a paused one": engine.refuses(lambda: engine.pause(name)),
        "exec in a paused one": engine.refuses(lambda: engine.exec(name, "true")),
        "remove a paused one": engine.refuses(lambda: engine.remove(name)),
        "force": engine.refuses(lambda: engine.remove(name, force=True)),
    }
    return facts | {"a removed one": engine.refuses(lambda: engine.inspect(name))}


@scenario()
def names_are_taken_once(engine: Engine, here: Path) -> Facts:
    engine.create(name="first")
    engine.create(name="second")
    facts = {
        "taken": engine.refuses(lambda: engine.create(name="first")),
        "rename to a taken one": engine.refuses(lambda: engine.rename("first", "second")),
        "odd": [
            engine.refuses(lambda name=name: engine.create(name=name))  # type: ignore[misc]
            for name in ("a", "-a", "a b", "a/b", "ü", "_x")
        ],
    }
    engine.rename("first", "third")
    return facts | {"names": engine.names(), "inspect": engine.inspect("third")["Name"]}


@scenario(ancestor="docker knows the parents of images that it built; we go by layers, which these images share")
def filters(engine: Engine, here: Path) -> Facts:
    engine.create("false", name="failed", labels={"kind": "x"})
    engine.start("failed")
    engine.wait("failed")
    engine.create(name="new", labels={"kind": "y"}, volumes=["data:/data"])
    engine.create(name="other", image=WITH_ENTRYPOINT)
    wanted: list[dict[str, Any]] = [
        {}, {"name": "e"}, {"name": "^/?ne"}, {"label": "kind"}, {"label": "kind=y"}, {"status": "created"},
        {"exited": 1}, {"volume": "data"}, {"volume": "/data"}, {"before": "new"}, {"since": "failed"},
    ]  # fmt: skip
    facts: Facts = {str(filters): engine.names(**filters) for filters in wanted}
    return facts | {"ancestor": engine.names(ancestor=IMAGE)}


# ---- what it says ----------------------------------------------------------------------------------------------------


@scenario()
def logs_have_an_end_and_a_beginning(engine: Engine, here: Path) -> Facts:
    name = engine.create("sh", "-c", "seq 1 5; echo err >&2; sleep 1.5; seq 6 9; printf last")
    engine.start(name)
    engine.wait(name)
    return {
        "all": engine.logs(name),
        **{f"tail {count}": engine.logs(name, tail=count) for count in (0, 1, 2, 100)},
        "since": engine.logs(name, since=1.2),
        "since and tail": engine.logs(name, since=1.2, tail=2),
    }


@scenario()
def logs_of_a_terminal(engine: Engine, here: Path) -> Facts:
    name = engine.create("sh", "-c", "echo one; echo two >&2", tty=True)
    engine.start(name)
    engine.wait(name)
    return {"said": engine.logs(name)}


@scenario()
def logs_of_two_lives(engine: Engine, here: Path) -> Facts:
    name = engine.create("echo", "once")
    for _ in range(2):
        engine.start(name)
        engine.wait(name)
    return {"said": engine.logs(name)}


# ---- another program in it -------------------------------------------------------------------------------------------


@scenario(**{"no such program": "docker 20.10 says 126; later ones 127, as docker run does"})
def other_programs(engine: Engine, here: Path) -> Facts:
    name = engine.running("sleep 60", env={"MINE": "1"}, user="bob", hostname="box")
    engine.copy_in(name, str(here / "file"), "/plain")
    programs: Mapping[str, tuple[tuple[str, ...], Mapping[str, Any]]] = {
        "output": (("sh", "-c", "echo out; echo err >&2; exit 3"), {}),
        "its place and its user": (("sh", "-c", "pwd; id; hostname; echo $HOME $WORD $MINE"), {}),
        "another user": (("sh", "-c", "id; echo $HOME"), {"user": "root"}),
        "a user and a group": (("id",), {"user": "7:8"}),
        "another place": (("pwd",), {"workdir": "/etc"}),
        "a variable": (("sh", "-c", "echo $WORD $MINE"), {"env": {"WORD": "mine"}}),
        "no such program": (("nonesuch",), {}),
        "no program": (("/plain",), {}),
        "a directory": (("/etc",), {}),
        "a signal": (("sh", "-c", "kill -9 $$"), {}),
        "its processes": (("sh", "-c", "ps -o args | grep -c '^sleep 60'"), {}),
    }
    return {title: engine.exec(name, *args, **options) for title, (args, options) in programs.items()}


@scenario()
def a_signal_of_another_program(engine: Engine, here: Path) -> Facts:
    name = engine.running("trap 'exit 5' HUP; echo $$ > /pid; while :; do sleep 0.05; done")
    until(lambda: engine.exec(name, "cat", "/pid")[1])
    return {"kill": engine.exec(name, "sh", "-c", "kill -HUP $(cat /pid)"), "code": engine.wait(name)}


@scenario()
def processes(engine: Engine, here: Path) -> Facts:
    name = engine.running("exec sleep 60", init=False)
    titles, *rows = engine.top(name)
    return {"titles": titles, "commands": [row[-1] for row in rows], "columns": {len(row) for row in rows}}


@scenario()
def health(engine: Engine, here: Path) -> Facts:
    """It fails at first, is well when the file is there, and ill again after two failures when that is gone."""
    check = Health("test -e /well", interval=0.5, timeout=10, retries=2)
    name = engine.create("sleep", "60", health=check)
    engine.start(name)

    def status() -> Any:
        return engine.inspect(name)["State"]["Health"]["Status"]

    seen = [status()]
    for script, wanted in (("touch /well", "healthy"), ("rm /well", "unhealthy"), ("touch /well", "healthy")):
        engine.exec(name, "sh", "-c", script)
        until(lambda: status() == wanted)  # noqa: B023
        seen.append(engine.inspect(name)["State"]["Health"]["FailingStreak"] >= 2)
    found = engine.inspect(name)["Config"]["Healthcheck"]
    return {"seen": seen, "check": {key: found[key] for key in ("Interval", "Timeout", "Retries")}}


# ---- inspect ---------------------------------------------------------------------------------------------------------

CONFIG = (
    "Hostname", "Domainname", "User", "Tty", "OpenStdin", "Env", "Cmd", "Volumes", "WorkingDir", "Entrypoint", "Labels",
)  # fmt: skip
HOST = ("RestartPolicy", "AutoRemove", "NetworkMode", "ReadonlyRootfs", "Privileged", "PublishAllPorts", "Init")
MOUNT = ("Type", "Name", "Destination", "RW")


def inspected(engine: Engine, name: str) -> Facts:
    found = engine.inspect(name)
    return {
        **{key: found[key] for key in ("Path", "Args", "Name")},
        **{key: found["Config"].get(key) for key in CONFIG},
        "Env": sorted(found["Config"]["Env"]),
        "WorkingDir": found["Config"]["WorkingDir"] or "/",
        **{key: found["HostConfig"][key] for key in HOST},
        "Mounts": sorted([mount.get(key) for key in MOUNT] for mount in found["Mounts"]),
    }


@scenario()
def inspect_of_what_the_image_says(engine: Engine, here: Path) -> Facts:
    return inspected(engine, engine.create(name="box", hostname="box"))


@scenario()
def inspect_of_what_the_caller_says(engine: Engine, here: Path) -> Facts:
    name = engine.create(
        "a", "b", name="box", image=WITH_ENTRYPOINT, hostname="box", domainname="example.org", user="7:8",
        env={"MINE": "1", "PATH": "/x"}, workdir="/a/b", labels={"k": "v"}, restart="on-failure:3",
        tty=True, stdin_open=True, read_only=True,
        volumes=["data:/data", "more:/more:ro", f"{here}:/host:ro"],
    )  # fmt: skip
    return inspected(engine, name)


@scenario()
def inspect_of_another_entrypoint(engine: Engine, here: Path) -> Facts:
    return inspected(engine, engine.create("x", name="box", image=WITH_ENTRYPOINT, hostname="box", entrypoint="id"))


# ---- files -----------------------------------------------------------------------------------------------------------


def files(parent: Path) -> Path:
    """Files of the host, new ones each time: ``file``, ``dir/`` with files and links, ``empty/``."""
    here = parent / "here"
    shutil.rmtree(here, ignore_errors=True)
    os.makedirs(here / "dir/sub")
    (here / "file").write_text("file\n")
    (here / "script").write_text("#!/bin/sh\necho script\n")
    (here / "script").chmod(0o755)
    (here / "dir/one").write_text("one\n")
    (here / "dir/sub/two").write_text("two\n")
    (here / "dir/sub/two").chmod(0o640)
    (here / "dir/link").symlink_to("one")
    (here / "dir/absolute").symlink_to("/etc/passwd")
    (here / "empty").mkdir()
    return here


SOURCES = (
    "file",
    "script",
    "dir",
    "dir/",
    "dir/.",
    "dir/link",
    "dir/absolute",
    "empty",
    "empty/.",
    "file/",
    "nonesuch",
)
TARGETS = (
    "new",
    "new/",
    "new/deep",
    "old",
    "old/",
    "dir",
    "dir/",
    "dir/.",
    "todir",
    "todir/",
    "tofile",
    "dangling",
    ".",
)
PREPARE = "mkdir -p dir/one; echo old > old; ln -s dir todir; ln -s old tofile; ln -s lost dangling"
LIST = 'find . | sort | while read -r f; do stat -c \'%N %F %a %u:%g\' "$f"; test -f "$f" && cat "$f"; done; true'


@scenario()
def copies_into_a_container(engine: Engine, here: Path) -> Facts:
    """All sources to all targets, each in a directory of its own."""
    cells = [(source, target) for source in SOURCES for target in TARGETS]
    prepare = "".join(f"mkdir /t/{number}; cd /t/{number}; {PREPARE}; " for number in range(len(cells)))
    name = engine.create("sh", "-c", f"if [ -d /t ]; then cd /t; {LIST}; else mkdir /t; {prepare} fi")
    engine.start(name)
    engine.wait(name)
    facts: Facts = {}
    for number, (source, target) in enumerate(cells):
        refused = engine.refuses(lambda: engine.copy_in(name, f"{here}/{source}", f"/t/{number}/{target}"))  # noqa: B023
        facts[f"{source} to {target}"] = refused
    engine.start(name)
    engine.wait(name)
    found = _by_cell(engine.logs(name)[0])
    return {cell: (refused, found[number]) for number, (cell, refused) in enumerate(facts.items())}


def _by_cell(listing: str) -> list[str]:
    """What was listed of each cell's directory, in its order."""
    cells: dict[int, str] = {}
    number = 0
    for line in listing.splitlines():
        if line.startswith("'./"):
            number = int(line.removeprefix("'./").partition("/")[0].partition("'")[0])
        cells[number] = cells.get(number, "") + line + "\n"
    return [cells[number].replace(f"./{number}", ".") for number in sorted(cells)]


THROUGH_A_LINK = "docker follows a link at the destination, but not with a slash behind it; we do, as cp and rsync"

NOT_THROUGH_A_LINK = "docker follows a link as the destination, which an earlier copy may have brought; we refuse it"
FILES = ("file", "script", "dir/link", "dir/absolute")
DIRECTORIES = ("dir", "dir/", "dir/.", "empty", "empty/.")
REFUSED = {  # a directory is not copied onto a file by either
    **{f"{source} to {target}": NOT_THROUGH_A_LINK for source in FILES for target in ("todir", "tofile", "dangling")},
    **{f"{source} to {target}": NOT_THROUGH_A_LINK for source in DIRECTORIES for target in ("todir", "dangling")},
}


@scenario(**REFUSED, **{"dir/. to todir/": THROUGH_A_LINK, "empty/. to todir/": THROUGH_A_LINK})
def copies_out_of_a_container(engine: Engine, here: Path) -> Facts:
    name = engine.create("true")
    for source in ("file", "script", "dir", "empty"):
        engine.copy_in(name, f"{here}/{source}", f"/{source}")
    facts: Facts = {}
    for source in SOURCES:
        for target in TARGETS:
            area = here / "area"
            area.mkdir()
            prepare(area)
            refused = engine.refuses(lambda: engine.copy_out(name, f"/{source}", f"{area}/{target}"))  # noqa: B023
            facts[f"{source} to {target}"] = refused, listed(area)
            shutil.rmtree(area)
    return facts


def prepare(area: Path) -> None:
    (area / "dir/one").mkdir(parents=True)
    (area / "old").write_text("old\n")
    for link, target in (("todir", "dir"), ("tofile", "old"), ("dangling", "lost")):
        (area / link).symlink_to(target)


def listed(area: Path) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    for path in sorted(area.rglob("*")):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_text() if path.is_file() else None
        found.append((str(path.relative_to(area)), oct(status.st_mode), status.st_uid, status.st_gid, content))
    return found


@scenario(owner="docker's manual says the container's root, and so we do; docker keeps the ids of the host")
def copies_while_it_runs_and_the_owners_of_the_host(engine: Engine, here: Path) -> Facts:
    os.chown(here / "file", 7, 8)
    os.utime(here / "file", (1_000_000_000, 1_000_000_000))
    name = engine.running("sleep 60", volumes=["data:/data"])
    engine.copy_in(name, f"{here}/file", "/plain")
    engine.copy_in(name, f"{here}/file", "/archive", archive=True)
    engine.copy_in(name, f"{here}/file", "/data/file")
    engine.copy_out(name, "/archive", str(here / "back"))
    return {
        "owner": engine.exec(name, "stat", "-c", "%u:%g", "/plain", "/data/file"),
        "archive": engine.exec(name, "stat", "-c", "%u:%g", "/archive"),
        "others": engine.exec(name, "stat", "-c", "%n %a %Y", "/plain", "/archive", "/data/file"),
        "outside": listed(here)[0],
        "mtime": (here / "back").stat().st_mtime,
    }


MADE = {".", ".dockerenv", "data", "etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf"}
"""Mount points, and what docker puts beside them; ``dev``'s, too."""


@scenario()
def changes_of_its_files(engine: Engine, here: Path) -> Facts:
    """But for what a start makes: docker lists the mount points of volumes, and we no mount points at all."""
    script = "echo x > /new; mkdir -p /a/b; echo y > /a/b/c; rm /etc/group; chmod 700 /tmp; ln -s x /l; echo > /data/x"
    name = engine.create("sh", "-c", script, volumes=["data:/data"], init=False)
    engine.copy_in(name, f"{here}/file", "/copied")
    engine.start(name)
    engine.wait(name)
    members = [one for one in engine.export(name) if one not in MADE and not one.startswith("dev/")]
    return {"diff": [one for one in engine.diff(name) if one != "A /data"], "export": members}


@scenario()
def an_image_of_a_container(engine: Engine, here: Path) -> Facts:
    name = engine.create(
        "sh", "-c", "echo changed > /new", env={"MINE": "1"}, labels={"k": "v"}, volumes=["data:/data"]
    )
    engine.start(name)
    engine.wait(name)
    changes = {"cmd": ["cat", "/new"], "env": {"WORD": "commit"}, "cwd": "/etc", "labels": {"c": "d"}}
    config = engine.commit(name, "ck-diff:committed", changes)
    keys = ("User", "Env", "Cmd", "WorkingDir", "Entrypoint", "Labels")
    config["Env"].sort()
    return {**{key: config.get(key) or None for key in keys}, "run": engine.run(image="ck-diff:committed")}


# ---- volumes ---------------------------------------------------------------------------------------------------------


@scenario()
def volumes_are_filled_and_kept(engine: Engine, here: Path) -> Facts:
    return {
        "filled by the image": engine.run(
            "sh", "-c", f"cd /v; echo more > more; {LIST}", volumes=["etc:/v", "full:/etc"]
        ),
        "by /etc": engine.run("sh", "-c", "cd /v; grep -c root passwd group", volumes=["full:/v"]),
        "kept": engine.run("sh", "-c", f"cd /v; {LIST}", volumes=["etc:/v"]),
        "not filled": engine.run("ls", "/etc", volumes=["empty:/etc:nocopy"])[0],
        "read-only": engine.run("sh", "-c", "echo x > /v/x || echo no", volumes=["etc:/v:ro"]),
        "of the host": engine.run("sh", "-c", "cat /h/file; echo x > /h/x || echo no", volumes=[f"{here}:/h:ro"]),
        "writing to the host": engine.run("sh", "-c", "echo x > /h/written", volumes=[f"{here}:/h"]),
        "written": listed(here)[-1],
        "a file of the host": engine.run("cat", "/a/file", volumes=[f"{here}/file:/a/file"]),
        "names": engine.volumes(),
    }


@scenario()
def volumes_of_the_image(engine: Engine, here: Path) -> Facts:
    name = engine.create("sh", "-c", "ls /etc | grep -e passwd -e group -e ^x; echo x > /etc/x", image=WITH_VOLUME)
    other = engine.create(image=WITH_VOLUME, volumes=["named:/etc"])
    facts: Facts = {"made": len(engine.volumes())}
    for one in (name, name, other):
        engine.start(one)
        engine.wait(one)
    facts["said"] = engine.logs(name)
    engine.remove(name)
    facts["kept"] = len(engine.volumes())
    engine.remove(other, volumes=True)
    return facts | {"named ones stay": "named" in engine.volumes()}


@scenario()
def volumes_in_use_stay(engine: Engine, here: Path) -> Facts:
    name = engine.create(volumes=["data:/data", "/anonymous"])
    facts: Facts = {
        "used": engine.refuses(lambda: engine.remove_volume("data")),
        "missing": engine.refuses(lambda: engine.remove_volume("nonesuch")),
    }
    engine.remove(name, volumes=True)
    return facts | {"left": engine.volumes(), "free": engine.refuses(lambda: engine.remove_volume("data"))}


@scenario(
    **{"/:/host": "the whole host in a container is no container"},
    missing="docker makes a directory of root's, most often of a name that was mistyped",
)
def volumes_that_are_refused(engine: Engine, here: Path) -> Facts:
    wanted = ("relative:data", "a/b:/data", "/x:/y:what", ":/data", "data:/", "/:/host")
    facts: Facts = {text: engine.refuses(lambda text=text: engine.create(volumes=[text])) for text in wanted}  # type: ignore[misc]
    return facts | {"missing": engine.refuses(lambda: engine.create(volumes=[f"{here}/nonesuch:/x"]))}


@scenario()
def removed_at_its_end(engine: Engine, here: Path) -> Facts:
    name = engine.create("true", name="gone", auto_remove=True, volumes=["/anonymous", "data:/data"])
    engine.start(name)
    with suppress(Refused):
        engine.wait(name)
    until(lambda: name not in engine.names())
    return {"names": engine.names(), "volumes": engine.volumes()}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.name)
def test_both_engines_do_the_same(docker: Engine, ours: Engine, tmp_path: Path, scenario: Scenario) -> None:
    theirs = scenario.play(docker, files(tmp_path))
    mine = scenario.play(ours, files(tmp_path))
    compare(scenario, theirs, mine)
