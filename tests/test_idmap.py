"""Id maps, and ranges of ids that no two sandboxes share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerkit import (
    ClosedHandle,
    IdMap,
    IdRange,
    InvalidValue,
    Limits,
    Sandbox,
    SpawnError,
    Unsupported,
    idmap,
    run,
)

IDS = 0xFFFFFFFE  # how many there are: the last value means "no change"
SHOW = "cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; id"


def shown(rootfs: Path, **options: object) -> str:
    done = run(["/bin/sh", "-c", SHOW], rootfs=rootfs, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


# ---- maps ------------------------------------------------------------------------------------------------------------


@pytest.mark.root
def test_root_gets_a_range_of_its_own_by_default(busybox_root: Path) -> None:
    first, second = (shown(busybox_root) for _ in range(2))
    assert first.endswith("allow uid=0(root) gid=0(root) groups=0(root)") or "allow uid=0(root) gid=0(root)" in first
    inside, outside, count, *_ = map(int, first.split()[:3])
    assert (inside, count) == (0, 65536)
    assert idmap.FIRST <= outside < idmap.LAST
    assert int(second.split()[1]) != outside


@pytest.mark.rootless
def test_an_ordinary_user_gets_their_one_id_by_default(busybox_root: Path) -> None:
    uid, gid = os.geteuid(), os.getegid()
    assert shown(busybox_root).startswith(f"0 {uid} 1 0 {gid} 1 deny uid=0(root) gid=0(root)")


@pytest.mark.both
def test_a_single_id_may_have_another_number_only_beside_id_0(busybox_root: Path) -> None:
    assert shown(busybox_root, idmap=IdMap.single(), limits=Limits(pids_max=None)).startswith(f"0 {os.geteuid()} 1")
    with pytest.raises(InvalidValue, match="has no id 0"):
        run(["true"], rootfs=busybox_root, idmap=IdMap.single(1000, 1000), limits=Limits(pids_max=None))


@pytest.mark.root
def test_identity_maps_every_id_to_itself(busybox_root: Path) -> None:
    said = shown(busybox_root, idmap=IdMap.identity(), limits=Limits(pids_max=None), user=4294967)
    assert said.startswith(f"0 0 {IDS} 0 0 {IDS} allow uid=4294967")


@pytest.mark.root
def test_a_range_starts_at_id_0(busybox_root: Path) -> None:
    assert shown(busybox_root, idmap=IdMap.range(700000, 10), user=9).startswith("0 700000 10 0 700000 10 allow uid=9")


@pytest.mark.root
def test_a_map_may_have_several_lines(busybox_root: Path) -> None:
    made = IdMap([(0, 700000, 10), (100, 800000, 5)], [(0, 700000, 1)])
    assert shown(busybox_root, idmap=made, user="104:0").startswith("0 700000 10 100 800000 5 0 700000 1 allow uid=104")


@pytest.mark.rootless
def test_subordinate_ids_come_by_the_setuid_tools(busybox_root: Path) -> None:
    try:
        made = IdMap.subordinate()
    except Unsupported as error:
        pytest.skip(str(error))
    said = shown(busybox_root, idmap=made, user="1000:1000")
    assert said.startswith(f"0 {os.geteuid()} 1 1 ")
    assert "allow uid=1000 gid=1000" in said
    assert "groups=1000" in said or "groups" not in said


@pytest.mark.rootless
def test_a_map_that_the_user_may_not_have_is_refused_in_words(busybox_root: Path) -> None:
    with pytest.raises(SpawnError, match="an ordinary user may map its own uid and gid only"):
        run(["true"], rootfs=busybox_root, idmap=IdMap.range(700000))
    made = IdMap([(0, os.geteuid(), 1), (1, 1, 1000)], [(0, os.getegid(), 1)], tool=True)
    with pytest.raises((SpawnError, Unsupported), match=r"newuidmap|newgidmap|must be this user's"):
        run(["true"], rootfs=busybox_root, idmap=made)
    with pytest.raises(Unsupported, match="ids to give"):
        IdRange.allocate()


@pytest.mark.both
def test_a_user_without_a_place_in_the_map_is_refused_before_the_start(busybox_root: Path) -> None:
    with pytest.raises(InvalidValue, match="has no place"):
        run(["true"], rootfs=busybox_root, idmap=IdMap.single(), limits=Limits(pids_max=None), user=1)
    with pytest.raises(InvalidValue, match="has no place"):
        run(["true"], rootfs=busybox_root, idmap=IdMap.single(), limits=Limits(pids_max=None), user="0:1")


@pytest.mark.parametrize(
    "extents",
    [
        [],
        [(0, 0)],
        [(0, 0, 0)],
        [(0, 0, -1)],
        [(-1, 0, 1)],
        [(0, -1, 1)],
        [("0", 0, 1)],
        [(0, 0, 1.5)],
        [(0, 0, 0xFFFFFFFF + 1)],
        [(0, 0xFFFFFFFF, 1)],
        [(0xFFFFFFFE, 0, 2)],
    ],
)
def test_extents_that_no_kernel_takes_are_refused(extents: list[tuple[int, int, int]]) -> None:
    with pytest.raises(InvalidValue):
        IdMap(extents, [(0, 0, 1)])
    with pytest.raises(InvalidValue):
        IdMap([(0, 0, 1)], extents)


@pytest.mark.root
def test_lines_that_overlap_are_refused_by_the_kernel_in_words(busybox_root: Path) -> None:
    with pytest.raises(SpawnError, match="overlaps itself"):
        run(["true"], rootfs=busybox_root, idmap=IdMap([(0, 700000, 10), (5, 800000, 10)], [(0, 700000, 1)]))


@given(
    st.lists(st.tuples(*[st.integers(0, 1 << 30)] * 2, st.integers(1, 1 << 20)), min_size=1, max_size=9),
    st.integers(0, 1 << 31),
)
def test_covers_says_what_the_lines_say(extents: list[tuple[int, int, int]], number: int) -> None:
    made = IdMap(extents, [(0, 0, 1)])
    assert made.covers(number, 0) == any(number in range(first, first + count) for first, _, count in extents)
    assert not made.covers(number, 1)
    assert made == IdMap(tuple(extents), ((0, 0, 1),))
    assert hash(made) == hash(IdMap(tuple(extents), ((0, 0, 1),)))


# ---- ranges ----------------------------------------------------------------------------------------------------------

HOLD = """
    import sys
    from concurrent.futures import ThreadPoolExecutor
    from containerkit import IdRange
    with ThreadPoolExecutor(8) as pool:
        held = list(pool.map(lambda _: IdRange.allocate(), range(50)))
    print(*[ids.start for ids in held], flush=True)
    sys.stdin.read()
    for ids in held:
        ids.close()
"""


def holder() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def told(process: subprocess.Popen[str]) -> list[int]:
    assert process.stdout is not None
    return [int(start) for start in process.stdout.readline().split()]


@pytest.mark.root
def test_ranges_are_unique_among_threads_and_processes() -> None:
    processes = [holder() for _ in range(4)]
    starts = [start for process in processes for start in told(process)]
    for process in processes:
        process.communicate("")
    assert len(starts) == len(set(starts)) == 200
    assert all((start - idmap.FIRST) % 65536 == 0 and idmap.FIRST <= start < idmap.LAST for start in starts)


@pytest.fixture
def few_slots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Three ranges to give, kept in a directory of the test's own."""
    directory = tmp_path / "ranges"
    monkeypatch.setattr(idmap, "_SLOTS", 3)
    monkeypatch.setattr(idmap, "_next", 0)
    monkeypatch.setattr(idmap, "_DIRECTORY", str(directory))
    return directory


@pytest.mark.root
def test_a_range_is_free_again_after_close_and_none_is_given_twice(few_slots: Path) -> None:
    held = [IdRange.allocate() for _ in range(3)]
    assert len({ids.start for ids in held}) == 3
    with pytest.raises(Unsupported, match="all 3 id ranges"):
        IdRange.allocate()
    freed = held.pop()
    freed.close()
    with IdRange.allocate() as again:
        assert again.start == freed.start
    for ids in held:
        ids.close()


@pytest.mark.root
def test_a_range_is_free_again_when_its_holder_is_killed() -> None:
    process = holder()
    starts = told(process)
    wanted = starts[0]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    index = (wanted - idmap.FIRST) // idmap.RANGE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(idmap, "_next", index - 1)
        with IdRange.allocate() as ids:
            assert ids.start == wanted


@pytest.mark.root
def test_a_fork_keeps_a_range_taken_as_long_as_it_lives() -> None:
    """Open file description locks belong to the open file, which parent and child share."""
    with IdRange.allocate() as ids, pytest.MonkeyPatch.context() as patch:
        patch.setattr(idmap, "_next", (ids.start - idmap.FIRST) // idmap.RANGE - 1)
        with IdRange.allocate() as other:
            assert other.start != ids.start


@pytest.mark.root
def test_ranges_of_other_people_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subuid = tmp_path / "subuid"
    first = idmap.FIRST
    subuid.write_text(
        f"# not a line\nalice:{first}:65536\nbob:{first + 65536 * 5 + 1}:65536\n\ncarol:100000:65536\nbroken:line\n"
        "x:y:z\n"
        f"dave:{first - 10}:5\nerin:{idmap.LAST + 5}:65536\n"
    )
    read = idmap._read_subordinate
    monkeypatch.setattr(idmap, "_read_subordinate", lambda path: read(str(subuid)) if path == "/etc/subuid" else [])
    idmap._taken.cache_clear()
    try:
        assert idmap._taken(1, 2) == {0, 5, 6}
    finally:
        idmap._taken.cache_clear()


@pytest.mark.root
@pytest.mark.parametrize("damage", ["others may write", "not root's", "a link", "the file is a link"])
def test_a_directory_that_others_could_change_is_refused(few_slots: Path, tmp_path: Path, damage: str) -> None:
    few_slots.mkdir(mode=0o700)
    if damage == "others may write":
        few_slots.chmod(0o777)
    elif damage == "not root's":
        os.chown(few_slots, 12345, 12345)
    elif damage == "a link":
        few_slots.rename(tmp_path / "real")
        few_slots.symlink_to(tmp_path / "real")
    else:
        (few_slots / "id-ranges").symlink_to(tmp_path / "elsewhere")
    with pytest.raises((Unsupported, OSError)):
        IdRange.allocate()
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.root
def test_a_range_says_what_it_is_and_is_closed_once() -> None:
    ids = IdRange.allocate()
    assert ids.map == IdMap.range(ids.start)
    assert ids.covers(0, 65535)
    assert not ids.covers(65536, 0)
    assert str(ids.start) in repr(ids)
    ids.close()
    ids.close()
    assert repr(ids) == "<IdRange closed>"
    with pytest.raises(ClosedHandle):
        ids.map  # noqa: B018


@pytest.mark.root
def test_a_range_can_be_given_to_several_starts(busybox_root: Path) -> None:
    with IdRange.allocate() as ids:
        said = {shown(busybox_root, idmap=ids) for _ in range(2)}
        assert len(said) == 1
        assert str(ids.start) in said.pop()


@pytest.mark.root
def test_sandboxes_of_root_share_no_id(busybox_root: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        boxes = list(pool.map(lambda _: Sandbox(rootfs=busybox_root), range(8)))
    try:
        maps = [Path(f"/proc/{box.pid}/uid_map").read_text().split() for box in boxes]
        assert {tuple(line) for line in maps if line[0] == "0" and line[2] == "65536"} == {tuple(line) for line in maps}
        assert len({line[1] for line in maps}) == 8
    finally:
        for box in boxes:
            box.close()
