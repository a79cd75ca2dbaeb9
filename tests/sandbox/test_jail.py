"""Programs that try to get out, or to do harm; and what happens where the jail has a layer less."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator

import pytest

from repirl.sandbox.jail import confine
from repirl.sandbox.pool import Budget, Job, Sandbox
from repirl.structs import CodeTests
from tests.processes import below
from tests.sandbox.attacks import SETUP, TESTS, attack, says


@pytest.fixture(scope="module", params=[False, None], ids=["alone", "in bubblewrap where it works"])
def sandbox(request) -> Iterator[Sandbox]:
    made = Sandbox(workers=1, bubblewrap=request.param)
    yield made
    made.close()


TRY = """
def attempt(action):
    try:
        found = action()
    except OSError as error:
        return type(error).__name__
    return f'possible: {found!r}'
"""
DENIED = "PermissionError"
FORBIDDEN = {
    "fork": ("os.fork()", DENIED),
    "exec": ("os.execv('/bin/true', ['true'])", DENIED),
    "spawn": ("os.posix_spawn('/bin/true', ['true'], {})", DENIED),
    "subprocess": ("__import__('subprocess').run(['true'])", DENIED),
    "shell": ("os.popen('true').read()", DENIED),
    "internet socket": ("socket.socket(socket.AF_INET)", DENIED),
    "unix socket": ("socket.socket(socket.AF_UNIX)", DENIED),
    "netlink socket": ("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", DENIED),
    "datagram pair": ("socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)", DENIED),
    "signal to the parent": ("os.kill(os.getppid(), 0)", DENIED),
    "signal to everybody": ("os.kill(-1, 0)", DENIED),
    "signal to the group": ("os.killpg(0, 0)", DENIED),
    "signal to process 1": ("os.kill(1, 0)", DENIED),
    "pidfd": ("os.pidfd_open(os.getppid())", DENIED),
    "priority of others": ("os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)", DENIED),
    "affinity of others": ("os.sched_setaffinity(os.getppid(), {0})", DENIED),
    "limits of others": ("resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))", DENIED),
    "list of processes": ("os.listdir('/proc')", DENIED),
    "environment of the parent": ("open(f'/proc/{os.getppid()}/environ').read()", DENIED),
    "passwords": ("open('/etc/passwd').read()", DENIED),
    "home": ("os.listdir(os.path.expanduser('~'))", DENIED),
    "root folder": ("os.listdir('/')", DENIED),
    "shared memory": ("open('/dev/shm/x', 'w')", DENIED),
    "write beside": ("open('/tmp/repirl-escape', 'w')", DENIED),
    "write into the folder above": ("open('../escape', 'w')", DENIED),
    "write into the interpreter": ("open(os.path.join(os.path.dirname(os.__file__), 'escape.py'), 'w')", DENIED),
    "folder beside": ("os.mkdir('/tmp/repirl-escape')", DENIED),
    "folder above": ("os.mkdir('../escape')", DENIED),
    "folder moved out": ("(os.mkdir('m'), os.rename('m', '../escape'))", DENIED),
    "working folder removed": ("os.rmdir(os.getcwd())", DENIED),
    "mode of the folder above": ("os.chmod('..', 0o777)", DENIED),
    "mode by a descriptor": ("os.fchmod(os.open('a', os.O_RDWR | os.O_CREAT), 0o777)", DENIED),
    "times of a file": ("os.utime(os.__file__)", DENIED),
    "attribute of a file": ("os.setxattr(os.__file__, 'user.a', b'1')", DENIED),
    "link out of a folder": ("(os.mkdir('n'), os.symlink('/etc', 'n/etc'))", DENIED),
    "symbolic link": ("os.symlink('/etc/passwd', 'a')", DENIED),
    "hard link": ("os.link('/etc/passwd', 'a')", DENIED),
    "named pipe": ("os.mkfifo('a')", DENIED),
    "nameless file": ("os.open('.', os.O_TMPFILE | os.O_RDWR)", "OSError"),
    "memory file": ("os.memfd_create('a')", DENIED),
    "mode of a file": ("os.chmod(os.__file__, 0o777)", DENIED),
    "owner of a file": ("os.chown(os.__file__, 1, 1)", DENIED),
    "another user": ("os.setuid(1)", DENIED),
    "another root": ("os.chroot('.')", DENIED),
    "owner of signals": ("fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())", DENIED),
    "lease": ("fcntl.fcntl(os.open('a', os.O_RDWR | os.O_CREAT), fcntl.F_SETLEASE, fcntl.F_RDLCK)", DENIED),
    "lock": ("fcntl.flock(os.open(os.__file__, os.O_RDONLY), fcntl.LOCK_EX)", DENIED),
    "terminal input": ("fcntl.ioctl(0, 0x5412, b'x')", DENIED),
    "host name": ("socket.sethostname('x')", DENIED),
}  # fmt: skip

X86_64 = os.uname().machine == "x86_64"
CALLS = {  # numbers of x86-64; those of other machines have not been tried
    "ptrace": 101, "unshare": 272, "mount": 165, "setns": 308, "bpf": 321, "userfaultfd": 323, "io_uring_setup": 425,
    "perf_event_open": 298, "process_vm_readv": 310, "process_vm_writev": 311, "keyctl": 250, "shmget": 29, "msgget": 68,
    "mq_open": 240, "personality": 135, "rt_sigqueueinfo": 129, "pidfd_send_signal": 424, "name_to_handle_at": 303,
    "vfork": 58, "execveat": 322, "connect": 42, "sendmsg": 46, "seccomp": 317, "kcmp": 312, "inotify_init1": 294,
    "memfd_secret": 447, "timer_create": 222, "vmsplice": 278, "quotactl": 179, "reboot": 169, "capset": 126,
}  # fmt: skip
CALLS = CALLS if X86_64 else {}


def test_the_jail_refuses(sandbox):
    actions = ", ".join(f"{name!r}: attempt(lambda: {action})" for name, (action, _) in FORBIDDEN.items())
    program = f"import fcntl, os, resource, socket\n{TRY}\ndef f(): return {{{actions}}}"
    expected = {name: expected for name, (_, expected) in FORBIDDEN.items()}
    sandbox.run(Job("def f(): return 1", CodeTests("asserts", "assert f() == 1"), 1.0))
    if sandbox._pool.slots[0].level.bubblewrap:  # where the file system itself is read-only
        expected["write into the interpreter"] = "OSError"
    says(sandbox, program, expected)
    assert not os.path.exists("/tmp/repirl-escape")


def test_the_filter_refuses_calls_by_number(sandbox):
    program = """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        def f(numbers):
            found = {}
            for name, number in numbers.items():
                ctypes.set_errno(0)
                found[name] = [libc.syscall(number, 0, 0, 0, 0, 0), ctypes.get_errno()]
            return found
    """
    tests = f"numbers = {CALLS!r}\nfound = f(numbers)\nassert found == dict.fromkeys(numbers, [-1, 1]), found"
    found = sandbox.run(Job(textwrap.dedent(program), CodeTests("asserts", tests), 5.0))
    assert (found.status, found.detail) == ("passed", "")


def test_clone_makes_threads_only(sandbox):
    program = """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        def f():
            found = []
            for flags in (17, 0x10000000 | 17, 0x4000 | 17, 0x100 | 17, 0x50f00 | 0x10000000):
                ctypes.set_errno(0)
                found.append((libc.syscall(56, flags, 0, 0, 0, 0), ctypes.get_errno()))
            return found
    """
    if X86_64:
        says(sandbox, program, [(-1, 1)] * 5)


def test_the_other_interface_of_the_kernel_ends_the_process(sandbox):
    x32 = "import ctypes\ndef f(x): return ctypes.CDLL(None).syscall(0x40000000 + 39)"
    found = attack(sandbox, x32)
    assert found.passed is False
    if X86_64:
        assert found.detail == f"ended by signal {int(signal.SIGSYS)}"


def test_no_privilege_is_left_even_to_root(sandbox):
    program = """
        import ctypes, os, resource, struct
        def f():
            libc = ctypes.CDLL(None, use_errno=True)
            limits = [resource.getrlimit(kind) for kind in (resource.RLIMIT_CORE, resource.RLIMIT_NOFILE)]
            raised = []
            for kind in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
                try:
                    resource.setrlimit(kind, (resource.RLIM_INFINITY,) * 2)
                    raised.append(kind)
                except (OSError, ValueError):
                    pass
            return limits, raised
    """
    says(sandbox, program, ([(0, 0), (confine.OPEN_FILES,) * 2], []))


def test_descriptors_of_the_server_are_not_there(sandbox):
    program = """
        import os
        def f():
            found = []
            for number in range(4096):
                try: os.fstat(number)
                except OSError: continue
                found.append(number)
            return found
    """
    says(sandbox, program, [0, 1, 2, 3, 4, 5])


def test_a_program_cannot_outlive_its_job(sandbox):
    sandbox.run(Job("def f(): return 1", CodeTests("asserts", "assert f() == 1"), 1.0))
    servers = below(sandbox.pids)
    program = """
        import signal, threading, time
        for number in range(1, 65):
            try: signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError): pass
        def spin():
            while True: time.sleep(0.001)
        for _ in range(5): threading.Thread(target=spin).start()
        def f(): return 1
    """
    started = time.monotonic()
    says(sandbox, program, 1)
    assert time.monotonic() - started < 60  # far below the wall limit of the job's own threads, which never end
    assert below(sandbox.pids) == servers


def test_ignoring_the_time_signal_does_not_help(sandbox):
    program = (
        "import signal\nfor n in (signal.SIGXCPU, signal.SIGPROF, signal.SIGALRM): signal.signal(n, signal.SIG_IGN)\n"
        "while True: pass"
    )
    assert attack(sandbox, program, timeout_s=0.3).status == "timeout"


@pytest.mark.parametrize(
    "bomb",
    [
        "import threading\ndef go():\n    while True:\n        threading.Thread(target=go).start()\ngo()",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "import os\nwhile True: os.pipe()",
        "x = []\nwhile True: x.append(bytes(1 << 20))",
        "import mmap\nx = [mmap.mmap(-1, 1 << 28) for _ in range(100)]",
        "import sys\nwhile True: sys.stdout.write('x' * 10000); sys.stderr.write('x' * 10000)",
        "i = 0\nwhile True:\n    open(str(i), 'w').close()\n    i += 1",
        "import os\ni = 0\nwhile True:\n    os.mkdir(str(i))\n    i += 1",
        "import os\nwhile True:\n    os.mkdir('d')\n    os.chdir('d')",
        "import os\nwhile True:\n    os.mkdir('d' * 250)\n    os.chdir('d' * 250)\n    open('a', 'wb').write(bytes(1 << 20))",
        "import os\nfor i in range(500):\n    os.mkdir('d')\n    os.chdir('d')\nwhile True: open('a', 'a').write('x' * 4096)",
    ],
)
def test_a_bomb_is_wrong_and_the_next_job_is_unhurt(sandbox, bomb):
    assert attack(sandbox, bomb, timeout_s=0.5).passed is False
    assert attack(sandbox, "def f(x): return x * x").passed is True


def test_writing_through_a_nameless_file_counts():
    small = Sandbox(workers=1, budget=Budget(disk_mib=2))
    program = """
        import os, time
        files = []
        for i in range(8):
            files.append(open('a', 'wb'))
            os.unlink('a')
            files[-1].write(bytes(1 << 20))
            files[-1].flush()
        time.sleep(5)
    """
    assert attack(small, program).status == "disk_limit"
    small.close()


# Where layers are missing ------------------------------------------------------------------------------------------


def test_without_landlock_or_seccomp_it_refuses(monkeypatch, caplog):
    """A server whose kernel calls fail, in a real process: a wrapper around the interpreter takes the numbers away."""
    from repirl.sandbox import slot

    broken = slot._IMPORT.replace(
        "from repirl.sandbox.jail.server import main",
        "from repirl.sandbox.jail import landlock, syscalls\nlandlock._CREATE = 9999\nsyscalls.ARCHITECTURES.clear()\n"
        "from repirl.sandbox.jail.server import main",
    )
    monkeypatch.setattr(slot, "_IMPORT", broken)
    job = Job("def f(x): return x * x", CodeTests("asserts", TESTS, (), SETUP), 1.0)
    strict = Sandbox(workers=1, bubblewrap=False)
    with pytest.raises(RuntimeError, match=r"no Landlock.*seccomp.*allow_weaker"):
        strict.run(job)
    assert strict.pids == []
    weaker = Sandbox(workers=1, allow_weaker=True, bubblewrap=False)
    assert weaker.run(job).passed is True
    assert "confinement is incomplete" in caplog.text
    escape = "import os\npid = os.fork()\nif pid == 0:\n    os.setsid()\n    while True: pass\ndef f(x): return x * x"
    assert weaker.run(Job(escape, job.tests, 1.0)).passed is True  # nothing forbids it, but nothing is left either
    for pid in weaker.pids:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            assert file.read() == ""
    weaker.close()


def test_the_probe_notices_an_open_jail():
    """Without any layer all of it is possible; so `breaches` can see what it looks for."""
    code = "from repirl.sandbox.jail.confine import breaches; print(breaches(files=True, calls=True))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip().splitlines()[-1] == "['files', 'sockets', 'signals', 'fork']"
