"""containerkit at work: real programs over real files in the default sandbox. `make demo` runs this.

Works as root and as an ordinary user. Nothing is written outside of the sandboxes, and nothing is left.
"""

import os
import sys
from pathlib import Path
from textwrap import indent

import containerkit as ck

SOURCE = Path(__file__).resolve().parent.parent  # what the programs read: this project's own text

# The interpreter that runs this, and a mount for it where it does not lie among the host's programs.
PREFIX = Path(sys.base_prefix)
PYTHON = str(PREFIX / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}")
INTERPRETER = [] if PREFIX.is_relative_to("/usr") else [ck.Bind(PREFIX, PREFIX)]

STATISTICS = """
import collections, pathlib, re

texts = {path: path.read_text(errors="replace") for path in pathlib.Path("/input").rglob("*.md")}
words = collections.Counter(re.findall(r"[a-z]{5,}", " ".join(texts.values()).lower()))
print(f"{len(texts)} files, {sum(map(len, texts.values()))} characters, {len(words)} different words")
for word, count in words.most_common(5):
    print(f"{count:6} {word}")
"""

PIPELINE = "find /input -name '*.[ch]' | xargs cat | tr -cs a-z_ '\\n' | grep .... | sort | uniq -c | sort -rn | sed 5q"

ATTEMPTS = {
    "read the host's passwords": "open('/etc/shadow').read()",
    "write where programs live": "open('/usr/bin/backdoor', 'w')",
    "change the kernel's settings": "open('/proc/sys/kernel/core_pattern', 'w')",
    "call home": "__import__('socket').create_connection(('192.0.2.1', 443), timeout=3)",
    "become another user": "__import__('os').setuid(1)",
    "kill the program that started it": "__import__('os').kill({parent}, 9)",
}


def heading(text: str) -> None:
    print(f"\n── {text} {'─' * (94 - len(text))}\n")


def show(done: ck.Completed[str]) -> None:
    usage = done.usage
    print(indent(f"{done.stdout}{done.stderr}", "    "))
    print(
        f"  outcome {done.outcome}, return code {done.returncode}; "
        f"{usage.wall_seconds * 1000:.0f} ms wall, {usage.cpu_seconds * 1000:.0f} ms cpu, "
        f"{usage.memory_peak / 2**20:.0f} MiB peak; running after {done.timeline.start_ns / 1e6:.1f} ms"
    )


def attempt(box: ck.Sandbox, code: str) -> str:
    done = box.run([PYTHON, "-c", code.format(parent=os.getpid())], timeout=5)
    said = (done.stderr or "").strip().splitlines()
    return said[-1].partition(": '")[0] if said else "it worked"


def main() -> None:
    who = "root" if os.geteuid() == 0 else "an ordinary user"
    folders = [ck.Bind(SOURCE / name, f"/input/{name}") for name in ("docs", "benchmarks", "containerkit")]

    heading(f"A Python script and a shell pipeline over this project's text, as {who}")
    with ck.Sandbox(mounts=[*INTERPRETER, *folders], limits=ck.Limits(cpu_seconds=20)) as box:
        print("  ck.Sandbox(mounts=[...]).run(['python3', '-'], input=script)\n")
        show(box.run([PYTHON, "-"], input=STATISTICS, timeout=30))
        print("\n  the longer names that the C sources use most: find | xargs cat | tr | grep | sort | uniq -c\n")
        show(box.run(["sh", "-c", PIPELINE], timeout=30))

        heading("The walls, read back from the kernel: box.enforced()")
        for wall, what in box.enforced().items():
            print(f"    {wall:18} {what}"[:100])

        heading("What the programs in there could not do")
        for what, code in ATTEMPTS.items():
            print(f"    {what:34} {attempt(box, code)}")

    heading("A loop without end, and one that forks: ck.run(..., limits=...)")
    for script, limits in (
        ("while :; do :; done", ck.Limits(cpu_seconds=0.2)),
        ("bomb() { bomb | bomb & }; bomb; sleep 60", ck.Limits(pids_max=32)),
    ):
        done = ck.run(["sh", "-c", script], limits=limits, timeout=1)
        print(f"    {script:44} outcome {done.outcome}, after {done.usage.wall_seconds:.1f} s")

    heading("Where the time of a start goes, the quickest of ten: print(ck.run(['true']).timeline)")
    timelines = [ck.run(["true"]).timeline for _ in range(10)]
    print(min(timelines, key=lambda timeline: timeline.start_ns))


if __name__ == "__main__":
    main()
