"""What checkpoints cost a training, and what a kill costs with them.

python benchmarks/checkpoints.py [--repeats 5] [--size nano|base]

The same training with and without checkpoints, in turn, on generated speech and one thread. `base` is a Wav2Vec2 of the
size of wav2vec2-base with random weights and a few steps. Writes benchmarks/results/checkpoints-<device>.json.
"""
import argparse
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')

import torch
from transformers import Wav2Vec2Config, Wav2Vec2Model

from cdser.config import Experiment
from cdser.model import build
from cdser.parts import make_parts, open_recordings
from cdser.store import Checkpoints
from cdser.synthetic import write_studios
from cdser.train import train
from side_by_side import RESULTS, about, interleave, ratios, record

SHORT = dict(batch_seconds=6.4, max_seconds=.64)
STEPS = dict(nano=dict(epochs=6, **SHORT), base=dict(epochs=1, epoch_steps=6, **SHORT))


class Watched(Checkpoints):
    "Checkpoints that note when each is written, and how long that takes."
    def __init__(self, file: Path):
        super().__init__(file)
        self.written, self.seconds, self.size = [], 0., 0
    def save(self, tensors, facts):
        super().save(tensors, facts)
        self.written.append(time.perf_counter())
        self.seconds += self.took
        self.size = self.file.stat().st_size


def measure(size: str, repeats: int, folder: Path) -> dict:
    encoder = 'nano'
    if size == 'base':
        encoder = str(folder / 'base')
        Wav2Vec2Model(Wav2Vec2Config()).save_pretrained(encoder)
    e = Experiment('studio_a', 'studio_b', encoder=encoder, **STEPS[size])
    places = folder / 'corpora', folder / 'runs'
    parts = make_parts(e, *(open_recordings(name, *places, e.max_seconds) for name in (e.source, e.target)))
    kept, began = [], []
    def run(checkpoints):
        began.append(time.perf_counter())
        train(e, build(e), parts.training, parts.valid, parts.test, parts.steps, progress=False,
              checkpoints=checkpoints)
        if checkpoints:
            checkpoints.clear()
    def with_them():
        kept.append(Watched(folder / 'of a training.checkpoint'))
        run(kept[-1])
    ways = {'with checkpoints': with_them, 'without': lambda: run(None)}
    found = interleave(ways, repeats, warm=1 if size == 'nano' else 0)
    last = kept[-1]
    gaps = [b - a for a, b in zip([began[-2], *last.written], last.written)]
    return dict(seconds=found, cost=ratios(found, 'without', higher_is_better=False), checkpoints=len(last.written),
                megabytes=last.size / 1e6, share_of_time=last.seconds / found['with checkpoints'][-1],
                longest_between=max(gaps, default=None), seconds_to_write=last.took)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument('--repeats', type=int, default=5)
    arguments.add_argument('--size', choices=STEPS, default='nano')
    given = arguments.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_studios(Path(folder) / 'corpora')
        found = measure(given.size, given.repeats if given.size == 'nano' else 1, Path(folder))
    file = RESULTS / 'checkpoints-cpu.json'
    earlier = json.loads(file.read_text()) if file.is_file() else {}
    record('checkpoints', 'cpu', {**earlier, **about('cpu', 'safetensors'), given.size: found})
    shown = ('share_of_time', 'checkpoints', 'megabytes', 'longest_between', 'seconds_to_write')
    print(given.size, json.dumps({name: found[name] for name in shown}))
    print('without / with, of seconds', found['cost']['with checkpoints'])


if __name__ == '__main__':
    main()
