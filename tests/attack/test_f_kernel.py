"""C, E, F, G: what of the kernel a program can reach, and what a layer or a device file may bring along."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from attack import subjects
from attack.subjects import Result, breach_if
from mounted import in_private_namespace

from containerkit import InvalidValue, OverlayFS, Sandbox, run

Subject = Callable[..., Result]


@pytest.mark.root
@pytest.mark.attack("F03", control="naive container")
def test_no_cgroup_hierarchy_can_be_mounted(subject: Subject, root: Path) -> None:
    script = """
    grep -c cgroup /proc/mounts
    mkdir /tmp/cg
    for type in pids memory cpu devices freezer rdma; do
        mount -t cgroup -o $type none /tmp/cg 2>&- && echo mounted
    done
    mount -t cgroup2 none /tmp/cg 2>&- && echo mounted
    ls /tmp/cg/release_agent /tmp/cg/cgroup.procs 2>&-
    """
    (root / "tmp").mkdir()
    said = subject(root, "/bin/sh", "-c", script).output
    breach_if("mounted" in said, "a cgroup hierarchy was mounted inside")
    assert said == "0\n"


@pytest.mark.both
@pytest.mark.attack("F03", "G05", control="the caller's own, which is seldom the root")
def test_a_sandbox_sees_itself_as_the_root_of_every_hierarchy(root: Path) -> None:
    said = subjects.ours(
        root,
        "/bin/sh",
        "-c",
        "cut -d: -f3 /proc/self/cgroup; find / -xdev -name cgroup.procs; find /sys -name release_agent",
    ).output
    assert set(said.split()) == {"/"}


def run_ours(root: Path, *args: str) -> Result:
    done = run(args, rootfs=root)
    return Result(done.stdout + done.stderr, done.returncode)


@pytest.mark.both
@pytest.mark.attack("F11", control="naive container", ours=run_ours)
def test_no_core_file_can_be_asked_for(subject: Subject, root: Path) -> None:
    script = (
        "ulimit -c unlimited 2>&- && echo raised; echo x > /proc/sys/kernel/core_pattern 2>&- && echo written; true"
    )
    said = subject(root, "/bin/sh", "-c", script).output
    breach_if("raised" in said, "the limit of core files can be raised")
    breach_if("written" in said, "the kernel's core_pattern can be written")


@pytest.mark.both
@pytest.mark.attack("F11", control="test_no_core_file_can_be_asked_for")
def test_a_crash_leaves_no_file(root: Path) -> None:
    with Sandbox(rootfs=root) as box:
        assert box.run(["/bin/sh", "-c", "cd /tmp; kill -SEGV $$"]).returncode == -11
        assert "core" not in box.run(["/bin/busybox", "ls", "-a", "/tmp", "/"]).stdout


@pytest.mark.both
@pytest.mark.attack("F12", "A03", "F10", control="naive container")
def test_no_file_of_the_kernel_can_be_opened_for_writing(
    subject: Subject, root: Path, trials: Callable[[int], None]
) -> None:
    """Every file but those of processes, opened and not written to."""
    script = """
    n=0
    for file in $(find /proc /sys -type f ! -path '/proc/[0-9]*' ! -path '/proc/*self/*' 2>&-); do
        n=$((n+1))
        true >> $file && echo writable $file
    done 2>&-
    echo $n
    """
    found = subject(root, "/bin/sh", "-c", script, timeout=30)
    writable = [
        line
        for line in found.output.splitlines()
        # Everybody may ask to be told of pressure (Documentation/accounting/psi.rst): it ends with the descriptor.
        if line.startswith("writable") and "/proc/pressure/" not in line
    ]
    breach_if(writable, f"{len(writable)} files of the kernel can be opened for writing: {writable[:5]}")
    count = int(found.output.split()[-1])
    assert count > 500
    trials(count)


# What a program may read of the kernel outside of its own processes: what libc, interpreters and build tools ask for.
_READABLE = """
    allocinfo bcache bus cgroups cmdline consoles cpufreq cpuinfo crypto devices dma driver execdomains fb
    filesystems fs irq kmemleak loadavg lockdep locks mdstat meminfo misc mounts net page_owner pressure profile
    schedstat self softirqs stat sys sysvipc thread-self tty uptime version vmstat xen
"""
READABLE = set(_READABLE.split())


@pytest.mark.both
@pytest.mark.attack("F10", "F12", control="naive container")
def test_what_shows_the_host_reads_as_empty(subject: Subject, root: Path) -> None:
    covered = """
    kallsyms interrupts iomem ioports swaps partitions diskstats vmallocinfo slabinfo zoneinfo buddyinfo
    timer_list keys key-users config.gz kcore kmsg cmdline
    """
    script = f"cd /proc; for name in {' '.join(covered.split())}; do head -c 16 $name 2>&- | wc -c; done | sort -u"
    said = subject(root, "/bin/sh", "-c", script).output
    breach_if(said != "0\n", "a covered file can be read")


@pytest.mark.both
@pytest.mark.attack("F10", "F12", control="the host's /proc has more")
def test_files_of_proc_that_can_be_read_are_those_on_the_list(root: Path) -> None:
    script = "cd /proc; for name in [a-z]*; do head -c 1 $name 2>&- | grep -q . && echo $name; done; true"
    readable = set(subjects.ours(root, "/bin/sh", "-c", script).output.split())
    assert readable - READABLE == set()
    assert {"meminfo", "cpuinfo"} <= readable
    outside = set(subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.split())
    assert outside - READABLE


# ---- devices ---------------------------------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.attack("E15", "G06", control="naive container")
def test_a_device_in_the_root_cannot_be_opened(subject: Subject, root: Path) -> None:
    os.mknod(root / "zero", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    said = subject(root, "/bin/sh", "-c", "head -c 8 /zero | wc -c").output
    breach_if(said.endswith("8\n"), "a device of the root was read")
    assert "Permission denied" in said


@pytest.mark.root
@pytest.mark.attack("G06", "F02", control="naive container")
def test_no_device_can_be_made(subject: Subject, root: Path) -> None:
    (root / "tmp").mkdir()
    script = "for at in / /tmp /dev /dev/shm; do mknod $at/made c 1 5 2>&- && head -c 1 $at/made | wc -c; done; true"
    breach_if("1" in subject(root, "/bin/sh", "-c", script).output, "a device was made and read")


# ---- what a layer brings along ---------------------------------------------------------------------------------------

_LAYERS = """
import os, sys
from containerkit import Namespaces, OverlayFS, Process, PIPE
here = sys.argv[1]
top, base = f"{here}/top", f"{here}/base"
os.makedirs(f"{top}/door"); os.makedirs(f"{base}/hidden"); os.makedirs(f"{base}/door")
open(f"{base}/hidden/secret", "w").write("canary")
os.setxattr(f"{top}/door", sys.argv[2], b"/hidden")
os.setxattr(f"{top}/door", sys.argv[2].replace("redirect", "origin"), b"x")
{use}
"""
_OURS = """
with OverlayFS([top, base]).mount() as tree:
    try:
        print(sorted(os.listdir(f"/proc/self/fd/{tree.fileno()}/door")))
    except PermissionError:
        print("refused")
"""
# As root of the host, without a user namespace.
_PROCESS = """
layers = OverlayFS([top, base, sys.argv[3]])
with Process(["/bin/ls", "/door", "/"], root=layers, namespaces=Namespaces(mnt="new"), stdout=PIPE) as process:
    said = process.communicate()[0]
assert b"hidden" in said, said
print(said)
"""
_TWIN = """
import subprocess
os.mkdir(f"{here}/at"); os.mkdir(f"{here}/u"); os.mkdir(f"{here}/w")
options = f"lowerdir={top}:{base},upperdir={here}/u,workdir={here}/w,redirect_dir=on"
subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", f"{here}/at"], check=True)
print(sorted(os.listdir(f"{here}/at/door")))
"""


def layers_ours(here: Path, busybox: Path) -> str:
    return in_private_namespace(_LAYERS.replace("{use}", _OURS + _PROCESS), here, "trusted.overlay.redirect", busybox)


def layers_twin(here: Path, busybox: Path) -> str:
    return in_private_namespace(_LAYERS.replace("{use}", _TWIN), here, "trusted.overlay.redirect")


@pytest.mark.root
@pytest.mark.attack("E14", control="mount -t overlay -o redirect_dir=on", ours=layers_ours, twin=layers_twin)
def test_a_layer_cannot_show_what_another_layer_has_elsewhere(
    subject: Callable[[Path, Path], str], busybox_root: Path, tmp_path: Path
) -> None:
    breach_if("secret" in subject(tmp_path, busybox_root), "an attribute of a layer was followed")


@pytest.mark.both
@pytest.mark.attack("E14", control="test_a_layer_cannot_show_what_another_layer_has_elsewhere")
@pytest.mark.parametrize("prefix", ["user.overlay", "trusted.overlay"])
def test_attributes_of_a_layer_decide_nothing_in_a_sandbox(
    busybox_root: Path, tmp_path: Path, prefix: str, caller: str
) -> None:
    if prefix.startswith("trusted") and caller == "user":
        pytest.skip("only root can set these")
    (tmp_path / "top/door").mkdir(parents=True)
    (tmp_path / "base/hidden").mkdir(parents=True)
    (tmp_path / "base/door").mkdir()
    (tmp_path / "base/hidden/secret").touch()
    (tmp_path / "base/file").write_text("of the base")
    (tmp_path / "top/file").write_bytes(b"\0" * 11)
    os.setxattr(tmp_path / "top/door", f"{prefix}.redirect", b"/hidden")
    os.setxattr(tmp_path / "top/file", f"{prefix}.metacopy", b"")
    os.setxattr(tmp_path / "top/file", f"{prefix}.redirect", b"/hidden/secret")
    layers = OverlayFS([tmp_path / "top", tmp_path / "base", busybox_root])
    # The kernel refuses what has the attribute, or takes it for an ordinary directory or file.
    assert run(["ls", "/door"], rootfs=layers).stdout == ""
    assert "base" not in run(["cat", "/file"], rootfs=layers).stdout
    assert run(["ls", "/hidden"], rootfs=layers).stdout == "secret\n"


# ---- nobody in a sandbox is more than they were ----------------------------------------------------------------------


@pytest.mark.both
@pytest.mark.attack("C03", "C04", "P06", "C12", control="the caller's own process, which has some of them")
def test_the_kernel_says_of_every_program_that_it_is_nobody(busybox_root: Path) -> None:
    with Sandbox(rootfs=busybox_root) as box:
        for said in (
            run(["cat", "/proc/self/status"], rootfs=busybox_root).stdout,
            box.run(["cat", "/proc/self/status"]).stdout,
        ):
            fields = dict(line.split(":\t", 1) for line in said.splitlines())
            for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "SigBlk", "SigIgn", "SigCgt", "SigPnd"):
                assert int(fields[name], 16) == 0, name
            assert (fields["NoNewPrivs"], fields["Seccomp"], fields["Umask"]) == ("1", "2", "0022")
    with open("/proc/self/status") as file:
        ours = dict(line.rstrip("\n").split(":\t", 1) for line in file)
    assert int(ours["SigIgn"], 16)  # Python ignores SIGPIPE
    assert (ours["NoNewPrivs"], ours["Seccomp"]) == ("0", "0")


@pytest.mark.both
@pytest.mark.attack("C08", "H11", control="what is accepted arrives unchanged")
@pytest.mark.parametrize("text", ["a\nb", "a\0b", "a:b", "a=b", "a\x1b[2J", "a b", "ä", "../x", "a,b", "a\\b", ""])
def test_text_with_a_meaning_of_its_own_is_refused_or_only_text(root: Path, text: str) -> None:
    for option in ("hostname", "domainname", "user"):
        if (option, text) != ("user", "a:b"):  # a user and a group
            assert isinstance(subjects.ours(root, "/bin/sh", **{option: text}).refused, InvalidValue)
    if "\0" not in text:
        said = subjects.ours(root, "/bin/busybox", "env", env={"X": text}).output
        assert f"X={text}\n".encode().decode("utf-8", "replace") in said


@pytest.mark.both
@pytest.mark.attack("C06", "G09", control="two containers of the twin are both the caller")
def test_two_sandboxes_are_two_users(busybox_root: Path, caller: str) -> None:
    if caller == "user":
        pytest.skip("an ordinary user has one id; docs/rootless.md says so")
    with Sandbox(rootfs=busybox_root) as one, Sandbox(rootfs=busybox_root) as other:
        owners = {os.stat(f"/proc/{box.pid}/ns").st_uid for box in (one, other)}
        maps = [Path(f"/proc/{box.pid}/uid_map").read_text().split() for box in (one, other)]
    first, second = (range(int(outside), int(outside) + int(count)) for _, outside, count in maps)
    assert set(first).isdisjoint(second)
    assert owners.isdisjoint({os.getuid()} - {0})
