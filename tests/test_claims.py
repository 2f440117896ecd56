"The claims ledger: no verdict says more than its interval."
import numpy as np
import pandas as pd
import pytest

from cdser.claims import CLAIMS, COLUMNS, VERDICTS, above, claims, within, write_claims
from cdser.config import ABLATIONS, LABELS, RIVALS, BadInput
from cdser.evaluate import compare, uar

TEN, MOST, NEGLIGIBLE, PAR, EVERY, HELPS = [claim.statement for claim in CLAIMS]
MARGINS = {TEN: 10, MOST: 0, NEGLIGIBLE: 1, PAR: -2, EVERY: 0, HELPS: 0}
SMALL = dict(sentences=3, speakers=6)


def predictions(chances: dict, pair=('a', 'b'), seeds=3, speakers=20, sentences=12, luck=.003, folds=1, draw=0):
    "Methods that recognise an utterance with a given chance, give or take `luck` per run and speaker."
    rng, rows, words = np.random.default_rng(draw), [], np.array(LABELS)
    for seed in range(seeds):
        speaker = np.repeat(np.arange(seed % folds, speakers, folds), 4 * sentences)
        label = np.arange(len(speaker)) % 4
        difficulty = rng.permuted(np.linspace(0, 1, len(label)))
        for method, chance in chances.items():
            correct = difficulty < chance + luck * rng.standard_normal(speakers)[speaker]
            setup, name = ('source_only', 'emotion_only') if method == 'source_only' else ('unlabelled_target', method)
            rows.append(pd.DataFrame(dict(
                source=pair[0], target=pair[1], seed=seed, fold=seed % folds, setup=setup, method=name,
                speaker=speaker.astype(str), path=[f'{s}/{i}.wav' for i, s in enumerate(speaker)], label=words[label],
                prediction=words[np.where(correct, label, (label + 1) % 4)])))
    return pd.concat(rows, ignore_index=True)


def row(runs: pd.DataFrame, claim: str) -> pd.Series:
    return claims(runs).set_index('claim').loc[claim]


UNCERTAIN = dict(luck=.2, speakers=6)
CASES = [
    (TEN, 'supported', dict(proposed=.60, mmd=.50, mcc=.52), {}),
    (TEN, 'contradicted', dict(proposed=.60, mmd=.50, mcc=.58), {}),           # better than both, by 10 % than one
    (TEN, 'undecided', dict(proposed=.60, mmd=.50, mcc=.52), UNCERTAIN),
    (TEN, 'not testable', dict(proposed=.60, no_contrastive=.50), {}),
    (MOST, 'supported', dict(no_augmentation=.59, no_contrastive=.50, no_information=.55), {}),
    (MOST, 'contradicted', dict(no_augmentation=.59, no_contrastive=.55, no_information=.50), {}),
    (MOST, 'undecided', dict(no_augmentation=.59, no_contrastive=.50, no_information=.50), {}),
    (MOST, 'not testable', dict(proposed=.60, no_contrastive=.50, no_augmentation=.60), {}),
    (NEGLIGIBLE, 'supported', dict(proposed=.600, no_augmentation=.598), {}),
    (NEGLIGIBLE, 'contradicted', dict(proposed=.60, no_augmentation=.55), {}),
    (NEGLIGIBLE, 'contradicted', dict(proposed=.55, no_augmentation=.60), {}), # not negligible if it does harm
    (NEGLIGIBLE, 'undecided', dict(proposed=.60, no_augmentation=.60), dict(luck=.1, speakers=8)),
    (NEGLIGIBLE, 'not testable', dict(proposed=.60), {}),
    (PAR, 'supported', dict(proposed=.60, mmd=.605, dann=.50), {}),            # worse by half a point
    (PAR, 'contradicted', dict(proposed=.60, mmd=.65, dann=.50), {}),
    (PAR, 'undecided', dict(proposed=.60, mmd=.60), UNCERTAIN),
    (PAR, 'not testable', dict(source_only=.40, mmd=.60), {}),
    (EVERY, 'supported', dict(proposed=.60, no_augmentation=.58, no_contrastive=.50, no_information=.55), {}),
    (EVERY, 'contradicted', dict(proposed=.60, no_augmentation=.63, no_contrastive=.50, no_information=.55), {}),
    (EVERY, 'undecided', dict(proposed=.60, no_augmentation=.60, no_contrastive=.50, no_information=.55), {}),
    (EVERY, 'not testable', dict(proposed=.60, no_augmentation=.58, no_information=.55), {}),
    (HELPS, 'supported', dict(proposed=.60, source_only=.50), {}),
    (HELPS, 'contradicted', dict(proposed=.50, source_only=.60), {}),
    (HELPS, 'undecided', dict(proposed=.60, source_only=.58), UNCERTAIN),
    (HELPS, 'not testable', dict(proposed=.60), {})]
assert {case[:2] for case in CASES} == {(claim.statement, verdict) for claim in CLAIMS for verdict in VERDICTS}


@pytest.mark.parametrize('claim, verdict, chances, settings', CASES)
def test_every_verdict_of_every_claim(claim, verdict, chances, settings):
    found = row(predictions(chances, **settings), claim)
    assert found.verdict == verdict
    assert found[['value', 'low', 'high']].isna().all() == (verdict == 'not testable')
    assert verdict == 'not testable' or found.low <= found.value <= found.high


def expected(claim: str, intervals: list[tuple[float, float]]) -> str:
    "The rule, written again: a verdict from the intervals of all comparisons."
    margin = MARGINS[claim]
    if claim == NEGLIGIBLE:
        (low, high), = intervals
        supported, contradicted = low > -margin and high < margin, high < -margin or low > margin
    else:
        supported, contradicted = all(low > margin for low, _ in intervals), any(high < margin for _, high in intervals)
    return 'contradicted' if contradicted else 'supported' if supported else 'undecided'


@pytest.mark.parametrize('draw', range(10))
def test_no_verdict_contradicts_its_intervals(draw):
    "A row shows its weakest comparison, at the level at which all hold together."
    rng = np.random.default_rng(draw)
    rivals = ['mmd', 'dann'][:rng.integers(1, 3)]
    chances = {method: .5 + .04 * rng.standard_normal() for method in ('source_only', 'proposed', *ABLATIONS, *rivals)}
    runs = predictions(chances, seeds=int(rng.integers(2, 5)), folds=int(rng.integers(1, 3)), sentences=5,
                       speakers=int(rng.integers(6, 20)), luck=rng.uniform(0, .1), draw=draw)
    of = {method: rows for method, rows in runs.groupby(runs.method.replace('emotion_only', 'source_only'))}
    against_rivals = [('proposed', rival) for rival in rivals]
    comparisons = {TEN: against_rivals, PAR: against_rivals, NEGLIGIBLE: [('proposed', 'no_augmentation')],
                   MOST: [('no_augmentation', 'no_contrastive'), ('no_information', 'no_contrastive')],
                   EVERY: [('proposed', ablated) for ablated in ABLATIONS], HELPS: [('proposed', 'source_only')]}
    ledger = claims(runs).set_index('claim')
    for claim, pairs in comparisons.items():
        found, effects = ledger.loc[claim], {}
        for a, b in pairs:
            c = compare(of[a], of[b], level=1 - .05 / len(pairs))
            uars_of_b = [uar(run.label, run.prediction) for _, run in of[b].groupby(['seed', 'fold'])]
            scale = np.mean(uars_of_b) if claim == TEN else 1
            effects[f'{a} − {b}'] = [100 * x / scale for x in (c.mean, c.low, c.high)]
        assert found.verdict == expected(claim, [effect[1:] for effect in effects.values()])
        assert found.verdict == expected(claim, [(found.low, found.high)])
        name, = [name for name in effects if name in found.why] or effects
        assert np.allclose(effects[name], found[['value', 'low', 'high']].astype(float), rtol=0, atol=1e-9)


def test_a_bound_on_the_margin_and_a_missing_bound_decide_nothing():
    assert above(0, 2, 0) == above(-2, 0, 0) == within(-1, .5, 1) == within(1, 3, 1) == 'undecided'
    assert above(np.nan, np.nan, 0) == within(np.nan, np.nan, 1) == 'undecided'


def test_one_seed_has_a_value_and_decides_nothing():
    found = row(predictions(dict(source_only=.1, proposed=.9), seeds=1, speakers=6), HELPS)
    assert found.verdict == 'undecided' and np.isclose(found.value, 80, atol=2)
    assert np.isnan([found.low, found.high]).all()
    assert found.why.startswith('runs: 1, speakers: 6, too few for an interval')
    runs = predictions(dict(proposed=.6, dann=.5, mmd=.5), speakers=6)
    found = row(runs[(runs.method != 'mmd') | (runs.seed == 0)], PAR) # one rival of one seed leaves the claim open
    assert found.verdict == 'undecided'
    assert found.why.startswith('proposed − mmd, the weakest of 2; runs: 1, speakers: 6, too few')


def test_missing_runs_are_named():
    ledger = claims(predictions(dict(proposed=.6, no_augmentation=.6), **SMALL)).set_index('claim')
    for claim, missing in {MOST: 'no_contrastive, no_information', HELPS: 'source_only'}.items():
        assert ledger.why[claim] == f"no runs: {missing}; other corpora than the paper's"
    assert all(rival in ledger.why[TEN] for rival in (*RIVALS, 'egemaps_svm'))


def test_only_adaptation_without_target_labels_and_common_runs_count():
    runs = predictions(dict(source_only=.4, proposed=.6), seeds=4, **SMALL)
    other_setup = runs.assign(setup='labelled_target', prediction=runs.label)
    other_method = runs.assign(method=runs.method + ', standardised', prediction=runs.label)
    pd.testing.assert_frame_equal(claims(pd.concat([runs, other_setup, other_method])), claims(runs))
    fewer = runs[(runs.method == 'proposed') | (runs.seed < 2)]
    pd.testing.assert_frame_equal(claims(fewer), claims(runs[runs.seed < 2]))
    none = row(runs[(runs.method == 'proposed') == (runs.seed < 2)], HELPS)
    assert none.verdict == 'not testable'
    assert none.why.startswith('no common seed and fold: proposed − source_only')


def test_pairs_are_judged_separately_in_order_whatever_the_order_of_rows():
    first = predictions(dict(source_only=.4, proposed=.6), **SMALL)
    second = predictions(dict(source_only=.6, proposed=.4), ('msp_improv', 'iemocap'), **SMALL)
    ledger = claims(pd.concat([first, second]))
    assert ledger.columns.tolist() == COLUMNS
    assert ledger.pair.tolist() == ['a → b', 'msp_improv → iemocap'] * len(CLAIMS)
    for pair, alone in (('a → b', first), ('msp_improv → iemocap', second)):
        of_pair = ledger[ledger.pair == pair].reset_index(drop=True)
        pd.testing.assert_frame_equal(of_pair, claims(alone.sample(frac=1, random_state=0)))
    assert ledger.why.str.contains("other corpora than the paper's").eq(ledger.pair == 'a → b').all()


def test_written_files_hold_the_ledger(tmp_path):
    ledger = claims(predictions(dict(source_only=.4, proposed=.6, no_augmentation=.58, mmd=.5), luck=.1, **SMALL))
    path = write_claims(ledger, tmp_path / 'new')
    pd.testing.assert_frame_equal(pd.read_csv(path), ledger, check_exact=False, rtol=0, atol=1e-4)
    lines = path.with_suffix('.md').read_text(encoding='utf-8').splitlines()[4:]
    for line, found in zip(lines, ledger.itertuples(), strict=True):
        interval = f'{found.value:+.1f} ({max(found.low, -100):+.1f} to {found.high:+.1f})'
        assert f'**{found.verdict}** | {"–" if np.isnan(found.value) else interval} |' in line


def test_runs_that_cannot_be_judged_are_refused():
    runs = predictions(dict(source_only=.4, proposed=.6), **SMALL)
    with pytest.raises(BadInput, match='runs: there are none'):
        claims(runs[:0])
    with pytest.raises(BadInput, match='other utterances'):
        claims(runs[(runs.method == 'proposed') | (runs.speaker != '1')])
