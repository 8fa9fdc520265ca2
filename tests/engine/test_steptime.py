"""Step times add up; logging delays no step; what differs on resume is refused by name."""

import threading

import pytest

from gen_jax.engine import writers
from gen_jax.engine.resume import check_accept, check_code, check_data, versions
from gen_jax.engine.steptime import StepTimes


def test_parts_add_up_and_the_bottleneck_is_named():
    now = [0.0]
    times = StepTimes(lambda: now[0])

    def steps(first, last, data, device, host, pause=0.0):
        for _ in range(first, last):
            for part, seconds in (('data', data), ('device', device), ('pause', pause)):
                with times.spent(part):
                    now[0] += seconds
            now[0] += host
        return times.row(last)

    now[0] += 100.0  # a compilation
    times.restart(5)
    row = steps(5, 15, data=0.01, device=0.03, host=0.02)
    assert row == pytest.approx({'steps_per_second': 10 / 0.6, 'wall/data': 0.01, 'wall/host': 0.02,
                                 'wall/device': 0.03, 'wall/pause': 0.0})
    assert times.row(15) == {}, 'no step since'
    assert '60 ms a step: data 10, host 20, device 30' in times.summary()
    assert times.summary().endswith('bound by the device, as it should be')
    assert steps(15, 25, data=0.3, device=0.0, host=0.0, pause=0.1)['wall/pause'] == pytest.approx(0.1)
    assert 'raise data.threads' in times.summary()
    assert writers.without_wall_clock({'step': 1, **row}) == {'step': 1}
    assert StepTimes().summary() == ''


def test_a_slow_log_delays_nobody_and_keeps_its_order():
    gate, seen = threading.Event(), []

    def write(step, metrics):
        assert gate.wait(30)
        seen.append((step, metrics['x']))

    slow = writers.background(writers.Writer(write, lambda s, p: seen.append((s, 'picture')),
                                             lambda: seen.append('flush'), lambda: seen.append('close')))
    for step in range(50):  # with the writer stuck this would never end, were it called here
        slow.write(step, {'x': step})
    slow.images(50, {})
    assert seen == []
    gate.set()
    slow.flush()
    assert seen == [*((k, k) for k in range(50)), (50, 'picture'), 'flush'], 'all of it, before flush returns'
    slow.write(51, {'x': 0})
    slow.close()
    assert seen[-2:] == [(51, 0), 'close']


def test_a_log_that_fails_is_loud_once():
    def full(step, metrics):
        raise OSError('no space left')

    broken = writers.background(writers.Writer(full, full, lambda: None, lambda: None))
    broken.write(1, {})
    with pytest.raises(OSError, match='no space'):
        broken.flush()
    broken.close()
    broken = writers.background(writers.Writer(full, full, lambda: None, lambda: None))
    broken.write(1, {})
    with pytest.raises(OSError, match='no space'):
        broken.close()


def test_code_that_differs_is_named_or_accepted():
    now = {'python': '3.11.7', 'jax': '0.10.2', 'numpy': '2.4', 'git': 'abc', 'backend': 'cpu', 'grain': '1'}
    assert check_code(now, dict(now), ()) == ([], [])
    assert check_code({**now, 'python': '3.11.9', 'git': 'abd', 'flax': '9'}, now, ()) == (
        [], ['git: abd there, abc now']), 'a revision is a line; a patch of Python nothing'
    assert check_code({**now, 'git': 'unknown'}, now, ())[1] == []
    old = {**now, 'jax': '0.10.1', 'python': '3.12.1'}
    with pytest.raises(RuntimeError, match=r"python: '3.12' there, '3.11' now\n  jax: '0.10.1' there, '0.10.2' now\n"
                                           r'(.|\n)*train.accept=code'):
        check_code(old, now, ('data', 'config'))
    assert check_code(old, now, ('code',))[0] == ["code: python: '3.12' there, '3.11' now",
                                                  "code: jax: '0.10.1' there, '0.10.2' now"]
    with pytest.raises(RuntimeError, match="jax_default_prng_impl: 'threefry2x32' there, 'rbg' now"):
        check_code({**now, 'jax_default_prng_impl': 'threefry2x32'}, {**now, 'jax_default_prng_impl': 'rbg'}, ())
    assert versions()['jax_default_prng_impl'] == 'threefry2x32' and versions()['jax_enable_x64'] == 'False'
    assert {'python', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy', 'gen_jax', 'git'} <= set(
        versions())


def test_data_that_differ_are_named_or_accepted():
    def check(saved, now):
        if saved != now:
            raise ValueError('the data pipeline changed (seed):\n  seed: was 0, is 1\nTo resume: the old seed.')

    assert check_data(check, {'seed': 0}, {'seed': 0}, ()) == []
    with pytest.raises(RuntimeError, match='seed: was 0, is 1\n(.|\n)*train.accept=data'):
        check_data(check, {'seed': 0}, {'seed': 1}, ('code',))
    assert check_data(check, {'seed': 0}, {'seed': 1}, ('data',)) == ['data: seed: was 0, is 1']
    with pytest.raises(ValueError, match="'datas': choose from config, data, code"):
        check_accept(('datas',))
