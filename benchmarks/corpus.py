"""What a large corpus costs: verifying it, decoding it into a store, and starting again.

python benchmarks/corpus.py [--files 10000] [--sizes 2500 5000]

Generated utterances with the durations of IEMOCAP, as WAV files with a manifest of path, label and speaker. Each
step runs in a process of its own, whose peak memory is what the operating system says; time is counted after imports.
The smaller sizes show whether time and memory grow with the corpus. Writes benchmarks/results/corpus-cpu.json.
"""
import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from unittest.mock import patch

import numpy as np
import soundfile as sf

from cdser.audio import in_threads
from cdser.audio_store import FORMAT
from cdser.config import LABELS, SAMPLE_RATE, content_hash
from cdser.corpora import released
from cdser.files import content_digest
from cdser.synthetic import STUDIO_A, generate
from side_by_side import about, record

SETTLED = 2.1 # seconds after which the digest of a file is remembered
STEPS = {'verify': 'verifying', 'build': 'decoding into a store', 'start': 'starting again'}


def write_corpus(folder: Path, files: int) -> float: # hours of audio
    "Utterances of random pieces of generated speech, no two alike."
    (folder / 'audio').mkdir(parents=True)
    speech = np.concatenate(generate(STUDIO_A)[0])
    seconds = list(islice(cycle(released('iemocap').duration_s), files))
    def write(i):
        rng, n = np.random.default_rng(i), round(seconds[i] * SAMPLE_RATE)
        starts = rng.integers(0, len(speech) - 8000, n // 8000 + 1)
        samples = np.concatenate([speech[start:start + 8000] for start in starts])[:n]
        sf.write(folder / 'audio' / f'{i:05}.wav', samples, SAMPLE_RATE)
    for _ in in_threads(write, range(files), 'writing', progress=False):
        pass
    rows = (f'audio/{i:05}.wav,{LABELS[i % 4]},s{i % 50}' for i in range(files))
    (folder / 'manifest.csv').write_text('path,label,speaker\n' + '\n'.join(rows))
    return sum(seconds) / 3600


@contextmanager
def silence(lengths: np.ndarray, name: str = '') -> Iterator[None]:
    "`open_store` writes silence of these lengths instead of decoding: stores as large as real ones, but sparse."
    def write(draft, recordings, key):
        with open(draft / 'samples', 'wb') as file:
            file.truncate(4 * int(lengths.sum()))
        contents = [f'{name} {i}' for i in range(len(lengths))] # as of different recordings
        index = dict(format=FORMAT, key=key, samples=content_digest(draft / 'samples'), lengths=lengths.tolist(),
                     contents=contents)
        (draft / 'store.json').write_text(json.dumps({**index, 'seal': content_hash(index)}))
    with patch('cdser.audio_store.write_store', write):
        yield


def run_step(step: str, root: Path, runs_dir: Path) -> None:
    "One step in this process; prints seconds and peak memory as JSON."
    if step == 'verify':
        from cdser.verify import verify # as the command line imports it, without torch
    else:
        from cdser.parts import open_recordings
    start = time.perf_counter()
    if step == 'verify':
        assert verify('large', root / 'large', progress=False).ok
    else:
        assert open_recordings('large', root, runs_dir, 15.).store.digest
    seconds = time.perf_counter() - start
    print(json.dumps(dict(seconds=seconds, peak_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)))


def measure(files: int) -> dict: # step -> seconds, peak_gb
    "All steps on a fresh corpus."
    with tempfile.TemporaryDirectory() as folder:
        root, runs_dir = Path(folder) / 'corpora', Path(folder) / 'runs'
        found = dict(files=files, hours=write_corpus(root / 'large', files))
        for step, name in STEPS.items():
            command = [sys.executable, __file__, '--step', step, str(root), str(runs_dir)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[name] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--files', type=int, default=10_000)
    parser.add_argument('--sizes', type=int, nargs='*', default=[2_500, 5_000])
    parser.add_argument('--step', nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        return run_step(args.step[0], *map(Path, args.step[1:]))
    measured = [measure(files) for files in (*args.sizes, args.files)]
    record('corpus', 'cpu', about('cpu') | dict(measured=measured))
    for found in measured:
        print(f'{found["files"]} files, {found["hours"]:.1f} h')
        for name in STEPS.values():
            print(f'  {name:24}{found[name]["seconds"]:6.1f} s, peak {found[name]["peak_gb"]:.2f} GB')


if __name__ == '__main__':
    main()
