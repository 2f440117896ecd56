"The house itself: pins that are what is installed, an audit that tells, targets that the README names, workers."
import importlib.util
import json
import re
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
CONFIG = ConfigParser(delimiters=['='])
CONFIG.read(ROOT / 'settings.ini', encoding='utf-8')
SETTINGS = CONFIG['DEFAULT']
LISTS = [name for name in SETTINGS if name.endswith('requirements')]
LINES = (ROOT / 'constraints.txt').read_text(encoding='utf-8').splitlines()
PINS = {canonicalize_name(pin.name): pin
        for pin in [Requirement(line) for line in LINES if line.strip() and line[0] != '#']}


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('name', LISTS)
def test_every_requirement_has_a_pin_within_its_range(name):
    for requirement in map(Requirement, SETTINGS[name].split()):
        pin = PINS.get(canonicalize_name(requirement.name))
        assert pin, f'{requirement.name} of {name} has no pin in constraints.txt'
        [exact] = pin.specifier
        assert exact.operator == '==', f'{pin} is no exact version'
        assert requirement.specifier.contains(exact.version), f'{pin} is not within {requirement}'


def test_what_is_installed_is_what_is_pinned():
    asked = (SETTINGS['requirements'] + ' ' + SETTINGS['dev_requirements']).split()
    needed = {canonicalize_name(Requirement(text).name) for text in asked}
    for name, pin in PINS.items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            assert name not in needed, f'{name} is needed and not installed'
            continue
        [exact] = pin.specifier
        assert Version(installed).public == exact.version, f'{name} {installed} is installed, {exact.version} pinned'


def test_the_lowest_versions_that_are_tested_are_those_that_are_allowed():
    lines = (ROOT / 'constraints-lowest.txt').read_text(encoding='utf-8').splitlines()[1:]
    lowest = {name: Version(exact) for name, exact in (line.split('==') for line in lines)}
    allowed = {}
    for requirement in map(Requirement, SETTINGS['requirements'].split()):
        [bound] = [clause for clause in requirement.specifier if clause.operator == '>=']
        allowed[requirement.name] = Version(bound.version)
    assert lowest == allowed


def test_a_chapter_imports_only_from_chapters_before_it():
    sources = {}
    for notebook in sorted((ROOT / 'nbs').glob('[0-8]*.ipynb')):
        cells = [''.join(cell['source']) for cell in json.loads(notebook.read_text(encoding='utf-8'))['cells']]
        [module] = re.findall(r'(?m)^#\| default_exp (\w+)', '\n'.join(cells))
        sources[module] = '\n'.join(cell for cell in cells if cell.startswith('#| export'))
    order = list(sources)
    for module, source in sources.items():
        imported = re.findall(r'(?m)^from cdser\.(\w+) import', source)
        later = [name for name in imported if order.index(name) >= order.index(module)]
        assert not later, f'{module} imports {later}'


PACKAGE, UNKNOWN = dict(name='a', version='1', vulns=[]), dict(name='b', skip_reason='not found')
WEAK = dict(name='c', version='2', vulns=[dict(id='CVE-1', fix_versions=['3'])])


@pytest.mark.parametrize('packages, code, says', [
    ([PACKAGE], 0, '1 packages, 0 weaknesses'), ([PACKAGE, UNKNOWN], 0, 'not known to the service: b'),
    ([PACKAGE, WEAK], 1, 'c 2: CVE-1, mended in 3'), ([UNKNOWN, WEAK], 1, '1 packages, 1 weaknesses'),
    ([UNKNOWN] * 3, None, ''), ([], None, '')])
def test_an_audit_fails_at_a_finding_and_learns_nothing_from_a_service_that_knows_nothing(packages, code, says):
    status, lines = load(ROOT / '.ci' / 'audit.py').judge(json.dumps(dict(dependencies=packages)), '')
    assert status == code and says in '\n'.join(lines)


@pytest.mark.parametrize('complaint, code', [
    ("ConnectionError: Failed to resolve 'host'", None), ('Timeout after 240 seconds', None),
    ('ImportError: no module', 1), ('', 1)])
def test_an_audit_that_breaks_is_no_audit_that_could_not_be_made(complaint, code):
    assert load(ROOT / '.ci' / 'audit.py').judge('', complaint)[0] == code


@pytest.mark.parametrize('reached, code, says', [
    (False, 0, 'audit skipped: no vulnerability service can be reached'), (True, 1, 'CVE-1')])
def test_the_next_service_is_asked_where_one_cannot_be_reached(monkeypatch, capsys, reached, code, says):
    audit = load(ROOT / '.ci' / 'audit.py')
    answer = json.dumps(dict(dependencies=[WEAK])) if reached else ''
    monkeypatch.setattr(audit, 'ask', lambda service: (answer if service == 'osv' else '', 'ConnectionError'))
    assert audit.main() == code and says in capsys.readouterr().out


def test_the_readme_names_the_targets_of_the_makefile():
    targets = set(re.findall(r'(?m)^([a-z]+):.*## ', (ROOT / 'Makefile').read_text(encoding='utf-8')))
    named = set(re.findall(r'`?make ([a-z]+)', (ROOT / 'README.md').read_text(encoding='utf-8')))
    assert {'reproduce', 'test', 'evidence', 'lab', 'bench', 'lint', 'audit'} <= targets
    assert {'reproduce', 'test', 'evidence', 'lab', 'bench', 'lint'} <= named <= targets | {'clean'}
