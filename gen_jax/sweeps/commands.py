"""A sweep as text: the table of its runs, one command per run, a SLURM script, commands for a TPU pod."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from gen_jax.sweeps import ledger
from gen_jax.sweeps.plan import Plan, Run

__all__ = ['FORMS', 'command', 'table', 'lines', 'slurm', 'tpu']


def command(plan: Plan, workdir, ids: Sequence[str], program: Sequence[str] = ('gen-jax',)) -> list[str]:
    """The argv of a process that does these runs and keeps their books."""
    return [*program, 'sweep', '--config', plan.spec, '--workdir', str(workdir), *plan.overrides,
            *(f'--run={i}' for i in ids)]


def table(plan: Plan, ids: Sequence[str], workdir=None) -> str:
    """Number, id, kind, status and overrides of each run, and how many there are of each status."""
    rows = [('#', 'id', 'kind', 'status', 'overrides')]
    for number, run in enumerate(plan.runs.values()):
        if run.id not in ids:
            continue
        said = ledger.status(workdir, run) if workdir else 'pending'
        arg = run.spec.partition(':')[2]
        words = [f'of {run.of}'] if run.of else [f'arg={arg}'] if arg else []
        words += [f'{k}={v!r}' for k, v in run.overrides.items()]
        rows.append((str(number), run.id, run.kind, said, '  '.join(words)))
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    text = ['  '.join(cell.ljust(w) for cell, w in zip(row[:4], widths, strict=True)) + '  ' + row[4] for row in rows]
    counts: dict[str, int] = {}
    for row in rows[1:]:
        counts[row[3]] = counts.get(row[3], 0) + 1
    return '\n'.join([*text, f'{len(ids)} runs: ' + ', '.join(f'{n} {word}' for word, n in counts.items())])


def lines(plan: Plan, workdir, runs: Sequence[Run]) -> str:
    """One command per run; evaluations after the training whose checkpoint they need."""
    return '\n'.join(shlex.join(command(plan, workdir, [run.id])) for run in runs)


def slurm(plan: Plan, workdir, runs: Sequence[Run]) -> str:
    """An sbatch script: an array of the trainings, and the same script again for an array of the evaluations."""
    stages = {'train': [r.id for r in runs if r.of is None], 'evaluate': [r.id for r in runs if r.of is not None]}
    stages = {stage: ids for stage, ids in stages.items() if ids}
    first = next(iter(stages))
    name = Path(plan.spec.partition(':')[0]).stem
    how = ['#   sbatch sweep.sh']
    if len(stages) == 2:
        how = ['#   job=$(sbatch --parsable sweep.sh)',
               f'#   sbatch --dependency=afterany:$job --array=0-{len(stages["evaluate"]) - 1} sweep.sh evaluate',
               '# The second array evaluates what the first trained; an evaluation whose training is not done says so',
               '# and exits with 4.']
    arrays = '\n'.join(f'{stage}=(\n' + ''.join(f'  {shlex.quote(i)}\n' for i in ids) + ')'
                       for stage, ids in stages.items())
    cases = '\n'.join(f'  {stage}) runs=("${{{stage}[@]}}") ;;' for stage in stages)
    run = shlex.join(command(plan, workdir, []))
    return f'''#!/bin/bash
#SBATCH --job-name={shlex.quote('sweep-' + name)}
#SBATCH --array=0-{len(stages[first]) - 1}
#SBATCH --output=sweep-%A_%a.txt
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
# Save as sweep.sh, add what the cluster wants (--gres, --time, --partition), and submit it from this folder:
{chr(10).join(how)}
# The same again after any interruption: runs that are done end at once, the others go on where they were.
{arrays}
case "${{1:-{first}}}" in
{cases}
  *) echo "stage $1: choose from {', '.join(stages)}" >&2; exit 2 ;;
esac
exec {run} --run="${{runs[$SLURM_ARRAY_TASK_ID]}}"'''


def tpu(plan: Plan, workdir, runs: Sequence[Run]) -> str:
    """A bash script: each run in turn on all workers of a TPU pod, which share the workdir over the network."""
    here = shlex.quote(os.getcwd())
    commands = []
    for run in runs:
        inner = f'cd {here} && {shlex.join([*command(plan, workdir, [run.id]), "--distributed"])}'
        commands.append('gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$TPU_ZONE" --worker=all '
                        f'--command={shlex.quote(inner)}')
    return '\n'.join(['#!/bin/bash', '# TPU_NAME=... TPU_ZONE=... bash sweep.sh; the workdir is on a disk that all '
                      'workers share.', ': "${TPU_NAME:?}" "${TPU_ZONE:?}"', *commands])


FORMS = {'lines': lines, 'slurm': slurm, 'tpu': tpu}
