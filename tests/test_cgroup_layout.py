"""Which hierarchies there are: what the kernel's two files mean, and machines that are mounted otherwise than usual.

The odd machines are mount namespaces of their own, in which the tests arrange /sys/fs/cgroup.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from containerkit import Cgroup, CgroupUnavailable
from containerkit.cgroup.layout import LEAF, Hierarchy, Layout, parse_cgroup, parse_mountinfo

PURE_V2 = ("0::/user.slice/a.scope\n", "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n")
HYBRID = (
    "12:cpu,cpuacct:/a\n4:memory:/b\n1:name=systemd:/c\n0::/d\n",
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:5 master:2 - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:30 / /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    "34 31 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n"
    "35 31 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
)


def layout(files: tuple[str, str]) -> Layout:
    return Layout(tuple(parse_mountinfo(files[1], parse_cgroup(files[0]))))


# ---- the two files ---------------------------------------------------------------------------------------------------


def test_one_v2_mount_is_v2() -> None:
    found = layout(PURE_V2)
    assert found.version == "v2"
    assert found.hierarchies[0].directory == "/sys/fs/cgroup/user.slice/a.scope"


def test_v1_hierarchies_beside_v2_are_hybrid() -> None:
    found = layout(HYBRID)
    assert found.version == "hybrid"
    assert {one.controllers: one.directory for one in found.hierarchies} == {
        ("cpu", "cpuacct"): "/sys/fs/cgroup/cpu,cpuacct/a",
        ("memory",): "/sys/fs/cgroup/memory/b",
        (): "/sys/fs/cgroup/unified/d",
    }


def test_a_named_hierarchy_has_no_controllers_and_is_left_out() -> None:
    assert not any("systemd" in one.mount for one in layout(HYBRID).hierarchies)


def test_read_only_mounts_are_told_apart() -> None:
    assert [one.mount for one in layout(HYBRID).hierarchies if one.read_only] == ["/sys/fs/cgroup/memory"]


def test_nothing_mounted_is_none() -> None:
    assert layout((PURE_V2[0], "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n")).version == "none"


def test_io_is_found_as_blkio() -> None:
    one = Hierarchy(1, ("blkio",), "/c", "/", "/", False)
    assert Layout((one,)).find("io") == one
    assert Layout((one,)).find("memory") is None


def test_a_mount_of_a_part_is_counted_from_there() -> None:
    files = ("0::/docker/abc/x\n", "31 23 0:28 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup rw\n")
    assert layout(files).hierarchies[0].directory == "/sys/fs/cgroup/x"


@pytest.mark.parametrize("path", ["/elsewhere", "/docker/abcd", "/../other", "/"])
def test_a_cgroup_outside_of_the_mount_is_refused(path: str) -> None:
    files = (f"0::{path}\n", "31 23 0:28 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup rw\n")
    with pytest.raises(CgroupUnavailable, match="outside") as caught:
        _ = layout(files).hierarchies[0].directory
    assert caught.value.reason == "outside"


def test_of_several_mounts_the_one_that_shows_all_counts() -> None:
    mounts = (
        "31 23 0:28 /part /mnt/part rw - cgroup2 cgroup rw\n"
        "32 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n"
        "33 23 0:28 /part /mnt/other rw - cgroup2 cgroup rw\n"
    )
    assert [one.mount for one in layout(("0::/\n", mounts)).hierarchies] == ["/sys/fs/cgroup"]


def test_a_mount_point_may_have_a_space() -> None:
    files = ("0::/a b\n", "31 23 0:28 / /my\\040groups rw - cgroup2 cgroup rw\n")
    assert layout(files).hierarchies[0].directory == "/my groups/a b"


@pytest.mark.parametrize(
    "text", ["", "\n", "::", "x", "0", "0:", "4:memory", "4:memory:relative", "\0" * 9, "a:b:/c:d"]
)
def test_lines_that_are_none_do_no_harm(text: str) -> None:
    assert parse_mountinfo(text, parse_cgroup(text)) == []


def test_new_groups_are_made_beside_the_leaf() -> None:
    assert Hierarchy(2, (), "/c", "/", f"/a/{LEAF}", False).base == "/c/a"
    assert Hierarchy(2, (), "/c", "/", f"/{LEAF}", False).base == "/c"
    assert Hierarchy(2, (), "/c", "/", f"/a{LEAF}", False).base == f"/c/a{LEAF}"


def test_the_layout_of_this_machine_is_read() -> None:
    for one in Layout.current().hierarchies:
        assert (Path(one.directory) / "cgroup.procs").exists()


# ---- odd machines ----------------------------------------------------------------------------------------------------

V1 = "umount /sys/fs/cgroup/unified"
V2 = "umount -R /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup"
NONE = "umount -R /sys/fs/cgroup"
READ_ONLY = "for m in /sys/fs/cgroup/*; do mount -o remount,bind,ro $m; done"

needs_hybrid = pytest.mark.skipif(Layout.current().version != "hybrid", reason="arranges a hybrid layout anew")


def on(arrangement: str, code: str) -> str:
    """What ``code`` prints in a mount namespace that was arranged."""
    script = f'set -e; {arrangement}; exec "$@"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


REPORT = """
import containerkit as ck
from containerkit.cgroup import Layout
try:
    with ck.Cgroup.create({arguments}) as group:
        print(Layout.current().version, sorted(group.controllers), [one.version for one in group.dirs])
except ck.CgroupUnavailable as error:
    print(error.reason, "|", error)
"""


def report(arrangement: str, arguments: str = "") -> str:
    return on(arrangement, REPORT.format(arguments=arguments))


@needs_hybrid
@pytest.mark.root
class TestOddMachines:
    def test_pure_v1_has_directories_of_v1_only(self) -> None:
        said = report(V1)
        assert said.startswith("v1 ")
        assert "'memory'" in said
        assert "2" not in said.rpartition("[")[2]

    def test_pure_v2_is_one_directory(self) -> None:
        said = report(V2)
        assert said.startswith("v2 ")
        assert said.endswith(" [2]")

    def test_a_limit_of_a_hierarchy_that_is_not_mounted_is_refused_with_the_cause(self) -> None:
        said = report(V2, "limits=ck.Limits(memory_max='1G', pids_max=None)")
        assert said.startswith("controller |")
        assert "memory_max" in said
        assert "not mounted" in said

    def test_without_a_cgroup_mount_the_cure_is_to_mount_one(self) -> None:
        said = report(NONE)
        assert said.startswith("not mounted |")
        assert "mount -t cgroup2" in said

    def test_a_read_only_mount_is_named(self) -> None:
        said = report(READ_ONLY)
        assert said.startswith("read-only |")
        assert "read-write" in said

    def test_a_run_with_limits_works_on_pure_v1(self) -> None:
        code = "import containerkit as ck; print(ck.run(['true'], limits=ck.Limits(memory_max='256M', cpu_max=1)).ok)"
        assert on(V1, code) == "True"

    def test_a_run_without_limits_needs_no_cgroup_at_all(self) -> None:
        assert on(NONE, "import containerkit as ck; print(ck.run(['true']).ok)") == "True"

    def test_what_is_mounted_anew_in_the_same_namespace_is_found(self) -> None:
        code = """
import subprocess
import containerkit as ck
ck.Cgroup.create(controllers=["cgroup"]).remove()
subprocess.run("umount -R /sys/fs/cgroup; mount -t cgroup2 c /mnt", shell=True, check=True)
with ck.Cgroup.create(controllers=["cgroup"]) as group:
    print(group.unified.path.rpartition("/")[0])
"""
        assert on("true", code) == "/mnt"


@needs_hybrid
@pytest.mark.root
class TestACgroupNamespaceWhoseRootIsBusy:
    """As in a container with a cgroup namespace of its own: the root has processes, and gives no controllers away."""

    @pytest.fixture
    def container(self) -> Iterator[str]:
        with Cgroup.create(controllers=["hugetlb"]) as outer:
            assert outer.unified is not None
            yield (
                f"echo $$ > {outer.unified.path}/cgroup.procs; "
                f'exec unshare --cgroup --mount sh -c \'{V2}; exec "$@"\' sh "$@"'
            )

    def test_it_is_refused_with_the_cure(self, container: str) -> None:
        said = report(container, "controllers=['hugetlb']")
        assert said.startswith("busy |")
        assert "Cgroup.enter_leaf()" in said

    def test_entering_a_leaf_cures_it(self, container: str) -> None:
        code = """
import containerkit as ck
ck.Cgroup.enter_leaf()
ck.Cgroup.enter_leaf()
print(open("/proc/self/cgroup").read().splitlines()[-1])
with ck.Cgroup.create(controllers=["hugetlb"]) as group:
    print(sorted(group.controllers), group.unified.path)
"""
        where, made = on(container, code).splitlines()
        assert where == f"0::/{LEAF}"
        assert made.startswith("['hugetlb'] /sys/fs/cgroup/ck-")

    def test_without_controllers_a_group_can_be_had_all_the_same(self, container: str) -> None:
        assert report(container, "controllers=['cgroup']").startswith("v2 [] [2]")
