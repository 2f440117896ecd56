"""The demo as a user runs it, after the set-up: how long it takes, how much memory, and where the time goes.

python benchmarks/demo.py

Runs nbs/90_reproduce.ipynb with papermill in an empty folder, so that every run is trained anew, and reads from the
notebook how long each cell took and from the run store how long each run trained. Writes
benchmarks/results/demo-<device>.json.
"""
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from side_by_side import about, record

NOTEBOOK = Path(__file__).parents[1] / 'nbs' / '90_reproduce.ipynb'


def proportional_memory(root: int) -> float: # GB
    "What a process and all its descendants hold now, shared pages counted once."
    parents = {}
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(')', 1)[1].split()[1])
        except OSError:
            pass
    family, grown = {root}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in family} - family
        family, grown = family | more, bool(more)
    total = 0
    for member in family:
        try:
            lines = Path(f'/proc/{member}/smaps_rollup').read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith('Pss:'))
        except OSError:
            pass
    return total / 2**20


def reproduce(folder: Path) -> dict: # seconds, peak in GB
    "Run the notebook in a process of its own, and watch it."
    command = [sys.executable, '-m', 'papermill', '--no-progress-bar', str(NOTEBOOK), 'out.ipynb']
    started, peak = time.perf_counter(), 0.
    with open(folder / 'log', 'w') as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    ended = threading.Event()
    threading.Thread(target=lambda: (process.wait(), ended.set())).start()
    while not ended.wait(.5):
        peak = max(peak, proportional_memory(process.pid))
    if process.returncode:
        raise RuntimeError((folder / 'log').read_text()[-3000:])
    return dict(seconds=time.perf_counter() - started, peak_gb=peak)


def stages(folder: Path) -> dict[str, float]: # seconds
    "Where the time went, from the cells' durations and the runs' histories."
    notebook = json.loads((folder / 'out.ipynb').read_text())
    cells = [(''.join(cell['source']), cell['metadata']['papermill']['duration']) for cell in notebook['cells']]
    grid = sum(seconds for source, seconds in cells if 'runs = study.run(' in source)
    first = next(i for i, (source, _) in enumerate(cells) if 'runs = study.run(' in source)
    return {'imports, generated studios': sum(seconds for _, seconds in cells[:first]), 'runs': grid,
            'tables and figures': sum(seconds for _, seconds in cells[first + 1:])}


def main() -> None:
    import torch
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        found = reproduce(folder)
        runs = [json.loads(path.read_text()) for path in (folder / 'runs').glob('*/metrics.json')]
        training = sum(run['train_seconds'] for run in runs)
        found |= dict(runs=len(runs), training_seconds_of_all_runs=training, stages=stages(folder))
    record('demo', device, {**about(device, 'papermill'), **found})
    print(f'{found["seconds"]:.0f} s, at most {found["peak_gb"]:.2f} GB, '
          f'{found["runs"]} runs that trained {training:.0f} s together')
    for name, seconds in found['stages'].items():
        print(f'  {name:30}{seconds:7.1f} s')


if __name__ == '__main__':
    main()
