"What several test files share: small generated studios, real corpora where they are to be had, workers, and the table of the fuzzers."
import os
from collections.abc import Iterator
from pathlib import Path

WORKERS = int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', '1'))
if WORKERS > 1: # torch reads this once, when it is imported; kernels of notebooks inherit it
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1) // WORKERS)))

import fuzzing
import hypothesis
import pytest

from cdser.synthetic import write_studios

ROOT = Path(__file__).parent.parent

hypothesis.settings.register_profile('short', derandomize=True, database=None, deadline=None, max_examples=50)
hypothesis.settings.register_profile('long', database=None, deadline=None, max_examples=fuzzing.times(50), print_blob=True)
hypothesis.settings.load_profile('short' if fuzzing.SCALE == 1 else 'long')


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


@pytest.fixture
def hang_guard(capfd) -> Iterator[None]:
    "Ends the run where a question of a fuzzer hangs in C."
    with capfd.disabled(), fuzzing.guarded(900 * fuzzing.SCALE): yield


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    "Tests that share a fixture of their module run in one worker, so that what it trains is trained once; all others are free."
    for item in items:
        found = getattr(item, '_fixtureinfo', None)
        definitions = [defined[-1] for defined in (found.name2fixturedefs.values() if found else ())]
        shared = [defined for defined in definitions if defined.scope == 'module']
        if not shared: continue
        first = min(shared, key=lambda defined: defined.func.__code__.co_firstlineno) # the others may rest on it
        item.add_marker(pytest.mark.xdist_group(f'{item.path.stem}-{first.argname}'))


def pytest_terminal_summary(terminalreporter) -> None:
    "What `make fuzz` asked."
    reports = [report for found in terminalreporter.stats.values() for report in found if getattr(report, 'when', '') == 'call']
    rows = [dict(report.user_properties)['fuzz'] for report in reports if 'fuzz' in dict(report.user_properties)]
    if not rows or fuzzing.SCALE == 1: return
    terminalreporter.section('inputs of the fuzzers')
    for line in fuzzing.table(rows): terminalreporter.write_line(line)
