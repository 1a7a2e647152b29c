"""Who a container's programs are, by its own /etc/passwd and /etc/group, as images expect it of docker."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from archives import archive, entry
from made_containers import busybox_image

from containerkit.containers.container import Container
from containerkit.store import Store

USERS = """\
root:x:0:0::/root:/bin/sh
bob:x:1000:1001::/home/bob:/bin/sh
homeless:x:1002:1002:::/bin/sh
odd:x:y:z::/odd:
"""
GROUP = "root:x:0:\nbobs:x:1001:\nwheel:x:10:root,bob\ntape:x:26:bob\nodd:x:y:bob,\n"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as store:
        busybox_image(store)
        yield store
        for container in store.containers.list(all=True):
            container.remove(force=True)


def container_of(store: Store, group: str = GROUP.replace("odd:x:y:bob,\n", ""), **options: object) -> Container:
    made = store.containers.create("test:1", ["sh", "-c", "id -u; id -g; id -G; echo $HOME"], **options)  # type: ignore[arg-type]
    made.copy_in(archive_of(group), "/")
    return made


def archive_of(group: str) -> io.BytesIO:
    return io.BytesIO(archive([entry("etc/passwd", USERS), entry("etc/group", group)]))


def said(container: Container) -> list[str]:
    container.start()
    assert container.wait(20) == 0
    uid, gid, groups, home = container.logs().text().splitlines()
    return [f"{uid}:{gid}", " ".join(sorted(groups.split(), key=int)), home]


@pytest.mark.root
@pytest.mark.parametrize(
    ("user", "ids", "groups", "home"),
    [
        (None, "0:0", "0 10", "/root"),
        ("0", "0:0", "0 10", "/root"),
        ("bob", "1000:1001", "10 26 1001", "/home/bob"),
        ("1000", "1000:1001", "10 26 1001", "/home/bob"),
        ("bob:wheel", "1000:10", "10", "/home/bob"),
        ("1000:7", "1000:7", "7", "/home/bob"),
        ("4242", "4242:0", "0", "/"),
        ("4242:7", "4242:7", "7", "/"),
        ("homeless", "1002:1002", "1002", "/"),
    ],
)
def test_a_user_is_who_the_container_says(store: Store, user: str | None, ids: str, groups: str, home: str) -> None:
    assert said(container_of(store, user=user)) == [ids, groups, home]


@pytest.mark.both
def test_root_has_its_home_and_another_can_be_given(store: Store) -> None:
    assert said(container_of(store))[::2] == ["0:0", "/root"]
    assert said(container_of(store, env={"HOME": "/elsewhere"}))[2] == "/elsewhere"


@pytest.mark.both
def test_files_that_are_odd_do_not_keep_a_number_from_starting(store: Store) -> None:
    assert said(container_of(store, group=GROUP))[::2] == ["0:0", "/root"]


@pytest.mark.both
def test_a_program_that_joins_has_them_too(store: Store) -> None:
    container = store.containers.create("test:1", ["sleep", "60"], hostname="box")
    container.start()
    done = container.run(["sh", "-c", "echo $HOME $HOSTNAME"])
    assert done.stdout == "/root box\n"
