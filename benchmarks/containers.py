"""Containers with a life, against the programs that people use for them; every contest interleaved, medians.

    python benchmarks/containers.py [--rounds 20] [--many 200] [--json]

* life: create, start, wait and remove of /bin/true from an image, with limits: containerkit; ``ck.run`` of the same
  image with the same limits; ``docker run --rm``; ``podman run --rm``.
* exec of /bin/true in a container that runs: containerkit; ``crun exec``, ``runc exec``, ``docker exec``; and as the
  floor the program itself (``subprocess``).
* many: so many detached containers at once: how fast they start, what a monitor and a container take of memory, how
  long ``list()`` takes, and stopping all.
* flood: a container that writes as fast as it may: how fast that is, and how much of it lies on the disk at the end.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from area import Area
from contestants import IMAGE, ONLY_CGROUP_V1, Command, Docker, Podman, make_bundle, make_image_tar, need, output
from machine import facts
from timing import PROGRAM, Unavailable, first_reason, summary, timed_command

import containerkit as ck

RESULTS = Path(__file__).parent / "results" / "containers.json"
LIMITS = ck.Limits(memory_max="256M", cpu_max=1.0, pids_max=64)
LIMIT_OPTIONS = ["--memory=256m", "--cpus=1", "--pids-limit=64"]

Start = Callable[[], float]


def timed(call: Callable[[], object]) -> float:
    begin = perf_counter()
    call()
    return perf_counter() - begin


# ---- the contests ----------------------------------------------------------------------------------------------------


def contest(contestants: dict[str, Start], rounds: int) -> dict[str, Any]:
    """One of each in turn, round after round; whoever fails is out, with the reason."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    out: dict[str, Any] = {}
    for turn in range(rounds + 1):
        for name, start in contestants.items():
            if name in out:
                continue
            try:
                seconds = start()
            except (Unavailable, ck.ContainerkitError) as error:
                out[name] = {"unavailable": first_reason(error)}
                continue
            if turn:  # the first is for the caches
                times[name].append(seconds)
    return {name: out.get(name) or summary(found) for name, found in times.items()}


def life(store: ck.Store, image: ck.Image, area: Area, engines: dict[str, Command], rounds: int) -> dict[str, Any]:
    def ours() -> None:
        container = store.containers.create(image, [PROGRAM], limits=LIMITS)
        container.start()
        assert container.wait() == 0
        container.remove()

    def run() -> None:
        assert ck.run([PROGRAM], rootfs=image, limits=LIMITS, security=ck.Security.service()).returncode == 0

    contestants: dict[str, Start] = {"containerkit": lambda: timed(ours), "ck.run": lambda: timed(run)}
    for name, engine in engines.items():
        argv = [*engine.argv[:-2], *LIMIT_OPTIONS, *engine.argv[-2:]]
        contestants[f"{name} run --rm"] = lambda argv=argv, env=engine.env: timed_command(argv, env)  # type: ignore[misc]
    return contest(contestants, rounds)


def execs(store: ck.Store, image: ck.Image, area: Area, engines: dict[str, Command], rounds: int) -> dict[str, Any]:
    container = store.containers.create(image, ["sleep", "3600"], limits=LIMITS)
    container.start()
    area.stack.callback(container.remove, force=True)

    def ours() -> None:
        with container.exec([PROGRAM], stdin=ck.DEVNULL, stdout=ck.DEVNULL, stderr=ck.DEVNULL) as process:
            assert process.wait() == 0

    contestants: dict[str, Start] = {
        "the program itself": lambda: timed_command([area.rootfs + PROGRAM]),
        "containerkit": lambda: timed(ours),
    }
    for tool in ("crun", "runc"):
        try:
            argv = oci_exec(area, need(tool))
        except Unavailable as error:
            print(f"{tool}: {error}", file=sys.stderr)
            continue
        contestants[f"{tool} exec"] = lambda argv=argv: timed_command(argv)  # type: ignore[misc]
    docker = engines.get("docker")
    if isinstance(docker, Docker):
        name = "ckbench-exec"
        output([*docker.client, "run", "--detach", "--network=none", f"--name={name}", IMAGE, "sleep", "3600"])
        area.stack.callback(subprocess.run, [*docker.client, "rm", "--force", name], capture_output=True)
        contestants["docker exec"] = lambda: timed_command([*docker.client, "exec", name, PROGRAM])
    return contest(contestants, rounds)


def oci_exec(area: Area, tool: str) -> list[str]:
    """A container of this runtime that sleeps, and the command that executes the program in it."""
    short = Path(tool).name
    bundle = area.path / f"bundle-{short}"
    shutil.copytree(make_bundle(area), bundle)
    config = json.loads((bundle / "config.json").read_text())
    config["process"]["args"] = ["/bin/sleep", "3600"]
    config["linux"]["cgroupsPath"] = f"/{area.cgroup}/{short}-exec"
    (bundle / "config.json").write_text(json.dumps(config))
    before = list(ONLY_CGROUP_V1) if short == "crun" else []
    command = [tool, "--root", str(area.path / "state" / f"{short}-exec")]
    name = f"ckbench-{short}"
    started = [*before, *command, "run", "--detach", "--bundle", str(bundle), name]
    done = subprocess.run(started, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if done.returncode:
        raise Unavailable(f"`{short} run` ended with status {done.returncode}")
    area.stack.callback(subprocess.run, [*before, *command, "delete", "--force", name], capture_output=True)
    return [*before, *command, "exec", name, PROGRAM]


def many(store: ck.Store, image: ck.Image, count: int) -> dict[str, Any]:
    containers = [store.containers.create(image, ["sleep", "3600"], limits=LIMITS) for _ in range(count)]
    others = len(store.containers.list())
    begin = perf_counter()
    for container in containers:
        container.start()
    started = perf_counter() - begin
    lists = [timed(store.containers.list) for _ in range(11)]
    running = len(store.containers.list()) - others
    assert running == count, f"{running} of {count} run"
    memory = [memory_of(container) for container in containers]
    begin = perf_counter()
    store.containers.stop(containers)
    stopped = perf_counter() - begin
    for container in containers:
        container.remove()
    return {
        "containers": count,
        "starts_per_second": round(count / started, 1),
        "list_ms": round(statistics.median(lists) * 1000, 2),
        "stop_all_seconds": round(stopped, 2),
        "monitor_private_kib": statistics.median(one[0] for one in memory),
        "monitor_shared_kib": statistics.median(one[1] for one in memory),
        "pid_1_private_kib": statistics.median(one[2] for one in memory),
        "pid_1_shared_kib": statistics.median(one[3] for one in memory),
    }


def memory_of(container: Any) -> tuple[int, int, int, int]:
    """Private and shared KiB of the monitor, and of PID 1."""
    from containerkit.containers.state import read_record

    record = read_record(container.directory.fileno())
    assert record is not None
    return (*sizes(record.monitor_pid), *sizes(record.first_pid))


def sizes(pid: int) -> tuple[int, int]:
    lines = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]]
    found = {words[0].rstrip(":"): int(words[1]) for words in lines}
    private = found["Private_Clean"] + found["Private_Dirty"]
    return private, found["Shared_Clean"] + found["Shared_Dirty"]


def flood(store: ck.Store, image: ck.Image, megabytes: int) -> dict[str, Any]:
    script = f"dd if=/dev/zero bs=65536 count={megabytes * 16} 2>/dev/null"
    container = store.containers.create(image, ["sh", "-c", script])
    seconds = timed(lambda: (container.start(), container.wait()))
    log = Path(store.path, "containers", container.id, "log")
    kept = sum(path.stat().st_size for path in log.iterdir())
    container.remove()
    return {
        "written_mb": megabytes,
        "mb_per_second": round(megabytes / seconds, 1),
        "kept_mb": round(kept / (1 << 20), 1),
    }


# ---- the report ------------------------------------------------------------------------------------------------------


def ratios(found: dict[str, Any], base: str) -> None:
    """Add to each how many times the base it took."""
    if "median_ms" not in found.get(base, {}):
        return
    for one in found.values():
        if "median_ms" in one:
            one["ratio"] = round(one["median_ms"] / found[base]["median_ms"], 2)


def show(title: str, found: dict[str, Any]) -> None:
    print(f"\n{title}")
    for name, one in found.items():
        if not isinstance(one, dict):
            print(f"  {name:26} {one}")
        elif "unavailable" in one:
            print(f"  {name:26} {one['unavailable']}")
        else:
            print(f"  {name:26} {one['median_ms']:10.2f} ms  p95 {one['p95_ms']:10.2f} ms  {one.get('ratio', '')}")


def remove_all(store: ck.Store) -> None:
    """What an interrupted contest has left runs on otherwise: containers outlive their programs."""
    for container in store.containers.list(all=True):
        container.remove(force=True)


def prepare(area: Area) -> dict[str, Command]:
    engines: dict[str, Command] = {}
    for kind in (Docker, Podman):
        engine = kind()
        try:
            engine.prepare(area)
        except Unavailable as error:
            print(f"{engine.name}: {error}", file=sys.stderr)
            continue
        engines[engine.name] = engine
    return engines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--many", type=int, default=200)
    parser.add_argument("--only", nargs="*", choices=("life", "exec", "many", "flood"))
    parser.add_argument("--json", action="store_true", help=f"write {RESULTS.name}")
    arguments = parser.parse_args()
    wanted = arguments.only or ("life", "exec", "many", "flood")
    results: dict[str, Any] = {"machine": facts()}
    with Area() as area:
        store = area.stack.enter_context(ck.Store(area.path / "store"))
        area.stack.callback(remove_all, store)
        image = store.images.import_(make_image_tar(area), name="ckbench:1")
        engines = prepare(area) if {"life", "exec"} & set(wanted) else {}
        if "life" in wanted:
            results["life"] = life(store, image, area, engines, arguments.rounds)
            ratios(results["life"], "containerkit")
            show("create + start + wait + remove of /bin/true, with limits", results["life"])
        if "exec" in wanted:
            results["exec"] = execs(store, image, area, engines, arguments.rounds)
            ratios(results["exec"], "containerkit")
            show("exec of /bin/true in a running container", results["exec"])
        if "many" in wanted:
            results["many"] = many(store, image, arguments.many)
            show("many at once", results["many"])
        if "flood" in wanted:
            results["flood"] = flood(store, image, 2000)
            show("a container that writes as fast as it may", results["flood"])
    if arguments.json:
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    begin = time.monotonic()
    main()
    print(f"\n{time.monotonic() - begin:.0f} s", file=sys.stderr)
