"Shared by several test files: generated studios, real corpora if there are any, how tests are spread over workers."
import ast
import os
from functools import cache
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
    if not root.is_dir(): pytest.skip(f'no real corpora: {root} is absent; name a folder of them in CDSER_CORPORA')
    return root


@cache
def shared_fixtures(path: Path) -> dict[str, str]: # function -> the first fixture of the module's that it rests on
    "Which tests of a file stand on the same fixture of `scope='module'`."
    body = ast.parse(path.read_text(encoding='utf-8')).body
    found = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
    wide = [name for name, node in found.items()
            if any("scope='module'" in ast.unparse(line) for line in node.decorator_list)]
    def below(name: str) -> set[str]:
        if name not in found: return set()
        return {name}.union(*(below(arg.arg) for arg in found[name].args.args if arg.arg != name))
    return {name: first for name in found if (first := next((one for one in wide if one in below(name)), ''))}


def group_of(test: str) -> str:
    "What has to run in one worker with a test; the test itself, where it is free."
    file, _, name = test.partition('::')
    first = shared_fixtures(ROOT / file).get(name.partition('[')[0])
    return f'{file}::{first}' if first else test


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    "The longest first, so that no worker waits for another at the end."
    items.sort(key=lambda item: item.path.stem != 'test_notebooks')


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    "Tests that share a fixture of their module run in one worker: what it trains is trained once. All others are free."
    from xdist.scheduler import LoadScopeScheduling # its own groups by marks are lost under pytest 9.2
    class Sharing(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str: return group_of(nodeid)
    config.option.loadscopereorder = False
    return Sharing(config, log)
