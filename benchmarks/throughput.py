"""Training throughput of the nano encoder with three views, in seconds of original audio per second.

python benchmarks/throughput.py [--device cpu|cuda] [--processes 2] [--repeats 5]

Every process trains its own model on one thread, as the runs of a grid do. Repeats of the four kinds are interleaved,
so that all see the same machine: one view; three views; three views with the convolutional front end as transformers
computes it, from the same weights; the three views made, and no step taken. Writes
benchmarks/results/throughput-<device>.json.
"""
import argparse
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from joblib import Parallel, cpu_count, delayed

from cdser import encoder
from cdser.batches import Utterances, alternate_batches, steps_in_pass
from cdser.config import METHODS, SAMPLE_RATE, Experiment
from cdser.model import build
from cdser.parts import open_recordings
from cdser.runs import best_device
from cdser.synthetic import write_studios
from cdser.train import augment_batches, make_optimiser, step
from side_by_side import about, clock, record

SINGLE = dict(views=1, weights=METHODS['emotion_only'])


def seconds_a_second(e: Experiment, stock: bool, steps_taken: bool, root: Path, runs_dir: Path, device: str) -> float:
    "Original audio trained on in a second of one epoch over both studios, after warm-up steps."
    torch.set_num_threads(1)
    opened = [open_recordings(name, root, runs_dir, e.max_seconds) for name in (e.source, e.target)]
    corpora = [Utterances(r.store, np.arange(len(r.store)), r.corpus.labels) for r in opened]
    model, generator = build(e).to(device).train(), torch.Generator().manual_seed(0)
    optimiser, steps = make_optimiser(model, e), 2 * steps_in_pass(corpora, e.batch_seconds)
    seconds, start = 0., clock(device)
    batches = alternate_batches(corpora, e.batch_seconds, np.random.default_rng(0))
    for i, (which, at) in enumerate(islice(batches, 2 + steps)):
        if i == 2:
            seconds, start = 0., clock(device)
        batch = corpora[which].collate(at, device)
        with patch.object(encoder, 'in_patches', lambda config: False) if stock else nullcontext():
            views = augment_batches([batch], e, generator)[0]
            if steps_taken:
                step(model, optimiser, views, e)
        seconds += batch.lengths.sum().item() / SAMPLE_RATE
    return seconds / (clock(device) - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='auto')
    parser.add_argument('--processes', type=int, default=0, help='0: one a core on a CPU, one on a GPU')
    parser.add_argument('--repeats', type=int, default=5)
    args = parser.parse_args()
    device = best_device(args.device)
    processes = args.processes or (cpu_count() if device == 'cpu' else 1)
    three = Experiment('studio_a', 'studio_b')
    with tempfile.TemporaryDirectory() as folder, Parallel(n_jobs=processes) as parallel:
        root, runs_dir = Path(folder) / 'corpora', Path(folder) / 'runs'
        write_studios(root)
        for name in ('studio_a', 'studio_b'):
            open_recordings(name, root, runs_dir, three.max_seconds)
        kinds = {'one view, emotion only': (replace(three, **SINGLE), False, True),
                 'three views, proposed': (three, False, True),
                 'three views, stock front end': (three, True, True),
                 'three views, no step': (three, False, False)}
        found = {name: [] for name in kinds}
        for _ in range(args.repeats):
            for name, kind in kinds.items():
                tasks = [delayed(seconds_a_second)(*kind, root, runs_dir, device)] * processes
                found[name].append(sum(parallel(tasks)))
    alone = np.array(found['three views, proposed']) / np.array(found['three views, no step'])
    result = about(device) | dict(
        processes=processes, unit='seconds of original audio per second, all processes together', repeats=found,
        median={name: float(np.median(values)) for name, values in found.items()},
        share_of_augmentation=dict(median=float(np.median(alone)), low=float(alone.min()), high=float(alone.max())))
    record('throughput', device, result)
    print(f'{processes} processes on {result["name"]} ({device})')
    for name, values in found.items():
        print(f'{name:28} {np.median(values):6.0f} s/s   '
              f'(from {min(values):.0f} to {max(values):.0f} in {len(values)} repeats)')
    print(f'of an update on three views {np.median(alone):.1%} is augmentation '
          f'({alone.min():.1%} to {alone.max():.1%})')


if __name__ == '__main__':
    main()
