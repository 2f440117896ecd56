"Criteria that see no target label: against loops and closed forms, and what choosing by them would have cost."
import math

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from cdser.config import SELECTIONS, BadInput
from cdser.selection import CRITERIA, best_epoch, bnm, dev_risk, im_score, proxy_a_distance, selection_costs, snd

N, K = 60, 4
BALANCED = np.eye(K)[np.arange(N) % K]
COLLAPSED = np.eye(K)[np.zeros(N, int)]
UNIFORM = np.full((N, K), 1 / K)


def random_predictions(n: int, classes: int = K) -> np.ndarray:
    return softmax(np.random.default_rng(n).normal(0, 2, (n, classes)), axis=1)


def entropy(p) -> float:
    return -sum(x * math.log(x) for x in p if x > 0)


def im_by_hand(p) -> float:
    mean = [sum(row[k] for row in p) / len(p) for k in range(len(p[0]))]
    return entropy(mean) - sum(entropy(row) for row in p) / len(p)


def snd_by_hand(p, temperature: float) -> float:
    def cosine(a, b): return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    total = 0.
    for i in range(len(p)):
        e = [math.exp(cosine(p[i], p[j]) / temperature) for j in range(len(p)) if j != i]
        total += entropy([x / sum(e) for x in e])
    return total / len(p)


@pytest.mark.parametrize('n, classes', [(2, 2), (7, 3), (40, 4)])
def test_scores_are_what_a_literal_loop_says(n, classes):
    p = random_predictions(n, classes)
    assert im_score(p) == pytest.approx(im_by_hand(p.tolist()), abs=1e-12)
    for temperature in (.05, .5): assert snd(p, temperature) == pytest.approx(snd_by_hand(p.tolist(), temperature), abs=1e-9)
    assert bnm(p) == pytest.approx(sum(math.sqrt(max(x, 0)) for x in np.linalg.eigvalsh(p.T @ p)) / n, abs=1e-7)


@pytest.mark.parametrize('p, im, nuclear, density', [
    (UNIFORM, 0, math.sqrt(1 / (K * N)), math.log(N - 1)),
    (COLLAPSED, 0, math.sqrt(1 / N), math.log(N - 1)),
    (BALANCED, math.log(K), math.sqrt(K / N), None)], ids=['uniform', 'collapsed', 'balanced'])
def test_closed_forms(p, im, nuclear, density):
    m = N // K
    share = (m - 1) * math.exp(20) / ((m - 1) * math.exp(20) + N - m)
    if density is None: density = -share * math.log(share / (m - 1)) - (1 - share) * math.log((1 - share) / (N - m))
    assert im_score(p) == pytest.approx(im, abs=1e-12) and bnm(p) == pytest.approx(nuclear, abs=1e-12)
    assert snd(p) == pytest.approx(density, abs=1e-9)


def test_neighbours_are_found_across_blocks_and_whatever_the_order():
    p = random_predictions(1100)
    unit = p / np.linalg.norm(p, axis=1, keepdims=True)
    similarity = unit @ unit.T / .05
    np.fill_diagonal(similarity, -np.inf)
    q = softmax(similarity, axis=1)
    whole = -(q * np.log(np.where(q > 0, q, 1))).sum(1).mean()
    assert snd(p) == pytest.approx(whole, abs=1e-9)
    assert snd(np.random.default_rng(0).permutation(p)) == pytest.approx(whole, abs=1e-9)


@pytest.mark.parametrize('score', [im_score, snd, bnm])
def test_single_precision_is_enough_and_what_is_no_probability_is_refused(score):
    p = random_predictions(50)
    assert score(p.astype(np.float32)) == pytest.approx(score(p), rel=1e-5)
    for wrong in (np.log(p), 2 * p, p[0], p[:0], np.where(p == p.max(), np.nan, p)):
        with pytest.raises(BadInput, match='^p: '): score(wrong)


def test_one_utterance_has_no_neighbours():
    with pytest.raises(BadInput, match='no neighbours'): snd(UNIFORM[:1])


def draw(rng, n: int, shift: float, width: int = 6) -> np.ndarray:
    return rng.normal(0, 1, (n, width)) + shift * np.eye(width)[0]


def risk(z: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, z[:, 0]) + .2 * z[:, 1] ** 2


@pytest.mark.parametrize('seed', range(5))
def test_dev_is_the_plain_mean_where_the_corpora_are_alike(seed):
    rng = np.random.default_rng(seed)
    valid = draw(rng, 500, 0)
    assert dev_risk(risk(valid), valid, draw(rng, 2000, 0), draw(rng, 2000, 0)) == pytest.approx(risk(valid).mean(), abs=.03)


@pytest.mark.parametrize('shift', [.5, 1., 2.])
@pytest.mark.parametrize('sizes', [(2000, 2000), (2000, 500), (500, 2000)])
def test_dev_comes_closer_to_the_target_risk_than_the_plain_mean(shift, sizes):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        valid, true = draw(rng, 1000, 0), risk(draw(rng, 200_000, shift)).mean()
        found = dev_risk(risk(valid), valid, draw(rng, sizes[0], 0), draw(rng, sizes[1], shift))
        assert abs(found - true) < abs(risk(valid).mean() - true) / 2


@pytest.mark.parametrize('n', [1, 5, 200])
def test_a_constant_loss_has_that_risk_whatever_the_weights(n):
    rng = np.random.default_rng(n)
    valid = draw(rng, n, 0)
    found = dev_risk(np.full(n, .7), valid, draw(rng, 100, 0), draw(rng, 50, 1))
    if n > 1: assert found == pytest.approx(.7, abs=1e-9)
    else: assert math.isfinite(found) # one weight cannot be corrected


@pytest.mark.parametrize('scale', [1, 1e6])
def test_dev_is_finite_where_the_corpora_do_not_overlap_or_do_not_vary(scale):
    rng = np.random.default_rng(0)
    valid = scale * draw(rng, 50, 0, 40)
    assert math.isfinite(dev_risk(risk(valid), valid, scale * draw(rng, 50, 0, 40), scale * draw(rng, 50, 1000, 40)))
    same = np.ones((50, 40))
    assert dev_risk(np.arange(50.), same, same, same) == pytest.approx(24.5)


def test_what_does_not_fit_dev_is_refused():
    z, losses = np.zeros((3, 2)), np.zeros(3)
    for args in ((losses[:2], z, z, z), (losses, z, z[:0], z), (losses, z, z, z[:, :1]), (losses[:, None], z, z, z)):
        with pytest.raises(BadInput, match='do not fit'): dev_risk(*args)
    for args in ((losses * np.nan, z, z, z), (losses, z, z, z + np.inf)):
        with pytest.raises(BadInput, match='finite'): dev_risk(*args)


@pytest.mark.parametrize('values, highest, lowest', [
    ([.1, .3, .2], 1, 0), ([.3, .1, .3, .1], 2, 3), ([.5, .5, .5], 2, 2), ([np.nan, 2., 1., np.nan], 1, 2), ([7.], 0, 0)])
def test_of_equally_good_epochs_the_last_is_kept(values, highest, lowest):
    assert best_epoch(values, +1) == highest and best_epoch(values, -1) == lowest


def test_nothing_can_be_chosen_by_what_is_no_number():
    with pytest.raises(BadInput, match='no epoch'): best_epoch([np.nan, np.nan], -1)


def test_every_criterion_can_be_selected_by():
    assert tuple(CRITERIA) == SELECTIONS and CRITERIA['dev'] == -1


def test_costs_of_made_up_histories():
    first = pd.DataFrame(dict(test_uar=[.3, .5, .4], valid_war=[.6, .7, .7], im_score=[.1, .3, .2], snd=[np.nan] * 3, dev=[3., 1., 2.]))
    second = pd.DataFrame(dict(test_uar=[.2, .6, .6, .5], valid_war=[.9, .1, .1, .1], im_score=[1.] * 4, snd=[np.nan] * 4, dev=[np.nan, 2., 3., 4.]))
    costs = selection_costs([first, second])
    assert costs.index.tolist() == ['valid_war', 'im_score', 'dev', 'last epoch', 'oracle'] # no snd, no bnm
    assert (costs.runs == 2).all()
    expected = dict(valid_war=(30, 25, 10, 40), im_score=(50, 5, 0, 10), dev=(55, 0, 0, 0), oracle=(55, 0, 0, 0))
    for name, numbers in {**expected, 'last epoch': (45, 10, 10, 10)}.items():
        assert costs.loc[name, ['uar', 'cost', 'lowest', 'highest']].tolist() == pytest.approx(numbers), name
    assert costs.correlation['oracle'] == pytest.approx(1)
    assert costs.correlation['im_score'] == pytest.approx(1) # the second run's is constant and does not count
    tied = np.corrcoef([1, 2.5, 2.5], [1, 3, 2])[0, 1], np.corrcoef([4, 2, 2, 2], [1, 3.5, 3.5, 2])[0, 1] # ranks
    assert costs.correlation['valid_war'] == pytest.approx(np.mean(tied))
    assert costs.correlation['dev'] == pytest.approx(np.mean([1, np.corrcoef([3, 2, 1], [2.5, 2.5, 1])[0, 1]])) # ranks of the numbers alone


def test_a_criterion_that_some_runs_lack_is_judged_on_the_others():
    with_it = pd.DataFrame(dict(test_uar=[.3, .5], valid_war=[.6, .7], bnm=[.2, .1]))
    costs = selection_costs([with_it, with_it.drop(columns='bnm'), with_it.assign(bnm=np.nan)])
    assert costs.runs.to_dict() == {'valid_war': 3, 'bnm': 1, 'last epoch': 3, 'oracle': 3}
    assert costs.cost['bnm'] == pytest.approx(20) and costs.cost['valid_war'] == 0


def test_without_histories_or_their_oracle_there_are_no_costs():
    with pytest.raises(BadInput, match='no histories'): selection_costs([])
    with pytest.raises(BadInput, match='history 1 has no column test_uar'):
        selection_costs([pd.DataFrame(dict(test_uar=[.5])), pd.DataFrame(dict(valid_war=[.5]))])


def test_the_distance_of_corpora_is_the_balanced_error_on_held_out_speakers():
    rng, speakers = np.random.default_rng(0), np.repeat(np.arange(6), 30)
    draw = lambda moved, n=180: rng.normal(size=(n, 5)) + moved
    assert proxy_a_distance(draw(0), draw(9), speakers, speakers) == 2
    assert abs(proxy_a_distance(draw(0), draw(0), speakers, speakers)) < .35
    near, far = (proxy_a_distance(draw(0), draw(moved), speakers, speakers) for moved in (.3, 1.))
    assert 0 < near < far < 2
    few = np.repeat(np.arange(6), 5)
    assert abs(proxy_a_distance(draw(0), draw(0, 30), speakers, few)) < .8 # guessing the larger corpus would be no error of its own


def test_a_corpus_that_differs_only_in_voices_is_not_told_apart_by_them():
    "Each speaker has a place of their own; none that is held out was seen in training."
    rng, speakers = np.random.default_rng(1), np.repeat(np.arange(20), 10)
    corpus = lambda: np.repeat(rng.normal(size=(20, 40)), 10, axis=0) * 3 + rng.normal(size=(200, 40))
    found = [proxy_a_distance(corpus(), corpus(), speakers, speakers) for _ in range(5)]
    assert abs(np.mean(found)) < .5


def test_the_distance_needs_two_speakers_of_each():
    with pytest.raises(BadInput, match='two speakers'): proxy_a_distance(np.ones((4, 2)), np.ones((4, 2)), [0, 0, 1, 1], [0] * 4)
