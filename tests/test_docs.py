"""The documentation does what it says: its code runs and prints what it shows, its links lead somewhere, it builds.

A ``python`` block of a page runs after those above it, in one namespace. A ``text`` block directly below is what it
prints, "..." standing for anything. ``<!-- root -->`` above a block keeps it for root.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import containerkit as ck
from containerkit import aio

TREE = Path(__file__).parent.parent
PAGES = [*sorted(TREE.glob("*.md")), *sorted(TREE.glob("docs/**/*.md"))]
BLOCK = re.compile(r"^(?:<!-- (?P<mark>\w+) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A program of a page, the line above its first, and what it should print, if the page tells."""

    code: str
    line: int
    output: str | None
    root_only: bool


def blocks(page: str) -> Iterator[Block]:
    found = list(BLOCK.finditer(page))
    for block, after in zip(found, [*found[1:], None], strict=False):
        if block["language"] == "python":
            directly = after is not None and not page[block.end() : after.start()].strip()
            output = after["text"] if directly and after is not None and after["language"] == "text" else None
            yield Block(block["text"], page[: block.start("text")].count("\n"), output, block["mark"] == "root")


def run_page(page: str, name: str, caller: str) -> int:
    """Run a page's blocks; fails at the first that raises or prints something else. How many ran."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    ran = 0
    for block in blocks(page):
        if block.root_only and caller != "root":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * block.line + block.code, name, "exec"), scope)  # noqa: S102  our own pages
        if block.output is not None:
            compare(block.output, printed.getvalue(), f"{name}, line {block.line + 1}")
        ran += 1
    return ran


def compare(wanted: str, got: str, where: str) -> None:
    wanted = re.sub(r"(\A|\s*\n) *\.\.\.\n *", "...", wanted)  # a line of its own may stand for none, too
    checker, flags = doctest.OutputChecker(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    if not checker.check_output(wanted, got, flags):
        pytest.fail(f"{where}: {checker.output_difference(doctest.Example('', wanted), got, flags)}", pytrace=False)


def title(page: Path) -> str:
    return str(page.relative_to(TREE))


WITH_CODE = [page for page in PAGES if any(blocks(page.read_text()))]


@pytest.mark.both
@pytest.mark.parametrize("page", WITH_CODE, ids=title)
def test_the_code_of_a_page_runs_and_prints_what_the_page_shows(page: Path, caller: str) -> None:
    assert run_page(page.read_text(), str(page), caller) > 0


def test_the_pages_that_teach_have_code() -> None:
    """If the blocks were no longer found, the test above would have nothing to run."""
    assert {"README.md", "docs/run.md", "docs/primitives.md", "docs/errors.md"} <= {title(page) for page in WITH_CODE}


def test_output_that_differs_from_the_page_is_seen() -> None:
    page = "```python\nprint(6 * 7)\n```\n\n```text\n{}\n```\n"
    assert run_page(page.format("4..."), "page", "root") == 1
    with pytest.raises(pytest.fail.Exception, match="page, line 2"):
        run_page(page.format("43"), "page", "root")


def test_code_that_fails_is_seen_at_its_line() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run_page("# A page\n\n```python\n1 / 0\n```\n", "page", "root")
    assert caught.traceback[-1].lineno == 3


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = BLOCK.sub("", page.read_text())
    links = [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r"src=\"([^\"]+)\"", text)]
    relative = [link.partition("#")[0] for link in links if "://" not in link and not link.startswith(("mailto:", "#"))]
    assert [link for link in relative if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"`([\w/]+\.(?:py|c|h))`", page.read_text())
    folders = [TREE, *(TREE / below for below in ("containerkit", "containerkit/kernel", "containerkit/_native/init"))]
    assert [name for name in named if not any((folder / name).is_file() for folder in folders)] == []


def test_the_reference_has_every_public_name() -> None:
    reference = (TREE / "docs/api.md").read_text()
    described = set(re.findall(r"^\.\. (?:auto\w+|data):: ([\w.]+)", reference, re.MULTILINE))
    assert set(ck.__all__) - described == {"__version__", "aio"}
    own = [name for name in aio.__all__ if getattr(aio, name) is not getattr(ck, name, None)]
    assert {f"containerkit.aio.{name}" for name in own} <= described


def test_every_page_is_in_the_table_of_contents() -> None:
    index = (TREE / "docs/index.md").read_text()
    listed = {line.partition("<")[2].rstrip(">") or line for line in index.splitlines()}
    assert [page.stem for page in TREE.glob("docs/*.md") if page.stem not in {*listed, "index"}] == []


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    for needed in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(needed, reason="a package of the `dev` group")
    command = [sys.executable, "-m", "sphinx", "-n", "-W", "-q", "-b", "html", "-d", tmp_path / "doctrees"]
    done = subprocess.run([*command, TREE / "docs", tmp_path / "html"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "autofunction" not in (tmp_path / "html/api.html").read_text()


@pytest.mark.both
def test_the_demo_shows_its_parts(caller: str) -> None:
    done = subprocess.run([sys.executable, TREE / "docs/demo.py"], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    for part in ("outcome", "cpu", "user namespace", "execute", "Network is unreachable", "Read-only file system"):
        assert part in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
