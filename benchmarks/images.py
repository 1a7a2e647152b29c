"""Images, against the programs that people use for them, and against what the machine itself wants.

    python benchmarks/images.py --tree DIR [--tree DIR ...] [--rounds 3]

Each DIR is a root file system (from debootstrap, say). It becomes an image of one gzip layer, which a docker-registry
on loopback serves. Per image and round, interleaved, each on fresh directories of the same file system:

* pull and unpack: containerkit; skopeo copy and umoci unpack; podman pull; and as floors: the bytes of the layer from
  the registry (``floor_download``), the best inflate of them (``floor_inflate``), `tar -x` of the plain archive
  (``floor_write``). containerkit syncs the file system before it calls an image its own; nobody else does, so it is
  shown without that, too (``containerkit_unsynced``).
* save and load: against `cp` of the same bytes, as it is and with fsync(2) (``cp_synced``), which save() promises; load
  unpacks, too, so it is also shown against `cp` and `tar -x` (``cp_and_tar_x``).

And once: a warm start from 30 layers against one from a plain directory; diff() and commit() of ten changed files over
an image of 50,000 files and one of 500.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Any

from machine import facts
from timing import summary

import containerkit as ck
from containerkit.kernel import calls

RESULTS = Path(__file__).parent / "results" / "images.json"


@contextmanager
def registry(area: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    config = area / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {area / 'registry'}}}}}\n"
        f"http: {{addr: '{host}'}}\n"
    )
    server = subprocess.Popen(
        ["docker-registry", "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(100):
            with suppress(OSError), socket.create_connection(("127.0.0.1", int(host.rpartition(":")[2])), 1):
                break
            time.sleep(0.05)
        yield host
    finally:
        server.terminate()
        server.wait()


def quiet(*argv: str | Path) -> None:
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{argv[0]}: {done.stderr[-500:]}")


class Image:
    """One image in the registry, and its parts as files."""

    def __init__(self, area: Path, host: str, tree: Path) -> None:
        self.host, self.name = host, f"{host}/bench/{tree.name}:1"
        self.tar = area / f"{tree.name}.tar"
        quiet("tar", "-C", tree, "--one-file-system", "--exclude=./dev/*", "--exclude=./proc/*", "--exclude=./sys/*",
              "-cf", self.tar, ".")  # fmt: skip
        with ck.Store(area / "made") as store:
            made = store.images.import_(self.tar, name=self.name)
            store.images.push(self.name, plain_http=True)
            store.images.untag(self.name)
            pulled = store.images.pull(self.name, plain_http=True)
            self.layer = pulled.manifest.layers[0]
            self.files = sum(1 for _ in tree.rglob("*"))
            del made
        self.blob = area / f"{tree.name}.gz"
        self.blob.write_bytes(b"".join(self.download()))

    def download(self) -> Iterator[bytes]:
        connection = http.client.HTTPConnection(self.host)
        connection.request("GET", f"/v2/{self.name.split('/', 1)[1].partition(':')[0]}/blobs/{self.layer.digest}")
        response = connection.getresponse()
        while piece := response.read(1 << 20):
            yield piece
        connection.close()

    # ---- contestants: each gets a directory that does not exist yet ------------------------------------------------

    def containerkit(self, area: Path) -> None:
        with ck.Store(area) as store:
            store.images.pull(self.name, plain_http=True)

    def containerkit_unsynced(self, area: Path) -> None:
        real, calls.syncfs = calls.syncfs, lambda fd: None  # type: ignore[assignment]
        fsync, os.fsync = os.fsync, lambda fd: None  # type: ignore[assignment]
        try:
            self.containerkit(area)
        finally:
            calls.syncfs, os.fsync = real, fsync

    def skopeo_umoci(self, area: Path) -> None:
        area.mkdir()
        quiet(
            "skopeo",
            "copy",
            "--insecure-policy",
            "--src-tls-verify=false",
            f"docker://{self.name}",
            f"oci:{area}/oci:x",
        )
        quiet("umoci", "unpack", "--image", f"{area}/oci:x", area / "bundle")

    def podman(self, area: Path) -> None:
        quiet("podman", "--root", area, "--runroot", f"{area}.run", "--cgroup-manager=cgroupfs",
              "--events-backend=none",
              "pull", "-q", "--tls-verify=false", self.name)  # fmt: skip

    def floor_download(self, area: Path) -> None:
        for _ in self.download():
            pass

    def floor_inflate(self, area: Path) -> None:
        from containerkit.layers.compression import chunks

        with self.blob.open("rb") as file:
            for _ in chunks(file):
                pass

    def floor_write(self, area: Path) -> None:
        area.mkdir()
        quiet("tar", "-C", area, "-xf", self.tar)


PULLS = (
    "containerkit", "containerkit_unsynced", "skopeo_umoci", "podman", "floor_download", "floor_inflate", "floor_write",
)  # fmt: skip


def clear(area: Path) -> None:
    subprocess.run(["umount", f"{area}/overlay"], capture_output=True, check=False)
    shutil.rmtree(area, ignore_errors=True)
    shutil.rmtree(f"{area}.run", ignore_errors=True)
    os.sync()


def race(contestants: dict[str, Callable[[Path], None]], area: Path, rounds: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    failed: dict[str, str] = {}
    for number in range(rounds):
        order = list(contestants)
        for name in order[number % len(order) :] + order[: number % len(order)]:
            if name in failed:
                continue
            place = area / f"run-{name}"
            begin = perf_counter()
            try:
                contestants[name](place)
                seconds[name].append(perf_counter() - begin)
            except Exception as error:  # a peer that is missing or breaks is reported, not hidden
                failed[name] = f"{type(error).__name__}: {error}"[:300]
            finally:
                clear(place)
            print(f"  {name:22} {perf_counter() - begin:8.2f} s", file=sys.stderr)
    return {name: summary(times) for name, times in seconds.items() if times} | {"failed": failed}


def pulls(image: Image, area: Path, rounds: int) -> dict[str, Any]:
    found = race({name: getattr(image, name) for name in PULLS}, area, rounds)
    longest = max(found[name]["median_ms"] for name in PULLS if name.startswith("floor"))
    ours = found["containerkit"]["median_ms"]
    found["over_longest_floor"] = round(ours / longest, 2)
    found["unsynced_over_longest_floor"] = round(found["containerkit_unsynced"]["median_ms"] / longest, 2)
    for peer in ("skopeo_umoci", "podman"):
        if peer in found:
            found[f"{peer}_over_ours"] = round(found[peer]["median_ms"] / ours, 2)
    return found | {"files": image.files, "compressed": image.layer.size, "plain": image.tar.stat().st_size}


def archives(image: Image, area: Path, rounds: int) -> dict[str, Any]:
    with ck.Store(area / "archives") as store:
        store.images.pull(image.name, plain_http=True)
        saved = area / "saved.tar"
        store.images.save([image.name], saved)

        def save(place: Path) -> None:
            place.mkdir()
            store.images.save([image.name], place / "image.tar")

        def load(place: Path) -> None:
            with ck.Store(place) as other:
                other.images.load(saved)

        def copy(place: Path) -> None:
            place.mkdir()
            quiet("cp", saved, place / "image.tar")

        def copy_synced(place: Path) -> None:
            copy(place)
            with open(place / "image.tar", "rb") as written:
                os.fsync(written)

        def copy_tree(place: Path) -> None:
            place.mkdir()
            quiet("cp", saved, place / "image.tar")
            quiet("tar", "-C", place, "-xf", image.tar)

        contestants = {"save": save, "load": load, "cp": copy, "cp_synced": copy_synced, "cp_and_tar_x": copy_tree}
        found = race(contestants, area, rounds)
    found["save_over_cp_synced"] = round(found["save"]["median_ms"] / found["cp_synced"]["median_ms"], 2)
    found["save_over_cp"] = round(found["save"]["median_ms"] / found["cp"]["median_ms"], 2)
    found["load_over_cp_and_tar_x"] = round(found["load"]["median_ms"] / found["cp_and_tar_x"]["median_ms"], 2)
    found["load_over_cp"] = round(found["load"]["median_ms"] / found["cp"]["median_ms"], 2)
    return found


def warm_start(area: Path, rounds: int = 300) -> dict[str, Any]:
    """30 layers, against a plain directory of the same files."""
    plain = area / "plain"
    for name in ("bin", "etc"):
        (plain / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", plain / "bin/busybox")
    (plain / "bin/true").symlink_to("busybox")
    with ck.Store(area / "deep") as store:
        image = store.images.import_(_tar_of(area, plain), name="deep:1")
        for number in range(29):
            upper = area / f"upper{number}"
            upper.mkdir()
            (upper / f"file{number}").write_text("x")
            image = store.images.commit(str(upper), image, name="deep:1")
        times: dict[str, list[float]] = {"directory": [], "image": [], "image_by_name": []}

        def start(root: Any) -> float:
            begin = perf_counter()
            ck.run(["/bin/true"], rootfs=root() if callable(root) else root, check=True)
            return perf_counter() - begin

        roots = {"directory": str(plain), "image": image, "image_by_name": lambda: store.images.get("deep:1")}
        for root in roots.values():
            start(root)
        for _ in range(rounds):
            for name, root in roots.items():
                times[name].append(start(root))
    found: dict[str, Any] = {name: summary(seconds) for name, seconds in times.items()}
    found["layers"] = 30
    for name in ("image", "image_by_name"):
        more = statistics.median(times[name]) - statistics.median(times["directory"])
        found[f"{name}_over_directory_ms"] = round(more * 1000, 3)
    return found


def _tar_of(area: Path, tree: Path) -> Path:
    path = area / f"{tree.name}-root.tar"
    quiet("tar", "-C", tree, "-cf", path, ".")
    return path


def changes(area: Path, rounds: int = 20) -> dict[str, Any]:
    """Ten changed files over 500 and over 50,000."""
    found: dict[str, Any] = {}
    for count in (500, 50_000):
        base = area / f"base{count}"
        for number in range(count):
            if number % 500 == 0:
                (base / f"d{number // 500}").mkdir(parents=True)
            (base / f"d{number // 500}/f{number}").write_bytes(b"x" * 100)
        upper, work = area / f"upper-{count}", area / f"work-{count}"
        work.mkdir()
        (upper / "d0").mkdir(parents=True)
        for number in range(10):
            (upper / f"d0/f{number}").write_bytes(b"y" * 10_000)
        overlay = ck.OverlayFS(base, upper, work)
        times: dict[str, list[float]] = {"diff": [], "commit": []}
        for _ in range(rounds):
            begin = perf_counter()
            assert len(overlay.diff()) == 11
            times["diff"].append(perf_counter() - begin)
            with tempfile.TemporaryFile(dir=area) as out:
                begin = perf_counter()
                overlay.commit(out)
                times["commit"].append(perf_counter() - begin)
        found[str(count)] = {name: summary(seconds) for name, seconds in times.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, action="append", default=[], help="a root file system; may be repeated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--area", type=Path, default=None, help="where to work: its file system is what is measured")
    options = parser.parse_args()
    area = Path(tempfile.mkdtemp(prefix="ckbench-images-", dir=options.area))
    result: dict[str, Any] = {"machine": facts()}
    try:
        result["warm_start"] = warm_start(area)
        print(json.dumps(result["warm_start"], indent=1), file=sys.stderr)
        result["changes"] = changes(area)
        with registry(area) as host:
            for tree in options.tree:
                print(tree.name, file=sys.stderr)
                image = Image(area, host, tree)
                result[tree.name] = {
                    "pull": pulls(image, area, options.rounds),
                    "archives": archives(image, area, options.rounds),
                }
                shutil.rmtree(area / "archives", ignore_errors=True)
    finally:
        shutil.rmtree(area, ignore_errors=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
