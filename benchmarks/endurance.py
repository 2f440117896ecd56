"""An hour of grid in one process: does anything grow that should not?

python benchmarks/endurance.py [--minutes 60]

Grids of short runs on generated speech follow each other, all trained anew, in one process with two workers. Every ten
seconds are written down: the memory of the process and of its workers, open files, threads, processes, files in shared
memory, and what lies in the store beside the runs. Writes benchmarks/results/endurance-<device>.json and .png.
"""
import argparse
import json
import os
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ['TQDM_DISABLE'] = '1'

import matplotlib.pyplot as plt
import numpy as np
import psutil

from cdser.config import METHODS, Experiment
from cdser.runs import grid
from cdser.synthetic import write_studios
from side_by_side import RESULTS, about, record

SHARED = Path('/dev', 'shm')
EVERY = 10    # seconds
SETTLED = .15 # share of the time after which slopes are taken
KINDS = {'memory of the process, MB': 'memory', 'memory of its workers, MB': 'workers', 'open files': 'files',
         'threads': 'threads', 'processes': 'processes', 'files in shared memory': 'shared',
         'store beside the runs, MB': 'beside'}


def beside_runs(store: Path) -> float: # MB
    "What lies in a store and is no run."
    total = 0
    for path in store.rglob('*'):
        if len(path.relative_to(store).parts[0]) == 12 and not path.relative_to(store).parts[0].startswith('.'):
            continue
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            pass # it went meanwhile
    return total / 1e6


def look(start: float, store: Path) -> dict:
    me = psutil.Process()
    children = me.children(recursive=True)
    held = []
    for child in children:
        try:
            held.append(child.memory_info().rss / 1e6)
        except psutil.Error:
            pass
    shared = [path for path in SHARED.glob('*') if any(word in path.name for word in ('joblib', 'loky', 'torch'))]
    return dict(seconds=round(time.time() - start, 1), memory=me.memory_info().rss / 1e6, workers=sum(held),
                files=me.num_fds(), threads=me.num_threads(), processes=len(children), shared=len(shared),
                beside=beside_runs(store))


def draw(samples: list[dict], path: Path) -> None:
    figure, axes = plt.subplots(len(KINDS), sharex=True, figsize=(7, 9), layout='constrained')
    minutes = [sample['seconds'] / 60 for sample in samples]
    for ax, (title, name) in zip(axes, KINDS.items()):
        ax.plot(minutes, [sample[name] for sample in samples], lw=1)
        ax.set_title(title, loc='left', fontsize=9)
        ax.set_ylim(0, 1.15 * max(sample[name] for sample in samples) or 1)
    axes[-1].set_xlabel('minutes')
    figure.savefig(path, dpi=110)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument('--minutes', type=float, default=60)
    minutes = arguments.parse_args().minutes
    with tempfile.TemporaryDirectory() as folder:
        root, store = Path(folder) / 'corpora', Path(folder) / 'runs'
        write_studios(root)
        short = Experiment('studio_a', 'studio_b', epochs=1, epoch_steps=12, batch_seconds=6.4, max_seconds=.64)
        start, samples, done, runs = time.time(), [], threading.Event(), 0
        def watch():
            while not done.wait(EVERY):
                try:
                    samples.append(look(start, store))
                except (OSError, psutil.Error):
                    pass # a process or a folder went while it was looked at
        watcher = threading.Thread(target=watch)
        watcher.start()
        seed, grids = 0, 0
        while time.time() - start < 60 * minutes:
            methods = [METHODS[name] for name in ('proposed', 'emotion_only', 'dann', 'supervised')]
            planned = [replace(short, seed=seed + i, weights=weights) for i in range(4) for weights in methods]
            found = grid(planned, root, store, 'cpu', workers=2)
            runs, seed, grids = runs + len({run.id for run in found}), seed + 4, grids + 1
        done.set()
        watcher.join()
        size = sum(path.stat().st_size for path in store.rglob('*') if path.is_file()) / 1e6
    settled = [sample for sample in samples if sample['seconds'] > SETTLED * samples[-1]['seconds']]
    hours = np.array([sample['seconds'] for sample in settled]) / 3600
    slopes = {title: float(np.polyfit(hours, [sample[name] for sample in settled], 1)[0])
              for title, name in KINDS.items()}
    result = dict(about('cpu', 'joblib'), minutes=minutes, grids=grids, runs=runs,
                  megabytes_a_run=(size - samples[-1]['beside']) / runs, growth_an_hour=slopes, samples=samples)
    record('endurance', 'cpu', result)
    draw(samples, RESULTS / 'endurance-cpu.png')
    print(f'{runs} runs in {grids} grids, {result["megabytes_a_run"]:.1f} MB each; growth per hour:',
          json.dumps({title: round(slope, 1) for title, slope in slopes.items()}))


if __name__ == '__main__':
    main()
