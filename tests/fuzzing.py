"""Fuzzing: many inputs of a kind; each is read or refused, within limits, and counted.

A kind is a function in any test file. It makes input `number` below `folder`, from `rng` alone, and returns what asks
about it:

    from fuzzing import fuzzed, pick

    @fuzzed('run folders', short=100)
    def test_cut_files_of_a_run(rng, folder, number):
        path = pick(rng, sorted(copied_run(folder).iterdir()))
        path.write_bytes(path.read_bytes()[:rng.integers(path.stat().st_size)])
        return lambda: RunStore(folder)['0123456789ab'] # `BadInput`, on one line, is a refusal; assertions count, too

`make test` asks `short` times and `make fuzz` CDSER_FUZZ times as often; `grows=False` says that a list is gone through
once.
An answer and a one-line `BadInput` are good. Anything else is a fault, named by the number of its input:
    PYTHONPATH=.:tests python -c "from test_x import *; test_cut_files_of_a_run.again(17)"
makes input 17 once more, in a new temporary folder, and asks with nothing caught.

`make fuzz` holds every question to SECONDS and MEMORY and ends with a table, made of what `count` records.
"""
import faulthandler
import functools
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.random import Generator

from cdser.config import BadInput

SEED = 2026
SCALE = int(os.environ.get('CDSER_FUZZ', '1')) # how many times the short form
SECONDS = 5 if SCALE > 1 else 60             # for one question; in the short form, only a hang is a fault
MEMORY = 1024                                # MiB that one question may take
AREAS = ('manifests', 'splits', 'label maps', 'readers', 'audio headers', 'experiments', 'run folders', 'downloads')
SPENT = dict(slowest=0.)                     # seconds of the slowest question since this was last set to 0


def times(short: int) -> int:
    "How many inputs, of a kind that has `short` of them in the short form."
    return short * SCALE


def pick(rng: Generator, items):
    "One of `items`."
    items = list(items)
    return items[rng.integers(len(items))]


# ---- limits

class Hung(BaseException):
    "Not an Exception: nobody who catches errors of a file may catch this one."


def in_use() -> int | None: # bytes; None where the system does not say
    "The memory of this process that a limit on data counts."
    try: lines = Path('/proc/self/status').read_text().splitlines()
    except OSError: return None
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith('VmData'))


@contextmanager
def limited() -> Iterator[None]:
    "Waiting ends with `Hung`, and memory with `MemoryError`."
    def stop(*_): raise Hung
    before = signal.signal(signal.SIGALRM, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if used := in_use(): resource.setrlimit(resource.RLIMIT_DATA, (used + (MEMORY << 20), hard))
    start = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        signal.signal(signal.SIGALRM, before)
        SPENT['slowest'] = max(SPENT['slowest'], time.perf_counter() - start)


def peak() -> float: # MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == 'darwin' else 2**10)


def forget_peak() -> None:
    "What earlier tests took would hide what these take; only Linux forgets."
    try: Path('/proc/self/clear_refs').write_text('5')
    except OSError: pass


# ---- one input, and many

def judge(ask: Callable[[], object]) -> str: # 'read' or 'refused'
    "Ask within the limits. Anything but an answer or a refusal on one line is an AssertionError."
    try:
        with limited(): ask()
    except BadInput as err:
        assert '\n' not in str(err) and len(str(err)) < 1000, f'a refusal that is not one line: {str(err)[:300]!r}'
        assert str(err).isprintable(), f'a refusal that cannot be printed: {str(err)[:300]!r}'
        return 'refused'
    except AssertionError: raise
    except Hung: raise AssertionError(f'no answer in {SECONDS} seconds') from None
    except Exception as err: raise AssertionError(f'{type(err).__name__}: {str(err)[:300]}') from err
    return 'read'


def naming(names: tuple[str, ...], ask: Callable[[], object]) -> Callable[[], object]:
    "The same question, whose refusal has to name one of these."
    def asked():
        try: return ask()
        except BadInput as err:
            assert any(name in str(err) for name in names), f'{str(err)[:300]!r} names none of {names[:4]}'
            raise
    return asked


def count(area: str, name: str, cases: int,
          attempt: Callable[[int], str], # 'read' or 'refused', given the number of an input
          record: Callable,              # pytest's `record_property`
          memory: int = MEMORY,          # MiB that all of them together may add to the peak
         ) -> None:
    "Make and ask about all inputs of a kind, record how many there were, and fail where one has a fault."
    answers, faults = Counter(), []
    forget_peak()
    before, SPENT['slowest'] = peak(), 0.
    for number in range(cases):
        try: answers[attempt(number)] += 1
        except AssertionError as err: faults.append(f'{name} {number} (seed {SEED}): {str(err).splitlines()[0]}')
        if sum('no answer' in fault for fault in faults) > 2: break # the others are not to be waited for
    took = peak() - before
    asked = answers.total() + len(faults)
    record('fuzz', dict(area=area, kind=name, inputs=asked, read=answers['read'], refused=answers['refused'],
                        faults=len(faults), slowest=SPENT['slowest'], memory=took))
    if faults:
        pytest.fail(f'{len(faults)} faults in {asked} of {cases} cases:\n' + '\n'.join(faults[:10]), pytrace=False)
    assert took < memory, f'{name} took {took:.0f} MiB'


def generator(name: str, number: int) -> Generator:
    "The same for an input of a kind each time, whatever the others are."
    return np.random.default_rng([SEED, zlib.crc32(name.encode()), number])


def fuzzed(area: str, short: int, grows: bool = True):
    "Turn a maker of inputs into a test that asks about all of them."
    assert area in AREAS, f'{area} is none of {AREAS}'
    def wrap(make):
        def attempt(folder, number):
            folder.mkdir(parents=True)
            try: return judge(make(generator(make.__name__, number), folder, number))
            finally: shutil.rmtree(folder)
        def test(tmp_path, record_property, hang_guard):
            cases, name = times(short) if grows else short, make.__name__.removeprefix('test_')
            count(area, name, cases, lambda number: attempt(tmp_path / str(number), number), record_property)
        def again(number, folder=None):
            return make(generator(make.__name__, number), Path(folder or tempfile.mkdtemp()), number)()
        functools.update_wrapper(test, make)
        del test.__wrapped__ # pytest would take the maker's parameters for fixtures
        test.again = again
        return pytest.mark.fuzz(test)
    return wrap


@contextmanager
def guarded(seconds: int) -> Iterator[None]:
    "A hang in C, which no signal ends, ends the run with a traceback."
    stderr = os.dup(2)
    faulthandler.dump_traceback_later(seconds, exit=True, file=stderr)
    try: yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        os.close(stderr)


# ---- the table

def table(rows: list[dict]) -> list[str]: # lines
    "What was asked, by area and kind, and the sum."
    heads = {name: name for name in ('area', 'kind', 'inputs', 'read', 'refused', 'faults', 'slowest', 'memory')}
    lines = ['{area:14} {kind:48} {inputs:>7} {read:>7} {refused:>7} {faults:>6} {slowest:>8} {memory:>8}'.format(**heads)]
    for row in sorted(rows, key=lambda row: (AREAS.index(row['area']), row['kind'])):
        lines.append('{area:14} {kind:48.48} {inputs:7,} {read:7,} {refused:7,} {faults:6,} {slowest:6.2f} s '
                     '{memory:4.0f} MiB'.format(**row))
    for area in AREAS:
        found = [row for row in rows if row['area'] == area]
        if found: lines.append(f'{area:14} {"all":48} {sum(row["inputs"] for row in found):7,}')
    lines.append(f'{sum(row["inputs"] for row in rows):,} inputs, {sum(row["faults"] for row in rows):,} faults, '
                 f'slowest {max(row["slowest"] for row in rows):.2f} s, '
                 f'most memory {max(row["memory"] for row in rows):.0f} MiB')
    return lines
