"""gen-jax sweep: the runs of a config's sweep(add), here or as commands for a cluster."""

import sys

from gen_jax.cli.options import fail, parse, parser, show_help

TEXT = """Do every run that sweep(add) at the bottom of a config adds: trainings, each with its
evaluation, and evaluations of what was trained. Run the same command again after any
interruption, and after adding runs: what is done is not done again.

exit codes: 0 all done; 1 some failed (run.json says why); 2 bad input; 75 some are left
(train.max_seconds, or another process is at them); 143 / 130 stopped by SIGTERM / SIGINT.
Of --run also: 4 it evaluates a run that is not done; 5 another process is at it."""


def run(argv) -> int:
    """Runs the command."""
    p = parser('sweep', TEXT)
    p.add_argument('--config', metavar='NAME[:ARG]', help='a shipped config or a path to a .py file')
    p.add_argument('--workdir', metavar='DIR', help='where DIR/runs/ID of each run goes')
    p.add_argument('--jobs', type=int, default=1, metavar='N', help='processes at a time')
    p.add_argument('--only', metavar='GLOB', help="runs whose id fits, for instance 'lr=0.001*'")
    p.add_argument('--dry-run', action='store_true', help='list the runs and do nothing')
    p.add_argument('--print', choices=('lines', 'slurm', 'tpu'), help='print commands for a cluster and do nothing')
    p.add_argument('--run', metavar='ID', action='append', default=[], help='do this run (or its number) in this '
                   'process; repeatable for evaluations of one run')
    p.add_argument('--to-log', action='store_true', help='with --run: what it prints goes to log.txt of the run')
    p.add_argument('--distributed', action='store_true', help='with --run: one of several processes (a TPU pod)')
    args, overrides = parse(p, argv)
    if args.help:
        return show_help(p, args.config)
    if not args.config or not (args.workdir or args.dry_run):
        return fail('gen-jax sweep: needs --config NAME and --workdir DIR; gen-jax list shows the configs')
    if args.jobs < 1 or sum(map(bool, (args.dry_run, args.print, args.run))) > 1:
        return fail(f'gen-jax sweep: --jobs {args.jobs} is at least 1, and --dry-run, --print and --run exclude each '
                    'other')
    from gen_jax.sweeps import commands, ledger
    from gen_jax.sweeps.execute import check_one_process
    from gen_jax.sweeps.plan import make_plan, select
    plan = make_plan(args.config, overrides)
    ids = select(plan, args.run, args.only)
    if args.run:
        check_one_process(plan, ids)
    if args.workdir:
        ledger.claim(args.workdir, plan, write=not (args.dry_run or args.print))
        ledger.check_runs(args.workdir, [plan.runs[i] for i in ids])
        others = [] if args.run else ledger.strangers(args.workdir, plan)
        if others:
            print(f'not in this sweep (any more), left as they are: {", ".join(others)}', file=sys.stderr)
    if args.dry_run:
        print(commands.table(plan, ids, args.workdir))
        return 0
    if args.print:
        left = [plan.runs[i] for i in ids if ledger.status(args.workdir, plan.runs[i]) != 'done']
        print(f'{len(left)} of {len(ids)} runs are not done', file=sys.stderr)
        if left:
            print(commands.FORMS[args.print](plan, args.workdir, left))
        return 0
    if args.run:
        from gen_jax.cli.sweep_work import do
        return do(plan, ids, args.workdir, args.to_log, args.distributed)
    from gen_jax.sweeps.launch import launch
    program = (sys.executable, '-m', 'gen_jax.cli.main')
    return launch(plan, args.workdir, lambda ids: [*commands.command(plan, args.workdir, ids, program), '--to-log'],
                  ids, args.jobs, say=lambda text: print(text, flush=True))
