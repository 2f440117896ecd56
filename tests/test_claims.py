"The claims ledger: no verdict says more than its interval carries."
import numpy as np
import pandas as pd
import pytest

from cdser.claims import CLAIMS, COLUMNS, VERDICTS, above, claims, within, write_claims
from cdser.config import LABELS, RIVALS, BadInput
from cdser.evaluate import compare, uar

TEN, MOST, NEGLIGIBLE, PAR, EVERY, HELPS = [claim.words for claim in CLAIMS]
MARGINS = {TEN: 10, MOST: 0, NEGLIGIBLE: 1, PAR: -2, EVERY: 0, HELPS: 0}
WORDS = np.array(LABELS)


def records(chances: dict, pair=('a', 'b'), seeds=3, speakers=20, sentences=12, luck=.003, folds=1, draw=0) -> pd.DataFrame:
    "Records of methods that recognise an utterance with a given chance, give or take `luck` for each run and speaker."
    rng, rows = np.random.default_rng(draw), []
    for seed in range(seeds):
        speaker = np.repeat(np.arange(seed % folds, speakers, folds), 4 * sentences)
        label = np.arange(len(speaker)) % 4
        hardness = rng.permuted(np.linspace(0, 1, len(label)))
        for method, chance in chances.items():
            right = hardness < chance + luck * rng.standard_normal(speakers)[speaker]
            rows.append(pd.DataFrame(dict(
                id=f'{method}-{seed}', source=pair[0], target=pair[1], seed=seed, fold=seed % folds, shots=0, validated_on=pair[0],
                setup='source_only' if method == 'source_only' else 'unlabelled_target',
                method='emotion_only' if method == 'source_only' else method,
                speaker=speaker.astype(str), path=[f'{s}/{i}.wav' for i, s in enumerate(speaker)],
                label=WORDS[label], prediction=WORDS[np.where(right, label, (label + 1) % 4)])))
    return pd.concat(rows, ignore_index=True)


def row(said: pd.DataFrame, claim: str) -> pd.Series:
    table = claims(said).set_index('claim')
    return table.loc[claim]


CASES = [
    (TEN, 'supported', dict(proposed=.60, mmd=.50, mcc=.52), {}),
    (TEN, 'contradicted', dict(proposed=.60, mmd=.50, mcc=.58), {}),              # better than both, by 10 % than one
    (TEN, 'undecided', dict(proposed=.60, mmd=.50, mcc=.52), dict(luck=.2, speakers=6)),
    (TEN, 'not testable', dict(proposed=.60, no_contrastive=.50), {}),
    (MOST, 'supported', dict(no_augmentation=.59, no_contrastive=.50, no_information=.55), {}),
    (MOST, 'contradicted', dict(no_augmentation=.59, no_contrastive=.55, no_information=.50), {}),
    (MOST, 'undecided', dict(no_augmentation=.59, no_contrastive=.50, no_information=.50), {}),
    (MOST, 'not testable', dict(proposed=.60, no_contrastive=.50, no_augmentation=.60), {}),
    (NEGLIGIBLE, 'supported', dict(proposed=.600, no_augmentation=.598), {}),
    (NEGLIGIBLE, 'contradicted', dict(proposed=.60, no_augmentation=.55), {}),
    (NEGLIGIBLE, 'contradicted', dict(proposed=.55, no_augmentation=.60), {}),    # no more negligible where it does harm
    (NEGLIGIBLE, 'undecided', dict(proposed=.60, no_augmentation=.60), dict(luck=.1, speakers=8)),
    (NEGLIGIBLE, 'not testable', dict(proposed=.60), {}),
    (PAR, 'supported', dict(proposed=.60, mmd=.605, dann=.50), {}),               # behind by half a point
    (PAR, 'contradicted', dict(proposed=.60, mmd=.65, dann=.50), {}),
    (PAR, 'undecided', dict(proposed=.60, mmd=.60), dict(luck=.2, speakers=6)),
    (PAR, 'not testable', dict(source_only=.40, mmd=.60), {}),
    (EVERY, 'supported', dict(proposed=.60, no_augmentation=.58, no_contrastive=.50, no_information=.55), {}),
    (EVERY, 'contradicted', dict(proposed=.60, no_augmentation=.63, no_contrastive=.50, no_information=.55), {}),
    (EVERY, 'undecided', dict(proposed=.60, no_augmentation=.60, no_contrastive=.50, no_information=.55), {}),
    (EVERY, 'not testable', dict(proposed=.60, no_augmentation=.58, no_information=.55), {}),
    (HELPS, 'supported', dict(proposed=.60, source_only=.50), {}),
    (HELPS, 'contradicted', dict(proposed=.50, source_only=.60), {}),
    (HELPS, 'undecided', dict(proposed=.60, source_only=.58), dict(luck=.2, speakers=6)),
    (HELPS, 'not testable', dict(proposed=.60), {})]


@pytest.mark.parametrize('claim, verdict, chances, settings', CASES, ids=[f'{claim[:20]}-{verdict}' for claim, verdict, *_ in CASES])
def test_every_verdict_of_every_claim(claim, verdict, chances, settings):
    found = row(records(chances, **settings), claim)
    assert found.verdict == verdict
    assert found[['value', 'low', 'high']].isna().all() == (verdict == 'not testable')
    if verdict != 'not testable': assert found.low <= found.value <= found.high


def test_the_cases_above_are_all_there_are():
    assert {case[:2] for case in CASES} == {(claim.words, verdict) for claim in CLAIMS for verdict in VERDICTS}


def expected(claim: str, tests: list[tuple[float, float]]) -> str:
    "The rule, written again: a verdict from the intervals of all comparisons."
    m = MARGINS[claim]
    if claim == NEGLIGIBLE:
        (low, high), = tests
        return 'supported' if low > -m and high < m else 'contradicted' if high < -m or low > m else 'undecided'
    if any(high < m for _, high in tests): return 'contradicted'
    return 'supported' if all(low > m for low, _ in tests) else 'undecided'


@pytest.mark.parametrize('draw', range(10))
def test_no_verdict_contradicts_its_intervals(draw):
    rng = np.random.default_rng(draw)
    rivals = ['mmd', 'dann'][:rng.integers(1, 3)]
    ablated = ['no_augmentation', 'no_contrastive', 'no_information']
    methods = ['source_only', 'proposed', *ablated, *rivals]
    said = records({method: .5 + .04 * rng.standard_normal() for method in methods}, seeds=int(rng.integers(2, 5)), folds=int(rng.integers(1, 3)),
                   speakers=int(rng.integers(6, 20)), sentences=5, luck=rng.uniform(0, .1), draw=draw)
    of = {method: rows for method, rows in said.groupby(said.method.replace('emotion_only', 'source_only'))}
    mean = {method: rows.groupby(['seed', 'fold']).apply(lambda run: uar(run.label, run.prediction)).mean() for method, rows in of.items()}
    comparisons = {TEN: [('proposed', rival) for rival in rivals], PAR: [('proposed', rival) for rival in rivals],
                   MOST: [('no_augmentation', 'no_contrastive'), ('no_information', 'no_contrastive')],
                   NEGLIGIBLE: [('proposed', 'no_augmentation')], EVERY: [('proposed', method) for method in ablated],
                   HELPS: [('proposed', 'source_only')]}
    table = claims(said).set_index('claim')
    for claim, pairs in comparisons.items():
        found, tests = table.loc[claim], {}
        for a, b in pairs:
            c, unit = compare(of[a], of[b], level=1 - .05 / len(pairs)), mean[b] if claim == TEN else 1
            tests[f'{a} − {b}'] = [100 * x / unit for x in (c.difference, c.low, c.high)]
        assert found.verdict == expected(claim, [test[1:] for test in tests.values()])
        assert found.verdict == expected(claim, [(found.low, found.high)]) # the comparison shown carries it alone
        shown = [name for name in tests if name in found.why] or list(tests)
        assert len(shown) == 1 and np.allclose(tests[shown[0]], found[['value', 'low', 'high']].astype(float), rtol=0, atol=1e-9)


def test_a_bound_on_the_margin_and_a_missing_bound_decide_nothing():
    assert above(0, 2, 0) == above(-2, 0, 0) == within(-1, .5, 1) == within(1, 3, 1) == 'undecided'
    assert above(np.nan, np.nan, 0) == within(np.nan, np.nan, 1) == 'undecided'


def test_equal_methods_help_nothing_and_are_negligible():
    said = records(dict(source_only=.5, proposed=.5, no_augmentation=.5), speakers=12)
    assert row(said, HELPS).verdict == 'undecided' and row(said, NEGLIGIBLE).verdict == 'supported'


def test_one_seed_has_a_value_and_decides_nothing():
    found = row(records(dict(source_only=.1, proposed=.9), seeds=1, speakers=6), HELPS)
    assert found.verdict == 'undecided' and np.isclose(found.value, 80, atol=2) and np.isnan(found.low) and np.isnan(found.high)
    assert found.why.startswith('runs: 1, speakers: 6, too few for an interval')


def test_a_rival_of_one_seed_leaves_the_claim_open():
    said = records(dict(proposed=.6, dann=.62, mmd=.5), speakers=6)
    found = row(said[(said.method != 'mmd') | (said.seed == 0)], PAR)
    assert found.verdict == 'undecided' and found.why.startswith('proposed − mmd, the weakest of 2; runs: 1, speakers: 6, too few')
    assert row(said[said.method != 'mmd'], PAR).verdict == 'undecided' and row(said[said.method != 'dann'], PAR).verdict == 'supported'


def test_what_is_missing_is_named():
    table = claims(records(dict(proposed=.6, no_augmentation=.6), sentences=3, speakers=6)).set_index('claim')
    for claim, missing in {MOST: 'no_contrastive, no_information', EVERY: 'no_contrastive, no_information', HELPS: 'source_only'}.items():
        assert table.why[claim] == f"no runs: {missing}; other corpora than the paper's"
    for claim in (TEN, PAR): assert all(rival in table.why[claim] for rival in (*RIVALS, 'egemaps_svm'))
    assert table.why[NEGLIGIBLE].startswith('runs: 3, speakers: 6')


def test_only_adaptation_without_target_labels_counts():
    said = records(dict(source_only=.4, proposed=.6), sentences=3, speakers=6)
    others = [said.assign(setup=setup, prediction=said.label) for setup in ('labelled_target', 'few_shot', 'target_only')]
    others.append(said.assign(method=said.method + ', standardised', prediction=said.label))
    pd.testing.assert_frame_equal(claims(pd.concat([said, *others])), claims(said))


def test_runs_that_the_other_method_lacks_are_left_out():
    said = records(dict(source_only=.4, proposed=.6), seeds=4, sentences=3, speakers=6)
    fewer = said[(said.method == 'proposed') | (said.seed < 2)]
    pd.testing.assert_frame_equal(claims(fewer), claims(said[said.seed < 2]))
    none = row(said[(said.method == 'proposed') == (said.seed < 2)], HELPS)
    assert none.verdict == 'not testable' and none.why.startswith('no common seed and fold: proposed − source_only')


def test_a_gain_is_a_share_of_the_mean_of_the_rivals_runs():
    said = records(dict(proposed=.6, egemaps_svm=.5), sentences=5, speakers=8, seeds=2, luck=.1)
    ours, theirs = [np.mean([uar(run.label, run.prediction) for _, run in said[said.method == method].groupby('seed')])
                    for method in ('proposed', 'egemaps_svm')]
    assert np.isclose(row(said, TEN).value, 100 * (ours / theirs - 1))


def test_more_rivals_ask_for_longer_intervals():
    said = records(dict(proposed=.6, mmd=.5, dann=.1, coral=.1), sentences=5, speakers=8, luck=.05)
    one, three = row(said[said.method.isin(['proposed', 'mmd'])], PAR), row(said, PAR)
    assert three.low < one.low < one.value == three.value < one.high < three.high
    assert three.why.startswith('proposed − mmd, the weakest of 3')


def test_pairs_are_judged_each_alone_and_stand_in_order():
    one, two = (records(dict(source_only=a, proposed=b), pair, sentences=3, speakers=6)
                for a, b, pair in [(.4, .6, ('a', 'b')), (.6, .4, ('msp_improv', 'iemocap'))])
    table = claims(pd.concat([one, two]))
    assert table.columns.tolist() == COLUMNS and len(table) == 2 * len(CLAIMS)
    assert table.pair.tolist() == ['a → b', 'msp_improv → iemocap'] * len(CLAIMS)
    for pair, alone in (('a → b', one), ('msp_improv → iemocap', two)):
        pd.testing.assert_frame_equal(table[table.pair == pair].reset_index(drop=True), claims(alone))
    assert table.why.str.contains("other corpora than the paper's").eq(table.pair == 'a → b').all()


def test_the_order_of_records_is_immaterial_and_a_second_time_gives_the_same():
    said = records(dict(source_only=.4, proposed=.6, no_augmentation=.58, mmd=.5), sentences=3, speakers=6, luck=.1)
    first = claims(said)
    pd.testing.assert_frame_equal(claims(said), first)
    pd.testing.assert_frame_equal(claims(said.sample(frac=1, random_state=0)), first)


def test_written_files_parse_back(tmp_path):
    table = claims(records(dict(source_only=.4, proposed=.6, no_augmentation=.58, mmd=.5), sentences=3, speakers=6, luck=.1))
    csv, page = write_claims(table, tmp_path / 'new')
    assert [csv.name, page.name] == ['claims.csv', 'claims.md'] and csv.parent == tmp_path / 'new'
    pd.testing.assert_frame_equal(pd.read_csv(csv), table, check_exact=False, rtol=0, atol=1e-4)
    caption, _, header, line, *lines = page.read_text(encoding='utf-8').splitlines()
    assert all(f'*{verdict}*' in caption.lower() for verdict in VERDICTS)
    cells = [[cell.strip() for cell in text.strip('|').split(' | ')] for text in (header, *lines)]
    read = pd.DataFrame(cells[1:], columns=cells[0])
    assert read.verdict.str.strip('*').tolist() == table.verdict.tolist()
    for text, found in zip(read['value (interval)'], table.itertuples()):
        assert text == ('–' if np.isnan(found.value) else f'{found.value:+.1f} ({found.low:+.1f} to {found.high:+.1f})')
    again = [path.read_bytes() for path in write_claims(table, tmp_path)]
    assert again == [csv.read_bytes(), page.read_bytes()]


def test_records_that_cannot_be_judged_are_refused():
    said = records(dict(source_only=.4, proposed=.6), sentences=3, speakers=6)
    with pytest.raises(BadInput, match='said: holds no runs'): claims(said[:0])
    with pytest.raises(BadInput): claims(said[(said.method == 'proposed') | (said.speaker != '1')]) # other utterances
