"""How much of the machine a training step reaches, and what the rest of its time goes to.

python benchmarks/limit.py [--device cpu|cuda] [--threads 1 2] [--rounds 5] [--base-batch 4]

In every round: the peak rate of matrix products (`cdser.limit.matrix_peak`; float32 on a CPU, bf16 on a GPU), then the
throughput of the library's own step (`collate`, `make_views`, `step`) on emotion labels alone, one view. Utilisation is the
step's floating-point operations, counted by `cdser.limit`, over what the best peak of all rounds allows; other work on the
machine lowers it. Nano trains all it has, on 32 utterances an update; wav2vec2-base, of random weights, leaves its
convolutional front end as it is and takes --base-batch utterances, with dropout as published and without. Audio is
generated, with durations of IEMOCAP, cut at 15 s. Then torch.profiler says, on the first number of threads, which kind of
operation took which share of the updates' time (of the device's time on a GPU); shares add up to one with what no operation
accounts for. Profiling slows small operations down, so shares are rough. Writes benchmarks/results/limit-<device>.json.
"""
import argparse
import os
import re
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import Wav2Vec2Config, Wav2Vec2Model

from cdser.audio import open_store
from cdser.batches import Utterances
from cdser.config import METHODS, SAMPLE_RATE, Experiment
from cdser.limit import PARTS, least_seconds, matrix_peak, memory_peak, step_cost, utilisation
from cdser.model import build
from cdser.train import make_optimiser, make_views, step
from corpus import write_corpus
from side_by_side import about, clock, record

NO_DROPOUT = dict.fromkeys(('hidden_dropout', 'attention_dropout', 'activation_dropout', 'feat_proj_dropout', 'final_dropout'), 0.)
BASES = {'wav2vec2-base': {}, 'wav2vec2-base, no dropout': NO_DROPOUT}
KINDS = {'optimiser and clipping': r'adamw|_foreach|vector_norm|Optimizer', # the first that is found in an operation's name
         'convolution': 'conv', 'attention': 'scaled_dot_product|flash|efficient_attention|softmax',
         'matrix products': r'aten::(mm|addmm|bmm|baddbmm|linear|matmul)$', 'dropout': 'dropout|bernoulli',
         'normalisation and activation': 'norm|gelu|relu',
         'copies, cat, index, fill': 'copy|cat|index|select|gather|scatter|pad|fill|zero|clone|split|slice|narrow|empty|view|reshape|transpose|expand|as_strided',
         'sums and other arithmetic of arrays': r'aten::(add|sub|mul|div|sum|mean|pow|square|sqrt|rsqrt|var|std)'}


class Training:
    "The library's updates of one model over the same batches, again and again."
    def __init__(self, e: Experiment, utterances: Utterances, batches: list[np.ndarray], device: str):
        self.e, self.utterances, self.batches, self.device = e, utterances, batches, device
        self.model = build(e).to(device).train()
        self.optimiser, self.generator = make_optimiser(self.model, e), torch.Generator().manual_seed(0)
        self.seconds = [utterances.store.lengths[utterances.rows[at]] / SAMPLE_RATE for at in batches]

    def update(self, at: np.ndarray) -> None:
        step(self.model, self.optimiser, make_views(self.utterances.collate(at, self.device), self.e, self.generator), self.e)

    def throughput(self) -> float: # seconds of audio a second
        start = clock(self.device)
        for at in self.batches: self.update(at)
        return sum(map(sum, self.seconds)) / (clock(self.device) - start)

    def costs(self, **how) -> list: # a table a batch
        frozen = PARTS[:1] if self.e.freeze_front_end else ()
        return [step_cost(self.model.encoder.backbone.config, seconds, frozen=frozen, **how) for seconds in self.seconds]

    def flops(self) -> float: # for a second of audio
        return sum(costs.flops.sum() for costs in self.costs()) / sum(map(sum, self.seconds))

    def limit(self, peak: float, bandwidth: float) -> float: # seconds of audio a second, at most, each operation for itself
        width = 2 if self.device == 'cuda' else 4
        return sum(map(sum, self.seconds)) / sum(least_seconds(costs, peak, bandwidth).sum() for costs in self.costs(width=width))

    def shares(self) -> dict[str, float]: # kind -> share of an update's time
        "What the updates spend their time on."
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.device == 'cuda')
        with profile(activities=activities) as trace:
            start = clock(self.device)
            for at in self.batches: self.update(at)
            total = clock(self.device) - start
        found = dict.fromkeys([*KINDS, 'other operations'], 0.)
        for event in trace.key_averages():
            if event.device_type != DeviceType.CPU: continue # kernels: counted for the operation that started them
            kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, event.key, re.I)), 'other operations')
            found[kind] += (event.self_device_time_total if self.device == 'cuda' else event.self_cpu_time_total) / 1e6
        found['no operation: Python, waiting'] = max(0., total - sum(found.values()))
        return {kind: seconds / sum(found.values()) for kind, seconds in found.items()}


def make_trainings(folder: Path, device: str, base_batch: int) -> dict[str, Training]:
    "All models, each with its batches."
    write_corpus(folder / 'corpus', 320)
    store = open_store(folder / 'store', sorted((folder / 'corpus' / 'audio').iterdir()), max_seconds=15.)
    utterances, order = Utterances(store, np.arange(320), np.arange(320) % 4), np.random.default_rng(0).permutation(320)
    single = dict(views=1, weights=METHODS['emotion_only'])
    found = {'nano': Training(Experiment('a', 'b', **single), utterances, np.split(order, 10)[:4], device)}
    for name, dropout in BASES.items():
        Wav2Vec2Model(Wav2Vec2Config(**dropout)).save_pretrained(folder / name)
        e = Experiment('a', 'b', encoder=str(folder / name), freeze_front_end=True, encoder_lr=3e-5, head_lr=1e-3, **single)
        found[name] = Training(e, utterances, [order[:base_batch]], device)
    return found


def measure(trainings: dict[str, Training], device: str, rounds: int) -> dict:
    "Peaks, throughputs and the share of the peak, round by round."
    dtype = torch.bfloat16 if device == 'cuda' else torch.float32
    peaks, speeds = [], {name: [] for name in trainings}
    for number in range(1 + rounds): # the first is not counted
        peak = matrix_peak(device, dtype)
        for name, training in trainings.items():
            speed = training.throughput()
            if number: speeds[name].append(speed)
        if number: peaks.append(peak)
    bandwidth, of = memory_peak(device), lambda values: dict(median=float(np.median(values)), low=min(values), high=max(values))
    return dict(matrix_tflops=of([peak / 1e12 for peak in peaks]), memory_gb_per_s=bandwidth / 1e9,
                models={name: dict(seconds_a_second=of(speeds[name]), utilisation=of([utilisation(speed, training.flops(), max(peaks)) for speed in speeds[name]]),
                                   at_most_arithmetic=max(peaks) / training.flops(),
                                   at_most_each_operation_for_itself=training.limit(max(peaks), bandwidth))
                        for name, training in trainings.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))
    parser.add_argument('--threads', type=int, nargs='+', help='1 2 on a CPU, 1 on a GPU')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--base-batch', type=int, help='utterances an update of wav2vec2-base; 4 on a CPU, 32 on a GPU')
    args = parser.parse_args()
    on_gpu = args.device == 'cuda'
    with tempfile.TemporaryDirectory() as folder:
        trainings = make_trainings(Path(folder), args.device, args.base_batch or (32 if on_gpu else 4))
        found, choices = {}, args.threads or ([1] if on_gpu else [1, 2])
        for threads in choices:
            torch.set_num_threads(threads)
            found[f'{threads} threads'] = measured = measure(trainings, args.device, args.rounds)
            print(f'{threads} threads: {measured["matrix_tflops"]["high"]:.3g} TFLOP/s in matrix products, {measured["memory_gb_per_s"]:.0f} GB/s in copies')
            for name, m in measured['models'].items():
                print(f'  {name:28}{m["seconds_a_second"]["median"]:8.4g} s/s of {m["at_most_arithmetic"]:8.4g} at most: '
                      'utilisation {median:.0%} ({low:.0%} to {high:.0%})'.format(**m['utilisation']))
        torch.set_num_threads(choices[0])
        shares = {name: training.shares() for name, training in trainings.items()}
    print(f'\n{"share of an update":40}' + ''.join(f'{name:>28}' for name in shares))
    for kind in shares['nano']: print(f'{kind:40}' + ''.join(f'{share[kind]:28.1%}' for share in shares.values()))
    gflop = {name: training.flops() / 1e9 for name, training in trainings.items()}
    audio = {name: [float(sum(seconds)) for seconds in training.seconds] for name, training in trainings.items()}
    result = dict(about(args.device), dtype='bfloat16' if on_gpu else 'float32', rounds=args.rounds,
                  load_average=os.getloadavg()[0], gflop_a_second_of_audio=gflop,
                  audio_seconds_of_updates=audio, measured=found, share_of_an_update=shares, profiled_threads=choices[0])
    print(record('limit', args.device, result))


if __name__ == '__main__':
    main()
