"""What `gen-jax sweep --run` does to a run: train it or load it, and score it."""

import functools
import json

from gen_jax.cli.evaluate import score
from gen_jax.cli.options import prepare_jax
from gen_jax.sweeps.execute import Work, execute


def do(plan, ids, workdir, to_log: bool, distributed: bool) -> int:
    """Does runs of a plan in this process; its exit code."""
    first = plan.runs[ids[0]]
    train = first.config.train
    # An evaluation takes every device, as gen-jax evaluate does.
    prepare_jax(*((train.cpu_devices, first.config.data.batch_size) if first.of is None else ()),
                compile_cache=train.compile_cache)
    leader = True
    if distributed:
        import jax
        jax.distributed.initialize()
        leader = jax.process_index() == 0
    return execute(plan, ids, workdir, Work(_train, _evaluate), to_log, leader)


def _train(config, home) -> int:
    from gen_jax.build import build
    from gen_jax.engine.train import check_workdir, train
    check_workdir(home, config)
    return train(build(config), home).exit_code


@functools.lru_cache(maxsize=1)
def _load(base):
    import jax

    from gen_jax.build import load
    loaded = load(base)
    if jax.process_count() > 1:  # each process has read it all: from the host it can go to every device
        loaded = loaded._replace(state=jax.device_get(loaded.state))
    return loaded


def _evaluate(run, base, home) -> None:
    from gen_jax.build import predictor_for
    from gen_jax.engine.files import write_text
    from gen_jax.engine.train import versions
    loaded = _load(base)._replace(config=run.config, predictor=predictor_for(run.config), workdir=home)
    if run.of is not None:
        write_text(home / 'versions.json', json.dumps(versions(), indent=1))
    score(loaded, run.config.evaluate if run.only is None else run.only, home / 'evaluation.json')
