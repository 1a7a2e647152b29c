"""A: the mount tree is built on a root that was made to do harm."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from attack import subjects
from attack.racer import Racer
from attack.subjects import Breach, Result, Watched, breach_if

from containerkit import Process

Subject = Callable[..., Result]
MakeRoot = Callable[[], Path]

# ---- devices and covers ----------------------------------------------------------------------------------------------


@pytest.mark.both
@pytest.mark.attack("A01", control="naive container")
@pytest.mark.parametrize("shape", ["link", "file"])
def test_a_cover_is_never_made_of_the_roots_own_null(subject: Subject, root: Path, host: Watched, shape: str) -> None:
    (root / "dev").mkdir()
    if shape == "link":
        (root / "dev/null").symlink_to(host / "file")
    else:
        (root / "dev/null").write_text("canary of the attacker")
    found = subject(root, "/bin/sh", "-c", "cat /proc/kallsyms /proc/swaps 2>&-", **masks(subject))
    breach_if(found.output, f"a covered file shows {found.output[:100]!r}")
    assert found.refused is None
    host.check()


def masks(subject: Subject) -> dict[str, Any]:
    return {} if subject is subjects.ours else {"masked": ["kallsyms", "swaps"]}


@pytest.mark.both
@pytest.mark.attack("A02", control="naive container")
def test_a_terminal_is_never_opened_by_a_name_in_the_root(subject: Subject, root: Path, host: Watched) -> None:
    (root / "dev/pts").mkdir(parents=True)
    (root / "dev/pts/0").symlink_to(host / "file")
    write = "echo hit > /dev/console; echo hit > /dev/pts/0; echo hit > /dev/tty"
    subject(root, "/bin/sh", "-c", write, **({} if subject is subjects.ours else {"console": True}))
    host.check()


@pytest.mark.both
@pytest.mark.attack("A02", control="the same, with a file in its place")
def test_the_terminal_is_a_character_device_of_the_sandboxs_own(root: Path, host: Watched) -> None:
    (root / "dev/pts").mkdir(parents=True)
    (root / "dev/pts/0").symlink_to(host / "file")
    process = Process(
        ["/bin/sh", "-c", "stat -c '%F %t' -L /dev/pts/0 /proc/self/fd/0 /bin/busybox"],
        root=root, namespaces=subjects.Namespaces.all(), mounts=subjects.STANDARD, tty=True,
    )  # fmt: skip
    with process:
        said = read_terminal(process)
        process.wait(timeout=10)
    assert said.splitlines() == ["character special file 88", "character special file 88", "regular file 0"]
    host.check()


def read_terminal(process: Process) -> str:
    said = b""
    while True:
        try:
            chunk = os.read(process.terminal, 4096)
        except OSError:  # EIO: the other end is closed
            return said.decode()
        if not chunk:
            return said.decode()
        said += chunk


@pytest.mark.both
@pytest.mark.attack("A05", control="naive container")
def test_devices_are_not_made_through_a_link(subject: Subject, root: Path, host: Watched) -> None:
    (root / "dev").symlink_to(host / "directory")
    subject(root, "/bin/sh", "-c", "echo hit > /dev/null; mkdir /dev/hit")
    host.check()


@pytest.mark.root
@pytest.mark.attack("A05", control="runc before 1.3.6")
def test_an_older_runtime_makes_them_in_the_hosts_directory(root: Path, host: Watched, tmp_path: Path) -> None:
    version = runc_version()
    if version is None or version >= (1, 3, 6):
        pytest.skip("no runc that is old enough")
    (root / "dev").symlink_to(host / "directory")
    (root / "proc").mkdir()
    subprocess.run(["runc", "spec", "--bundle", tmp_path], check=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["root"] = {"path": str(root), "readonly": False}
    config["process"] |= {"terminal": False, "args": ["/bin/sh", "-c", "true"]}
    config["mounts"] = [mount for mount in config["mounts"] if mount["destination"] == "/proc"]
    config["linux"]["resources"] = {}
    (tmp_path / "config.json").write_text(json.dumps(config))
    name = f"ck-attack-{os.getpid()}"
    subprocess.run(["runc", "run", "--bundle", tmp_path, name], check=False, capture_output=True, timeout=30)
    subprocess.run(["runc", "delete", "--force", name], check=False, capture_output=True, timeout=30)
    with pytest.raises(Breach):
        host.check()


def runc_version() -> tuple[int, ...] | None:
    if shutil.which("runc") is None:
        return None
    text = subprocess.run(["runc", "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", text)
    return tuple(map(int, found.groups())) if found else None


@pytest.mark.both
@pytest.mark.attack("A06", control="naive container")
def test_standard_streams_are_not_opened_again_by_a_name_in_the_root(
    subject: Subject, root: Path, host: Watched
) -> None:
    (root / "dev").mkdir()
    (root / "dev/null").symlink_to(host / "file")
    own = subject is subjects.ours
    subject(root, "/bin/sh", "-c", "cat > /dev/null", **({"stdin": -3} if own else {"null_input": True}))
    host.check()


# ---- the kernel's own file systems -----------------------------------------------------------------------------------


@pytest.mark.both
@pytest.mark.attack("A03", control="naive container")
def test_what_lies_over_proc_is_not_written_to(subject: Subject, root: Path, host: Watched, tmp_path: Path) -> None:
    """CVE-2019-19921: a volume at /proc, whose files are links to what the runtime should write instead."""
    volume = tmp_path / "volume"
    for place in ("sys/kernel", "self/attr", "self/fd", "thread-self/attr", "1/attr"):
        (volume / place).mkdir(parents=True)
    for name in ("sys/kernel/domainname", "sys/kernel/hostname", "self/attr/exec", "self/oom_score_adj",
                 "self/uid_map", "self/setgroups", "thread-self/attr/exec", "sysrq-trigger"):  # fmt: skip
        (volume / name).parent.mkdir(parents=True, exist_ok=True)
        (volume / name).symlink_to(host / "file")
    own = subject is subjects.ours
    options: dict[str, Any] = {"hostname": "h", "domainname": "d"} if own else {"sysctls": {"kernel/domainname": "d"}}
    subject(root, "/bin/sh", "-c", "true", binds=[(volume, "/proc", False)], **options)
    host.check()


@pytest.mark.both
@pytest.mark.attack("A03", "A05", control="naive container")
@pytest.mark.parametrize("place", ["proc", "dev"])
def test_a_kernel_file_system_is_mounted_where_it_belongs_or_not_at_all(
    subject: Subject, root: Path, host: Watched, place: str
) -> None:
    (root / "elsewhere").mkdir()
    (root / place).symlink_to("elsewhere")
    found = subject(root, "/bin/sh", "-c", "echo started")
    breach_if("started" in found.output, f"a link in place of /{place} was followed")


# ---- destinations ----------------------------------------------------------------------------------------------------


@pytest.mark.both
@pytest.mark.attack("A12", control="naive container")
def test_a_second_start_looks_again_at_what_the_first_program_left(subject: Subject, root: Path, host: Watched) -> None:
    (root / "data").mkdir()
    subject(root, "/bin/sh", "-c", f"rmdir /data; ln -s {host}/directory /data")
    assert (root / "data").is_symlink()
    subject(root, "/bin/sh", "-c", "true", files={"/data/ours": "written"})
    subject(root, "/bin/sh", "-c", "true", tmpfs=["/data/mount"])
    host.check()


@pytest.mark.both
@pytest.mark.attack("A08", control="naive container")
@pytest.mark.parametrize("target", ["{host}/directory", "../../../../../../../..{host}/directory"])
def test_a_working_directory_is_made_nowhere_outside(subject: Subject, root: Path, host: Watched, target: str) -> None:
    (root / "work").symlink_to(target.format(host=host))
    subject(root, "/bin/sh", "-c", "echo hit > hit", cwd="/work/sub")
    subject(root, "/bin/sh", "-c", "echo hit > hit", cwd="/work")
    host.check()


@pytest.mark.both
@pytest.mark.attack("A11", control="naive container")
def test_a_table_of_users_that_never_ends_is_not_waited_for(subject: Subject, root: Path) -> None:
    os.mkfifo(root / "etc/passwd")
    found = subject(root, "/bin/sh", "-c", "true", user="daemon", timeout=1.5)
    assert found.refused is not None


@pytest.mark.both
@pytest.mark.attack("A21", control="naive container")
@pytest.mark.parametrize("umask", [0, 0o022, 0o077], ids=oct)
def test_the_modes_of_what_is_made_are_the_same_under_every_umask(
    subject: Subject, make_root: MakeRoot, umask: int
) -> None:
    root = make_root()
    with under_umask(umask):
        subject(root, "/bin/sh", "-c", "true", tmpfs=["/a/b"], files={"/c/d": "x"})
    modes = {name: oct((root / name).stat().st_mode & 0o7777) for name in ("a", "a/b", "c", "c/d", "proc", "dev")}
    wanted = {**dict.fromkeys(modes, "0o755"), "c/d": "0o644"}
    if umask == 0o022 and subject is not subjects.ours:
        raise Breach("an ordinary umask is what the twin is made for")
    breach_if(modes != wanted, f"modes {modes} under umask {umask:o}")


@contextmanager
def under_umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.both
@pytest.mark.attack("A22", control="none: what must go on working")
def test_links_of_an_ordinary_system_work_in_every_place(root: Path, tmp_path: Path) -> None:
    for name, target in (("var/run", "/run"), ("lib64", "/usr/lib"), ("sbin", "bin"), ("var/lock", "../run/lock")):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).symlink_to(target)
    for name in ("run/lock", "usr/lib", "home/user"):
        (root / name).mkdir(parents=True)
    (root / "etc/passwd").symlink_to("/usr/lib/passwd")
    (root / "usr/lib/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    found = subjects.ours(
        root, "/sbin/sh", "-c", "pwd; cat /run/a /usr/lib/b /run/lock/c",
        files={"/var/run/a": "a\n", "/lib64/b": "b\n", "/var/lock/c": "c\n"}, cwd="/var/run", user="root",
    )  # fmt: skip
    assert (found.refused, found.output) == (None, "/run\na\nb\nc\n")


# ---- races -----------------------------------------------------------------------------------------------------------


def race(subject: Subject, root: Path, host: Watched, starts: int, **wanted: Any) -> int:
    """Start again and again while a part of a destination in a shared volume is exchanged with a link to the host."""
    volume = root.parent / "shared"
    (volume / "part").mkdir(parents=True)
    (volume / "link").symlink_to(host / "directory")
    with Racer() as racer:
        for number in range(starts if subject is subjects.ours else 10 * starts):  # the twin's first hit ends it
            with racer.swapping(volume / "part", volume / "link"):
                subject(root, "/bin/sh", "-c", "true", binds=[(volume, "/v", False)], **wanted)
            host.check(f"at start {number + 1}")
            assert subject is not subjects.ours or number or racer.exchanges, "the racer did not run"
    return racer.exchanges


@pytest.mark.both
@pytest.mark.attack("A04", control="naive container")
def test_a_destination_that_changes_under_way_is_not_mounted_outside(
    subject: Subject, root: Path, host: Watched, trials: Callable[[int], None]
) -> None:
    trials(race(subject, root, host, 40, tmpfs=["/v/part/mounted"]))


@pytest.mark.both
@pytest.mark.attack("A07", control="naive container")
def test_a_parent_that_changes_under_way_leads_to_no_file_outside(
    subject: Subject, root: Path, host: Watched, trials: Callable[[int], None]
) -> None:
    trials(race(subject, root, host, 40, files={"/v/part/new/file": "x"}))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.both
@pytest.mark.attack("A04", "A07", control="test_a_parent_that_changes_under_way_leads_to_no_file_outside")
def test_a_hundred_thousand_exchanges_lead_nowhere(root: Path, host: Watched, trials: Callable[[int], None]) -> None:
    done = 0
    while done < 100_000:
        shutil.rmtree(root.parent / "shared", ignore_errors=True)
        done += race(subjects.ours, root, host, 50, files={"/v/part/new/file": "x"}, tmpfs=["/v/part/mounted"])
    trials(done)


# ---- what is read-only -----------------------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.attack("A18", control="naive container")
def test_read_only_goes_down_to_what_is_mounted_below(subject: Subject, root: Path, tmp_path: Path) -> None:
    (tmp_path / "volume/sub").mkdir(parents=True)
    with mounted_tmpfs(tmp_path / "volume/sub"):
        found = subject(root, "/bin/sh", "-c", "echo x > /v/sub/x", binds=[(tmp_path / "volume", "/v", True)])
        breach_if((tmp_path / "volume/sub/x").exists(), "a submount of a read-only bind was written to")
        assert "Read-only file system" in found.output


@contextmanager
def mounted_tmpfs(at: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", at], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", at], check=True)


# ---- what decides ----------------------------------------------------------------------------------------------------


def configured_by_the_root(root: Path, *args: str, **options: Any) -> Result:
    """A runtime for which a directory with a config.json is a container."""
    config = json.loads((root / "config.json").read_text())
    return subjects.ours(root, *args, **{**options, **config})


@pytest.mark.both
@pytest.mark.attack("A16", control="a runtime that takes config.json from the root", twin=configured_by_the_root)
def test_no_file_of_the_root_is_configuration(subject: Subject, root: Path) -> None:
    for name in ("config.json", ".containerkit.json", "containerkit.json", ".nspawn", "rootfs.json"):
        (root / name).write_text('{"hostname": "attacker", "env": {"ATTACKED": "yes"}}')
    for name in ("containerkit.toml", ".containerkit", "pyproject.toml", "etc/containerkit.toml", ".env"):
        (root / name).write_text('[tool.containerkit]\nhostname = "attacker"\nATTACKED=yes\n')
    found = subject(root, "/bin/sh", "-c", "echo $ATTACKED; hostname")
    breach_if("yes" in found.output or "attacker" in found.output, f"the root has decided: {found.output!r}")
