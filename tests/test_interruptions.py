"Trainings and grids that are killed at random moments, in processes of their own."
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def killed(what: str, kills: int) -> list[dict]: # what came of each
    "What tests/kills.py says."
    asked = [sys.executable, ROOT / 'tests' / 'kills.py', what, str(kills), '7']
    path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    run = subprocess.run(asked, cwd=ROOT, env={**os.environ, 'PYTHONPATH': path}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_whatever_is_killed_ends_with_the_same_bits_and_leaves_nothing():
    trained, shared, grid = killed('fit,claims,grid', 1)
    assert trained['same'] == trained['kills'] and not trained['leftovers']
    assert shared['same'] and not shared['leftovers'] and shared['steps'][0] == shared['steps'][1] > 0
    assert grid['same'] == grid['kills'] and not grid['leftovers'] and not grid['trained_twice']
    assert not grid['workers_after_10_seconds'] and grid['workers_killed']
