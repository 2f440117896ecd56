"What several test files share: small generated studios, and real corpora where they are to be had."
import os
from pathlib import Path

import pytest

from cdser.synthetic import write_studios

ROOT = Path(__file__).parent.parent


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
    if not root.is_dir(): pytest.skip(f'no real corpora: {root} is absent; name a folder of them in CDSER_CORPORA')
    return root
