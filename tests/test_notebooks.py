"The notebooks: in step with the library, clean, and run by papermill as users run them."
import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import papermill
import pytest
from transformers import Wav2Vec2Config, Wav2Vec2Model

import cdser.runs
from cdser.cli import main
from cdser.config import PROFILES, RIVALS, ROWS, SELECTIONS, BadInput, main_experiments, parse_pairs
from cdser.corpora import read_manifest
from cdser.files import write_manifest
from cdser.store import RunStore
from trees import paper_trees

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / 'nbs').glob('*.ipynb'))
FIGURES = ['figure1_architecture', 'figure2_embeddings', 'figure3_training', 'figure4_confusion']
SHORT = dict(profile='open', seeds=2, epochs=1, settings=dict(epoch_steps=2))


def cells(notebook: Path, kind: str) -> list[dict]:
    notebook = json.loads(notebook.read_text(encoding='utf-8'))
    return [cell for cell in notebook['cells'] if cell['cell_type'] == kind]


def test_the_library_is_what_the_notebooks_export(tmp_path):
    for name in ('nbs', 'cdser'):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('settings.ini', 'README.md'):
        shutil.copy(ROOT / name, tmp_path)
    subprocess.run([Path(sys.executable).parent / 'nbdev_export'], cwd=tmp_path, check=True)
    for module in sorted((ROOT / 'cdser').glob('*.py')):
        assert module.read_text(encoding='utf-8') == (tmp_path / 'cdser' / module.name).read_text(encoding='utf-8')


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_clean_and_reads_as_a_chapter(notebook):
    code = cells(notebook, 'code')
    assert not [output for cell in code for output in cell['outputs'] if output['output_type'] == 'error']
    assert all(cell['execution_count'] is None for cell in code)
    sources = [''.join(cell['source']) for cell in code]
    assert all(source.count('\n') < 60 or '\nclass ' in source for source in sources) # a class cannot be divided
    first = ''.join(cells(notebook, 'markdown')[0]['source'])
    assert first.startswith('# ') and '\n> ' in first


def run(folder: Path, root: Path, notebook: str, **parameters) -> Path: # the folder of tables and figures
    "A notebook under papermill."
    places = dict(corpora_root=str(root), runs_dir=str(folder / 'runs'), figures_dir=str(folder / 'figures'))
    papermill.execute_notebook(ROOT / 'nbs' / f'{notebook}.ipynb', folder / 'out.ipynb', cwd=ROOT, progress_bar=False,
                               parameters={**SHORT, **places, **parameters})
    return folder / 'figures' / parameters.get('profile', 'open')


EVIDENCE = {
    '90_reproduce': (dict(pairs='studio_a>studio_b'), [
        'table1_cross_corpus.csv', 'table1_cross_corpus.md', 'table1_cross_corpus.png', 'table2_ablation.csv',
        'table2_ablation.md', *(f'{name}.{kind}' for name in FIGURES for kind in ('png', 'svg'))]),
    '91_target_labels': (dict(pairs='studio_a>studio_b', shots='1,2'), [
        'target_labels.csv', 'target_labels.md', 'target_labels.png']),
    '92_loss_weights': (dict(pairs='studio_a>studio_b', factors='10', fine='2', temperatures='1.0'), [
        'loss_weights.csv', 'loss_weights.png', 'loss_weights_chosen.md']),
    '93_corpora_matrix': (dict(corpora='studio_a,studio_b'), [
        'corpora_matrix.csv', 'corpora_matrix.png', 'confound.csv', 'distance.csv', 'distance.png']),
    '94_rivals': (dict(pairs='studio_a>studio_b'), [
        'rivals.csv', 'rivals.png', 'beyond.csv', 'beyond.png', 'selection.csv', 'selection.md']),
    '95_claims': (dict(pairs='studio_a>studio_b'), ['claims.csv', 'claims.md'])}


@pytest.fixture(scope='module')
def evidence(studios, tmp_path_factory):
    "All notebooks over one run store, one short epoch each."
    folder = tmp_path_factory.mktemp('evidence')
    for notebook, (parameters, _) in EVIDENCE.items():
        run(folder, studios, notebook, **parameters)
    return folder


@pytest.fixture
def read(evidence):
    return lambda name: pd.read_csv(evidence / 'figures' / 'open' / f'{name}.csv')


@pytest.mark.parametrize('notebook', EVIDENCE)
def test_papermill_fills_the_tables_and_figures_of_every_question(evidence, notebook):
    for name in EVIDENCE[notebook][1]:
        assert (evidence / 'figures' / 'open' / name).stat().st_size > 100


def test_a_second_time_computes_nothing_and_writes_the_same(evidence, studios):
    def times():
        return {path: path.stat().st_mtime_ns for path in (evidence / 'runs').glob('*/*')}
    def tables():
        return [path.read_bytes() for path in sorted((evidence / 'figures').rglob('table*.csv'))]
    before = times(), tables()
    run(evidence, studios, '90_reproduce', pairs='studio_a>studio_b')
    assert (times(), tables()) == before


def test_each_table_has_what_its_question_needs(read):
    table = read('table1_cross_corpus')
    assert table.setup.tolist() == [setup for setup, _ in ROWS] and (table.runs == 2).all()
    assert table.validated_on.tolist() == ['studio_a', 'studio_a', 'studio_b', 'studio_b']
    ablation = {'proposed', 'no_augmentation', 'no_contrastive', 'no_information', 'emotion_only'}
    assert set(read('table2_ablation').method) == ablation
    assert read('target_labels').shots.tolist() == [0, 1, 2, 0]
    assert read('target_labels').setup.tolist()[-1] == 'labelled_target'
    assert {'proposed', *RIVALS} <= set(read('rivals').method)
    assert set(read('rivals').setup) == {'source_only', 'unlabelled_target'}
    extras = {'prior_aware', 'supervised', 'proposed, standardised', 'proposed, by im_score'}
    assert {'proposed', *extras} <= set(read('beyond').method)
    assert set(read('selection').criterion) == {*SELECTIONS, 'last epoch', 'oracle'}
    assert len(read('claims')) == 6


def test_tables_of_different_notebooks_agree_if_they_show_the_same_cell(read):
    uars = []
    for name in ('table1_cross_corpus', 'target_labels', 'corpora_matrix', 'rivals', 'beyond'):
        cell = 'source == "studio_a" & setup == "unlabelled_target" & method == "proposed" & shots == 0'
        uars.append(read(name).query(cell).uar_mean.item())
    weights = read('loss_weights').iloc[0]
    assert weights.parameter == 'paper'
    assert max(*uars, weights.uar_mean) - min(*uars, weights.uar_mean) < 1e-3


def test_the_ledger_uses_stored_runs_only_if_nothing_may_be_trained(evidence, studios, tmp_path):
    shutil.copytree(evidence / 'runs', tmp_path / 'runs')
    stored = RunStore(tmp_path / 'runs').runs()
    written = run(tmp_path, studios, '95_claims', pairs='studio_a>studio_b,studio_b>studio_a', train=False)
    assert len(stored) > 10 and len(RunStore(tmp_path / 'runs').runs()) == len(stored)
    ledger = pd.read_csv(written / 'claims.csv')
    untested = ledger[ledger.verdict == 'not testable']
    assert set(untested.pair) == {'studio_b → studio_a'}
    assert len(untested) == (3 if find_spec('opensmile') else 5) # the classical baseline needs no stored run


class Trained(Exception):
    "Raised in the place of training."


def plan(notebook: str, names: dict, **parameters) -> None:
    "The cells of a notebook up to its first training; raises `Trained` there."
    for cell in cells(ROOT / 'nbs' / f'{notebook}.ipynb', 'code'):
        exec(''.join(cell['source']).replace('%matplotlib inline', ''), names) # noqa: S102 (cells of this repository)
        if 'parameters' in cell['metadata'].get('tags', []):
            names.update(parameters)


@pytest.fixture(scope='module')
def places(studios, tmp_path_factory) -> dict[str, str]:
    "Folders for notebooks, and a corpus `again` with the recordings of `studio_a`."
    folder = tmp_path_factory.mktemp('places')
    for name, copied in (('studio_a', 'studio_a'), ('studio_b', 'studio_b'), ('studio_a', 'again')):
        shutil.copytree(studios / name, folder / 'corpora' / copied)
    return {f'{name}_{kind}': str(folder / name)
            for name, kind in (('corpora', 'root'), ('runs', 'dir'), ('figures', 'dir'))}


@pytest.fixture
def ends(places, monkeypatch):
    "How a notebook's plan ends: 'Trained', or the message of its `BadInput`."
    def stop(*_):
        raise Trained
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(cdser.runs, 'run_missing', stop)

    def how(notebook, times=1, **parameters):
        asked = 'corpora', 'studio_a,studio_b' # of 93
        if notebook != '93_corpora_matrix':
            asked = 'pairs', 'studio_a>studio_b'
        names, message = {}, ''
        for _ in range(times):
            try:
                plan(notebook, names, **{**SHORT, **places, asked[0]: asked[1], **parameters})
            except (Trained, BadInput) as err:
                message = str(err) or 'Trained'
        return message
    return how


AMOUNTS = (-1, '5', None, 1.5, True, [3], 10**9)
FOLDERS = ('/dev/null/x', 'README.md', None, '', True, 1.5, [])
NUMBERS = ('0', '', None, 'x', -1, '1,,2', '2,2', [], {}, True, 'nan', 'inf', '1e9')
WRONG = dict( # parameter -> values that it may not have
    profile=('dmeo', None, 3, ['demo'], ''),
    corpora_root=('absent', None, 2024, '', ['corpora'], True, '/dev/null'),
    pairs=('studio_a', 'studio_a>studio_a', 5, None, ['studio_a>studio_b'], '>', ',', '../a>studio_b',
           'studio_a>studio_b,studio_a>studio_b'),
    encoder=('no/such/folder', None, 3, ['nano'], {}), seeds=AMOUNTS, epochs=AMOUNTS,
    protocol=('kfold', 5, None, [], 'frozen'), label_map=('absent.csv', 7, None, ['map.csv'], '.', 'README.md'),
    runs_dir=FOLDERS, figures_dir=FOLDERS, device=('tpu', None, 0, '', ['cpu']),
    settings=('epochs', [1], {'temprature': 1}, {1: 2}, {'seed': 3}, {'views': 'x'}, {'standardise': True},
              {'augmentations': 'noise'}, {'weights': {}}, {'profile': 'demo'}, {'temperature': -1},
              {'selection': 'im_score'}))
OF_ONE = {
    '90_reproduce': {}, '91_target_labels': dict(shots=('1,x', '', None, '0', -1, '4,4', 1.5, [], ['x'], {}, True)),
    '92_loss_weights': dict(factors=NUMBERS, fine=NUMBERS, temperatures=NUMBERS),
    '93_corpora_matrix': dict(
        corpora=('studio_a', 'studio_a,,studio_b', 'studio_a,studio_a', 5, None, [], {}, 'studio_a>studio_b,b',
                 ['studio_a', 3], '../a,studio_b'),
        best=(None, 'standardise', ['standardise'], {'standardise': 'yes'}, {'standardise': False},
              {'standardize': True}, {'temperature': .2}, {'seed': 1}, {'selection': 'best'})),
    '94_rivals': {}, '95_claims': dict(train=('no', 'False', 1, 0, None, []))}
UNKNOWN = dict(max_seconds=.3, seed=3, labelmap='nowhere.csv', figure_dir='pictures', Seeds=1, shot=[1, 2], best_=None)


@pytest.mark.parametrize('notebook', OF_ONE)
def test_a_wrong_or_unknown_parameter_is_named_before_anything_is_trained(ends, notebook):
    assert ends(notebook, times=2) == 'Trained' # in JupyterLab, cells are run again
    wrong = {**WRONG, **OF_ONE[notebook], **{name: [value] for name, value in UNKNOWN.items()}}
    for name, values in wrong.items():
        if name == 'pairs' and notebook == '93_corpora_matrix':
            values = ['studio_a>studio_b'] # it has no pairs
        for value in values if name in OF_ONE[notebook] or notebook == '90_reproduce' else values[:3]:
            message = ends(notebook, **{name: value})
            assert message.startswith(f'{name}: ') and message.isprintable(), f'{name}={value!r}: {message}'


@pytest.mark.parametrize('notebook, parameters', [
    ('91_target_labels', dict(shots=4)), ('91_target_labels', dict(shots=[1, 4])),
    ('92_loss_weights', dict(factors='1,10', fine='10', temperatures=.1)),
    ('93_corpora_matrix', dict(best={}, corpora=['studio_a', 'studio_b'])),
    ('90_reproduce', dict(protocol='leave_one_session_out', device='cpu')), ('90_reproduce', dict(settings=None))])
def test_a_parameter_may_have_any_form_that_papermill_gives_it(ends, notebook, parameters):
    assert ends(notebook, **parameters) == 'Trained'


def test_missing_corpora_and_shared_recordings_are_named_before_anything_is_trained(ends):
    for notebook, name, form in (('90_reproduce', 'pairs', 'studio_a>{}'), ('90_reproduce', 'pairs', '{}>studio_a'),
                                 ('93_corpora_matrix', 'corpora', 'studio_a,{}')):
        missing = ends(notebook, **{name: form.format('nowhere')})
        assert "has no folder 'nowhere', it holds again, studio_a, studio_b" in missing
        assert ends(notebook, **{name: form.format('again')}).startswith('target: 72 recordings of ')


def test_tables_and_runs_stay_apart_from_recordings(ends, places):
    for name in ('figures_dir', 'runs_dir'):
        for folder in ('studio_a', 'studio_b/audio'):
            assert 'overlap' in ends('90_reproduce', **{name: f"{places['corpora_root']}/{folder}"})
            assert not (Path(places['corpora_root']) / folder / 'open').exists()


def test_a_single_speaker_to_validate_or_test_on_is_found_before_the_matrix_is_trained(ends, places, studios):
    "The distance of two corpora holds a speaker out on either side."
    corpus = Path(places['corpora_root']) / 'few'
    shutil.copytree(studios / 'studio_b', corpus)
    table = read_manifest(corpus / 'manifest.csv')
    three = table[table.speaker.isin(sorted(set(table.speaker))[:3])]
    write_manifest(three.assign(session=''), corpus / 'manifest.csv')
    message = ends('93_corpora_matrix', corpora='studio_a,few')
    shutil.rmtree(corpus)
    assert message.startswith('split: ') and 'holds 1 speaker, and 2 are needed' in message and 'few' in message


def test_a_notebook_says_how_many_runs_of_other_code_it_found(ends, tmp_path, capsys):
    for i in range(3):
        config = dict(identity=dict(code='0123456789ab'), made_by=dict(versions=dict(cdser='0.0.1')))
        (tmp_path / f'{i:012x}').mkdir()
        (tmp_path / f'{i:012x}' / 'config.json').write_text(json.dumps(config))
    assert ends('90_reproduce', runs_dir=str(tmp_path)) == 'Trained'
    assert f'{tmp_path}: 0 runs of this code; not used: 3 of ' in capsys.readouterr().out


def test_without_training_an_empty_store_is_one_clear_error(ends, tmp_path):
    message = ends('95_claims', train=False, runs_dir=str(tmp_path))
    assert message.startswith(f'runs_dir: {tmp_path} has none of the 28 runs')


def test_the_last_line_that_a_user_of_papermill_sees_says_what_is_wrong(tmp_path):
    command = [Path(sys.executable).parent / 'papermill', '--log-output', '--no-progress-bar',
               ROOT / 'nbs' / '91_target_labels.ipynb', tmp_path / 'out.ipynb', '-p', 'shots', '1,x']
    for name in ('corpora_root', 'runs_dir', 'figures_dir'):
        command += ['-p', name, tmp_path / name]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode and ended.stderr.strip().splitlines()[-1] == "BadInput: shots: 'x' is not a whole number"
    assert [path.name for path in tmp_path.iterdir()] == ['out.ipynb']


@pytest.fixture(scope='module')
def wav2vec2(tmp_path_factory) -> Path:
    "A tiny Wav2Vec2 as transformers saves it."
    folder = tmp_path_factory.mktemp('encoder')
    config = Wav2Vec2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                            conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4)
    Wav2Vec2Model(config).save_pretrained(folder)
    return folder


def test_the_paper_profile_runs_on_releases_and_a_saved_encoder(tmp_path, wav2vec2):
    trees = paper_trees(tmp_path / 'corpora', per_speaker=1)
    written = run(tmp_path, trees, '90_reproduce', profile='paper', encoder=str(wav2vec2), seeds=1, epochs=3,
                  settings={})
    table = pd.read_csv(written / 'table1_cross_corpus.csv')
    assert set(zip(table.source, table.target)) == {('iemocap', 'msp_improv'), ('msp_improv', 'iemocap')}
    assert len(table) == 8 and len(pd.read_csv(written / 'table2_ablation.csv')) == 5
    runs = RunStore(tmp_path / 'runs').runs()
    assert len(runs) == 11
    protocols = {(run.experiment.protocol, run.experiment.target, run.experiment.folds) for run in runs}
    assert protocols == {('leave_one_session_out', 'iemocap', 5), ('leave_one_session_out', 'msp_improv', 6)}
    for stored in runs:
        tested = stored.predictions[stored.predictions.part == 'test'].speaker
        assert set(tested) == ({'Ses01F', 'Ses01M'} if stored.experiment.target == 'iemocap' else {'F01', 'M01'})


def test_without_seeds_the_paper_profile_tests_every_session_once():
    plans = {'iemocap': dict(protocol='leave_one_session_out', folds=5),
             'msp_improv': dict(protocol='leave_one_session_out', folds=6)}
    planned = main_experiments(parse_pairs(PROFILES['paper'].pairs), PROFILES['paper'].seeds, plans)
    tested = [(e.target, e.setup, e.fold) for e in planned]
    assert sorted(tested) == sorted((target, setup, fold) for target, how in plans.items() for setup, _ in ROWS
                                    for fold in range(how['folds']))


def test_ten_recordings_and_a_csv_of_three_columns_go_through_the_notebook(tmp_path, studios):
    "As the README says: a folder, a manifest, a pair."
    corpora = tmp_path / 'corpora'
    mine = corpora / 'mine'
    shutil.copytree(studios / 'studio_a', corpora / 'studio_a')
    (mine / 'audio').mkdir(parents=True)
    table = read_manifest(studios / 'studio_b' / 'manifest.csv').drop_duplicates(['speaker', 'label'])
    ten = table[table.speaker.isin(table.speaker.unique()[:5])].groupby('speaker').sample(2, random_state=0)
    lines = ['path,label,speaker']
    for i, row in enumerate(ten.itertuples()):
        shutil.copy(studios / 'studio_b' / row.path, mine / 'audio' / f'a{i}.wav')
        lines.append(f'audio/a{i}.wav,{row.label},{row.speaker}')
    (mine / 'manifest.csv').write_text('\n'.join(lines))
    assert len(lines) == 11 and main(['verify', 'mine', str(mine)]) == 0
    assert main(['split', 'mine', str(mine), str(mine / 'split.csv')]) == 0
    written = run(tmp_path, corpora, '90_reproduce', pairs='mine>studio_a,studio_a>mine', seeds=1)
    table = pd.read_csv(written / 'table1_cross_corpus.csv')
    assert set(table.target) == {'mine', 'studio_a'} and len(table) == 8


def test_a_users_own_label_map_decides_what_is_trained(tmp_path, studios):
    emotions = read_manifest(studios / 'studio_a' / 'manifest.csv').emotion.unique()
    lines = ['corpus,emotion,label', *(f'{studio},{emotion},{label}' for studio in ('studio_a', 'studio_b')
                                       for emotion, label in zip(emotions, ('ang', 'ang', 'neu', 'sad')))]
    (tmp_path / 'map.csv').write_text('\n'.join(lines))
    run(tmp_path, studios, '90_reproduce', pairs='studio_a>studio_b', seeds=1, label_map=str(tmp_path / 'map.csv'))
    labels = [set(stored.predictions.label) for stored in RunStore(tmp_path / 'runs').runs()]
    assert labels and all(of_run == {'ang', 'neu', 'sad'} for of_run in labels)
