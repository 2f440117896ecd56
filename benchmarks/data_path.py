"""What reading an utterance costs, in random order: from the store, from its file, from a data set of `datasets`.

python benchmarks/data_path.py [--files 1000] [--repeats 5] [--hours 1 10 100]

All give 16 kHz float32 samples of the same utterances. Repeats are interleaved, so that all see the same machine.
Generated utterances have the durations of IEMOCAP (WAV at 16 kHz); real ones are those of the folder that
CDSER_CORPORA names, as they are. datasets reads its stored bytes, which soundfile decodes, as is usual if torchcodec
and FFmpeg are missing. The store's samples are copied, since reading a mapped file begins when they are used.
Then stores of so many hours are opened. Writes benchmarks/results/data_path-cpu.json.
"""
import argparse
import io
import os
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
import soundfile as sf

from cdser.audio import resample
from cdser.audio_store import open_store
from cdser.config import SAMPLE_RATE
from cdser.corpora import load_corpus, released
from corpus import SETTLED, silence, write_corpus
from side_by_side import about, record


def save_dataset(paths: list[Path], folder: Path) -> datasets.Dataset:
    "The same files as a data set on disk, memory-mapped."
    data = datasets.Dataset.from_dict(dict(audio=[dict(bytes=path.read_bytes(), path=None) for path in paths]))
    data.save_to_disk(str(folder))
    return datasets.load_from_disk(str(folder))


def per_item(paths: list[Path], folder: Path, repeats: int) -> dict: # way -> seconds an utterance, one for each repeat
    "Every way to get an utterance, each in the same random order."
    store, data = open_store(folder / 'store', paths), save_dataset(paths, folder / 'data')
    def decoded(file):
        samples, rate = sf.read(file, dtype='float32', always_2d=True)
        return resample(samples.mean(1) if samples.shape[1] > 1 else samples[:, 0], rate)
    ways = {'AudioStore': lambda i: store[i].copy(),
            'soundfile, each file': lambda i: decoded(paths[i]),
            'datasets, stored bytes': lambda i: decoded(io.BytesIO(data[i]['audio']['bytes']))}
    order, found = np.random.default_rng(0).permutation(len(paths)).tolist(), {name: [] for name in ways}
    one = order[0]
    assert max(np.abs(way(one) - ways['AudioStore'](one)).max() for way in ways.values()) < 1e-4
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            for i in order:
                way(i)
            found[name].append((time.perf_counter() - start) / len(order))
    return found


def open_hours(hours: float, folder: Path) -> dict: # seconds, megabytes of the process
    "Open a store of so many hours of utterances as long as IEMOCAP's, and read one, the first and the second time."
    lengths = np.resize((released('iemocap').duration_s * SAMPLE_RATE).astype(int), int(hours * 3600 / 4.55))
    (folder / 'files').mkdir(parents=True)
    paths = [folder / 'files' / f'{i}.wav' for i in range(len(lengths))]
    for path in paths:
        path.touch()
    with silence(lengths):
        open_store(folder / 'store', paths)
    time.sleep(SETTLED)
    start = time.perf_counter()
    open_store(folder / 'store', paths)
    first = time.perf_counter() - start # everything is hashed
    before, start = resident(), time.perf_counter()
    store = open_store(folder / 'store', paths)
    store[len(store) // 2].sum()
    return dict(hours=hours, utterances=len(paths), seconds=time.perf_counter() - start,
                megabytes=resident() - before, first_seconds=first)


def resident() -> float: # megabytes
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--files', type=int, default=1000)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--hours', type=float, nargs='*', default=[1, 10, 100])
    args = parser.parse_args()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_corpus(folder / 'corpora' / 'iemocap_lengths', args.files)
        roots = {'iemocap_lengths': folder / 'corpora'}
        real = Path(os.environ.get('CDSER_CORPORA', Path(__file__).parents[2] / 'shared' / 'corpora'))
        if real.is_dir():
            roots |= {name: real for name in ('nemo', 'urdu', 'emodb') if (real / name).is_dir()}
        found = {name: per_item(load_corpus(name, root).paths[:args.files], folder / name, args.repeats)
                 for name, root in roots.items()}
        opened = [open_hours(hours, folder / f'{hours}h') for hours in args.hours]
    medians = {name: {way: float(np.median(seconds)) for way, seconds in ways.items()} for name, ways in found.items()}
    result = dict(unit='seconds per utterance', repeats=found, median=medians, opened=opened)
    record('data_path', 'cpu', about('cpu', 'datasets', 'soundfile') | result)
    for name, ways in medians.items():
        for way, seconds in ways.items():
            times = seconds / ways['AudioStore']
            print(f'{name:16} {way:24}{1e6 * seconds:8.0f} µs  {times:6.1f} x AudioStore')
    for o in opened:
        print(f'{o["hours"]:4g} h, {o["utterances"]:6} utterances: opened in {o["seconds"]:.2f} s, '
              f'{o["megabytes"]:.0f} MB more; the first time in {o["first_seconds"]:.2f} s')


if __name__ == '__main__':
    main()
