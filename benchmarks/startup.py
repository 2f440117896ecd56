"""How long it takes until training begins, and what an epoch costs, as a corpus grows.

python benchmarks/startup.py [--hours 1 10 100] [--epoch-hours 0.25 0.5 1] [--device cpu|cuda] [--threads 2]

Two corpora of together so many hours with the durations of IEMOCAP, four emotions and fifty speakers each, are
decoded in a store as a first start leaves them (benchmarks/corpus.py measures decoding). The stores are sparse files,
as large as real ones and silent: speed does not depend on content. Each size runs in a process of its own. Counted
from the start of the process: imports, then opening both stores with a check of every file and reading the labels,
then splits, model and the first training step (three views, batches of 16 seconds); and the process's peak memory.
Then a whole epoch of the nano encoder, one view, over a few sizes: seconds per hour of audio. Writes
benchmarks/results/startup-<device>.json.
"""
import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np

from side_by_side import about, clock, peak, record

BEGAN = time.perf_counter()


CORPORA = 'first', 'second'


def write_corpora(folder: Path, hours: float, max_seconds: float) -> None:
    "Recordings in name only, manifests, and the stores that decoding would have left."
    from cdser.config import LABELS, SAMPLE_RATE
    from cdser.corpora import released
    from cdser.parts import open_recordings
    from corpus import SETTLED, silence
    seconds = released('iemocap').duration_s.clip(upper=max_seconds)
    count = int(hours / len(CORPORA) * 3600 / seconds.mean())
    lengths = np.resize((seconds * SAMPLE_RATE).astype(int), count)
    for corpus in CORPORA:
        (folder / 'corpora' / corpus / 'audio').mkdir(parents=True)
        names = [f'audio/{i}.wav' for i in range(count)]
        for name in names:
            (folder / 'corpora' / corpus / name).write_text(f'{corpus} {name}') # no recording may be in both corpora
        rows = [f'{name},{LABELS[i % 4]},s{i % 50}' for i, name in enumerate(names)]
        (folder / 'corpora' / corpus / 'manifest.csv').write_text('path,label,speaker\n' + '\n'.join(rows))
        with silence(lengths, corpus):
            open_recordings(corpus, folder / 'corpora', folder / 'runs', max_seconds)
    time.sleep(SETTLED)
    for corpus in CORPORA:
        open_recordings(corpus, folder / 'corpora', folder / 'runs', max_seconds)


def first_step(folder: Path, device: str) -> dict[str, float]: # stage -> seconds; utterances; peak in GB
    "From nothing to the first update of the weights, in this process."
    import torch
    from cdser.batches import alternate_batches
    from cdser.config import Experiment
    from cdser.model import build
    from cdser.parts import make_parts, open_recordings
    from cdser.train import augment_batches, make_optimiser, step
    found, e = {}, Experiment(*CORPORA)
    found['imports'] = time.perf_counter() - BEGAN
    start = time.perf_counter()
    opened = [open_recordings(name, folder / 'corpora', folder / 'runs', e.max_seconds) for name in CORPORA]
    found['open the corpora'] = time.perf_counter() - start
    start = time.perf_counter()
    parts, model = make_parts(e, *opened), build(e).to(device).train()
    which, at = next(alternate_batches(parts.training, e.batch_seconds, np.random.default_rng(0)))
    views = augment_batches([parts.training[which].collate(at, device)], e, torch.Generator().manual_seed(0))[0]
    step(model, make_optimiser(model, e), views, e)
    found['splits, model, first step'] = clock(device) - start
    return dict(found, utterances=sum(len(recordings.store) for recordings in opened), peak_gb=peak())


def epoch(folder: Path, device: str) -> dict[str, float]: # utterances, seconds, hours, peak in GB
    "One epoch over both corpora, one view, in this process."
    import torch
    from cdser.batches import Utterances, steps_in_pass
    from cdser.config import METHODS, Experiment
    from cdser.model import build
    from cdser.parts import open_recordings
    from cdser.train import blocks, make_optimiser, schedule, step, views_of_block
    e = Experiment(*CORPORA, views=1, weights=METHODS['emotion_only'], batch_seconds=145.)
    opened = [open_recordings(name, folder / 'corpora', folder / 'runs', e.max_seconds) for name in CORPORA]
    corpora = [Utterances(r.store, np.arange(len(r.store)), r.corpus.labels) for r in opened]
    model = build(e).to(device).train()
    optimiser, rng = make_optimiser(model, e), np.random.default_rng(0)
    steps = list(islice(schedule(corpora, e, rng), len(CORPORA) * steps_in_pass(corpora, e.batch_seconds)))
    start = clock(device)
    for block in blocks(corpora, steps):
        for views in views_of_block(corpora, block, None, e, torch.Generator(), device):
            step(model, optimiser, views, e)
    seconds, samples = clock(device) - start, sum(int(r.store.lengths.sum()) for r in opened)
    return dict(utterances=sum(len(r.store) for r in opened), seconds=seconds, hours=samples / 16_000 / 3600,
                peak_gb=peak())


def alone(kind: str, hours: float, device: str, threads: int) -> dict:
    "The same in a process of its own, on corpora of so many hours."
    with tempfile.TemporaryDirectory() as folder:
        write_corpora(Path(folder), hours, 15.)
        command = [sys.executable, __file__, '--device', device, '--threads', str(threads), '--alone', kind, folder]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return dict(json.loads(done.stdout.splitlines()[-1]), corpus_hours=hours)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--hours', type=float, nargs='*', default=[1, 10, 100])
    parser.add_argument('--epoch-hours', type=float, nargs='*', default=[.25, .5, 1])
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--alone', nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        import torch
        torch.set_num_threads(args.threads)
        kind, folder = args.alone
        return print(json.dumps({'start': first_step, 'epoch': epoch}[kind](Path(folder), args.device)))
    starts = [alone('start', hours, args.device, args.threads) for hours in args.hours]
    epochs = [alone('epoch', hours, args.device, args.threads) for hours in args.epoch_hours]
    record('startup', args.device, dict(about(args.device), threads=args.threads, starts=starts, epochs=epochs))
    stages = [name for name in starts[0] if name not in ('utterances', 'peak_gb', 'corpus_hours')]
    for s in starts:
        print(f'{s["corpus_hours"]:6g} h, {s["utterances"]:6} utterances: '
              f'first step after {sum(s[name] for name in stages):.1f} s ('
              + ', '.join(f'{name} {s[name]:.1f}' for name in stages) + f'), {s["peak_gb"]:.2f} GB')
    for e in epochs:
        print(f'{e["hours"]:6.2f} h: an epoch takes {e["seconds"]:.1f} s, '
              f'{e["seconds"] / e["hours"]:.1f} s per hour of audio, {e["peak_gb"]:.2f} GB')


if __name__ == '__main__':
    main()
