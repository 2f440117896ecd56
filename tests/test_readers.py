"Readers on trees laid out as released: every trap of every corpus, and the counts that its owners publish."
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import pytest

from cdser.audio import load_audio
from cdser.config import LABELS, SAMPLE_RATE, BadInput
from cdser.corpora import COLUMNS, load_corpus, released
from cdser.readers import READERS
from trees import (ASIDE, CAST, IMPROV_CODES, IMPROV_SCENARIOS, LAYOUTS, OTHERS, TWIN, iemocap_lines, iemocap_turns, improv_lines,
                   improv_path, improv_turns, links, paper_trees, point, put, save, summary_line, text, with_others, write_iemocap,
                   write_msp_improv, write_small)

MANIFESTS = Path(__file__).parent.parent / 'data_manifests'
LABEL_MAP = pd.read_csv(MANIFESTS / 'label_map.csv', dtype=str, keep_default_na=False)
FOUR = dict(ang='ang', hap='hap', exc='hap', neu='neu', sad='sad') # of IEMOCAP
TURNS = {'Ses01F_impro01_F000': 'neu', 'Ses01F_impro01_M000': 'ang', 'Ses01M_script01_1_F003': 'exc', 'Ses01M_script01_1_M004': 'fru',
         'Ses05M_script01_1_F003': 'hap', 'Ses05F_impro05a_M010': 'sad', 'Ses05F_impro05a_F011': 'xxx'}
IMPROV = pd.DataFrame([('S01A-F01-S-FM01', 'A'), ('S01A-M06-R-MF01', 'N'), ('S20H-M03-T-FM02', 'H'), ('S07S-F05-P-MF11', 'S'),
                       ('S07S-F05-P-FM12', 'O'), ('S01N-M06-S-MF01', 'X')], columns=['name', 'emotion'])


def four(table: pd.DataFrame) -> tuple: # ang, hap, neu, sad
    return tuple(int((table.label == label).sum()) for label in LABELS)


def labelled(name: str) -> pd.DataFrame:
    "The shipped manifest, with the labels of the shipped map."
    known = LABEL_MAP[LABEL_MAP.corpus == name]
    table = released(name)
    return table.assign(label=table.emotion.map(dict(zip(known.emotion, known.label))))


def stems(table: pd.DataFrame) -> list[str]:
    return [PurePosixPath(path).stem for path in table.path]


def said(table: pd.DataFrame, column: str = 'label') -> dict:
    "What a table says of each file, by its stem."
    return dict(zip(stems(table), table[column]))


def refused(root: Path, name: str, *words: str, **options) -> str:
    "The one error with which a corpus is refused; it holds all words."
    with pytest.raises(BadInput) as err: load_corpus(name, root, **options)
    assert not [word for word in words if word not in str(err.value)], str(err.value)
    return str(err.value)


@pytest.fixture(scope='module')
def whole(tmp_path_factory) -> Iterator[Path]:
    "IEMOCAP and MSP-IMPROV with all their turns, a few bytes in place of audio."
    root = tmp_path_factory.mktemp('whole')
    name = links(root / 'seed')
    write_iemocap(root / 'iemocap', with_others(released('iemocap'), **OTHERS), name)
    write_msp_improv(root / 'msp_improv', improv_turns(), name)
    yield root
    shutil.rmtree(root) # thousands of files: not to be kept for three runs


@pytest.fixture(scope='module')
def iemocap(whole) -> pd.DataFrame:
    return load_corpus('iemocap', whole).table


@pytest.fixture(scope='module')
def msp_improv(whole) -> pd.DataFrame:
    return load_corpus('msp_improv', whole).table


# ---- what is shipped

def test_every_corpus_of_the_facts_has_a_reader_and_a_label_map():
    assert {'iemocap', 'msp_improv', 'msp_podcast', *LAYOUTS} <= set(READERS)
    assert set(READERS) == set(LABEL_MAP.corpus) and not LABEL_MAP.duplicated(['corpus', 'emotion']).any()
    assert set(LABEL_MAP.label) == {*LABELS, ''} and all(set(LABELS) <= set(rows.label) for _, rows in LABEL_MAP.groupby('corpus'))


@pytest.mark.parametrize('name, counts, rows, speakers', [
    ('iemocap', (1103, 1636, 1708, 1084), 5531, 10), ('cremad', (1271, 1271, 1087, 1271), 7442, 91), ('ravdess', (192, 192, 96, 192), 1440, 24),
    ('savee', (60, 60, 120, 60), 480, 4), ('emodb', (127, 71, 79, 62), None, 10), ('nemo', (749, 749, 809, 769), None, 9),
    ('urdu', (100, 100, 100, 100), 400, 29)])
def test_a_shipped_manifest_counts_what_is_published(name, counts, rows, speakers):
    table = labelled(name)
    assert four(table) == counts and table.speaker.nunique() == speakers and table.path.is_unique
    assert rows is None or len(table) == rows
    assert set(table.gender) == ({'male'} if name == 'savee' else {'female', 'male'})
    assert not table.label.isna().any() # no emotion without a line in the map


def test_calm_is_not_neutral_in_ravdess_and_odd_actors_are_men():
    table = released('ravdess')
    assert (table.emotion == '02').sum() == 192 and (labelled('ravdess').label[table.emotion == '02'] == '').all()
    assert ((table.speaker.astype(int) % 2 == 1) == (table.gender == 'male')).all()
    assert all(stem.startswith('03-01-') for stem in stems(table))


def test_crema_d_holds_the_same_audio_under_two_labels_three_times():
    table = released('cremad')
    twice = table[table.sha256.duplicated(keep=False)].groupby('sha256')
    pairs = {(PurePosixPath(rows.path.iloc[0]).stem[:8], *sorted(rows.emotion)) for _, rows in twice}
    assert (table.sha256.str.len() == 64).all()
    assert pairs == {('1006_TIE', 'HAP', 'NEU'), ('1013_WSI', 'DIS', 'SAD'), ('1017_IWW', 'ANG', 'FEA')}


def test_urdu_confounds_speaker_and_emotion():
    table = labelled('urdu')
    assert (table.groupby('speaker').label.nunique() == 1).sum() == 26
    count = lambda label, *speakers: int((table.speaker.isin(speakers) & (table.label == label)).sum())
    assert (count('ang', 'SM4'), count('neu', 'SM5'), count('sad', 'SM24', 'SM25')) == (48, 72, 78)


def test_the_two_corpora_of_the_paper_have_other_priors(iemocap, msp_improv):
    shares = lambda table: [round(100 * n / len(table), 1) for n in four(table)]
    assert shares(iemocap) == [19.9, 29.6, 30.9, 19.6] and shares(msp_improv) == [10.2, 33.9, 44.6, 11.3]


# ---- IEMOCAP

def test_iemocaps_list_equals_the_shipped_manifest_row_for_row(iemocap):
    facts = ['path', 'emotion', 'speaker', 'session', 'gender']
    expected = released('iemocap').sort_values('path')[facts].reset_index(drop=True)
    assert len(iemocap) == 5531 and list(iemocap.columns) == list(COLUMNS)
    pd.testing.assert_frame_equal(iemocap[facts], expected, check_dtype=False)
    assert (iemocap.label == iemocap.emotion.map(FOUR)).all()


def test_iemocap_counts_by_label_session_and_part(iemocap):
    assert four(iemocap) == (1103, 1636, 1708, 1084)
    assert iemocap.groupby('session').size().to_dict() == {'01': 1085, '02': 1023, '03': 1151, '04': 1031, '05': 1241}
    improvised = iemocap.path.str.contains('_impro')
    assert improvised.sum() == 2943 and (iemocap.text_id[improvised] == '').all()
    assert (~improvised).sum() == 2588 and iemocap.text_id[~improvised].str.match(r'script0[123]_[123]').all()


def test_the_full_list_of_iemocap_has_every_code(whole):
    table = READERS['iemocap'](whole / 'iemocap')
    assert Counter(table.emotion) == {**OTHERS, 'neu': 1708, 'ang': 1103, 'sad': 1084, 'exc': 1041, 'hap': 595} and len(table) == 10_039


def test_the_speaker_of_iemocap_is_in_the_turn_not_in_the_prefix(iemocap):
    prefix = iemocap.path.map(lambda path: PurePosixPath(path).stem[:6])
    assert (prefix != iemocap.speaker).sum() == 2750
    assert sorted(set(iemocap.speaker)) == [f'Ses{session:02}{letter}' for session in range(1, 6) for letter in 'FM']
    assert (iemocap.speaker.str[5].map(dict(F='female', M='male')) == iemocap.gender).all() and (iemocap.speaker.str[3:5] == iemocap.session).all()


def test_iemocap_lasts_as_long_as_published():
    seconds = pd.to_numeric(released('iemocap').duration_s)
    assert (round(seconds.mean(), 2), round(seconds.median(), 2), round(seconds.max(), 1)) == (4.55, 3.58, 34.1)


def test_scripts_repeat_across_sessions(iemocap):
    sessions = iemocap[iemocap.text_id != ''].groupby('text_id').session.nunique()
    assert len(sessions) == 7 and (sessions == 5).all() # text leaks even where speakers do not


def test_a_small_iemocap_is_read_in_full(tmp_path):
    write_iemocap(tmp_path / 'iemocap', iemocap_turns(TURNS))
    table = load_corpus('iemocap', tmp_path).table
    assert said(table) == {turn: FOUR[code] for turn, code in TURNS.items() if code in FOUR} and list(table.path) == sorted(table.path)
    assert said(table, 'speaker')['Ses01M_script01_1_F003'] == 'Ses01F' and said(table, 'speaker')['Ses01F_impro01_M000'] == 'Ses01M'
    assert said(table, 'text_id') == {'Ses01F_impro01_F000': '', 'Ses01F_impro01_M000': '', 'Ses01M_script01_1_F003': 'script01_1',
                                      'Ses05M_script01_1_F003': 'script01_1', 'Ses05F_impro05a_M010': ''}


@pytest.mark.parametrize('name, write, turns, labels', [
    ('iemocap', write_iemocap, iemocap_turns(TURNS), 'Session1/dialog/EmoEvaluation/Ses01F_impro01.txt'),
    ('msp_improv', write_msp_improv, IMPROV, 'Evalution.txt')])
def test_lines_may_end_as_on_windows(name, write, turns, labels, tmp_path):
    for system, newline in ('unix', '\n'), ('windows', '\r\n'): write(tmp_path / system / name, turns, newline=newline)
    assert b'\r\n' in (tmp_path / 'windows' / name / labels).read_bytes()
    unix, windows = (load_corpus(name, tmp_path / system).table for system in ('unix', 'windows'))
    pd.testing.assert_frame_equal(unix, windows)


@pytest.mark.parametrize('folder', ['Attribute', 'Categorical', 'Self-evaluation'])
def test_single_raters_are_not_the_label(folder, tmp_path):
    write_iemocap(tmp_path / 'iemocap', iemocap_turns(TURNS))
    before = load_corpus('iemocap', tmp_path).table
    lines = iemocap_lines(iemocap_turns({turn: 'sad' for turn in TURNS if turn.startswith('Ses01F_impro01')})) # were one to read it
    text(tmp_path / 'iemocap/Session1/dialog/EmoEvaluation' / folder / 'Ses01F_impro01.txt', *lines)
    pd.testing.assert_frame_equal(load_corpus('iemocap', tmp_path).table, before)


def test_twins_that_macos_leaves_are_no_label_files_and_no_recordings(tmp_path):
    write_iemocap(tmp_path / 'iemocap', iemocap_turns(TURNS))
    twin = tmp_path / 'iemocap/Session1/dialog/EmoEvaluation/._Ses01F_impro01.txt'
    assert twin.read_bytes() == TWIN and list((tmp_path / 'iemocap').rglob('._*.wav'))
    before = load_corpus('iemocap', tmp_path).table
    text(twin, *iemocap_lines(iemocap_turns({'Ses01F_impro01_F000': 'sad', 'Ses01F_impro01_F777': 'ang'})))
    pd.testing.assert_frame_equal(load_corpus('iemocap', tmp_path).table, before)
    assert not any('._' in path for path in before.path)


def test_whole_dialogues_are_no_utterances(tmp_path):
    write_iemocap(tmp_path / 'iemocap', iemocap_turns(TURNS))
    whole = {path.relative_to(tmp_path / 'iemocap').as_posix() for path in (tmp_path / 'iemocap').glob('Session*/dialog/wav/S*.wav')}
    listed = set(READERS['iemocap'](tmp_path / 'iemocap').path)
    assert len(whole) == 4 and len(listed) == len(TURNS) and all('/sentences/wav/' in path for path in listed)


def test_label_lines_without_audio_are_counted_and_the_first_is_named(tmp_path):
    write_iemocap(tmp_path / 'iemocap', iemocap_turns(TURNS))
    for turn in 'Ses05M_script01_1_F003', 'Ses01F_impro01_M000': next((tmp_path / 'iemocap').rglob(f'{turn}.wav')).unlink()
    assert 'Ses05M' not in refused(tmp_path, 'iemocap', '2 of 5', 'Ses01F_impro01_M000')


@pytest.mark.parametrize('code', ['neu', 'sad'])
def test_a_turn_that_two_label_files_list_is_refused(code, tmp_path):
    write_iemocap(tmp_path / 'iemocap', iemocap_turns(TURNS))
    lines = iemocap_lines(iemocap_turns({'Ses01F_impro01_F000': code}))
    text(tmp_path / 'iemocap/copy/Session1/dialog/EmoEvaluation/Ses01F_impro01.txt', *lines)
    refused(tmp_path, 'iemocap', 'Ses01F_impro01_F000')


def test_iemocap_without_sessions_or_label_files_is_refused(tmp_path):
    put(tmp_path / 'iemocap', iemocap_turns(TURNS).path)
    refused(tmp_path, 'iemocap', 'EmoEvaluation')
    shutil.rmtree(tmp_path / 'iemocap/Session1')
    shutil.rmtree(tmp_path / 'iemocap/Session5')
    refused(tmp_path, 'iemocap', 'EmoEvaluation')


# ---- the label map

def write_map(path: Path, *lines: str) -> Path:
    text(path, 'corpus,emotion,label', *lines)
    return path


def test_another_label_map_may_leave_out_or_move_emotions(tmp_path):
    write_iemocap(tmp_path / 'iemocap', iemocap_turns(TURNS))
    mine = write_map(tmp_path / 'mine.csv', 'iemocap,ang,ang', 'iemocap,fru,ang', 'iemocap,hap,hap', 'iemocap,exc,', 'iemocap,neu,neu',
                     'iemocap,sad,sad', 'iemocap,xxx,', 'cremad,ANG,ang')
    table = load_corpus('iemocap', tmp_path, label_map=mine).table
    assert said(table) == {'Ses01F_impro01_F000': 'neu', 'Ses01F_impro01_M000': 'ang', 'Ses01M_script01_1_M004': 'ang',
                           'Ses05M_script01_1_F003': 'hap', 'Ses05F_impro05a_M010': 'sad'}
    assert said(table, 'emotion')['Ses01M_script01_1_M004'] == 'fru'


def test_happiness_without_excitement_counts_what_is_published(whole, tmp_path):
    mine = write_map(tmp_path / 'mine.csv', *(f'iemocap,{code},{"" if code == "exc" else FOUR.get(code, "")}' for code in [*FOUR, *OTHERS]))
    assert four(load_corpus('iemocap', whole, label_map=mine).table) == (1103, 595, 1708, 1084)


@pytest.mark.parametrize('name, odd, emotion', [
    ('iemocap', None, 'joy'), ('msp_improv', None, 'Z'), ('cremad', 'AudioWAV/1001_DFA_JOY_XX.wav', 'JOY'),
    ('ravdess', 'Actor_01/03-01-09-01-02-01-01.wav', '09'), ('emodb', 'wav/03a01Xa.wav', 'X'), ('tess', 'OAF_bored/OAF_back_bored.wav', 'bored'),
    ('nemo', 'samples/EB0_pride_1.wav', 'pride'), ('esd', '0011/Joy/0011_000001.wav', 'Joy')])
def test_an_emotion_that_the_map_does_not_list_is_refused(name, odd, emotion, tmp_path):
    if name == 'iemocap': write_iemocap(tmp_path / name, iemocap_turns(TURNS | {'Ses02F_impro01_F000': emotion}))
    elif name == 'msp_improv': write_msp_improv(tmp_path / name, IMPROV.assign(emotion=['A', 'N', 'H', 'S', 'O', emotion]))
    else: put(tmp_path / name, [*LAYOUTS[name], odd])
    refused(tmp_path, name, repr(emotion))


@pytest.mark.parametrize('lines, word', [(['iemocap,ang,angry'], 'angry'), (['iemocap,ang,ang', 'iemocap,ang,sad'], 'ang')])
def test_a_bad_label_map_is_refused(lines, word, tmp_path):
    write_iemocap(tmp_path / 'iemocap', iemocap_turns({'Ses01F_impro01_F000': 'ang'}))
    refused(tmp_path, 'iemocap', 'mine.csv', word, label_map=write_map(tmp_path / 'mine.csv', *lines))


# ---- MSP-IMPROV

def test_msp_improv_counts_what_is_published(whole, msp_improv):
    table = READERS['msp_improv'](whole / 'msp_improv')
    assert Counter(table.emotion) == IMPROV_CODES and len(table) == 8438
    assert Counter(stem.split('-')[4] for stem in stems(table)) == IMPROV_SCENARIOS
    assert four(msp_improv) == (792, 2644, 3477, 885) and len(msp_improv) == 7798


def test_msp_improv_says_who_when_and_what(msp_improv):
    names = pd.DataFrame([stem.split('-')[2:5] for stem in stems(msp_improv)], columns=['sentence', 'speaker', 'scenario'])
    assert sorted(set(msp_improv.speaker)) == sorted(CAST) and (msp_improv.speaker == names.speaker).all()
    assert sorted(set(msp_improv.session)) == list('123456') and (msp_improv.session == names.speaker.str[-1]).all()
    assert (msp_improv.gender == names.speaker.str[0].map(dict(F='female', M='male'))).all()
    target = names.scenario.isin(['S', 'R'])
    assert (msp_improv.text_id == names.sentence.str[:3].where(target, '')).all() and target.any() and not target.all()
    repeated = msp_improv[msp_improv.text_id != ''].groupby('text_id').session.nunique()
    assert list(repeated.index) == [f'S{i:02}' for i in range(1, 21)] and (repeated == 6).all()


@pytest.mark.parametrize('spelling', ['Evalution.txt', 'Evaluation.txt', 'Labels/Evalution.txt'])
@pytest.mark.parametrize('audio_folder', [True, False])
def test_msp_improv_is_found_however_its_copy_is_laid_out(spelling, audio_folder, tmp_path):
    write_msp_improv(tmp_path / 'msp_improv', IMPROV, spelling=spelling, audio_folder=audio_folder)
    table = load_corpus('msp_improv', tmp_path).table
    assert said(table) == {'MSP-IMPROV-S01A-F01-S-FM01': 'ang', 'MSP-IMPROV-S01A-M06-R-MF01': 'neu', 'MSP-IMPROV-S20H-M03-T-FM02': 'hap',
                           'MSP-IMPROV-S07S-F05-P-MF11': 'sad'}
    assert set(table.path) == {('Audio/' if audio_folder else '') + improv_path(name) for name in IMPROV.name[:4]}
    assert said(table, 'text_id') == dict(zip(map('MSP-IMPROV-{}'.format, IMPROV.name), ['S01', 'S01', '', '']))


def test_the_letter_after_the_sentence_is_not_the_label(msp_improv):
    intended = pd.Series([stem.split('-')[2][3] for stem in stems(msp_improv)])
    assert (msp_improv.emotion == 'H').sum() == 2644 != (intended == 'H').sum() and (intended != msp_improv.emotion).any()


@pytest.mark.parametrize('rate', [44_100, 48_000])
def test_the_rate_of_msp_improv_is_read_from_the_header(rate, tmp_path):
    write_msp_improv(tmp_path / 'msp_improv', IMPROV[:4], audio=True, rate=rate)
    lengths = {len(load_audio(path)) for path in load_corpus('msp_improv', tmp_path).paths}
    assert lengths == {int(.3 * SAMPLE_RATE)}


def with_labels(root: Path, *lines: str) -> Path:
    "A small MSP-IMPROV with these lines after its own."
    write_msp_improv(root / 'msp_improv', IMPROV)
    text(root / 'msp_improv/Evalution.txt', *improv_lines(IMPROV), *lines)
    return root


@pytest.mark.parametrize('again', [
    [summary_line('S01A-F01-S-FM01', 'A')],                                                                # word for word
    [summary_line('S01A-F01-S-FM01', 'A', 'NaN')],                                                         # with other ratings
    ['WORKER00000009; Sad; Sad,; A:NaN; V:NaN; D:NaN; N:NaN;'] * 2, ['S; N; X;', 'S01A-F01-S-FM01; S; A:1.000000;']]) # raters
def test_a_repeated_summary_counts_once_and_raters_never(again, tmp_path):
    before = load_corpus('msp_improv', with_labels(tmp_path / 'before')).table
    pd.testing.assert_frame_equal(load_corpus('msp_improv', with_labels(tmp_path / 'after', *again, '')).table, before)


def test_missing_ratings_are_no_missing_labels(tmp_path):
    lines = [line.replace('A:3.000000', 'A:NaN').replace('D:3.000000', 'D:NaN').replace('N:4.000000', 'N:NaN') for line in improv_lines(IMPROV)]
    write_msp_improv(tmp_path / 'msp_improv', IMPROV)
    text(tmp_path / 'msp_improv/Evalution.txt', *lines)
    assert four(load_corpus('msp_improv', tmp_path).table) == (1, 1, 1, 1)


@pytest.mark.parametrize('name, code', [('S01A-F01-S-FM01', 'N'), ('S01A-F01-S-FM01', 'X'), ('S01N-M06-S-MF01', 'A')])
def test_two_summaries_that_contradict_each_other_are_refused(name, code, tmp_path):
    refused(with_labels(tmp_path, summary_line(name, code)), 'msp_improv', name)


def test_both_spellings_side_by_side_must_agree(tmp_path):
    write_msp_improv(tmp_path / 'msp_improv', IMPROV)
    before = load_corpus('msp_improv', tmp_path).table
    write_msp_improv(tmp_path / 'msp_improv', IMPROV, spelling='Evaluation.txt')
    pd.testing.assert_frame_equal(load_corpus('msp_improv', tmp_path).table, before)
    text(tmp_path / 'msp_improv/Evaluation.txt', *improv_lines(IMPROV.assign(emotion=list('SNHSOX'))))
    refused(tmp_path, 'msp_improv', 'S01A-F01-S-FM01')


def test_msp_improv_without_its_label_file_or_some_audio_is_refused(tmp_path):
    write_msp_improv(tmp_path / 'msp_improv', IMPROV)
    (tmp_path / 'msp_improv/Audio' / improv_path('S20H-M03-T-FM02')).unlink()
    refused(tmp_path, 'msp_improv', '1 of 4', 'S20H-M03-T-FM02')
    (tmp_path / 'msp_improv/Evalution.txt').unlink()
    refused(tmp_path, 'msp_improv', 'Evalution.txt')


# ---- the open corpora

def expected(layout: dict) -> dict:
    return {path: row for path, row in layout.items() if row}


def told(table: pd.DataFrame, layout: dict) -> dict:
    "What a table says of each path, as a layout puts it."
    rows = table[['path', 'emotion', 'label', 'speaker', 'gender', 'text_id']].itertuples(index=False)
    wanted = lambda path: layout.get(path) or ()
    return {path: tuple('?' if '?' in wanted(path)[i:i + 1] else fact for i, fact in enumerate(facts)) for path, *facts in rows}


@pytest.mark.parametrize('name', LAYOUTS)
def test_a_reader_tells_what_names_and_folders_say(name, tmp_path):
    layout = expected(write_small(tmp_path / name, name))
    table = load_corpus(name, tmp_path).table
    assert told(table, layout) == {path: row for path, row in layout.items() if row[1]}
    full = READERS[name](tmp_path / name)
    assert dict(zip(full.path, full.emotion)) == {path: row[0] for path, row in layout.items()}


@pytest.mark.parametrize('suffix', ['.flac', '.opus', '.mp3', '.WAV'])
@pytest.mark.parametrize('name', ['iemocap', 'msp_improv', *(name for name in LAYOUTS if name != 'cremad')])
def test_any_audio_format_will_do(name, suffix, tmp_path):
    if name == 'iemocap': write_iemocap(tmp_path / name, iemocap_turns(TURNS, suffix), audio=save)
    elif name == 'msp_improv': write_msp_improv(tmp_path / name, IMPROV, audio=save, suffix=suffix)
    else:
        put(tmp_path / name, [PurePosixPath(path).with_suffix(suffix) for path in LAYOUTS[name]], save)
        for path, lines in ASIDE.get(name, {}).items(): text(tmp_path / name / path, *lines)
    corpus = load_corpus(name, tmp_path)
    count = dict(iemocap=5, msp_improv=4).get(name) or sum(bool(row and row[1]) for row in LAYOUTS[name].values())
    assert len(corpus.table) == count and all(path.endswith(suffix) for path in corpus.table.path)
    heard = load_audio(corpus.paths[0])
    assert abs(len(heard) - .3 * SAMPLE_RATE) < 3000 and np.abs(heard).max() > .05


@pytest.mark.parametrize('suffix', ['.wav', '.flac', '.opus', '.ogg', '.mp3'])
def test_a_twin_beside_a_recording_does_not_spoil_it(suffix, tmp_path):
    save(tmp_path / f'a{suffix}')
    alone = load_audio(tmp_path / f'a{suffix}')
    (tmp_path / f'._a{suffix}').write_bytes(TWIN)
    np.testing.assert_array_equal(load_audio(tmp_path / f'a{suffix}'), alone)


def test_crema_d_is_read_from_wav_before_mp3_and_mp3_where_it_is_alone(tmp_path):
    write_small(tmp_path / 'cremad', 'cremad')
    assert load_corpus('cremad', tmp_path).table.path.str.startswith('AudioWAV/').all()
    shutil.rmtree(tmp_path / 'cremad/AudioWAV')
    assert set(load_corpus('cremad', tmp_path).table.path) == {'AudioMP3/1001_DFA_ANG_XX.mp3', 'AudioMP3/1002_IEO_HAP_HI.mp3'}


def test_pointers_in_place_of_audio_are_refused_when_they_are_opened(tmp_path):
    write_small(tmp_path / 'cremad', 'cremad', audio=point)
    path = tmp_path / 'cremad/AudioWAV/1001_DFA_ANG_XX.wav'
    assert 120 <= path.stat().st_size <= 140
    with pytest.raises(BadInput) as err: load_audio(path)
    assert str(path) in str(err.value)


@pytest.mark.parametrize('name, files', [
    ('savee', {'DC_a01.wav': 'ang', 'JE_sa02.wav': 'sad', 'KL_su03.wav': None, 'JK_n04.wav': 'neu', 'JK_h04.wav': 'hap'}),
    ('savee', {'AudioData/DC/a01.wav': 'ang', 'AudioData/JE/sa02.wav': 'sad', 'AudioData/KL/su03.wav': None}),
    ('urdu', {'wav/SM1_F10_A010.wav': 'ang', 'wav/SF2_F3_H03.wav': 'hap', 'wav/SM5_F1_N001.wav': 'neu', 'wav/SM24_F2_S002.wav': 'sad'}),
    ('urdu', {'SM1_F10_A010.wav': 'ang', 'SF2_F3_H03.wav': 'hap', 'SM5_F1_N001.wav': 'neu', 'SM24_F2_S002.wav': 'sad'}),
    ('esd', {'0011/Angry/train/0011_000371.wav': 'ang', '0011/Happy/test/0011_000721.wav': 'hap', '0011/Sad/evaluation/0011_001051.wav': 'sad',
             '0002/Surprise/train/0002_001441.wav': None, '0002/Neutral/test/0002_000021.wav': 'neu'}),
    ('tess', {'OAF_bath_angry.wav': 'ang', 'YAF_bath_ps.wav': None, 'OA_bite_neutral.wav': 'neu'}),
    ('ravdess', {'Audio_Speech_Actors_01-24/Actor_01/03-01-05-01-02-01-01.wav': 'ang', 'Actor_02/03-02-05-01-02-01-02.wav': None}),
    ('shemo', {'F24A24.wav': 'ang', 'F03F01.wav': None, 'M03N01.wav': 'neu'}),
    ('emodb', {'03a01Wa.wav': 'ang', '16b10Td.wav': 'sad', '16b10Ld.wav': None})])
def test_other_layouts_in_use_are_read_too(name, files, tmp_path):
    put(tmp_path / name, files)
    table = load_corpus(name, tmp_path).table
    assert dict(zip(table.path, table.label)) == {path: label for path, label in files.items() if label}
    speaker = {'savee': r'DC|JE|JK|KL', 'urdu': r'S[MF]\d+', 'esd': r'\d{4}', 'tess': 'OAF|YAF', 'ravdess': r'\d\d', 'shemo': r'[FM]\d\d', 'emodb': r'\d\d'}
    assert table.speaker.str.fullmatch(speaker[name]).all()


def test_emodb_knows_its_men():
    table = released('emodb')
    assert set(table.speaker[table.gender == 'male']) == {'03', '10', '11', '12', '15'} and table.speaker.nunique() == 10


@pytest.mark.parametrize('name', ['nemo', 'cremad'])
def test_genders_are_known_or_blank_where_the_table_of_speakers_is_missing(name, tmp_path):
    layout = write_small(tmp_path / name, name, aside=False)
    table = load_corpus(name, tmp_path).table
    assert dict(zip(table.path, table.label)) == {path: row[1] for path, row in layout.items() if row and row[1]}
    assert all(gender in ('', layout[path][3]) for path, gender in zip(table.path, table.gender))


@pytest.mark.parametrize('spelling', ['labels_consensus.csv', 'labels_concensus.csv'])
def test_msp_podcast_is_read_under_both_spellings_without_unknown_speakers(spelling, tmp_path):
    layout = write_small(tmp_path / 'msp_podcast', 'msp_podcast')
    labels = tmp_path / 'msp_podcast/Labels'
    (labels / 'labels_consensus.csv').rename(labels / spelling)
    table = load_corpus('msp_podcast', tmp_path).table
    assert dict(zip(table.path, table.speaker)) == {path: row[2] for path, row in layout.items() if row and row[1]}
    assert 'Unknown' in (labels / spelling).read_text() and set(table.speaker) == {'127', '9', '55'}


# ---- the same utterance twice

@pytest.mark.parametrize('name, first, second', [
    ('emodb', 'wav/03a01Fa.wav', 'wav/03a01Fa.flac'), ('emodb', 'wav/03a01Fa.wav', 'copy/wav/03a01Fa.wav'),
    ('ravdess', 'Actor_01/03-01-05-01-02-01-01.wav', 'audio_speech_actors_01-24/Actor_01/03-01-05-01-02-01-01.wav'),
    ('savee', 'DC/a01.wav', 'DC_a01.wav'), ('tess', 'OAF_angry/OAF_back_angry.wav', 'TESS/OAF_angry/OAF_back_angry.wav'),
    ('tess', 'OAF_neutral/OA_bite_neutral.wav', 'OAF_neutral/OAF_bite_neutral.wav'),
    ('nemo', 'samples/EB0_anger_1.wav', 'samples/EB0_anger_1.opus'), ('urdu', 'Angry/SM1_F10_A010.wav', 'Angry/SM1_F10_A010.flac'),
    ('urdu', 'Angry/SM1_F10_A010.wav', 'wav/SM1_F10_A010.wav'), ('esd', '0011/Angry/0011_000351.wav', '0011/Angry/train/0011_000351.wav'),
    ('shemo', 'female/F24A24.wav', 'ShEMO/female/F24A24.wav'), ('cremad', 'AudioWAV/1001_DFA_ANG_XX.wav', 'AudioWAV/1001_DFA_ANG_XX.flac'),
    ('msp_podcast', 'Audios/MSP-PODCAST_0001_0008.wav', 'Audios/MSP-PODCAST_0001_0008.flac')])
def test_the_same_utterance_twice_is_refused_and_both_are_named(name, first, second, tmp_path):
    write_small(tmp_path / name, name)
    load_corpus(name, tmp_path)
    put(tmp_path / name, [second])
    refused(tmp_path, name, first, second)


TURN, CLIP = iemocap_turns(TURNS).path[0], 'Audio/' + improv_path('S01A-F01-S-FM01')


@pytest.mark.parametrize('name, first, second', [
    ('iemocap', TURN, TURN.replace('.wav', '.flac')), ('iemocap', TURN, 'copy/' + TURN),
    ('msp_improv', CLIP, CLIP.replace('.wav', '.flac')), ('msp_improv', CLIP, CLIP.replace('Audio/', ''))])
def test_a_labelled_turn_with_two_recordings_is_refused_and_both_are_named(name, first, second, tmp_path):
    if name == 'iemocap': write_iemocap(tmp_path / name, iemocap_turns(TURNS))
    else: write_msp_improv(tmp_path / name, IMPROV)
    put(tmp_path / name, [second])
    refused(tmp_path, name, first, second)


@pytest.mark.parametrize('name, folder', [('iemocap', 'Session1'), ('msp_improv', 'Audio'), ('msp_podcast', 'Audios'), ('nemo', 'samples')])
def test_a_folder_copied_into_the_corpus_is_refused_and_a_pair_is_named(name, folder, tmp_path):
    if name == 'iemocap': write_iemocap(tmp_path / name, iemocap_turns(TURNS))
    elif name == 'msp_improv': write_msp_improv(tmp_path / name, IMPROV)
    else: write_small(tmp_path / name, name)
    shutil.copytree(tmp_path / name / folder, tmp_path / name / 'copy' / folder)
    complaint = refused(tmp_path, name, f'copy/{folder}')
    assert complaint.replace(f'copy/{folder}', '').count(f'{folder}/') >= 1 # the one that was copied


def test_one_name_in_two_folders_is_no_duplicate_where_the_folder_is_the_speaker(tmp_path):
    put(tmp_path / 'savee', [f'{speaker}/a01.wav' for speaker in ('DC', 'JE', 'JK', 'KL')])
    assert load_corpus('savee', tmp_path).table.speaker.tolist() == ['DC', 'JE', 'JK', 'KL']


# ---- trees to train on

def test_the_paper_trees_hold_every_speaker_session_and_label_and_can_be_heard(tmp_path):
    paper_trees(tmp_path, per_speaker=1)
    for name, speakers, sessions, rate in ('iemocap', 10, 5, 16_000), ('msp_improv', 12, 6, 44_100):
        corpus = load_corpus(name, tmp_path)
        assert corpus.table.groupby(['speaker', 'label']).size().tolist() == [1] * speakers * 4 and corpus.table.session.nunique() == sessions
        heard = [load_audio(path) for path in corpus.paths]
        seconds = [len(samples) / SAMPLE_RATE for samples in heard]
        assert .2 < min(seconds) and max(seconds) < 1.5 and min(np.abs(samples).max() for samples in heard) > .01
        assert len(READERS[name](tmp_path / name)) > len(corpus.table) # other codes are there, and left out
