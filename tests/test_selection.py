"Criteria without target labels: against loops and closed forms, and what choosing by them would have cost."
import math

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from cdser.config import SELECTIONS, BadInput
from cdser.selection import CRITERIA, best_epoch, bnm, dev_risk, im_score, proxy_a_distance, selection_costs, snd


def random_predictions(n: int, classes: int = 4) -> np.ndarray:
    return softmax(np.random.default_rng(n).normal(0, 2, (n, classes)), axis=1)


def entropy(p) -> float:
    return -sum(x * math.log(x) for x in p if x > 0)


def snd_by_hand(p, temperature: float) -> float:
    entropies = []
    for i in range(len(p)):
        cosines = [p[i] @ p[j] / np.linalg.norm(p[i]) / np.linalg.norm(p[j]) for j in range(len(p)) if j != i]
        entropies.append(entropy(softmax(np.array(cosines) / temperature)))
    return np.mean(entropies)


@pytest.mark.parametrize('n, classes', [(2, 2), (7, 3), (40, 4)])
def test_scores_agree_with_literal_loops(n, classes):
    p = random_predictions(n, classes)
    assert im_score(p) == pytest.approx(entropy(p.mean(0)) - np.mean([entropy(row) for row in p]), abs=1e-12)
    assert snd(p) == pytest.approx(snd_by_hand(p, .05), abs=1e-9)
    assert snd(p, .5) == pytest.approx(snd_by_hand(p, .5), abs=1e-9)
    assert bnm(p) == pytest.approx(np.sqrt(np.linalg.eigvalsh(p.T @ p).clip(0)).sum() / n, abs=1e-7)


def test_neighbours_are_found_across_blocks_in_any_order():
    p = random_predictions(1100)
    unit = p / np.linalg.norm(p, axis=1, keepdims=True)
    similarity = unit @ unit.T / .05
    np.fill_diagonal(similarity, -np.inf)
    whole = np.mean([entropy(row) for row in softmax(similarity, axis=1)])
    assert snd(p) == pytest.approx(whole, abs=1e-9)
    assert snd(np.random.default_rng(0).permutation(p)) == pytest.approx(whole, abs=1e-9)


@pytest.mark.parametrize('score', [im_score, snd, bnm])
def test_single_precision_is_enough_and_rows_that_are_not_probabilities_are_refused(score):
    p = random_predictions(50)
    assert score(p.astype(np.float32)) == pytest.approx(score(p), rel=1e-5)
    for wrong in (np.log(p), 2 * p, p[0], p[:0], np.where(p == p.max(), np.nan, p)):
        with pytest.raises(BadInput, match='^p: '):
            score(wrong)


def draw(rng, n: int, shift: float, width: int = 6) -> np.ndarray:
    return rng.normal(0, 1, (n, width)) + shift * np.eye(width)[0]


def risk(z: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, z[:, 0]) + .2 * z[:, 1] ** 2


@pytest.mark.parametrize('shift', [.5, 1., 2.])
@pytest.mark.parametrize('sizes', [(2000, 2000), (2000, 500), (500, 2000)])
def test_dev_is_closer_to_the_target_risk_than_the_plain_mean(shift, sizes):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        valid, true = draw(rng, 1000, 0), risk(draw(rng, 200_000, shift)).mean()
        found = dev_risk(risk(valid), valid, draw(rng, sizes[0], 0), draw(rng, sizes[1], shift))
        assert abs(found - true) < abs(risk(valid).mean() - true) / 2


def test_dev_is_the_plain_mean_if_the_corpora_or_the_losses_do_not_differ():
    rng = np.random.default_rng(0)
    valid, train, target = draw(rng, 500, 0), draw(rng, 2000, 0), draw(rng, 2000, 0)
    assert dev_risk(risk(valid), valid, train, target) == pytest.approx(risk(valid).mean(), abs=.03)
    assert dev_risk(np.full(500, .7), valid, train, target + 1) == pytest.approx(.7, abs=1e-9)
    same = np.ones((50, 40))
    assert dev_risk(np.arange(50.), same, same, same) == pytest.approx(24.5)


@pytest.mark.parametrize('n, scale', [(1, 1), (50, 1), (50, 1e6)])
def test_dev_is_finite_if_the_corpora_do_not_overlap(n, scale):
    rng = np.random.default_rng(0)
    valid, train, target = draw(rng, n, 0, 40), draw(rng, 50, 0, 40), draw(rng, 50, 1000, 40)
    assert math.isfinite(dev_risk(risk(valid), scale * valid, scale * train, scale * target))


def test_inputs_that_do_not_fit_are_refused():
    z, losses = np.zeros((3, 2)), np.zeros(3)
    refused = [('do not fit', (losses[:2], z, z, z)), ('do not fit', (losses, z, z[:0], z)),
               ('do not fit', (losses, z, z, z[:, :1])), ('do not fit', (losses[:, None], z, z, z)),
               ('finite', (losses * np.nan, z, z, z)), ('finite', (losses, z, z, z + np.inf))]
    for message, given in refused:
        with pytest.raises(BadInput, match=message):
            dev_risk(*given)
    with pytest.raises(BadInput, match='no neighbours'):
        snd([[.25] * 4])
    with pytest.raises(BadInput, match='two speakers'):
        proxy_a_distance(z, z, [0, 0, 1], [0, 0, 0])


@pytest.mark.parametrize('values, highest, lowest', [
    ([.1, .3, .2], 1, 0), ([.3, .1, .3, .1], 2, 3), ([.5, .5, .5], 2, 2), ([np.nan, 2., 1., np.nan], 1, 2),
    ([7.], 0, 0)])
def test_the_last_of_equally_good_epochs_is_kept(values, highest, lowest):
    assert best_epoch(values, +1) == highest and best_epoch(values, -1) == lowest


def test_nothing_can_be_chosen_without_a_number():
    with pytest.raises(BadInput, match='no epoch'):
        best_epoch([np.nan, np.nan], -1)


def test_every_criterion_can_be_selected_by():
    assert tuple(CRITERIA) == SELECTIONS and CRITERIA['dev'] == -1


def test_costs_of_invented_histories():
    first = pd.DataFrame(dict(test_uar=[.3, .5, .4], valid_war=[.6, .7, .7], im_score=[.1, .3, .2], dev=[3., 1., 2.],
                              snd=np.nan, bnm=[1., 3., 2.]))
    second = pd.DataFrame(dict(test_uar=[.2, .6, .6, .5], valid_war=[.9, .1, .1, .1], im_score=1.,
                               dev=[np.nan, 2., 3., 4.], snd=np.nan))
    costs = selection_costs([first, second])
    assert costs.runs.to_dict() == dict(valid_war=2, im_score=2, bnm=1, dev=2, oracle=2) | {'last epoch': 2} # no snd
    expected = dict(valid_war=(30, 25, 10, 40), im_score=(50, 5, 0, 10), bnm=(50, 0, 0, 0), dev=(55, 0, 0, 0),
                    oracle=(55, 0, 0, 0)) | {'last epoch': (45, 10, 10, 10)}
    for name, numbers in expected.items():
        assert costs.loc[name, ['uar', 'cost', 'lowest', 'highest']].tolist() == pytest.approx(numbers), name
    assert costs.correlation['oracle'] == pytest.approx(1)
    assert costs.correlation['im_score'] == pytest.approx(1) # the second run's is constant and does not count
    tied = np.corrcoef([1, 2.5, 2.5], [1, 3, 2])[0, 1], np.corrcoef([4, 2, 2, 2], [1, 3.5, 3.5, 2])[0, 1] # ranks
    assert costs.correlation['valid_war'] == pytest.approx(np.mean(tied))
    without_nan = np.corrcoef([3, 2, 1], [2.5, 2.5, 1])[0, 1]
    assert costs.correlation['dev'] == pytest.approx(np.mean([1, without_nan]))


def test_there_are_no_costs_without_histories_or_their_oracle():
    with pytest.raises(BadInput, match='no histories'):
        selection_costs([])
    with pytest.raises(BadInput, match='history 1 has no column test_uar'):
        selection_costs([pd.DataFrame(dict(test_uar=[.5])), pd.DataFrame(dict(valid_war=[.5]))])


def test_the_distance_of_corpora_is_the_balanced_error_on_held_out_speakers():
    rng, speakers = np.random.default_rng(0), np.repeat(np.arange(6), 30)
    source, same, *shifted = (rng.normal(size=(180, 5)) + shift for shift in (0, 0, .3, 1., 9))
    near, far, apart = (proxy_a_distance(source, target, speakers, speakers) for target in shifted)
    assert 0 < near < far < apart == 2 and abs(proxy_a_distance(source, same, speakers, speakers)) < .35
    few = np.repeat(np.arange(6), 5) # a smaller corpus: guessing the larger is no success
    assert abs(proxy_a_distance(source, same[:30], speakers, few)) < .8


def test_corpora_that_differ_only_in_voices_are_not_far_apart():
    "Speakers differ from each other; those that are held out were not seen in training."
    rng, speakers = np.random.default_rng(1), np.repeat(np.arange(20), 10)
    voices = np.repeat(rng.normal(size=(5, 2, 20, 40)), 10, axis=2) * 3 + rng.normal(size=(5, 2, 200, 40))
    assert abs(np.mean([proxy_a_distance(*pair, speakers, speakers) for pair in voices])) < .5
