"""Programs that people use, under the whole wall: ``Security.strict()``, and ``service()`` where it says so.

``make realworld``. What they need beyond the machine's own programs is downloaded once (see conftest.py); without it, a
test is skipped and says why.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest
from realworld.conftest import needs

import containerkit as ck

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

ROOMY = ck.Limits(output_max="1M")


def strict(args: list[str], **options: Any) -> str:
    """Its output, which is all that it says: a warning on standard error is a wall that was in its way."""
    done = ck.run(args, timeout=600, limits=ROOMY, **options)
    assert (done.returncode, done.stderr) == (0, ""), f"{done.outcome}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


# ---- interpreters ----------------------------------------------------------------------------------------------------

NUMPY = """
import numpy
a = numpy.random.default_rng(1).random((400, 400))
assert numpy.allclose(a @ numpy.linalg.inv(a), numpy.eye(400))
numpy.linalg.eigvals(a), numpy.fft.fft2(a)
file = numpy.memmap("m", dtype="f8", mode="w+", shape=(1000, 1000))
file[:] = 1
file.flush()
print(int(numpy.memmap("m", dtype="f8", shape=(1000, 1000)).sum()), numpy.show_config.__name__)
"""


def test_python_with_numpy(packages: Path) -> None:
    output = strict(
        ["python3", "-W", "error", "-c", NUMPY],
        mounts=[ck.Bind(packages / "site", "/packages", read_only=True)],
        env={"PYTHONPATH": "/packages"},
    )
    assert output == "1000000 show_config\n"


PYTHON = """
import concurrent.futures, ctypes, http.server, multiprocessing, multiprocessing.shared_memory, signal, sqlite3, ssl
import subprocess, threading, urllib.request
if __name__ == "__main__":
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(abs, [-1, -2])) == [1, 2]
    memory = multiprocessing.shared_memory.SharedMemory(create=True, size=4096)
    memory.close(); memory.unlink()
    database = sqlite3.connect("d"); database.execute("pragma journal_mode=wal"); database.execute("create table t (x)")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    server.RequestHandlerClass.log_message = lambda *_: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    assert urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/").read()
    server.shutdown()
    signal.signal(signal.SIGALRM, lambda *_: None); signal.setitimer(signal.ITIMER_REAL, 0.3); signal.pause()
    assert subprocess.run("echo $((6 * 7)) | cat", shell=True, capture_output=True, text=True).stdout == "42\\n"
    print("all of it")
"""


@pytest.mark.both
def test_pythons_standard_library() -> None:
    # From a file: who spawns processes imports it again.
    assert strict(["sh", "-c", "cat >p.py && python3 p.py"], input=PYTHON) == "all of it\n"


def test_the_tests_of_a_python_package(packages: Path) -> None:
    output = strict(
        [
            "python3",
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "tests/test_recipes.py",
            "-k",
            "not Prime and not Factor",
        ],
        mounts=[
            ck.Bind(packages / "site", "/packages", read_only=True),
            ck.Bind(packages / "source", "/source", read_only=True),
        ],
        env={"PYTHONPATH": "/packages:/source", "PYTHONDONTWRITEBYTECODE": "1"},
        cwd="/source",
    )
    assert " passed" in output
    assert "failed" not in output


@pytest.mark.both
def test_a_virtual_environment() -> None:
    needs("python3")
    script = "python3 -m venv v && v/bin/python -c 'import sys; print(sys.prefix != sys.base_prefix)'"
    assert strict(["sh", "-c", script]) == "True\n"


NODE = """
const { Worker } = require('worker_threads'), fs = require('fs'), http = require('http'), zlib = require('zlib');
const { execSync, fork } = require('child_process'), crypto = require('crypto'), assert = require('assert');
(async () => {
    await Promise.all([1, 2, 3].map(() => new Promise(done => new Worker('1 + 1', { eval: true }).on('exit', done))));
    const wasm = new WebAssembly.Module(Uint8Array.from([0, 97, 115, 109, 1, 0, 0, 0]));
    assert(new WebAssembly.Instance(wasm));
    await fs.promises.writeFile('f', zlib.gzipSync('x'.repeat(1e6)));
    const watcher = fs.watch('.');
    await new Promise(done => { watcher.on('change', done); fs.writeFileSync('g', 'x'); });
    watcher.close();
    await new Promise(done => crypto.scrypt('a', 'b', 32, done));
    const server = http.createServer((_, answer) => answer.end('over http')).listen(0, '127.0.0.1');
    await new Promise(done => server.on('listening', done));
    const answer = await fetch(`http://127.0.0.1:${server.address().port}/`);
    console.log(execSync('echo sub').toString().trim(), await answer.text());
    server.close();
    process.exit(0);
})();
"""


@pytest.mark.both
def test_node() -> None:
    needs("node")
    assert strict(["node", "-e", NODE]) == "sub over http\n"


JAVA = """
import java.net.*; import java.nio.file.*; import java.util.concurrent.*; import java.util.stream.*;
public class T {
    public static void main(String[] a) throws Exception {
        var pool = Executors.newFixedThreadPool(4);
        var squares = pool.invokeAll(IntStream.range(0, 100).mapToObj(n -> (Callable<Integer>) () -> n * n).toList());
        int sum = 0;
        for (var square : squares) sum += square.get();
        pool.shutdown();
        try (var server = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
            new Thread(() -> { try { server.accept().getOutputStream().write(42); } catch (Exception e) { } }).start();
            var client = new Socket(InetAddress.getLoopbackAddress(), server.getLocalPort());
            sum += client.getInputStream().read();
        }
        Files.writeString(Path.of("f"), "text");
        var process = new ProcessBuilder("cat", "f").start();
        System.out.println(sum + " " + new String(process.getInputStream().readAllBytes()));
    }
}
"""


@pytest.mark.both
def test_java() -> None:
    needs("java", "javac")
    script = "cat >T.java && javac T.java && java -cp . T"
    # It asks for the files of its configuration in /etc, where Debian has it.
    mounts = [ck.Bind(path, str(path), read_only=True) for path in Path("/etc").glob("java-*")]
    assert strict(["sh", "-c", script], input=JAVA, mounts=mounts) == f"{sum(n * n for n in range(100)) + 42} text\n"


# ---- compilers and tools ---------------------------------------------------------------------------------------------

BUILD = r"""
set -e
mkdir src && cd src
for n in $(seq 30); do
    printf '#include <math.h>\n#include "all.h"\ndouble f%d(double x) { return sqrt(x) + %d; }\n' $n $n >f$n.c
    echo "double f$n(double);" >>all.h
done
{ echo '#include <stdio.h>'; echo '#include "all.h"'; echo 'int main(void) { double s = 0;'
  for n in $(seq 30); do echo "s += f$n($n);"; done; echo 'printf("%.0f", s); puts(""); }'; } >main.c
cat >Makefile <<'END'
CFLAGS := -O2 -g -pipe -flto
OBJECTS := $(patsubst %.c,%.o,$(filter-out main.c,$(wildcard *.c)))
program: main.o libf.a libg.so
	$(CC) $(CFLAGS) -o $@ main.o -L. -lf -lm
libf.a: $(OBJECTS)
	gcc-ar rcs $@ $^
libg.so: f1.c
	$(CC) $(CFLAGS) -shared -fPIC -o $@ $<
END
make -s -j4
./program
"""


@pytest.mark.both
def test_make_and_gcc_build_a_project() -> None:
    needs("gcc", "make")
    assert strict(["sh", "-c", BUILD]) == "577\n"


MUSL = r"""
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
static void *thread(void *sum) { __atomic_add_fetch((int *)sum, 7, __ATOMIC_SEQ_CST); return 0; }
int main(void)
{
    pthread_t threads[8];
    int sum = 0, pair[2], status;
    char line[9] = "";
    for (int i = 0; i < 8; i++) if (pthread_create(&threads[i], 0, thread, &sum)) return 1;
    for (int i = 0; i < 8; i++) pthread_join(threads[i], 0);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) return 2;
    if (!fork()) _exit(3);
    wait(&status);
    FILE *pipe = popen("echo hello", "r");
    if (!pipe || !fgets(line, sizeof line, pipe) || pclose(pipe)) return 4;
    struct timespec t = {0, 1000};
    if (nanosleep(&t, 0) || !tmpfile()) return 5;
    printf("%d %d %s", sum, WEXITSTATUS(status), line);
    return 0;
}
"""


def test_a_program_of_the_c_library_musl(musl: Path) -> None:
    needs("gcc")
    machine = platform.machine()
    lib, include = f"/musl/usr/lib/{machine}-linux-musl", f"/musl/usr/include/{machine}-linux-musl"
    script = f"""
        cat >t.c
        gcc -static -nostdinc -isystem {include} -nostdlib -o t {lib}/crt[1i].o t.c {lib}/libc.a -lgcc {lib}/crtn.o
        ./t
    """
    output = strict(["sh", "-ec", script], input=MUSL, mounts=[ck.Bind(musl, "/musl", read_only=True)])
    assert output == "56 3 hello\n"


@pytest.mark.both
def test_busybox(busybox_root: Path) -> None:
    script = """
        set -e; cd /tmp
        seq 1000 | sort -rn | head -n 1; tar czf t.gz /bin/busybox 2>/dev/null; gunzip -c t.gz | tar tf -
        mkfifo f; (echo through >f) & cat f; wait
        awk 'BEGIN { print 6 * 7 }'; ps | grep -c busybox || true
        nc -l -p 1234 -e echo over tcp & sleep 1; nc 127.0.0.1 1234 </dev/null
    """
    output = strict(["sh", "-c", script], rootfs=busybox_root)
    assert output.split("\n")[:4] == ["1000", "bin/busybox", "through", "42"]
    assert output.endswith("over tcp\n")


@pytest.mark.both
def test_git() -> None:
    needs("git")
    script = """
        set -e; export GIT_CONFIG_NOSYSTEM=1 GIT_PAGER=cat
        git config --global user.name T; git config --global user.email t@example.org
        git config --global init.defaultBranch main; git config --global protocol.file.allow always
        git init -q one; cd one
        for n in 1 2 3; do echo $n >file; git add file; git commit -qm "change $n"; done
        git checkout -qb other HEAD~1; echo x >new; git add new; git commit -qm "other"; git rebase -q main
        git repack -adq; git gc -q --aggressive; git fsck --no-progress
        cd ..; git clone -q one two; cd two; git fetch -q; git log --format=%s | head -n 2
        git submodule --quiet add ../one sub; git worktree add -q ../three; git grep -c 3 | head -n 1
    """
    assert strict(["sh", "-c", script]) == "other\nchange 3\nfile:1\n"


# ---- services --------------------------------------------------------------------------------------------------------


@pytest.mark.root
def test_apt_installs_a_package_into_an_overlay(debian: Path) -> None:
    """One whose scripts add a group and set group and mode of a program: what chown, setgid and fchmod are for."""
    script = """
        set -e; export DEBIAN_FRONTEND=noninteractive
        apt-get -q update >/dev/null
        apt-get -q -y install --no-install-recommends cron </dev/null >/dev/null
        dpkg --audit; stat -c '%U %G %a' /usr/bin/crontab; getent group crontab >/dev/null && echo added
    """
    before = sorted(path.name for path in (debian / "var/lib/dpkg/info").iterdir())
    done = ck.run(
        ["sh", "-c", script],
        rootfs=ck.OverlayFS(debian, size="1G"),
        network="host",
        security=ck.Security.service(),
        limits=ROOMY,
        timeout=900,
    )
    if "Temporary failure resolving" in done.stderr or "Could not resolve" in done.stderr:
        pytest.skip("no network")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "root crontab 2755\nadded\n"
    assert sorted(path.name for path in (debian / "var/lib/dpkg/info").iterdir()) == before


POSTGRES = """
set -e; export PATH=$1:$PATH
initdb -D /tmp/data -A trust -U me >/tmp/log 2>&1 || { cat /tmp/log >&2; exit 1; }
pg_ctl -D /tmp/data -w -s -l /tmp/log -o '-k /tmp -c listen_addresses=127.0.0.1' start || { cat /tmp/log >&2; exit 1; }
export PGHOST=/tmp PGUSER=me PGDATABASE=postgres
psql -qAt <<'END'
create table t as select n, md5(n::text) as h from generate_series(1, 200000) n;
create index on t (h);
set max_parallel_workers_per_gather = 2; set parallel_setup_cost = 0; set min_parallel_table_scan_size = 0;
select count(distinct h) from t;
vacuum analyze t;
END
PGHOST=127.0.0.1 psql -qAtc "select 'over tcp'"
pg_dump -t t | tail -n +20 | wc -l
pg_ctl -D /tmp/data -w -s -m fast stop
grep -E 'FATAL|PANIC' /tmp/log || true
"""


@pytest.mark.root
def test_postgres() -> None:
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not binaries:
        pytest.skip("postgresql is not installed")
    directory = str(binaries[-1].parent)
    done = ck.run(
        ["sh", "-c", POSTGRES, "sh", directory],
        user="me",
        mounts=[
            ck.File("/etc/passwd", "root:x:0:0::/root:/bin/sh\nme:x:70:70::/tmp:/bin/sh\n"),
            ck.Tmpfs("/tmp", size="1G", mode=0o1777),
        ],
        security=ck.Security.service(),
        limits=ROOMY,
        timeout=600,
        cwd="/tmp",
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    count, tcp, lines, *rest = done.stdout.split("\n")
    assert (count, tcp, rest) == ("200000", "over tcp", [""])
    assert int(lines) > 200000
