"Shared by several test files: generated studios, real corpora if there are any, the order of the tests."
import os
from pathlib import Path

WORKERS = int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', '1'))
if WORKERS > 1: # torch reads this once, when it is imported; kernels of notebooks inherit it
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1) // WORKERS)))

import hypothesis
import pytest

from cdser.synthetic import write_studios

ROOT = Path(__file__).parent.parent

hypothesis.settings.register_profile('same', derandomize=True, database=None, deadline=None, max_examples=50)
hypothesis.settings.load_profile('same')


@pytest.fixture(scope='session')
def studios(tmp_path_factory) -> Path:
    "A folder with both studios, 72 short utterances each."
    root = tmp_path_factory.mktemp('corpora')
    write_studios(root, utterances=72, speakers=9, seconds=.8)
    return root


@pytest.fixture(scope='session')
def real_corpora() -> Path:
    "The folder of real corpora that CDSER_CORPORA names, or `../shared/corpora`."
    root = Path(os.environ.get('CDSER_CORPORA', ROOT.parent / 'shared' / 'corpora'))
    if not root.is_dir():
        pytest.skip(f'no real corpora: {root} is absent; name a folder of them in CDSER_CORPORA')
    return root


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    "The longest first, so that no worker waits for another at the end."
    items.sort(key=lambda item: item.path.stem != 'test_notebooks')
