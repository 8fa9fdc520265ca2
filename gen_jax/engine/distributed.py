"""Several processes, one run: finding each other, joining through jax.distributed, and ending together.

Addresses come from the command line, or from what started the processes: SLURM, Open MPI and Cloud TPU are known to
`jax.distributed.initialize` itself; the ranks of other MPI launchers are read here. Before JAX connects (it aborts the
process when that fails) the processes meet once on the coordinator's port, so that a process that is missing, or was
started with other numbers, is named.
"""

import contextlib
import ctypes
import itertools
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from gen_jax.engine.watchdog import EXIT_HANG, Board, Watchdog, exit_code_of

__all__ = ['Address', 'Job', 'JoinError', 'find_address', 'join', 'meet', 'cpu_share', 'check_shared_folder']

HEARTBEAT_SECONDS = 100
"""When jax.distributed, too, gives a silent process up; our own message comes first (see `join`)."""

RANKS = (('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'Open MPI'), ('PMI_RANK', 'PMI_SIZE', 'MPICH or Intel MPI'),
         ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM'))


class JoinError(RuntimeError):
    """Processes that did not find each other; says which and what to check."""

    exit_code = 2


class Address(NamedTuple):
    """How to join. All None: jax.distributed finds out by itself."""

    coordinator: str | None
    process_id: int | None
    process_count: int | None
    source: str
    """Who said so, for messages."""


class Job(NamedTuple):
    """This process's part in a run."""

    process_id: int
    process_count: int
    here: int
    """How many of the processes run on this machine."""
    dog: Watchdog


def find_address(coordinator: str | None = None, process_id: int | None = None, process_count: int | None = None,
                 environ: Mapping[str, str] = os.environ) -> Address:
    """Explicit values first, then what an MPI or SLURM launcher says about this process, then JAX's own detection.

    Raises:
        ValueError: values that are half given, or make no sense.
    """
    explicit = {'--coordinator': coordinator, '--process-id': process_id, '--process-count': process_count}
    given = [k for k, v in explicit.items() if v is not None]
    coordinator = coordinator or environ.get('JAX_COORDINATOR_ADDRESS')
    source = 'the command line' if given else 'JAX_COORDINATOR_ADDRESS'
    launcher = next((r for r in RANKS if r[0] in environ and r[1] in environ), None)
    if process_id is None and process_count is None and launcher and (coordinator or not _detects(environ)):
        try:
            process_id, process_count = int(environ[launcher[0]]), int(environ[launcher[1]])
        except ValueError:
            raise ValueError(f'{launcher[0]}={environ[launcher[0]]!r} and {launcher[1]}={environ[launcher[1]]!r}: '
                             'expected whole numbers') from None
        source = f'the environment of {launcher[2]}'
        if not coordinator:
            raise ValueError(f'{source} says that this is process {process_id} of {process_count}, but not where '
                             'process 0 is: add --coordinator HOST:PORT, with the host of rank 0 and any free port')
    elif not given and not coordinator:
        return Address(None, None, None, 'the environment')
    values = {'--coordinator': coordinator, '--process-id': process_id, '--process-count': process_count}
    missing = [k for k, v in values.items() if v is None]
    if missing:
        raise ValueError(f'{" and ".join(given) or source} without {" and ".join(missing)}: give all three, or none to '
                         'take them from SLURM, MPI or a TPU pod')
    found = re.fullmatch(r'(?:[\w.-]+|\[[\w:.%]+\]):([0-9]{1,5})', coordinator)  # IPv6 in brackets
    if not found or not 0 < int(found.group(1)) < 65536:
        raise ValueError(f'--coordinator {coordinator!r}: expected HOST:PORT, for instance 10.0.0.1:8476 or '
                         '[fd00::1]:8476')
    if process_count < 1 or not 0 <= process_id < process_count:
        raise ValueError(f'--process-id {process_id} --process-count {process_count} (from {source}): ids go from 0 to '
                         'the count minus 1')
    return Address(coordinator, process_id, process_count, source)


def _detects(environ: Mapping[str, str]) -> bool:
    """Whether jax.distributed finds the coordinator of this launcher by itself."""
    return 'OMPI_MCA_orte_hnp_uri' in environ or {'SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_LOCALID'} <= {*environ}


def meet(address: Address, timeout: float) -> None:
    """All processes meet on the coordinator's port, which is free again afterwards.

    Raises:
        JoinError: in every process that can be reached, with one reason: a process that did not come, two with the
            same id, another process count, a port that is taken, a coordinator that does not answer.
    """
    host, _, port = address.coordinator.rpartition(':')
    host, end = host.strip('[]'), time.monotonic() + timeout
    if address.process_id:
        _report_in(host, int(port), address, end, timeout)
        return
    try:
        server = socket.create_server(('', int(port)), family=socket.AF_INET6 if ':' in host else socket.AF_INET,
                                      backlog=128)
    except OSError as e:
        raise JoinError(f'process 0 cannot open port {port} ({e.strerror}): is another run using it? Choose another '
                        'port in --coordinator') from None
    arrived: dict[int, socket.socket] = {}
    reason = ''
    with server, contextlib.ExitStack() as stack:
        while not reason and len(arrived) < address.process_count - 1:
            server.settimeout(max(end - time.monotonic(), 0.01))
            try:
                connection = stack.enter_context(server.accept()[0])
            except TimeoutError:
                missing = [str(k) for k in range(1, address.process_count) if k not in arrived]
                reason = (f'process {", ".join(missing)} of {address.process_count} did not come to '
                          f'{address.coordinator} within {timeout:g} s')
                break
            try:
                connection.settimeout(10)
                other = json.loads(connection.makefile().readline())
                k, count = int(other['process_id']), int(other['process_count'])
            except (OSError, ValueError, TypeError, KeyError):
                continue  # a port scanner, or a process that gave up
            if count != address.process_count:
                reason = (f'process {k} was started with --process-count {count}, process 0 with '
                          f'{address.process_count}: all need the same')
            elif k in arrived or not 0 < k < count:
                reason = f'two processes were started with --process-id {k}: each needs its own, from 0 to {count - 1}'
            arrived[k if k not in arrived else -1] = connection
        for connection in arrived.values():
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps({'error': reason}).encode() + b'\n')
    if reason:
        raise JoinError(reason)


def _report_in(host: str, port: int, address: Address, end: float, timeout: float) -> None:
    error = None
    while (left := end - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=min(left, 10)) as connection:
                connection.sendall(json.dumps(address._asdict()).encode() + b'\n')
                connection.settimeout(max(end - time.monotonic(), 0) + 10)
                answer = json.loads(connection.makefile().readline())
            if answer['error']:
                raise JoinError(answer['error'])
            return
        except (OSError, ValueError, TypeError, KeyError) as e:
            error = e
            time.sleep(min(0.2, max(left, 0)))
    raise JoinError(f'process {address.process_id} cannot reach the coordinator {address.coordinator} within '
                    f'{timeout:g} s ({error}): is process 0 running, is that its address, is the port open?')


@contextlib.contextmanager
def join(address: Address, timeout: float = 300.0) -> Iterator[Job]:
    """Joins the other processes for the duration of the block; must come before JAX starts its backend.

    An exception in the block ends the other processes too, with its exit code, and this process leaves without waiting
    for them once the interpreter is done with the message.

    Args:
        timeout: seconds in which all processes must have come.

    Raises:
        JoinError, ValueError: nobody to join, or not all came.
    """
    import jax

    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    # Its handler of SIGTERM would replace ours; the loop agrees on stops by itself.
    jax.config.update('jax_enable_preemption_service', False)
    if address.coordinator:
        meet(address, timeout)
    state = {'joined': False, 'dog': None, 'address': address.coordinator}
    _catch_abort(state, timeout)
    explicit = {} if not address.coordinator else {
        'coordinator_address': address.coordinator, 'num_processes': address.process_count,
        'process_id': address.process_id}
    try:
        jax.distributed.initialize(**explicit, initialization_timeout=int(max(timeout, 1)),
                                   heartbeat_timeout_seconds=HEARTBEAT_SECONDS, shutdown_timeout_seconds=60)
    except ValueError as e:
        if address.coordinator or 'should be defined' not in str(e) and 'must be defined' not in str(e):
            raise
        raise ValueError('--distributed: no SLURM step, MPI launcher or TPU pod was found in the environment: give '
                         '--coordinator HOST:PORT --process-id K --process-count N to each process') from None
    client, process, count, state['address'] = _runtime()
    dog = Watchdog(process, count, _board(client) if count > 1 else None)
    state.update(joined=True, dog=dog)
    here = _neighbours(client, process, count, timeout)
    if count > 1:
        dog.start()
    try:
        with dog.failing():
            yield Job(process, count, here, dog)
        dog.beat(dog._step, 'finished')
    except BaseException as error:
        if count > 1:
            _leave_without_waiting(exit_code_of(error))
        raise
    dog.stop()
    jax.distributed.shutdown()


def _runtime():
    """(client, process id, process count, coordinator) of jax.distributed, without starting the backend.

    The key-value store has no public name; Orbax takes it from the same place.
    """
    from jax._src.distributed import global_state
    return global_state.client, global_state.process_id, global_state.num_processes, global_state.coordinator_address


def _board(client) -> Board:
    folder = 'gen_jax/watchdog/'
    return Board(lambda process, text: client.key_value_set(f'{folder}{process}', text, allow_overwrite=True),
                 lambda: {int(k.rpartition('/')[2]): v for k, v in client.key_value_dir_get(folder)})


def _neighbours(client, process: int, count: int, timeout: float) -> int:
    """How many of the processes run on this machine."""
    if count == 1:
        return 1
    client.key_value_set(f'gen_jax/host/{process}', socket.gethostname())
    hosts = [client.blocking_key_value_get(f'gen_jax/host/{k}', int(timeout * 1000)) for k in range(count)]
    return hosts.count(socket.gethostname())


def cpu_share(cores: int, job: Job) -> int:
    """Cores for each process: the same number in all of them, as one mesh needs; the least of all machines."""
    if job.process_count == 1:
        return cores
    client = _runtime()[0]
    client.key_value_set(f'gen_jax/cores/{job.process_id}', str(max(cores // job.here, 1)))
    return min(int(client.blocking_key_value_get(f'gen_jax/cores/{k}', 60_000)) for k in range(job.process_count))


_checks = itertools.count()  # all processes make the same calls, so they agree on the number


def check_shared_folder(folder) -> None:
    """All processes must see the same workdir: each writes its part of a checkpoint there.

    Raises:
        ValueError: in a process that does not see what process 0 wrote there.
    """
    client, process, count, _ = _runtime()
    if client is None or count == 1:
        return
    mark, key = folder / '.shared', f'gen_jax/shared/{next(_checks)}'
    if process == 0:
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(str(time.time_ns()))
        client.key_value_set(key, mark.read_text())
    text = client.blocking_key_value_get(key, 600_000)
    end = time.monotonic() + 30  # network file systems may show a new file late
    while not (seen := mark.exists() and mark.read_text() == text) and time.monotonic() < end:
        time.sleep(0.2)
    if not seen:
        raise ValueError(f'process {process} does not see in {folder} what process 0 wrote there: --workdir must be '
                         'on a file system that all machines share')
    client.wait_at_barrier(key, 60_000)
    if process == 0:
        mark.unlink(missing_ok=True)


# ---------------------------------------------------------------- ending


def _leave_without_waiting(code: int) -> None:
    """When the interpreter exits: now, before JAX's own handler, which would wait for the others to shut down."""
    import atexit

    def end():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    atexit.register(end)


_KEEP = []  # the handler must outlive everything


def _catch_abort(state: dict, timeout: float) -> None:
    """jax.distributed aborts the process, from a thread of its own, when the coordinator is gone: say so, and how.

    A handler of Python's would only run in the main thread, when it is too late; this one runs where abort() is called.
    """
    def handler(number):
        del number
        dog = state['dog']
        if not state['joined']:
            os.write(2, f'gen-jax train: the processes did not all come together within {timeout:g} s (see above)\n'
                     .encode())
            os._exit(2)
        soon = dog.missed if dog else 0.0
        if dog is not None and dog.process and threading.current_thread() is not threading.main_thread():
            host, _, port = (state['address'] or ':0').rpartition(':')
            try:
                socket.create_connection((host.strip('[]'), int(port)), timeout=2).close()
            except OSError:
                dog.finish(EXIT_HANG, f'process 0, which coordinates the others at {state["address"]}, is gone', soon)
        if dog is not None and dog.silent(soon):
            dog.finish(EXIT_HANG, 'jax.distributed gave up', soon)
        libc.signal(6, None)  # an abort of its own: as it would have been
        libc.abort()

    libc = ctypes.CDLL(None)
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    function = kind(handler)
    _KEEP.append(function)
    libc.signal(6, ctypes.cast(function, ctypes.c_void_p))
