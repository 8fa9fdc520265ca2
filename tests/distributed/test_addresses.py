"""Who is where: from the command line, from launchers, and what is refused."""

import json
import socket
import threading
import time

import pytest

from gen_jax.cli import train as cli
from gen_jax.engine.distributed import Address, JoinError, find_address, meet

SLURM = {'SLURM_JOB_ID': '7', 'SLURM_STEP_NODELIST': 'node[1-2]', 'SLURM_LOCALID': '0', 'SLURM_PROCID': '3',
         'SLURM_NTASKS': '4'}
OPEN_MPI = {'OMPI_COMM_WORLD_RANK': '1', 'OMPI_COMM_WORLD_SIZE': '2'}


@pytest.mark.parametrize('arguments, environ, expected', [
    (('a:1', 0, 2), {}, ('a:1', 0, 2)),
    (('a:1', 0, 2), SLURM, ('a:1', 0, 2)),  # what is said outright counts more
    (('[::1]:8476', 1, 2), {}, ('[::1]:8476', 1, 2)),
    ((None, None, None), {}, (None, None, None)),  # JAX looks, for a TPU pod for instance
    ((None, None, None), SLURM, (None, None, None)),  # JAX knows SLURM
    ((None, None, None), {**OPEN_MPI, 'OMPI_MCA_orte_hnp_uri': '1.0;tcp://10.0.0.1:1'}, (None, None, None)),
    (('a:1', None, None), SLURM, ('a:1', 3, 4)),
    (('a:1', None, None), OPEN_MPI, ('a:1', 1, 2)),
    (('a:1', None, None), {'PMI_RANK': '1', 'PMI_SIZE': '3'}, ('a:1', 1, 3)),
    ((None, None, None), {**OPEN_MPI, 'JAX_COORDINATOR_ADDRESS': 'b:2'}, ('b:2', 1, 2)),
])
def test_where_addresses_come_from(arguments, environ, expected):
    assert find_address(*arguments, environ=environ)[:3] == expected


@pytest.mark.parametrize('arguments, environ, message', [
    (('a:1', None, None), {}, '--coordinator without --process-id and --process-count: give all three'),
    (('a:1', 0, None), SLURM, 'without --process-count'),
    ((None, 0, 2), {}, '--process-id and --process-count without --coordinator'),
    ((None, None, None), {'JAX_COORDINATOR_ADDRESS': 'a:1'}, 'JAX_COORDINATOR_ADDRESS without --process-id'),
    ((None, None, None), OPEN_MPI, 'Open MPI says that this is process 1 of 2, but not where'),
    (('a:1', None, None), {'PMI_RANK': 'x', 'PMI_SIZE': '3'}, "PMI_RANK='x'"),
    (('a', 0, 2), {}, "--coordinator 'a': expected HOST:PORT"),
    (('a:http', 0, 2), {}, 'expected HOST:PORT'),
    (('a:70000', 0, 2), {}, 'expected HOST:PORT'),
    (('http://a:80', 0, 2), {}, 'expected HOST:PORT'),
    (('::1:80', 0, 2), {}, 'or [fd00::1]:8476'),
    (('a:1', 2, 2), {}, '--process-id 2 --process-count 2'),
    (('a:1', -1, 2), {}, '--process-id -1'),
    (('a:1', 0, 0), {}, '--process-count 0'),
])
def test_half_given_and_wrong_addresses(arguments, environ, message):
    with pytest.raises(ValueError, match='.') as error:
        find_address(*arguments, environ=environ)
    assert message in str(error.value)


def free_port():
    with socket.create_server(('127.0.0.1', 0)) as server:
        return server.getsockname()[1]


def meetings(*members, seconds=10.0, host='127.0.0.1'):
    """What `meet` says in each of the processes (id, count): '' or the error."""
    port, said = free_port(), [None] * len(members)

    def one(i, process, count):
        try:
            meet(Address(f'{host}:{port}', process, count, 'test'), seconds)
            said[i] = ''
        except JoinError as e:
            said[i] = str(e)

    threads = [threading.Thread(target=one, args=(i, *m)) for i, m in enumerate(members)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return said


def test_all_meet():
    assert meetings((0, 3), (1, 3), (2, 3)) == ['', '', '']
    assert meetings((0, 1)) == ['']
    try:
        socket.create_server(('::1', 0), family=socket.AF_INET6).close()
    except OSError:  # a machine without IPv6 says so
        assert 'cannot open port' in meetings((0, 2), (1, 2), seconds=0.5, host='[::1]')[0]
    else:
        assert meetings((0, 2), (1, 2), host='[::1]') == ['', '']


@pytest.mark.parametrize('members, message', [
    (((0, 2), (1, 3)), 'process 1 was started with --process-count 3, process 0 with 2'),
    (((0, 3), (1, 3), (1, 3)), 'two processes were started with --process-id 1'),
    (((0, 2), (2, 3)), '--process-count 3'),
])
def test_wrong_numbers_are_the_same_error_everywhere(members, message):
    said = meetings(*members, seconds=3.0)
    assert all(message in text for text in said), said


def test_who_is_missing_is_named_in_bounded_time():
    one, other = meetings((0, 3), (2, 3), seconds=0.6)
    assert one == other and 'process 1 of 3 did not come to' in one and 'within 0.6 s' in one
    assert 'cannot reach the coordinator' in meetings((1, 2), seconds=0.3)[0]


def test_a_taken_port_and_a_stranger_on_the_line():
    with socket.create_server(('', 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(JoinError, match=f'cannot open port {port}'):
            meet(Address(f'127.0.0.1:{port}', 0, 2, 'test'), 1.0)
    port, said = free_port(), []
    thread = threading.Thread(target=lambda: said.append(meet(Address(f'127.0.0.1:{port}', 0, 2, 'test'), 20.0)))
    thread.start()
    for text in (b'GET / HTTP/1.1\r\n\r\n', json.dumps([1, 2]).encode() + b'\n'):
        for _ in range(200):
            try:
                with socket.create_connection(('127.0.0.1', port), timeout=5) as stranger:
                    stranger.sendall(text)
                break
            except OSError:
                time.sleep(0.02)
    meet(Address(f'127.0.0.1:{port}', 1, 2, 'test'), 20.0)
    thread.join(timeout=30)
    assert said == [None], 'strangers do no harm'


def test_command_line(tmp_path, capsys):
    arguments = ['--config', 'digits:debug', '--workdir', str(tmp_path / 'x')]
    assert cli.run([*arguments, '--process-id', '0']) == 2
    assert '--process-id and --process-count need --distributed' in capsys.readouterr().err
    with pytest.raises(ValueError, match='give all three'):
        cli.run([*arguments, '--distributed', '--coordinator', '127.0.0.1:1'])
    assert not (tmp_path / 'x').exists()
