"""What the commands share: parsing that leaves --config.* overrides alone, and preparing JAX."""

import argparse
import ast
import os
import sys
from pathlib import Path


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """An argument parser for one command (its help is printed by `parse`)."""
    return argparse.ArgumentParser(prog=f'gen-jax {command}', description=description, allow_abbrev=False,
                                   add_help=False, formatter_class=argparse.RawDescriptionHelpFormatter)


def parse(p: argparse.ArgumentParser, argv):
    """(namespace, overrides): overrides are the '--config.*' arguments with their values."""
    p.add_argument('-h', '--help', action='store_true', help='show this help')
    p.add_argument('--traceback', action='store_true', help='on errors, show where they came from')
    from gen_jax.config import join_values
    mine, overrides = [], []
    for part in join_values(argv):
        (overrides if part.startswith('--config.') else mine).append(part)
    return p.parse_args(mine), overrides


def show_help(p: argparse.ArgumentParser, spec: str | None = None) -> int:
    """Prints the options, and the tree of the config if one is named."""
    print(p.format_help())
    from gen_jax.config import config_names, flatten, load_config
    if spec:
        print(f'config {spec} (override with --config.KEY=VALUE):\n')
        for key, value in flatten(load_config(spec)).items():
            print(f'  --config.{key}={value!r}')
    else:
        print('configs: ' + ', '.join(sorted(config_names())) + '\nadd --config NAME to see its tree of settings')
    return 0


def literal(text: str):
    """A Python literal (number, bool, None, list ...), or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def prepare_jax(cpu_devices: int = 0, batch_size: int = 0, compile_cache: bool = True, job=None) -> None:
    """Virtual CPU devices, the persistent compilation cache, and quiet logs; before the first use of JAX.

    Args:
        job: this process's part in a run of several (`gen_jax.engine.distributed.Job`).
    """
    import logging

    import jax

    from gen_jax.engine.sharding import expose_cpu_devices, usable_cores

    logging.getLogger('absl').setLevel(logging.ERROR)
    if job is None:
        expose_cpu_devices(cpu_devices, batch_size)
    else:
        from gen_jax.engine.distributed import cpu_share
        expose_cpu_devices(cpu_devices, max(batch_size // job.process_count, 1), cpu_share(usable_cores(), job))
    if compile_cache:
        cache = os.environ.get('GEN_JAX_CACHE') or Path(
            os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'gen_jax' / 'xla'
        jax.config.update('jax_compilation_cache_dir', str(cache))
        if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
            jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


def fail(message: str) -> int:
    """Prints one line to stderr; the exit code for bad input."""
    print(message, file=sys.stderr)
    return 2
