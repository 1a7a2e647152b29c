"""Who a program is: ids, names from its own root whatever lies there, and groups, exactly."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE
from starts import ISOLATED, host_said, in_root, said, sleeping, status

from containerkit import Bind, Process, Sandbox, run
from containerkit.errors import InvalidValue, SpawnError, Unsupported

BOTH = pytest.mark.both
ROOT = pytest.mark.root

MakeRoot = Callable[..., dict[str, Any]]

USERS = (
    "root:x:0:0:root:/root:/bin/sh\n"
    "web:x:33:34:web:/:/bin/false\n"
    "1000:x:0:0:a trap:/:/bin/sh\n"
    "last:x:65535:65534::/:"  # no newline at the end
)
GROUPS = "root:x:0:\nweb:x:34:\nlog:x:40:web,other\nmail:x:41:other,web\nnone:x:42:webmaster,aweb\n1000:x:0:\n"


@pytest.fixture
def make_root(busybox_root: Path, tmp_path: Path) -> MakeRoot:
    """A root whose /etc is the test's own: options for a Process in it."""
    tmp_path.chmod(0o755)
    for name in ("bin", "etc", "proc"):
        (tmp_path / name).mkdir(mode=0o755)

    def make(passwd: str | None = USERS, group: str | None = GROUPS) -> dict[str, Any]:
        for name, content in (("passwd", passwd), ("group", group)):
            if content is not None:
                (tmp_path / "etc" / name).write_text(content)
        return in_root(tmp_path, Bind(busybox_root / "bin", "/bin"))

    return make


def ids(user: Any, **options: Any) -> str:
    """uid, gid, and then all groups with the gid first."""
    script = "echo $(id -u) $(id -g) $(id -G)"
    return said(["sh", "-c", script], user=user, **options).strip()


# ---- numbers and names -------------------------------------------------------------------------------------


@ROOT
@pytest.mark.parametrize(
    ("user", "expected"),
    [
        (None, "0 0 0"),
        (0, "0 0 0"),
        (5, "5 5 5"),
        ("5", "5 5 5"),
        ("5:6", "5 6 6"),
        (65535, "65535 65535 65535"),
        ("web", "33 34 34 40 41"),
        ("web:log", "33 40 40 41"),
        ("web:7", "33 7 7 40 41"),
        ("5:web", "5 34 34"),
        ("last", "65535 65534 65534"),
        ("root", "0 0 0"),
        ("1000", "1000 1000 1000"),  # digits are a number, whatever passwd says (CVE-2016-3697)
        ("1000:1000", "1000 1000 1000"),
        ("0005", "5 5 5"),
    ],
    ids=repr,
)
def test_a_user_is_who_the_root_says(make_root: MakeRoot, user: Any, expected: str) -> None:
    uid, gid, *groups = ids(user, **make_root()).split()
    assert [uid, gid, *sorted(groups, key=int)] == [*expected.split()[:2], *sorted(expected.split()[2:], key=int)]


@pytest.mark.rootless
def test_an_ordinary_user_is_root_inside_and_itself_outside(make_root: MakeRoot) -> None:
    options = make_root()
    assert ids("root", **options).split()[:2] == ["0", "0"]
    assert ids(None, **options).split()[:2] == ["0", "0"]
    with sleeping(**options) as process:
        assert status(process.pid)["Uid"].split() == [str(os.getuid())] * 4


@pytest.mark.rootless
def test_an_ordinary_user_has_no_second_id_to_give(make_root: MakeRoot) -> None:
    with pytest.raises(InvalidValue, match="5:5 has no place in"):
        Process(["true"], user=5, **make_root())
    with pytest.raises(SpawnError, match="has no place in the id map"):
        Process(["true"], user="web", **make_root())


@BOTH
@pytest.mark.parametrize(
    "user",
    [
        4294967296, 4294967295, 2147483648, -1, True, 1.0, b"root",
        "4294967296", "4294967295", "2147483648", "-1", "0x0", "1e3", " 0", "0 ", "+0", "1_000", "1_000\n", "0\n",
        "\uff10", "\u0660", "0\0", "", " ", ":", ":0", "0:", "root:", ":root", "0:0:0", "root:root:x", "ro ot",
        "root\n", "root\0", "../root", "a/b", "-root", "ro:-1", "root:2147483648", "root:4294967295",
        "r\u00f6\u00f6t", "x" * 40,
        "99999999999999999999",
    ],
    ids=ascii,
)  # fmt: skip
def test_a_user_that_is_ambiguous_is_refused_before_anything_starts(user: Any) -> None:
    for start in (lambda: Process(["true"], user=user, **ISOLATED), lambda: run(["true"], user=user)):
        with pytest.raises(InvalidValue, match=r"user|id from 0"):
            start()


@ROOT
@pytest.mark.parametrize("user", ["nobody2", "daemon", "roo", "root2", "Web", "web:nogroup", "5:daemon"])
def test_a_name_that_the_root_does_not_have_is_an_error(make_root: MakeRoot, user: str) -> None:
    """daemon is a user of the host."""
    with pytest.raises(SpawnError, match="no such name in /etc/passwd or /etc/group inside the root") as caught:
        Process(["true"], user=user, **make_root())
    assert repr(user.rpartition(":")[2]) in str(caught.value)


@ROOT
def test_a_sandbox_and_run_look_in_their_own_root(make_root: MakeRoot) -> None:
    root = make_root()["root"]
    shutil.copytree(make_root()["mounts"][1].source, root / "bin", symlinks=True, dirs_exist_ok=True)
    assert run(["id", "-u"], rootfs=root, user="web").stdout == "33\n"
    with Sandbox(rootfs=root) as box:
        assert box.run(["id", "-u"], user="web").stdout == "33\n"
        assert box.run(["id", "-G"], user="web").stdout.split() == ["34", "40", "41"]
    assert run(["id", "-u"], user="nobody").stdout == "65534\n"


# ---- hostile files -----------------------------------------------------------------------------------------


def fails_fast(options: dict[str, Any], user: str = "web") -> SpawnError:
    begin = time.monotonic()
    with pytest.raises(SpawnError) as caught:
        Process(["true"], user=user, start_timeout=5, **options)
    assert time.monotonic() - begin < 1 * PATIENCE
    assert caught.value.step.startswith("become user")
    return caught.value


HOSTILE: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "empty": lambda path: path.touch(),
    "fifo": lambda path: os.mkfifo(path),
    "directory": lambda path: path.mkdir(),
    "link out of the root": lambda path: path.symlink_to("../../../../../../../../../../etc/passwd"),
    "absolute link to itself": lambda path: path.symlink_to("/etc/passwd"),
    "magic link": lambda path: path.symlink_to("/proc/self/fd/0"),
    "link to proc": lambda path: path.symlink_to("/proc/self/mem"),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "10 GiB of nothing": lambda path: (path.touch(), os.truncate(path, 10 << 30)),
    "one endless line": lambda path: path.write_bytes(b"web" * (1 << 20)),
    "only newlines": lambda path: path.write_bytes(b"\n" * (1 << 21)),
    "only colons": lambda path: path.write_bytes(b":" * (1 << 21)),
    "NUL in the name": lambda path: path.write_bytes(b"web\0:x:33:34::/:\n"),
    "too few fields": lambda path: path.write_bytes(b"web:x:33:34\nweb\nweb:\n"),
}


@BOTH
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_passwd_makes_nobody_somebody(make_root: MakeRoot, kind: str) -> None:
    options = make_root(passwd=None)
    HOSTILE[kind](options["root"] / "etc/passwd")
    fails_fast(options, "web" if kind != "link out of the root" else "daemon")


@BOTH
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_group_gives_no_group(make_root: MakeRoot, kind: str) -> None:
    options = make_root(group=None)
    if kind == "absolute link to itself":
        (options["root"] / "etc/group").symlink_to("/etc/group")
    elif kind == "too few fields":
        (options["root"] / "etc/group").write_text("web:x:33\nweb\nweb:\n")
    else:
        HOSTILE[kind](options["root"] / "etc/group")
    fails_fast(options, "root:web" if kind != "link out of the root" else "root:daemon")


@BOTH
@pytest.mark.parametrize(
    "number", ["", "-1", "+0", " 0", "0 ", "0x0", "4294967295", "4294967296", "99999999999999999999", "a", "0\r", "0.0"]
)
def test_a_malformed_id_is_an_error_and_never_root(make_root: MakeRoot, number: str) -> None:
    fails_fast(make_root(passwd=f"web:x:{number}:0::/:\n"))
    fails_fast(make_root(passwd=f"web:x:0:{number}::/:\n"))
    fails_fast(make_root(group=f"web:x:{number}:\n"), "root:web")


@ROOT
def test_a_long_line_is_skipped_and_the_next_one_counts(make_root: MakeRoot) -> None:
    passwd = f"web:x:0:0:{'x' * 5000}:/:\nweb:x:33:34::/:\n"
    assert ids("web", **make_root(passwd=passwd, group="")).split()[:2] == ["33", "34"]


@ROOT
def test_the_first_line_with_a_name_counts(make_root: MakeRoot) -> None:
    assert ids("web", **make_root("web:x:33:34::/:\nweb:x:0:0::/:\n", "")).split()[:2] == ["33", "34"]


# ---- groups ------------------------------------------------------------------------------------------------


@ROOT
@pytest.mark.parametrize("user", ["None", "0", "5", "'root'"])
def test_no_group_of_the_host_comes_along(user: str) -> None:
    lines = host_said(
        f"""
        print(*os.getgroups())
        print(said(["id", "-G"], user={user}, **ISOLATED).strip())
    """,
        prefix=["setpriv", "--groups", "4,27,999"],
    )
    assert lines == ["4 27 999", re.sub(r"\D", "", user) or "0"]


@ROOT
def test_groups_are_exactly_those_that_were_asked_for() -> None:
    lines = host_said(
        """
        print(said(["id", "-G"], user=7, groups=[8, 9], **ISOLATED).strip())
        print(said(["id", "-G"], user=7, groups=[9, 8, 65535], **ISOLATED).strip())
        print(said(["id", "-G"], user=7, groups=[8]).strip())
    """,
        prefix=["setpriv", "--groups", "4,27,999"],
    )
    assert [sorted(map(int, line.split())) for line in lines] == [[7, 8, 9], [7, 8, 9, 65535], [7, 8]]


@pytest.mark.rootless
def test_groups_that_an_ordinary_user_cannot_give_are_refused() -> None:
    with pytest.raises(Unsupported, match="newgidmap"):
        Process(["true"], groups=[5], **ISOLATED)


@pytest.mark.rootless
def test_an_ordinary_users_groups_cannot_be_dropped_inside() -> None:
    """Otherwise a group could be left to get what the group alone may not have (CVE-2014-8989)."""
    assert said(["cat", "/proc/self/setgroups"], **ISOLATED) == "deny\n"


@BOTH
@pytest.mark.parametrize("groups", [[-1], [1 << 31], [4294967295], ["web"]])
def test_a_group_that_is_none_is_refused(groups: list[Any]) -> None:
    with pytest.raises(InvalidValue, match="id from 0"):
        Process(["true"], groups=groups, **ISOLATED)


@ROOT
def test_without_a_user_namespace_the_ids_are_the_hosts() -> None:
    with sleeping(user="12345:54321", groups=[99]) as process:
        fields = status(process.pid)
    assert fields["Uid"].split() == ["12345"] * 4
    assert fields["Gid"].split() == ["54321"] * 4
    assert fields["Groups"].split() == ["99"]
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0


@BOTH
def test_without_anything_asked_for_it_is_the_caller() -> None:
    with sleeping() as process:
        theirs, ours = status(process.pid), status("self")
    for name in ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs"):
        assert theirs[name] == ours[name], name
