"""A database in a container, its data in a volume: what is committed outlives the container, however that ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import containerkit as ck
from containerkit.containers.container import Container
from containerkit.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(2400)]

START = """
set -e
cd /var/lib/postgresql
test -e data/PG_VERSION || initdb -D data -A trust
exec postgres -D data -c listen_addresses=
"""


@pytest.fixture
def store(tmp_path: Path, debian_postgresql: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as store:
        store.images.import_(
            debian_postgresql,
            name="postgres:1",
            changes={
                "entrypoint": ["sh", "-c", START],
                "user": "postgres",
                "env": {"PATH": "/usr/lib/postgresql/15/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
                "volumes": ["/var/lib/postgresql"],
                "stop_signal": "SIGINT",
            },
        )
        yield store


def begun(store: Store, **options: Any) -> Container:
    """One whose database answers."""
    container = store.containers.create(
        "postgres:1", name="db", volumes=["pgdata:/var/lib/postgresql"], stop_timeout=120, **options
    )
    container.start()
    end = time.monotonic() + 120
    while container.run(["pg_isready", "-q"]).returncode:
        assert time.monotonic() < end, "".join(f"{line.text}\n" for line in container.logs())
        time.sleep(0.1)
    return container


def ask(container: Container, question: str) -> str:
    done = container.run(["psql", "-qAt", "-v", "ON_ERROR_STOP=1", "-c", question])
    assert done.returncode == 0, done.stderr
    return str(done.stdout).strip()


def test_what_a_database_has_committed_is_there_for_the_next_container(store: Store) -> None:
    first = begun(store)
    ask(first, "create table t as select n, md5(n::text) as h from generate_series(1, 100000) n")
    assert [one.name for one in store.volumes.list()] == ["pgdata"]  # named, so the image's own is not needed
    with pytest.raises(ck.InUse, match="db"):
        store.volumes.remove("pgdata")
    first.stop()
    assert "database system is shut down" in "".join(line.text for line in first.logs())
    first.remove()

    second = begun(store)
    assert ask(second, "select count(distinct h) from t") == "100000"
    ask(second, "insert into t values (0, 'the last word')")
    second.kill()
    second.wait()
    second.remove()

    volume = store.volumes.get("pgdata")
    copy = volume.clone("copy")
    third = begun(store)
    assert ask(third, "select h from t where n = 0") == "the last word"
    assert "not properly shut down" in "".join(line.text for line in third.logs())
    third.remove(force=True)
    assert copy.usage().inodes > 900
    volume.remove()
    copy.remove()
    assert store.volumes.list() == []


def test_a_database_in_a_volume_that_is_too_small_says_so_and_harms_nothing(store: Store) -> None:
    store.volumes.create("pgdata", size="128M")
    container = begun(store)
    ask(container, "create table kept as select 1 as n")
    done = container.run(
        [
            "psql",
            "-qAt",
            "-c",
            "create table t as select n, repeat(md5(n::text), 30) from generate_series(1, 1000000) n",
        ]
    )
    assert "No space left on device" in done.stderr
    container.remove(force=True)
    again = begun(store)
    assert ask(again, "select n from kept") == "1"
    again.remove(force=True)
