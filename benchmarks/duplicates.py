"""How alike sketches are: of different recordings of a corpus, and of a recording and its copies.

python benchmarks/duplicates.py [--copies 100]

On both generated studios and on those corpora of the folder that CDSER_CORPORA names.
Writes benchmarks/results/duplicates.json.
"""
import argparse
import io
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile as sf
from scipy.signal import resample_poly

from cdser.audio_store import open_store
from cdser.config import SAMPLE_RATE
from cdser.corpora import load_corpus
from cdser.synthetic import write_studios
from cdser.verify import NEAR, sketch


def coded(samples: np.ndarray, format: str, subtype: str) -> np.ndarray:
    file = io.BytesIO()
    sf.write(file, samples, SAMPLE_RATE, format=format, subtype=subtype)
    file.seek(0)
    return sf.read(file)[0]


COPIES = {'a fifth as loud': lambda x, rng: .2 * x, 'MP3': lambda x, rng: coded(x, 'MP3', 'MPEG_LAYER_III'),
          'Opus': lambda x, rng: coded(x, 'OGG', 'OPUS'), 'Vorbis': lambda x, rng: coded(x, 'OGG', 'VORBIS'),
          'by way of 8 kHz': lambda x, rng: resample_poly(resample_poly(x, 1, 2), 2, 1),
          'noise at 30 dB': lambda x, rng: x + np.std(x) * 10**-1.5 * rng.normal(size=len(x)),
          '20 ms cut off': lambda x, rng: x[320:]}


def measure(name: str, root: Path, folder: Path, copies: int) -> dict:
    "The highest likeness of two recordings, and the lowest of a recording and each kind of copy."
    store, rng = open_store(folder / name, load_corpus(name, root).paths), np.random.default_rng(0)
    drawn = np.stack([sketch(store[i]) for i in range(len(store))])
    lowest, chosen = {}, rng.choice(len(store), min(copies, len(store)), replace=False)
    for kind, change in COPIES.items():
        lowest[kind] = min(float(sketch(change(store[i], rng)) @ drawn[i]) for i in chosen)
    highest = float((drawn @ drawn.T - 2 * np.eye(len(drawn))).max())
    return dict(recordings=len(store), highest_of_two=highest, lowest_of_copies=lowest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--copies', type=int, default=100)
    args = parser.parse_args()
    real = Path(os.environ.get('CDSER_CORPORA', Path(__file__).parents[2] / 'shared' / 'corpora'))
    with tempfile.TemporaryDirectory() as folder:
        write_studios(Path(folder) / 'corpora')
        roots = {name: Path(folder) / 'corpora' for name in ('studio_a', 'studio_b')}
        roots |= {name: real for name in ('emodb', 'urdu', 'nemo') if (real / name).is_dir()}
        found = {name: measure(name, root, Path(folder), args.copies) for name, root in roots.items()}
    path = Path(__file__).parent / 'results' / 'duplicates.json'
    result = dict(near=NEAR, copies=args.copies, seed=0, date=time.strftime('%Y-%m-%d'), found=found)
    path.write_text(json.dumps(result, indent=1) + '\n')
    for name, f in found.items():
        copies = ', '.join(f'{kind} {likeness:.3f}' for kind, likeness in f['lowest_of_copies'].items())
        print(f'{name:9} two recordings at most {f["highest_of_two"]:.3f}; copies at least {copies}')


if __name__ == '__main__':
    main()
