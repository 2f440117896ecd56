"""Trainings and grids that are killed at random moments and started again: python tests/kills.py WHAT KILLS SEED

WHAT is fit, grid or claims, or several joined by commas. Prints a line of JSON for each. Everything is imported
once; a child that is killed is a fork of this process, so a kill can come
a few milliseconds after the beginning.
"""
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ |= dict(OMP_NUM_THREADS='1', TQDM_DISABLE='1',
                   HF_HUB_OFFLINE='1') # before torch is imported; workers inherit it

import pandas as pd
import psutil
import torch

import cdser.runs as runs
import cdser.train
from cdser.config import Experiment
from cdser.synthetic import write_studios

TIMES = 'seconds', 'train_seconds', 'throughput' # that two runs of the same bits do not share
SMALL = dict(epochs=4, epoch_steps=6, max_seconds=.64, batch_seconds=6.4)
AFTER = 10 # seconds within which the workers of a killed grid must be gone
FEW = 5    # below so many kills, a grid is small


def digests(run: Path) -> dict[str, str]:
    "What a run holds, file by file, without the times."
    contents = {}
    for path in sorted(path for path in run.rglob('*') if path.is_file() and path.name != 'digests.json'):
        content = path.read_bytes()
        if path.name == 'metrics.json':
            metrics = json.loads(content)
            content = json.dumps({name: value for name, value in metrics.items() if name not in TIMES}).encode()
        if path.name == 'history.csv':
            content = pd.read_csv(path).drop(columns='seconds').to_csv().encode()
        contents[path.relative_to(run).as_posix()] = hashlib.sha256(content).hexdigest()
    return contents


def forked(function) -> int: # the child's number
    "A child that leads a group of its own and says nothing."
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        if 'KILLS_LOUD' not in os.environ:
            os.dup2(null, 2)
        function()
        status = 0
    finally:
        os._exit(status)


def finished(child: int) -> bool:
    return os.waitpid(child, 0)[1] == 0


def leftovers(store: Path) -> list[str]:
    "Whatever is neither a run nor audio that runs need."
    odd = [path for path in store.rglob('*') if '.draft-' in path.name
           or '.unfinished' in path.parent.relative_to(store).parts]
    return [path.relative_to(store).as_posix() for path in odd]


def ids(store: Path) -> list[str]:
    return sorted(path.name for path in store.iterdir() if re.fullmatch('[0-9a-f]{12}', path.name))


def counting(file: Path, function):
    "A child's work that notes every step it takes."
    def work():
        real = cdser.train.step
        def step(*args, **kwargs):
            with open(file, 'a') as log:
                log.write('.')
            return real(*args, **kwargs)
        cdser.train.step = step
        function()
    return work


def kill_fit(home: Path, corpora: Path, kills: int, rng: random.Random) -> dict:
    e = Experiment('studio_a', 'studio_b', **SMALL)
    def fit(where):
        return lambda: runs.fit(e, corpora, where, 'cpu', progress=False)
    steps = home / 'steps'
    def taken():
        return steps.stat().st_size if steps.exists() else 0
    start = time.perf_counter()
    assert finished(forked(counting(steps, fit(home / 'whole'))))
    undisturbed, needed = time.perf_counter() - start, taken()
    want, = (digests(home / 'whole' / id) for id in ids(home / 'whole'))
    same = left = early = 0
    lost = []
    for i in range(kills):
        store, killed = home / f'{i}', 0
        steps.unlink(missing_ok=True)
        for _ in range(rng.randint(1, 3)):
            child = forked(counting(steps, fit(store)))
            time.sleep(rng.uniform(0, undisturbed))
            os.killpg(child, signal.SIGKILL)
            killed += not finished(child)
        assert finished(forked(counting(steps, fit(store))))
        same += [digests(store / id) for id in ids(store)] == [want]
        left += bool(leftovers(store))
        lost.append((taken() - needed) / max(killed, 1))
        early += not killed
        shutil.rmtree(store)
    return dict(kills=kills, same=same, leftovers=left, undisturbed_seconds=round(undisturbed, 2), steps=needed,
                steps_lost_a_kill=dict(mean=round(sum(lost) / len(lost), 1), most=max(lost)), finished_before=early)


def running(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def kill_a_worker(grid: int, rng: random.Random) -> bool: # whether there was one
    "Wait for a worker of a grid to be at work, and kill it."
    parent = psutil.Process(grid)
    while running([parent]):
        busy = [process for process in running(parent.children(recursive=True)) if process.cpu_times().user > 1]
        if busy:
            time.sleep(rng.uniform(0, 2))
            os.kill(rng.choice(busy).pid, signal.SIGKILL)
            return True
        time.sleep(.05)
    return False


def kill_grid(home: Path, corpora: Path, kills: int, rng: random.Random, count: int = 6, workers: int = 4) -> dict:
    planned = [Experiment('studio_a', 'studio_b', seed=seed, **{**SMALL, 'epochs': 2}) for seed in range(count)]
    def grid(where, at_a_time=workers):
        return lambda: runs.grid(planned, corpora, where, 'cpu', workers=at_a_time)
    start, few = time.perf_counter(), kills < FEW
    assert finished(forked(grid(home / 'whole', 1 if few else workers)))
    undisturbed = time.perf_counter() - start + 3 * few # for the start of workers
    want = {id: digests(home / 'whole' / id) for id in ids(home / 'whole')}
    same = left = outlived = anew = fewer = 0
    longest = 0.
    for i in range(kills):
        store = home / f'{i}'
        child = forked(grid(store))
        time.sleep(rng.uniform(.2, undisturbed))
        workers = psutil.Process(child).children(recursive=True)
        os.kill(child, rng.choice([signal.SIGKILL, signal.SIGTERM])) # the parent alone
        finished(child)
        killed = time.perf_counter()
        while running(workers) and time.perf_counter() - killed < AFTER:
            time.sleep(.1)
        longest, outlived = max(longest, time.perf_counter() - killed), outlived + bool(running(workers))
        there = {id: (store / id).stat().st_ino for id in (ids(store) if store.exists() else ())}
        child = forked(grid(store))
        if i % 2 == 0:
            fewer += kill_a_worker(child, rng)
        assert finished(child)
        same += {id: digests(store / id) for id in ids(store)} == want
        anew += sum((store / id).stat().st_ino != number for id, number in there.items())
        left += bool(leftovers(store))
        shutil.rmtree(store)
    return dict(kills=kills, same=same, leftovers=left, workers_after_10_seconds=outlived,
                longest_seconds=round(longest, 1),
                trained_twice=anew, workers_killed=fewer, undisturbed_seconds=round(undisturbed, 1))


def several_at_once(home: Path, corpora: Path, count: int, rng: random.Random) -> dict:
    "Equal grids at the same time, in one process each; how often each step is taken."
    planned = [Experiment('studio_a', 'studio_b', seed=seed, **{**SMALL, 'epochs': 1}) for seed in range(4)][:count]
    def grid(where):
        return lambda: runs.grid(planned, corpora, where, 'cpu', workers=1)
    assert finished(forked(counting(home / 'alone', grid(home / 'one'))))
    children = [forked(counting(home / 'steps', grid(home / 'shared'))) for _ in range(max(count, 2))]
    assert all([finished(child) for child in children])
    alone, shared = ({id: digests(store / id) for id in ids(store)} for store in (home / 'one', home / 'shared'))
    return dict(grids=len(children), same=alone == shared, leftovers=len(leftovers(home / 'shared')),
                steps=[(home / name).stat().st_size for name in ('alone', 'steps')])


if __name__ == '__main__':
    what, kills, seed = sys.argv[1].split(','), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        write_studios(home / 'corpora', utterances=72, speakers=9, seconds=.8)
        for name in what:
            run = dict(fit=kill_fit, grid=kill_grid, claims=several_at_once)[name]
            small = dict(count=2, workers=2) if name == 'grid' and kills < FEW else {}
            (home / name).mkdir()
            print(json.dumps(run(home / name, home / 'corpora', kills, random.Random(seed), **small)), flush=True)
