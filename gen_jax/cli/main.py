"""gen-jax COMMAND: a thin dispatcher; each command imports what it needs when it runs, so --help answers at once."""

import importlib
import os
import sys

COMMANDS = {
    'train': 'train a config, or resume it',
    'sample': 'generate pictures from a trained run (PNG and NPZ)',
    'generate': 'pictures from prompts, with Stable Diffusion weights in the published format',
    'evaluate': 'score a trained run with the metrics of its config',
    'sweep': 'do, list or print the runs of a sweep in a config',
    'report': 'runs beside each other: one HTML page, CSV and Markdown',
    'checkpoint': 'list, verify, compare and prune the checkpoints of runs',
    'diff': 'the settings in which two runs or configs differ',
    'data': 'read a data source through and say what is wrong with it',
    'verify-resume': 'train, kill in the middle, resume, and compare every bit',
    'inspect': 'what a training step of a config will cost, before anything runs',
    'cache': 'what a trained run makes of a data split, written to disk',
    'convert': 'published weights to a checkpoint, a run to published weights',
    'embed-text': 'captions through a trained text tower, into a cache on disk',
    'list': 'the configs, systems, models, solvers and metrics that there are',
}


def usage() -> str:
    """The top-level help."""
    lines = '\n'.join(f'  {k:15}{v}' for k, v in COMMANDS.items())
    return (f'gen-jax COMMAND [options]\n\n{lines}\n\ngen-jax COMMAND --help says more; gen-jax train --config NAME '
            '--help prints the config.\n')


def main(argv=None) -> int:
    """Runs one command; returns its exit code. Errors that a user can act on are one message and exit code 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ('-h', '--help'):
        print(usage())
        return 0 if argv else 2
    if argv[0] == '--version':
        from importlib.metadata import version
        print(f'gen_jax {version("gen_jax")}')
        return 0
    if argv[0] not in COMMANDS:
        print(f'gen-jax: unknown command {argv[0]!r}: choose from {", ".join(COMMANDS)}', file=sys.stderr)
        return 2
    if '' not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a config may name modules that lie here
    command = importlib.import_module(f'gen_jax.cli.{argv[0].replace("-", "_")}')
    try:
        return command.run(argv[1:])
    except BrokenPipeError:
        return 1
    except (ValueError, OSError, RuntimeError, ArithmeticError, ImportError) as error:
        if '--traceback' in argv or not _expected(error):
            raise
        print(f'gen-jax {argv[0]}: {error}', file=sys.stderr)
        return getattr(error, 'exit_code', 2)


def _expected(error: Exception) -> bool:
    """Errors whose message is for the user: ours and plain bad values, not failures inside JAX."""
    return not type(error).__module__.startswith(('jax', 'tensorstore')) and 'XLA' not in str(error)[:200]


if __name__ == '__main__':
    sys.exit(main())
