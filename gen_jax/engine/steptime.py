"""Where the time of a step goes: waiting for data, in the host, waiting for the device, and in pauses."""

import contextlib
import time
from collections.abc import Callable, Iterator

__all__ = ['StepTimes']

PARTS = ('data', 'device', 'pause')
REMEDIES = {
    'data': 'the input pipeline: raise data.threads or data.buffer, or prepare the data smaller',
    'host': 'the host (preparing and dispatching steps): a larger batch, or fewer other processes',
    'device': 'the device, as it should be',
    'pause': 'evaluation, sampling and saving: a larger every_steps of these',
}


class StepTimes:
    """Seconds of the loop's thread by what it did.

    data: waiting for the next batch. device: waiting for metrics that the device has yet to compute. pause: evaluation,
    sampling and the part of a save that blocks. host: everything else, above all putting batches and dispatching. On
    the CPU backend small programs run inside their dispatch, so there host may hold what the device did.

    Args:
        clock: seconds; for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._total = dict.fromkeys((*PARTS, 'host', 'all'), 0.0)
        self._steps = 0
        self.restart(0)

    def restart(self, step: int) -> None:
        """Forgets what passed since the last row (a compilation, a rollback); `step` is the last step that is done."""
        self._began, self._at, self._window = self._clock(), step, dict.fromkeys(PARTS, 0.0)

    @contextlib.contextmanager
    def spent(self, part: str) -> Iterator[None]:
        """Counts the block as 'data' | 'device' | 'pause'."""
        began = self._clock()
        try:
            yield
        finally:
            self._window[part] += self._clock() - began

    def row(self, step: int) -> dict[str, float]:
        """Since the last row: 'steps_per_second', and 'wall/data', '/host', '/device', '/pause' in seconds per step.

        Empty if no step was done since.
        """
        steps, seconds, window = step - self._at, self._clock() - self._began, self._window
        self.restart(step)
        if steps < 1:
            return {}
        window['host'] = max(seconds - sum(window.values()), 0.0)
        for part, value in (*window.items(), ('all', seconds)):
            self._total[part] += value
        self._steps += steps
        return {'steps_per_second': steps / max(seconds, 1e-9),
                **{f'wall/{part}': window[part] / steps for part in ('data', 'host', 'device', 'pause')}}

    def summary(self) -> str:
        """One line that names the bottleneck of the steps in all rows; '' if they are too few to tell."""
        if self._steps < 10:
            return ''
        each = {k: 1e3 * v / self._steps for k, v in self._total.items()}
        worst = max(REMEDIES, key=each.get)
        return (f'{each["all"]:.3g} ms a step: data {each["data"]:.3g}, host {each["host"]:.3g}, device '
                f'{each["device"]:.3g}, evaluation and saving {each["pause"]:.3g}; bound by {REMEDIES[worst]}')
