"Experiments of any fields as far as their model and its first step; checkpoints that were altered."
import hashlib
import json
import math
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from cdser.checkpoints import Checkpoints
from cdser.config import AUGMENTATIONS, LEAST_MOST, LOSSES, OBJECTIVES, PROTOCOLS, SELECTIONS, SETUPS
from cdser.config import BadInput, Experiment, check_experiment, from_dict
from cdser.model import build
from cdser.parts import make_parts, open_recordings
from cdser.runs import run_id
from cdser.train import train
from fuzzing import fuzzed, pick
from tiny import TINY, prepared


@cache
def recordings():
    return [open_recordings(name, prepared() / 'corpora', prepared() / 'runs', TINY.max_seconds)
            for name in ('studio_a', 'studio_b')]


CHOICES = dict(setup=SETUPS, protocol=PROTOCOLS, selection=SELECTIONS, objective=OBJECTIVES)
FLAGS = ('disjoint_texts', 'freeze_front_end', 'freeze_encoder', 'standardise')


def any_value(rng, name: str):
    "A valid value for a field, most often; on the edge of what is allowed, or just beyond, sometimes."
    if name in CHOICES: return pick(rng, CHOICES[name])
    if name in FLAGS: return bool(rng.integers(2))
    if name == 'weights': return {term: float(rng.integers(3))
                                  for term in rng.choice(LOSSES, rng.integers(1, 5), replace=False)}
    if name == 'augmentations': return tuple(rng.choice(AUGMENTATIONS, rng.integers(4), replace=False))
    low, high = LEAST_MOST[name]
    odd = pick(rng, (low, high, low - 1, high + 1, np.nextafter(low, -math.inf), np.nextafter(high, math.inf),
                     int(low), math.nan))
    if rng.random() < .5: return odd
    usual = float(np.exp(rng.uniform(np.log(max(low, 1e-3)), np.log(min(high, 30)))))
    return round(usual) if isinstance(low, int) else usual


def check_ready(e: Experiment) -> None:
    "What is accepted has parts, a model of its own size, and an id that its record leads back to."
    e = check_experiment(e)
    parts, model = make_parts(e, *recordings()), build(e)
    assert parts.steps > 0 and all(len(part.rows) for part in (*parts.training, parts.valid, parts.test))
    assert model.projection[2].out_features == e.projection and bool(model.standardisation) == e.standardise
    again = from_dict(json.loads(json.dumps(asdict(e), allow_nan=False)))
    assert run_id(again, *recordings()) == run_id(e, *recordings())


@fuzzed('experiments', short=60)
def test_any_experiment_is_refused_or_has_parts_and_a_model(rng, folder, number):
    names = [field.name for field in fields(Experiment) if field.name not in ('source', 'target', 'encoder')]
    chosen = {name: any_value(rng, name) for name in rng.choice(names, rng.integers(1, 5), replace=False)}
    return lambda: check_ready(replace(TINY, **chosen))


EDGES = [{name: edge} for name, edges in LEAST_MOST.items() for edge in edges
         if name not in ('fold', 'folds', 'validation', 'epochs', 'warm_start', 'max_seconds', 'shots', 'seed')
         and edge != 10**6]
EDGES += [dict(setup='few_shot', shots=1), dict(setup='few_shot', shots=10**6), dict(seed=2**32 - 1),
          dict(validation=.01), dict(validation=.99),
          dict(batch_seconds=.1, standardise=True),
          dict(batch_seconds=.1, weights={'emotion': 1., 'supervised_contrastive': 1.}),
          *(dict(batch_seconds=.1, weights={'emotion': 1., term: 1.}, setup='labelled_target')
            for term in ('dann', 'cdan', 'coral', 'mmd', 'mcc')),
          dict(weights={term: 1e6 for term in LOSSES}), dict(weights={'information': 1.}),
          dict(weights={'self_training': 1.}, confidence=.01)]


@pytest.mark.parametrize('edge', EDGES, ids=str)
def test_an_experiment_on_the_edge_trains_or_is_refused(edge):
    try:
        e = check_experiment(replace(TINY, epoch_steps=1, **edge)
                             if 'epoch_steps' not in edge else replace(TINY, batch_seconds=30., **edge))
        torch.set_num_threads(1)
        parts, model = make_parts(e, *recordings()), build(e)
        history, _ = train(e, model, parts.training, parts.valid, parts.test, parts.steps, progress=False)
    except BadInput as err:
        assert '\n' not in str(err)
        return
    assert np.isfinite(history.loss).all()


def written(folder: Path, rng) -> Path:
    "A checkpoint, as a training writes it."
    tensors = {f'model.{i}': torch.from_numpy(rng.random(int(rng.integers(1, 50)), dtype=np.float32))
               for i in range(rng.integers(1, 4))}
    checkpoints = Checkpoints(folder / 'run', about=dict(id='run'))
    checkpoints.save(tensors, dict(epoch=int(rng.integers(9)), history=[dict(loss=.5)]))
    return checkpoints.files()[0]


def altered(rng, content: bytes) -> bytes:
    at = int(rng.integers(len(content)))
    return pick(rng, (content[:at], content[at:], content + rng.bytes(3),
                      content[:at] + bytes([content[at] ^ 1 << int(rng.integers(8))]) + content[at + 1:],
                      bytes(len(content)), content[:at] + rng.bytes(8) + content[at + 8:]))


@fuzzed('run folders', short=150)
def test_altered_checkpoints_are_never_believed(rng, folder, number):
    "The name says what the content was, so any other content is found out."
    path = written(folder, rng)
    content = path.read_bytes()
    changed = altered(rng, content)
    path.write_bytes(changed)
    def ask():
        found = Checkpoints(folder / 'run', about=dict(id='run')).load()
        assert found is None or changed == content, 'it is believed'
    return ask


@fuzzed('run folders', short=150)
def test_forged_checkpoints_are_read_or_passed_over(rng, folder, number):
    "The name fits, so what is in it has to be looked at."
    path = written(folder, rng)
    facts = pick(rng, ('{}', '[]', '1', '{"about": {"id": "run"}}', '{"about": []}', '[' * 10**4, 'NaN',
                       '{"about": {"id": "run"}, "epoch": 1e999}', '\ud7ff'))
    content = altered(rng, path.read_bytes()) if rng.random() < .7 else save({'x': torch.zeros(2)}, {'facts': facts})
    path.unlink()
    (folder / 'run' / f'{hashlib.sha256(content).hexdigest()}.safetensors').write_bytes(content)
    def ask():
        found = Checkpoints(folder / 'run', about=dict(id='run')).load()
        assert found is None or isinstance(found[0], dict) and isinstance(found[1], dict)
    return ask
