"The notebooks themselves: in step with the library, clean, and the one that reproduces everything runs under papermill."
import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import cdser.runs
import pandas as pd
import papermill
import pytest
from transformers import Wav2Vec2Config, Wav2Vec2Model

from cdser.cli import main
from cdser.config import BadInput, PROFILES, RIVALS, ROWS, SELECTIONS, main_experiments, parse_pairs
from cdser.corpora import read_manifest, write_manifest
from cdser.runs import RunStore
from trees import paper_trees

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / 'nbs').glob('*.ipynb'))
TABLE1 = ['source', 'target', 'setup', 'method', 'uar_mean', 'uar_low', 'uar_high', 'war_mean', 'runs']
FIGURES = ['figure1_architecture', 'figure2_embeddings', 'figure3_training', 'figure4_confusion']


def cells(notebook: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(notebook.read_text(encoding='utf-8'))['cells'] if cell['cell_type'] == kind]


def test_the_library_is_what_the_notebooks_export(tmp_path):
    for name in ('nbs', 'cdser'): shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('settings.ini', 'README.md'): shutil.copy(ROOT / name, tmp_path)
    subprocess.run([Path(sys.executable).parent / 'nbdev_export'], cwd=tmp_path, check=True)
    for module in sorted((ROOT / 'cdser').glob('*.py')):
        assert module.read_text(encoding='utf-8') == (tmp_path / 'cdser' / module.name).read_text(encoding='utf-8'), module.name


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_clean_and_reads_as_a_chapter(notebook):
    code = cells(notebook, 'code')
    assert not [o for cell in code for o in cell['outputs'] if o['output_type'] == 'error']
    assert all(cell['execution_count'] is None for cell in code)
    assert max(''.join(cell['source']).count('\n') + 1 for cell in code) <= 60
    first = ''.join(cells(notebook, 'markdown')[0]['source'])
    assert first.startswith('# ') and '\n> ' in first


def reproduce(tmp_path: Path, studios: Path, notebook: str = '90_reproduce', **parameters):
    out = tmp_path / 'out.ipynb'
    papermill.execute_notebook(ROOT / 'nbs' / f'{notebook}.ipynb', out, cwd=ROOT, progress_bar=False, parameters=dict(
        corpora_root=str(studios), runs_dir=str(tmp_path / 'runs'), figures_dir=str(tmp_path / 'figures'), **parameters))
    return out


@pytest.fixture(scope='module')
def reproduced(studios, tmp_path_factory):
    folder = tmp_path_factory.mktemp('reproduced')
    reproduce(folder, studios, profile='open', pairs='studio_a>studio_b', seeds=2, epochs=1)
    return folder


def test_papermill_fills_every_table_and_figure(reproduced):
    written = reproduced / 'figures' / 'open'
    table = pd.read_csv(written / 'table1_cross_corpus.csv')
    assert table.columns[:len(TABLE1)].tolist() == TABLE1
    assert table.setup.tolist() == ['source_only', 'unlabelled_target', 'labelled_target', 'target_only']
    assert (table.runs == 2).all() and table.uar_mean.between(0, 100).all()
    assert table.validated_on.tolist() == ['studio_a', 'studio_a', 'studio_b', 'studio_b']
    ablation = pd.read_csv(written / 'table2_ablation.csv')
    assert set(ablation.method) == {'proposed', 'no_augmentation', 'no_contrastive', 'no_information', 'emotion_only'}
    for name in FIGURES:
        for kind in ('png', 'svg'): assert (written / f'{name}.{kind}').stat().st_size > 5_000
    for name in ('table1_cross_corpus', 'table2_ablation'): assert 'studio_a' in (written / f'{name}.md').read_text()


def test_a_second_time_computes_nothing_and_writes_the_same(reproduced, studios):
    stamps = lambda: {path: path.stat().st_mtime_ns for path in (reproduced / 'runs').rglob('*') if path.is_file()}
    tables = lambda: [path.read_bytes() for path in sorted((reproduced / 'figures').rglob('table*.csv'))]
    runs, written = stamps(), tables()
    reproduce(reproduced, studios, profile='open', pairs='studio_a>studio_b', seeds=2, epochs=1)
    assert stamps() == runs and tables() == written


EVIDENCE = {'91_target_labels': (dict(pairs='studio_a>studio_b', shots='1,2'), ['target_labels.csv', 'target_labels.md', 'target_labels.png']),
            '92_loss_weights': (dict(pairs='studio_a>studio_b', factors='10', fine='2', temperatures='1.0'),
                                ['loss_weights.csv', 'loss_weights.png', 'loss_weights_chosen.md']),
            '93_corpora_matrix': (dict(corpora='studio_a,studio_b'), ['corpora_matrix.csv', 'corpora_matrix.png', 'confound.csv', 'distance.csv', 'distance.png']),
            '94_rivals': (dict(pairs='studio_a>studio_b', warm=3), ['rivals.csv', 'rivals.png', 'beyond.csv', 'beyond.png', 'selection.csv', 'selection.md']),
            '95_claims': (dict(pairs='studio_a>studio_b'), ['claims.csv', 'claims.md'])}


@pytest.fixture(scope='module')
def evidence(studios, tmp_path_factory):
    "All of them over one run store, one short epoch each."
    folder = tmp_path_factory.mktemp('evidence')
    for notebook, (parameters, _) in EVIDENCE.items():
        reproduce(folder, studios, notebook, profile='open', seeds=2, epochs=1, settings=dict(epoch_steps=2), **parameters)
    return folder


@pytest.mark.parametrize('notebook', EVIDENCE)
def test_papermill_fills_the_tables_and_figures_of_every_question(evidence, notebook):
    for name in EVIDENCE[notebook][1]: assert (evidence / 'figures' / 'open' / name).stat().st_size > 100


def test_the_tables_of_different_notebooks_agree_where_they_show_the_same_cell(evidence):
    read = lambda name: pd.read_csv(evidence / 'figures' / 'open' / f'{name}.csv')
    of = lambda table: table[(table.source == 'studio_a') & (table.target == 'studio_b') & (table.setup == 'unlabelled_target') & (table.method == 'proposed')]
    cells = pd.concat([of(read(name))[['uar_mean', 'uar_low', 'uar_high']] for name in ('target_labels', 'corpora_matrix', 'rivals', 'beyond')])
    assert len(cells) == 4 and (cells.round(3).nunique() == 1).all()
    paper = read('loss_weights').iloc[0]
    assert paper.parameter == 'paper' and abs(paper.uar_mean - cells.uar_mean.iloc[0]) < 1e-3


def test_the_ledger_is_made_of_stored_runs_alone_where_nothing_may_be_trained(evidence, studios, tmp_path):
    shutil.copytree(evidence / 'runs', tmp_path / 'runs')
    stored = RunStore(tmp_path / 'runs').runs()
    reproduce(tmp_path, studios, '95_claims', profile='open', pairs='studio_a>studio_b,studio_b>studio_a', seeds=2, epochs=1,
              settings=dict(epoch_steps=2), train=False)
    assert len(stored) > 10 and RunStore(tmp_path / 'runs').runs() == stored
    ledger = pd.read_csv(tmp_path / 'figures' / 'open' / 'claims.csv')
    missing = ledger[ledger.pair == 'studio_b → studio_a'].set_index('claim').verdict
    untested = 3 if find_spec('opensmile') else 5 # the classic is a rival, and needs no stored run
    assert len(ledger) == 12 and (missing == 'not testable').sum() == untested and ledger[ledger.pair == 'studio_a → studio_b'].verdict.ne('not testable').all()


def test_what_each_question_asks_is_in_its_table(evidence):
    read = lambda name: pd.read_csv(evidence / 'figures' / 'open' / f'{name}.csv')
    assert read('target_labels').shots.tolist() == [0, 1, 2, 0] and read('target_labels').setup.tolist()[-1] == 'labelled_target'
    rivals = read('rivals')
    assert {'proposed', *RIVALS} <= set(rivals.method) and set(rivals.setup) == {'source_only', 'unlabelled_target'}
    extras = {'prior_aware', 'supervised', 'proposed, standardised', 'proposed, tapt 3', 'proposed, ptapt 3', 'proposed, by im_score'}
    assert {'proposed', *extras} <= set(read('beyond').method)
    assert set(read('selection').criterion) == {*SELECTIONS, 'last epoch', 'oracle'}
    ledger = read('claims')
    assert len(ledger) == 6 and set(ledger.verdict) <= {'supported', 'contradicted', 'undecided', 'not testable'}


class Trained(Exception):
    "Raised in the place of training."


def plan(notebook: str, **parameters) -> None:
    "The cells of a notebook up to its first training; raises `Trained` there."
    names = {}
    for cell in cells(ROOT / 'nbs' / f'{notebook}.ipynb', 'code'):
        exec(''.join(cell['source']).replace('%matplotlib inline', ''), names) # noqa: S102 (cells of this repository)
        if 'parameters' in cell['metadata'].get('tags', []): names.update(parameters)


@pytest.fixture(scope='module')
def places(studios, tmp_path_factory) -> dict[str, str]:
    "Folders for notebooks, and a corpus `again` that holds what `studio_a` holds."
    folder = tmp_path_factory.mktemp('places')
    for name, copied in (('studio_a', 'studio_a'), ('studio_b', 'studio_b'), ('studio_a', 'again')):
        shutil.copytree(studios / name, folder / 'corpora' / copied)
    return dict(corpora_root=str(folder / 'corpora'), runs_dir=str(folder / 'runs'), figures_dir=str(folder / 'figures'))


AMOUNTS = (-1, '5', None, 1.5, True, [3], 10**9)
FOLDERS = ('/dev/null/x', 'README.md', None, '', True, 1.5, [])
WRONG = dict( # parameter -> what it may not be
    profile=('dmeo', None, 3, ['demo'], ''),
    corpora_root=('absent', None, 2024, '', ['corpora'], True, '/dev/null'),
    pairs=('studio_a', 'studio_a>studio_a', 5, None, ['studio_a>studio_b'], '>', ',', '../a>studio_b', 'studio_a>studio_b,studio_a>studio_b'),
    encoder=('no/such/folder', None, 3, ['nano'], {}), seeds=AMOUNTS, epochs=AMOUNTS, protocol=('kfold', 5, None, [], 'frozen'),
    label_map=('absent.csv', 7, None, ['map.csv'], '.', 'README.md'), runs_dir=FOLDERS, figures_dir=FOLDERS,
    device=('tpu', None, 0, '', ['cpu']),
    settings=('epochs', [1], {'temprature': 1}, {1: 2}, {'seed': 3}, {'views': 'x'}, {'standardise': True},
              {'augmentations': 'noise'}, {'weights': {}}, {'profile': 'demo'}, {'temperature': -1}, {'selection': 'im_score'}))
FACTORS = ('0', '', None, 'x', -1, '1,,2', '2,2', [], {}, True, 'nan', 'inf', '1e9')
OF_ONE = {'90_reproduce': {},
          '91_target_labels': dict(shots=('1,x', '', None, '0', -1, '1,,2', '4,4', 1.5, [], ['x'], {}, True, '1e3')),
          '92_loss_weights': dict(factors=FACTORS, fine=FACTORS, temperatures=FACTORS),
          '93_corpora_matrix': dict(
              corpora=('studio_a', 'studio_a,,studio_b', 'studio_a,studio_a', 5, None, [], {}, 'studio_a>studio_b,b', ['studio_a', 3], '../a,studio_b'),
              best=(None, 'standardise', ['standardise'], {'standardise': 'yes'}, {'standardise': False}, {'standardize': True}, {'temperature': .2},
                    {'seed': 1}, {'selection': 'best'})),
          '94_rivals': {},
          '95_claims': dict(train=('no', 'False', 1, 0, None, []))}


@pytest.fixture
def ends(places, monkeypatch):
    "How a notebook's plan ends: 'Trained', or the message of its `BadInput`."
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(cdser.runs, 'run_missing', lambda *_: (_ for _ in ()).throw(Trained))
    def how(notebook, **parameters):
        corpora = dict(corpora='studio_a,studio_b') if notebook == '93_corpora_matrix' else dict(pairs='studio_a>studio_b')
        given = {**places, **corpora, **dict(profile='open', seeds=2, epochs=1, settings=dict(epoch_steps=2)), **parameters}
        try: plan(notebook, **given)
        except (Trained, BadInput) as err: return str(err) or 'Trained'
    return how


@pytest.mark.parametrize('notebook', OF_ONE)
def test_a_wrong_parameter_is_named_before_anything_is_trained(ends, notebook):
    assert ends(notebook) == 'Trained'
    for name, values in {**WRONG, **OF_ONE[notebook]}.items():
        if name == 'pairs' and notebook == '93_corpora_matrix': continue
        for value in values if name in OF_ONE[notebook] or notebook == '90_reproduce' else values[:3]:
            said = ends(notebook, **{name: value})
            assert said.startswith(f'{name}: ') and said.isprintable(), f'{name}={value!r}: {said}'


@pytest.mark.parametrize('notebook, parameters', [
    ('91_target_labels', dict(shots=4)), ('91_target_labels', dict(shots=[1, 4])), ('92_loss_weights', dict(factors='1,10', fine='10')),
    ('92_loss_weights', dict(temperatures=.1)), ('93_corpora_matrix', dict(best={})), ('93_corpora_matrix', dict(corpora=['studio_a', 'studio_b'])),
    ('93_corpora_matrix', dict(best=dict(standardise=True))),
    ('90_reproduce', dict(protocol='leave_one_session_out', device='cpu')), ('90_reproduce', dict(settings=None))])
def test_a_parameter_may_be_what_papermill_makes_of_it(ends, notebook, parameters):
    assert ends(notebook, **parameters) == 'Trained'


def test_corpora_that_are_not_there_or_share_recordings_are_named_before_anything_is_trained(ends):
    for notebook, name, form in (('90_reproduce', 'pairs', 'studio_a>{}'), ('90_reproduce', 'pairs', '{}>studio_a'), ('93_corpora_matrix', 'corpora', 'studio_a,{}')):
        assert "has no folder 'nowhere', it holds again, studio_a, studio_b" in ends(notebook, **{name: form.format('nowhere')})
        assert ends(notebook, **{name: form.format('again')}).startswith('target: 72 recordings of ')


def test_tables_and_runs_lie_apart_from_recordings(ends, places):
    for name in ('figures_dir', 'runs_dir'):
        for folder in ('studio_a', 'studio_b/audio'):
            assert 'overlap' in ends('90_reproduce', **{name: f"{places['corpora_root']}/{folder}"})
            assert not (Path(places['corpora_root']) / folder / 'open').exists()


def test_one_speaker_to_validate_or_test_on_is_found_before_the_matrix_is_trained(ends, places, studios):
    "The distance of two corpora holds a speaker out on either side."
    corpus = Path(places['corpora_root']) / 'few'
    shutil.copytree(studios / 'studio_b', corpus)
    table = read_manifest(corpus / 'manifest.csv')
    write_manifest(table[table.speaker.isin(sorted(set(table.speaker))[:3])].assign(session=''), corpus / 'manifest.csv')
    said = ends('93_corpora_matrix', corpora='studio_a,few')
    assert said.startswith('split: ') and 'holds 1 speaker, and 2 are needed' in said and 'few' in said
    shutil.rmtree(corpus)


def test_a_notebook_says_how_many_runs_of_other_code_it_found(ends, tmp_path, capsys):
    for i in range(3):
        (tmp_path / f'{i:012x}').mkdir()
        (tmp_path / f'{i:012x}' / 'config.json').write_text(json.dumps(dict(identity=dict(code='0123456789ab'), made_by=dict(versions=dict(cdser='0.0.1')))))
    assert ends('90_reproduce', runs_dir=str(tmp_path)) == 'Trained'
    assert f'{tmp_path}: 0 runs of this code; not used: 3 of cdser 0.0.1 (code 0123456789ab)' in capsys.readouterr().out


def test_without_training_nothing_stored_is_one_clear_error(ends, tmp_path):
    assert ends('95_claims', train=False, runs_dir=str(tmp_path)).startswith(f'runs_dir: {tmp_path} holds none of the 28 runs that are asked for')


def test_the_last_line_that_a_user_of_papermill_sees_says_what_is_wrong(tmp_path):
    command = [Path(sys.executable).parent / 'papermill', '--log-output', '--no-progress-bar', ROOT / 'nbs' / '91_target_labels.ipynb', tmp_path / 'out.ipynb']
    for name in ('corpora_root', 'runs_dir', 'figures_dir'): command += ['-p', name, tmp_path / name]
    ended = subprocess.run([*command, '-p', 'shots', '1,x'], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode and ended.stderr.strip().splitlines()[-1] == "BadInput: shots: 'x' is not a whole number from 1 to 1000000"
    assert [path.name for path in tmp_path.iterdir()] == ['out.ipynb']


def test_a_wrong_parameter_ends_in_one_clear_error_and_no_run(studios, tmp_path):
    with pytest.raises(papermill.PapermillExecutionError) as err:
        reproduce(tmp_path, studios, profile='open', pairs='studio_a>studio_b', encoder='no/such/folder')
    assert err.value.ename == 'BadInput' and err.value.evalue.startswith("encoder: 'no/such/folder'")
    assert not RunStore(tmp_path / 'runs').runs()


def test_a_missing_corpora_root_is_one_clear_error(ends, tmp_path):
    assert ends('90_reproduce', corpora_root=str(tmp_path / 'absent')).startswith(f'corpora_root: there is no folder {tmp_path / "absent"}')


@pytest.fixture(scope='module')
def wav2vec2(tmp_path_factory) -> Path:
    "A Wav2Vec2 as transformers saves it, too small to know anything."
    folder = tmp_path_factory.mktemp('encoder')
    config = Wav2Vec2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, conv_dim=(16,) * 7,
                            num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4)
    Wav2Vec2Model(config).save_pretrained(folder)
    return folder


def test_the_paper_profile_fills_every_table_and_figure_from_releases_and_a_saved_encoder(tmp_path, wav2vec2):
    trees = paper_trees(tmp_path / 'corpora', per_speaker=1)
    reproduce(tmp_path, trees, profile='paper', encoder=str(wav2vec2), seeds=1, epochs=3) # one epoch of one step would end at rate 0
    written = tmp_path / 'figures' / 'paper'
    table = pd.read_csv(written / 'table1_cross_corpus.csv')
    assert sorted(set(zip(table.source, table.target))) == [('iemocap', 'msp_improv'), ('msp_improv', 'iemocap')]
    assert len(table) == 8 and table.uar_mean.between(0, 100).all()
    for name in FIGURES:
        for kind in ('png', 'svg'): assert (written / f'{name}.{kind}').stat().st_size > 5_000
    assert len(pd.read_csv(written / 'table2_ablation.csv')) == 5
    runs = RunStore(tmp_path / 'runs').runs()
    assert len(runs) == 11 and {(run.experiment.protocol, run.experiment.target, run.experiment.folds) for run in runs} == {
        ('leave_one_session_out', 'iemocap', 5), ('leave_one_session_out', 'msp_improv', 6)}
    for target in ('iemocap', 'msp_improv'): # each has learned from its own audio
        said = [run.predictions[run.predictions.part == 'test'].p_ang.to_numpy() for run in runs if run.experiment.target == target
                and run.experiment.setup in ('source_only', 'target_only')]
        assert len(said) == 2 and not (said[0] == said[1]).all()
    for run in runs:
        tested = run.predictions[run.predictions.part == 'test'].speaker
        assert set(tested) == ({'Ses01F', 'Ses01M'} if run.experiment.target == 'iemocap' else {'F01', 'M01'})


def test_without_seeds_the_paper_profile_tests_every_session_once():
    plans = {'iemocap': dict(protocol='leave_one_session_out', folds=5), 'msp_improv': dict(protocol='leave_one_session_out', folds=6)}
    planned = main_experiments(parse_pairs(PROFILES['paper'].pairs), PROFILES['paper'].seeds, plans)
    for target, folds in (('iemocap', 5), ('msp_improv', 6)):
        for setup, _ in ROWS:
            assert [e.fold for e in planned if (e.target, e.setup) == (target, setup)] == list(range(folds))


def test_ten_recordings_and_a_csv_of_three_columns_go_through_the_notebook(tmp_path, studios):
    "As the README says it: a folder, a manifest, a pair."
    corpora = tmp_path / 'corpora'
    shutil.copytree(studios / 'studio_a', corpora / 'studio_a')
    table = read_manifest(studios / 'studio_b' / 'manifest.csv').drop_duplicates(['speaker', 'label'])
    ten = table[table.speaker.isin(table.speaker.unique()[:5])].groupby('speaker').sample(2, random_state=0)
    (corpora / 'mine' / 'audio').mkdir(parents=True)
    lines = ['path,label,speaker']
    for i, row in enumerate(ten.itertuples()):
        shutil.copy(studios / 'studio_b' / row.path, corpora / 'mine' / 'audio' / f'a{i}.wav')
        lines.append(f'audio/a{i}.wav,{row.label},{row.speaker}')
    (corpora / 'mine' / 'manifest.csv').write_text('\n'.join(lines))
    assert len(lines) == 11 and main(['verify', 'mine', str(corpora / 'mine')]) == 0
    assert main(['split', 'mine', str(corpora / 'mine'), str(corpora / 'mine' / 'split.csv')]) == 0
    reproduce(tmp_path, corpora, profile='open', pairs='mine>studio_a,studio_a>mine', seeds=1, epochs=1)
    table = pd.read_csv(tmp_path / 'figures' / 'open' / 'table1_cross_corpus.csv')
    assert set(table.target) == {'mine', 'studio_a'} and len(table) == 8


def test_a_label_map_of_ones_own_decides_what_is_trained(tmp_path, studios):
    words = read_manifest(studios / 'studio_a' / 'manifest.csv').emotion.unique()
    lines = ['corpus,emotion,label', *(f'{studio},{word},{label}' for studio in ('studio_a', 'studio_b') for word, label in zip(words, ('ang', 'ang', 'neu', 'sad')))]
    (tmp_path / 'map.csv').write_text('\n'.join(lines))
    reproduce(tmp_path, studios, profile='open', pairs='studio_a>studio_b', seeds=1, epochs=1, label_map=str(tmp_path / 'map.csv'))
    labels = [set(run.predictions.label) for run in RunStore(tmp_path / 'runs').runs()]
    assert labels and all(found == {'ang', 'neu', 'sad'} for found in labels)
