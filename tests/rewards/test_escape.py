"""Nothing of a program gets out of its worker, no process outlives its pool: attacks, with and without namespaces."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lifecycle.errors import UserError
from lifecycle.rewards.pool import worker_process
from lifecycle.rewards.pool.pool import GradingPool
from lifecycle.rewards.pool.task import Outcome, Task
from lifecycle.rewards.record import Answered
from lifecycle.rewards.sandbox.limits import SandboxLimits

LIMITS = SandboxLimits(cpu_s=1, wall_s=20, memory_mb=512, file_mb=2)
TEST = {"tests": ["assert f() == 'out'"]}
TRY = (
    "def f():\n    try:\n        {}\n    except (OSError, RuntimeError, MemoryError):\n        return 'no'\n"
    "    return 'out'"
)


@pytest.fixture(scope="module", params=[True, False], ids=["namespaces", "bare"])
def pool(request: pytest.FixtureRequest) -> Iterator[GradingPool]:
    with GradingPool(graders=["code", "number", "math"], workers=2, limits=LIMITS, namespaces=request.param) as made:
        yield made


def marked(pool: GradingPool, *programs: str, test: dict[str, list[str]] = TEST) -> list[Outcome]:
    return pool.map([Task(grader="code", completion=one, record=Answered(meta=test)) for one in programs])


def got_out(pool: GradingPool, *statements: str) -> list[str]:
    """Statements of which the program says that they were done."""
    found = marked(pool, *(TRY.format(one) for one in statements))
    return [one for one, outcome in zip(statements, found, strict=True) if outcome.mark != 0]


def needs(pool: GradingPool, *layers: str) -> None:
    if not {*layers} & {*pool.layers}:
        pytest.skip(f"this kernel has none of {layers}: {pool.layers}")


def descendants(pid: int) -> set[int]:
    """Processes below one, as /proc tells."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        parents[int(path.parent.name)] = int(fields[1])
    found, new = set[int](), {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found


def alive(pids: set[int]) -> set[int]:
    """Those that still run: neither gone nor only waiting to be counted."""
    found = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "ZX":
            found.add(pid)
    return found


def all_gone(pids: set[int], within_s: float = 5.0) -> bool:
    until = time.monotonic() + within_s
    while alive(pids) and time.monotonic() < until:
        time.sleep(0.01)
    return not alive(pids)


def test_a_program_that_may_do_all_it_needs_gets_its_mark(pool: GradingPool) -> None:
    assert (
        got_out(pool, "open('own', 'w').write('x'); assert open('own').read() == 'x'", "import decimal, sqlite3") != []
    )
    assert marked(pool, "def f(): return 'out'")[0].mark == 1


def test_no_process_is_started(pool: GradingPool) -> None:
    needs(pool, "calls")
    statements = [
        "import os; os.fork()",
        "import subprocess; subprocess.run(['/bin/true'])",
        "import os; os.system('true') and 1/0",
    ]
    statements += [
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.setsid()",
        "import os; os.posix_spawn('/bin/true', ['x'], {})",
    ]
    assert [one for one in got_out(pool, *statements) if "system" not in one] == []
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: break\ndef f(): return 'out'"
    before = {*pool.pids}
    assert marked(pool, bomb)[0].mark == 1  # it was refused, and goes on
    assert max(len(descendants(pid)) for pid in before) < 10


def test_no_network_not_even_to_this_machine(pool: GradingPool) -> None:
    needs(pool, "calls", "network")
    kinds = ("AF_INET", "AF_INET6", "AF_UNIX")
    assert got_out(pool, *(f"import socket; socket.socket(socket.{kind})" for kind in kinds)) == []


def test_no_signal_reaches_another_process(pool: GradingPool) -> None:
    needs(pool, "calls")
    numbers = (os.getpid(), os.getppid(), 1, 2, 0, -1)
    statements = [f"import os; os.kill({pid}, 9)" for pid in numbers]
    statements += ["import os; os.kill(os.getppid(), 9)", "import os; os.killpg(os.getpgid(0), 9)"]
    before = pool.pids
    assert got_out(pool, *statements) == []
    assert pool.pids == before


def test_files_outside_are_neither_read_nor_changed(pool: GradingPool, tmp_path: Path) -> None:
    needs(pool, "files", "landlock")
    kept = tmp_path / "kept"
    kept.write_text("secret")
    tmp_path.chmod(0o777)
    kept.chmod(0o666)
    here = repr(str(kept))
    statements = [
        f"open({here}).read()",
        f"open({here}, 'w')",
        f"import os; os.remove({here})",
        f"import os; os.rename({here}, 'x')",
    ]
    statements += [
        f"import os; os.symlink({here}, 'x'); open('x').read()",
        f"import os; os.link({here}, 'y'); open('y').read()",
    ]
    statements += [
        f"import shutil; shutil.rmtree({str(tmp_path)!r})",
        "open('/etc/passwd').read()",
        f"import os; os.mkdir({here} + 'x')",
    ]
    statements += [f"open('/proc/{os.getpid()}/environ').read()", f"open('/proc/{os.getpid()}/fd/1', 'w').write('x')"]
    statements += [
        "open('/proc/1/environ').read()",
        "open('/dev/sda')",
        "open('/dev/mem')",
        "import os; os.listdir('/root')",
    ]
    statements += [f"open({__file__!r}).read()", f"import os; os.chmod({here}, 0o777)", f"import os; os.utime({here})"]
    assert got_out(pool, *statements) == []
    assert kept.read_text() == "secret" and [one.name for one in tmp_path.iterdir()] == ["kept"]


def test_nothing_of_the_environment_and_no_open_file_gets_in(
    pool: GradingPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    read, write = os.pipe()
    os.set_inheritable(write, True)
    with GradingPool(graders=["code"], workers=1, limits=LIMITS) as own:
        told = "import os\ndef f(): return sorted(os.environ)"
        names = ["HOME", "PYTHONHASHSEED", "TMPDIR"]
        allowed = {f"assert set(f()) <= {{*{names}, 'LC_CTYPE'}}"}
        assert marked(own, told, test={"tests": [*allowed]})[0].mark == 1
        files = (
            "import os\ndef f():\n    n = 0\n    for fd in range(64):\n        try: os.fstat(fd); n += 1\n"
            "        except OSError: pass\n    return n"
        )
        assert marked(own, files, test={"tests": ["assert f() == 4"]})[0].mark == 1  # standard files and its own socket
        stdin = "import sys\ndef f(): return sys.stdin.read()"
        assert marked(own, stdin, test={"tests": ["assert f() == ''"]})[0].mark == 1
    os.close(read)
    os.close(write)


def test_memory_files_and_output_have_a_limit(pool: GradingPool) -> None:
    statements = [
        "x = bytearray(10 * 2**30)",
        "open('big', 'wb').write(bytes(8 * 2**20))",
        "[open('a', 'w') for _ in range(100)] * (1 / 1 > 2)",
    ]
    assert got_out(pool, *statements[:2]) == []
    many = (
        "def f():\n    held = []\n    try:\n        while True: held.append(open('a', 'w'))\n"
        "    except OSError: return len(held) < 64"
    )
    assert marked(pool, many, test={"tests": ["assert f() is True"]})[0].mark == 1
    assert marked(pool, "import sys\nfor n in range(100): print('x' * 10**6)\ndef f(): return 'out'")[0].mark == 1


def test_what_a_program_leaves_is_gone_before_the_next(pool: GradingPool) -> None:
    leave = "import os\nos.makedirs('a/b')\nopen('a/b/c', 'w').write('x')\nos.mkdir('a/b/z', 0)\nos.symlink('/', 'l')\n"
    deep = "for n in range(300):\n    os.mkdir('d'); os.chdir('d')\ndef f(): return 'out'"
    assert [one.mark for one in marked(pool, *[leave + deep] * 4)] == [1] * 4
    look = "import os\nhere = os.listdir(os.environ['HOME'])\ndef f(): return here"
    assert [one.mark for one in marked(pool, *[look] * 4, test={"tests": ["assert f() == []"]})] == [1] * 4


def test_threads_have_a_limit_and_end_with_the_program(pool: GradingPool) -> None:
    many = (
        "import threading, time\ndef f():\n    try:\n        for n in range(1000):\n"
        "            threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "    except RuntimeError: return 'no'\n    return 'out'"
    )
    assert marked(pool, many)[0].mark == 0
    assert marked(pool, "def f(): return 'out'")[0].mark == 1


def test_a_program_that_waits_is_killed_with_its_worker_and_replaced() -> None:
    limits = SandboxLimits(cpu_s=1, wall_s=0.5, memory_mb=512, file_mb=2)
    with GradingPool(graders=["code"], workers=1, limits=limits) as pool:
        assert marked(pool, "def f(): return 'out'")[0].mark == 1
        below = {*pool.pids}.union(*map(descendants, pool.pids))
        assert marked(pool, "import time\ntime.sleep(60)")[0].state == "timed_out"
        assert all_gone(below)
        assert marked(pool, "def f(): return 'out'")[0].mark == 1


def test_a_grader_of_texts_that_takes_too_long_is_killed(pool: GradingPool) -> None:
    pytest.importorskip("math_verify")
    slow = Task(grader="math", completion=r"\boxed{9^{9^{9^{9}}}}", record=Answered(answer="7"))
    quick = Task(grader="number", completion="#### 3", record=Answered(answer="3"))
    assert [one.state for one in pool.map([slow, quick, quick])] == ["timed_out", "marked", "marked"]


def test_no_worker_stays_after_the_pool_is_closed_or_forgotten() -> None:
    pool = GradingPool(graders=["code"], workers=2, limits=LIMITS)
    marked(pool, *["def f(): return 'out'"] * 2)
    below = {*pool.pids}.union(*map(descendants, pool.pids))
    assert len(below) > len(pool.pids)  # one worker may have run both while the other still started
    pool.close()
    pool.close()
    assert all_gone(below)


def test_no_worker_stays_after_its_pool_is_killed() -> None:
    code = (
        "import sys; from tests.rewards.test_escape import GradingPool, LIMITS, marked\n"
        "pool = GradingPool(graders=['code'], workers=2, limits=LIMITS, namespaces=bool(int(sys.argv[1])))\n"
        "marked(pool, *['def f(): return 1'] * 2); print(*pool.pids, flush=True)\n"
        "marked(pool, *['import time\\ntime.sleep(60)'] * 2)"
    )
    for namespaces in ("1", "0"):
        path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        with subprocess.Popen(
            [sys.executable, "-c", code, namespaces], stdout=subprocess.PIPE, text=True, env=path
        ) as process:
            assert process.stdout is not None
            first = {*map(int, process.stdout.readline().split())}
            below, end = first, time.monotonic() + 20
            while len(below) < 8 and time.monotonic() < end:  # until both programs sleep
                time.sleep(0.05)
                below = first.union(*map(descendants, first))
            process.send_signal(signal.SIGKILL)
        assert len(below) >= 8 and all_gone(below)


def test_a_pool_may_be_begun_in_a_thread_that_ends() -> None:
    made = list[GradingPool]()

    def begin() -> None:
        made.append(GradingPool(graders=["code"], workers=1, limits=LIMITS))
        marked(made[0], "def f(): return 'out'")

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    before = made[0].pids
    time.sleep(0.1)
    assert marked(made[0], "def f(): return 'out'")[0].mark == 1 and made[0].pids == before
    made[0].close()


def test_a_worker_that_cannot_start_is_told_with_what_it_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "CODE", "raise SystemExit('no such thing')")
    with (
        GradingPool(graders=["code"], workers=1, limits=LIMITS) as pool,
        pytest.raises(UserError, match="ended at its start .*memory_mb=512.*no such thing"),
    ):
        marked(pool, "def f(): return 'out'")
