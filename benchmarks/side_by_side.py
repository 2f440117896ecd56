"""Shared by the benchmarks: ways that are timed in turn, their ratios, the peak memory of each, and the records.

A way is a function without arguments that does some work and returns how much it did (seconds of audio, files, ...), or
None if only time counts. Ways are interleaved, A B A B, so that all see the same machine: a round is one call of each,
and the ratio is computed within each round, then the median over rounds. Shared machines are noisy; ratios within a
round are less so.
"""
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / 'results'


def clock(device: str = 'cpu') -> float:
    "Seconds, once the device has done all it was told to."
    if device == 'cuda':
        import torch
        torch.cuda.synchronize()
    return time.perf_counter()


def interleave(ways: dict[str, Callable[[], float | None]], repeats: int, device: str = 'cpu', warm: int = 1,
               ) -> dict[str, list[float]]: # way -> work a second in each round, or seconds where a way returns None
    "Time every way once a round, after rounds that are not counted."
    found = {name: [] for name in ways}
    for number in range(warm + repeats):
        for name, way in ways.items():
            start = clock(device)
            work = way()
            seconds = clock(device) - start
            if number >= warm:
                found[name].append(seconds if work is None else work / seconds)
    return found


def ratios(found: dict[str, list[float]], ours: str, higher_is_better: bool = True) -> dict[str, dict[str, float]]:
    "How many times better than each other way ours is: the median of the rounds' ratios, their lowest and highest."
    def times(other):
        r = np.array(found[ours]) / np.array(found[other])
        return r if higher_is_better else 1 / r
    return {other: dict(median=float(np.median(r)), low=float(r.min()), high=float(r.max()))
            for other in found if other != ours for r in [times(other)]}


def processor() -> str:
    "The name of the processor, as the operating system gives it."
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(':')[1].strip() for line in lines if line.startswith('model name')), platform.machine())


def about(device: str, *packages: str) -> dict:
    "The machine, the versions and the date."
    versions = {name: version(name) for name in ('torch', 'transformers', *packages)}
    found = dict(device=device, name=processor(), cores=len(os.sched_getaffinity(0)), python=platform.python_version(),
                 versions=versions, date=time.strftime('%Y-%m-%d'))
    if device == 'cuda':
        import torch
        found['name'] = torch.cuda.get_device_name()
    return found


def record(name: str, device: str, result: dict) -> Path:
    "Write benchmarks/results/<name>-<device>.json."
    path = RESULTS / f'{name}-{device}.json'
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + '\n')
    return path


def peak_gigabytes(*arguments: str) -> float:
    "Peak memory of this Python script run anew, alone, with these arguments; it prints `peak()` on its last line."
    done = subprocess.run([sys.executable, sys.argv[0], *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return float(done.stdout.splitlines()[-1])


def peak(device: str = 'cpu') -> float:
    "Peak memory of this process, or of the GPU it used, in GB."
    if device == 'cuda':
        import torch
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path('/proc/self/status').read_text() # getrusage would count what the parent held when it forked
    return int(next(line for line in status.splitlines() if line.startswith('VmHWM')).split()[1]) / 2**20


def show(found: dict[str, list[float]], unit: str, compared: dict[str, dict[str, float]] | None = None) -> None:
    "Print medians, spread and ratios."
    for name, values in found.items():
        line = f'{name:44}{np.median(values):10.4g} {unit} ({min(values):.4g} to {max(values):.4g})'
        if compared and name in compared:
            line += '   ours is {median:.2f} x ({low:.2f} to {high:.2f})'.format(**compared[name])
        print(line)
