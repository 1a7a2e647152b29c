"""A mount in a volume's directory: nothing is deleted through it, and the volume stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from mounted import in_private_namespace

pytestmark = pytest.mark.root

CODE = """
import os, shutil, subprocess, sys
from containerkit import InUse
from containerkit.store import Store
from containerkit.kernel import tree
base, how = sys.argv[1:]
precious = f"{base}/precious of the host"
os.mkdir(precious); open(f"{precious}/file", "w").close()
with Store(f"{base}/store") as store:
    volume = store.volumes.create("data" if how == "remove" else None)
    os.mkdir(f"{volume.path}/in side")
    subprocess.run(["mount", "--bind", precious, f"{volume.path}/in side"], check=True)
    if how == "remove":
        try:
            volume.remove()
        except InUse as error:
            print(error)
    elif how == "prune":
        print(store.volumes.prune(all=True).volumes)
    elif how == "trash":  # even if it had been taken
        store.trash.take(store.home.directory("volumes"), volume.name)
        store.trash.empty(); store.trash.wait()
    else:
        shutil.rmtree(os.path.dirname(volume.path), ignore_errors=True)
    print(os.listdir(precious))
"""


def said(tmp_path: Path, how: str) -> list[str]:
    return in_private_namespace(CODE, tmp_path, how).splitlines()


def test_removing_names_what_is_mounted(tmp_path: Path) -> None:
    error, left = said(tmp_path, "remove")
    assert "in side is mounted in the volume 'data'" in error
    assert left == "['file']"


def test_prune_passes_over_it(tmp_path: Path) -> None:
    assert said(tmp_path, "prune") == ["()", "['file']"]


def test_the_trash_does_not_enter_it(tmp_path: Path) -> None:
    assert said(tmp_path, "trash") == ["['file']"]


def test_shutil_would_delete_what_is_mounted(tmp_path: Path) -> None:
    assert said(tmp_path, "rmtree") == ["[]"]
