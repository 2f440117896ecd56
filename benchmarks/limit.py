"""How much of the machine's peak a training step reaches, and which operations take the rest of its time.

python benchmarks/limit.py [--device cpu|cuda] [--threads 1 2] [--rounds 5] [--base-batch 4]

Each round measures the peak rate of matrix products (float32 on a CPU, bf16 on a GPU), then the throughput of the
library's own step (`collate`, `augment_batches`, `step`) on emotion labels alone, one view. Utilisation is the step's
floating-point operations, as PyTorch's FlopCounterMode counts them, per second, over the best peak of all rounds;
other work on the machine lowers it. Nano trains all its weights, on 32 utterances per update; wav2vec2-base, with
random weights, keeps its convolutional front end frozen and takes --base-batch utterances, with dropout as published
and without. Audio is generated, with the durations of IEMOCAP, cut at 15 s. Then torch.profiler measures, with the
first number of threads, the share of the updates' time (of the device's time on a GPU) for each kind of operation;
the rest, which no operation accounts for, is Python and waiting. Profiling slows small operations down, so shares are
rough. Writes benchmarks/results/limit-<device>.json.
"""
import argparse
import os
import re
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count
from transformers import Wav2Vec2Config, Wav2Vec2Model

from cdser.audio_store import open_store
from cdser.batches import Utterances
from cdser.config import METHODS, SAMPLE_RATE, Experiment
from cdser.model import build
from cdser.train import augment_batches, make_optimiser, step
from corpus import write_corpus
from side_by_side import about, clock, record

DROPOUTS = ('hidden_dropout', 'attention_dropout', 'activation_dropout', 'feat_proj_dropout', 'final_dropout')
BASES = {'wav2vec2-base': {}, 'wav2vec2-base, no dropout': dict.fromkeys(DROPOUTS, 0.)}
KINDS = {'optimiser and clipping': r'adamw|_foreach|vector_norm|Optimizer', # the first that matches an operation's name
         'convolution': 'conv',
         'attention': 'scaled_dot_product|flash|efficient_attention|softmax',
         'matrix products': r'aten::(mm|addmm|bmm|baddbmm|linear|matmul)$',
         'dropout': 'dropout|bernoulli',
         'normalisation and activation': 'norm|gelu|relu',
         'copies, cat, index, fill': 'copy|cat|index|select|gather|scatter|pad|fill|zero|clone|split|slice|narrow|empty'
                                     '|view|reshape|transpose|expand|as_strided',
         'sums and other arithmetic of arrays': r'aten::(add|sub|mul|div|sum|mean|pow|square|sqrt|rsqrt|var|std)'}


def convolution_backward(grad_shape, input_shape, weight_shape, *_rest, out_shape) -> int: # floating-point operations
    "One forward pass per gradient; PyTorch's own formula ignores the groups of a convolution."
    gradients = sum(shape is not None for shape in out_shape[:2])
    return gradients * conv_flop_count(input_shape, weight_shape, grad_shape)


class Training:
    "The library's updates of one model over the same batches, again and again."
    def __init__(self, e: Experiment, utterances: Utterances, batches: list[np.ndarray], device: str):
        self.e, self.utterances, self.batches, self.device = e, utterances, batches, device
        self.model = build(e).to(device).train()
        self.optimiser, self.generator = make_optimiser(self.model, e), torch.Generator().manual_seed(0)
        samples = [int(utterances.store.lengths[utterances.rows[at]].sum()) for at in batches]
        self.seconds = [count / SAMPLE_RATE for count in samples] # of audio in each batch

    def run(self) -> float: # seconds it took
        start = clock(self.device)
        for at in self.batches:
            views = augment_batches([self.utterances.collate(at, self.device)], self.e, self.generator)[0]
            step(self.model, self.optimiser, views, self.e)
        return clock(self.device) - start

    def flops_per_second(self) -> float: # floating-point operations per second of audio
        "Forward and backward, as PyTorch counts them: it counts attention only as plain matrix products."
        formulas = {torch.ops.aten.convolution_backward: convolution_backward}
        with FlopCounterMode(display=False, custom_mapping=formulas) as counter, sdpa_kernel(SDPBackend.MATH):
            self.run()
        return counter.get_total_flops() / sum(self.seconds)

    def shares(self) -> dict[str, float]: # kind of operation -> share of the updates' time
        activities = [ProfilerActivity.CPU]
        if self.device == 'cuda':
            activities.append(ProfilerActivity.CUDA)
        with profile(activities=activities) as trace:
            total = self.run()
        spent = dict.fromkeys([*KINDS, 'other operations'], 0.)
        for event in trace.key_averages():
            if event.device_type != DeviceType.CPU:
                continue # a kernel: its time counts for the operation that started it
            kinds = [kind for kind, pattern in KINDS.items() if re.search(pattern, event.key, re.I)]
            kind = kinds[0] if kinds else 'other operations'
            microseconds = event.self_device_time_total if self.device == 'cuda' else event.self_cpu_time_total
            spent[kind] += microseconds / 1e6
        spent['no operation: Python, waiting'] = max(0., total - sum(spent.values()))
        return {kind: seconds / sum(spent.values()) for kind, seconds in spent.items()}


def best_seconds(work, device: str, repeats: int = 5) -> float:
    "The shortest time that `work` took in several tries, after one that is not counted."
    times = []
    for _ in range(1 + repeats):
        start = clock(device)
        work()
        times.append(clock(device) - start)
    return min(times[1:])


def matrix_peak(device: str) -> float: # floating-point operations per second
    "The highest measured rate of square matrix products, over three sizes."
    sizes, dtype = ((4096, 8192, 16384), torch.bfloat16) if device == 'cuda' else ((512, 1024, 2048), torch.float32)
    rates = []
    for n in sizes:
        a, b = torch.randn(2, n, n, device=device).to(dtype)
        out = torch.empty_like(a)
        rates.append(2 * n**3 / best_seconds(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device))
    return max(rates)


def memory_peak(device: str) -> float: # bytes per second, read and written
    "The highest measured rate of copying arrays that are far larger than any cache."
    source = torch.ones(2**30 if device == 'cuda' else 2**27, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_seconds(lambda: target.copy_(source), device)


def make_trainings(folder: Path, device: str, base_batch: int) -> dict[str, Training]:
    "All models, each with its batches."
    write_corpus(folder / 'corpus', 320)
    store = open_store(folder / 'store', sorted((folder / 'corpus' / 'audio').iterdir()), max_seconds=15.)
    utterances, order = Utterances(store, np.arange(320), np.arange(320) % 4), np.random.default_rng(0).permutation(320)
    single = dict(views=1, weights=METHODS['emotion_only'])
    trainings = {'nano': Training(Experiment('a', 'b', **single), utterances, np.split(order, 10)[:4], device)}
    for name, dropout in BASES.items():
        Wav2Vec2Model(Wav2Vec2Config(**dropout)).save_pretrained(folder / name)
        e = Experiment('a', 'b', encoder=str(folder / name), freeze_front_end=True, encoder_lr=3e-5, head_lr=1e-3,
                       **single)
        trainings[name] = Training(e, utterances, [order[:base_batch]], device)
    return trainings


def spread(values: list[float]) -> dict[str, float]:
    return dict(median=float(np.median(values)), low=min(values), high=max(values))


def measure(trainings: dict[str, Training], flops: dict[str, float], device: str, rounds: int) -> dict:
    "Peaks, throughput and utilisation."
    peaks, speeds = [], {name: [] for name in trainings}
    for number in range(1 + rounds):
        peak = matrix_peak(device)
        speed = {name: sum(training.seconds) / training.run() for name, training in trainings.items()}
        if number == 0:
            continue # warm-up
        peaks.append(peak)
        for name in trainings:
            speeds[name].append(speed[name])
    models = {}
    for name in trainings:
        limit = max(peaks) / flops[name] # seconds of audio per second if a step were only matrix products at peak rate
        utilisation = spread([speed / limit for speed in speeds[name]])
        models[name] = dict(seconds_a_second=spread(speeds[name]), utilisation=utilisation, at_most_arithmetic=limit)
    return dict(matrix_tflops=spread([peak / 1e12 for peak in peaks]), memory_gb_per_s=memory_peak(device) / 1e9,
                models=models)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))
    parser.add_argument('--threads', type=int, nargs='+', help='default: 1 2 on a CPU, 1 on a GPU')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--base-batch', type=int,
                        help='utterances per update of wav2vec2-base; default: 4 on a CPU, 32 on a GPU')
    args = parser.parse_args()
    on_gpu = args.device == 'cuda'
    measured, choices = {}, args.threads or ([1] if on_gpu else [1, 2])
    with tempfile.TemporaryDirectory() as folder:
        trainings = make_trainings(Path(folder), args.device, args.base_batch or (32 if on_gpu else 4))
        flops = {name: training.flops_per_second() for name, training in trainings.items()}
        for threads in choices:
            torch.set_num_threads(threads)
            found = measured[f'{threads} threads'] = measure(trainings, flops, args.device, args.rounds)
            print(f'{threads} threads: {found["matrix_tflops"]["high"]:.3g} TFLOP/s in matrix products, '
                  f'{found["memory_gb_per_s"]:.0f} GB/s in copies')
            for name, model in found['models'].items():
                print(f'  {name:28}{model["seconds_a_second"]["median"]:8.4g} s/s '
                      f'of {model["at_most_arithmetic"]:8.4g} at most: '
                      'utilisation {median:.0%} ({low:.0%} to {high:.0%})'.format(**model['utilisation']))
        torch.set_num_threads(choices[0])
        shares = {name: training.shares() for name, training in trainings.items()}
    print(f'\n{"share of an update":40}' + ''.join(f'{name:>28}' for name in shares))
    for kind in shares['nano']:
        print(f'{kind:40}' + ''.join(f'{share[kind]:28.1%}' for share in shares.values()))
    result = dict(about(args.device), dtype='bfloat16' if on_gpu else 'float32', rounds=args.rounds,
                  load_average=os.getloadavg()[0],
                  gflop_a_second_of_audio={name: count / 1e9 for name, count in flops.items()},
                  audio_seconds_of_updates={name: training.seconds for name, training in trainings.items()},
                  measured=measured, share_of_an_update=shares, profiled_threads=choices[0])
    print(record('limit', args.device, result))


if __name__ == '__main__':
    main()
