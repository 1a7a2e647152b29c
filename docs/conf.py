"""The site: `make docs`, or `sphinx-build -n -W docs build/docs`. Nothing is fetched from anywhere."""

from typing import Any

from sphinx.application import Sphinx
from sphinx.pycode.parser import VariableCommentPicker

import containerkit

project = "containerkit"
author = "containerkit contributors"
project_copyright = author
version = release = containerkit.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = f"containerkit {version}"
html_static_path = ["_static"]
html_show_copyright = html_show_sphinx = False
html_show_sourcelink = False
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_class_signature = "mixed"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_use_ivar = True

# Names that the reference does not describe: the standard library's, whose inventory would have to be fetched, and the
# aliases and private bases in signatures.
nitpick_ignore_regex = [
    (r"py:.*", r"(asyncio|collections|datetime|os|pathlib|subprocess|typing|enum)\..*"),
    (r"py:.*", r"(int|str|bytes|float|bool|object|dict|list|tuple|set|None|optional|Any|AnyStr|IO|Self|Literal.*)"),
    (r"py:exc", r"(ValueError|OSError|TimeoutError|(FileNotFound|FileExists|Permission|ChildProcess)Error)"),
    (r"py:class", r"(.*\.)?(\w+Options|StrPath|HasFileno|Arg|Stream|Mount|Root|Extent|Fd|Value)"),
    (r"py:class", r"(.*\.)?(HostDirectories|Action|Rule|_KernelError|Build|Op|Record|TemporaryTree)"),
    (r"py:class", r"(.*\.)?(Compression|ConfigChanges|Descriptor|Digest|Format|Held|History|Index|Manifest|Phase)"),
    (
        r"py:class",
        r"(.*\.)?(Platform|Removed|Report|StrOrPath|Writable|Blob|Blobs|Layers|Lease|DiskUsage|Swept|Applied)",
    ),
    (r"py:class", r"(.*\.)?(Database|Home|Trash|Progress|Change|Packed|TreeUsage|Unpacking|T)"),
    (r"py:func", r"look_up"),
    (r"py:mod", r"containerkit\.images\.fsck"),
    (r"py:class", r"(.*\.)?(HeldPath|Row|Pruned|Directory|Moment|Logs|Attached|Top|Size|ContainerStats)"),
    (r"py:class", r"(.*\.)?(StatsOfContainer|Policy|HealthResult|PathArchive|Source|Process|started|datetime)"),
    (r"py:class", r"_container\.Container"),
    (r"py:meth", r"Images\.commit"),
    (r"py:class", r"(.*\.)?(IoMax|IoRates|Manager|Parent|Wanted|Kind|Node)"),
]

# A link to a short name that two classes have, those of asyncio on purpose, goes to the first of them.
suppress_warnings = ["ref.python"]

# One signature for each function: the overloads of run() differ in the type of its result only.
VariableCommentPicker.is_overload = lambda self, decorators: False  # type: ignore[method-assign]


def skip(app: Sphinx, what: str, name: str, member: object, skipped: bool, options: Any) -> bool | None:
    """The fields of named tuples are in their signature; the rest is how values become plans."""
    internal = name.startswith("compile") or name in ("needs_directory", "on_disk", "room")
    return True if internal or "Alias for field" in (getattr(member, "__doc__", None) or "") else None


def name_streams(
    app: Sphinx, what: str, name: str, member: object, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    return signature and signature.replace("Stream = -3", "Stream = DEVNULL"), returns


def setup(app: Sphinx) -> None:
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-signature", name_streams)
