"A tiny pair of corpora with two runs, made once in a process and copied by whoever spoils them."
import atexit
import functools
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from cdser.config import Experiment
from cdser.runs import fit
from cdser.synthetic import write_studios

TINY = Experiment('studio_a', 'studio_b', epochs=1, epoch_steps=2, max_seconds=.3, batch_seconds=3.)
OTHER = replace(TINY, seed=1)


@functools.cache
def prepared() -> Path: # a folder with `corpora`, and `runs` that hold those of TINY and OTHER
    home = Path(tempfile.mkdtemp(prefix='cdser-tiny-'))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    write_studios(home / 'corpora', utterances=72, speakers=9, seconds=.8)
    for e in (TINY, OTHER):
        fit(e, home / 'corpora', home / 'runs', 'cpu', progress=False)
    return home


def id_of(e: Experiment) -> str: # TINY's or OTHER's
    return {e.seed: id for e, id in zip((TINY, OTHER), ids())}[e.seed]


@functools.cache
def ids() -> tuple[str, ...]:
    return tuple(fit(e, prepared() / 'corpora', prepared() / 'runs', 'cpu', progress=False).id for e in (TINY, OTHER))


def copied_run(folder: Path, e: Experiment = TINY) -> Path: # the copy
    "The run alone, under its name."
    return Path(shutil.copytree(prepared() / 'runs' / id_of(e), folder / id_of(e)))
