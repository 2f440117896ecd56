"Every loss term against an independent reference."
import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import NTXentLoss, SupConLoss

from cdser.config import UNLABELLED
from cdser.losses import emotion_loss, estimate_prior, information_maximisation, nt_xent, supervised_contrastive

LABELS = torch.tensor([2, 0, UNLABELLED, 2, 1, 0])


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_emotion_loss_ignores_hidden_labels_and_nothing_else():
    logits = draw(6, 4)
    seen = LABELS != UNLABELLED
    assert torch.isclose(emotion_loss(logits, LABELS), F.cross_entropy(logits[seen], LABELS[seen]))


@pytest.mark.parametrize('temperature', [.07, .5])
@pytest.mark.parametrize('batch', [1, 2, 9])
def test_two_views_equal_the_ntxent_of_pytorch_metric_learning(batch, temperature):
    z = draw(2, batch, 16)
    theirs = NTXentLoss(temperature)(z.flatten(0, 1), torch.arange(batch).repeat(2))
    assert torch.isclose(nt_xent(z, temperature), theirs, atol=1e-6)


@pytest.mark.parametrize('views', [2, 3, 4])
def test_more_views_equal_supervised_contrast_with_utterances_as_classes(views):
    z = draw(views, 6, 16)
    theirs = SupConLoss(temperature=.1)(z.flatten(0, 1), torch.arange(6).repeat(views)) # Khosla et al. 2020, L_out
    assert torch.isclose(nt_xent(z), theirs, atol=1e-6)
    assert torch.isclose(supervised_contrastive(z, torch.arange(6)), theirs, atol=1e-6)


def test_nt_xent_does_not_depend_on_order_or_scale():
    z = draw(3, 5, 8)
    for other in (z.flip(0), z.flip(1), 7 * z):
        assert torch.isclose(nt_xent(z), nt_xent(other), atol=1e-9)


@pytest.mark.parametrize('views', [1, 2, 3])
@pytest.mark.parametrize('temperature', [.07, .5])
def test_supervised_contrast_equals_that_of_pytorch_metric_learning_without_the_hidden_rows(views, temperature):
    z, visible = draw(views, 6, 16), LABELS != UNLABELLED
    theirs = SupConLoss(temperature)(z[:, visible].flatten(0, 1), LABELS[visible].repeat(views))
    assert torch.isclose(supervised_contrastive(z, LABELS, temperature), theirs, rtol=1e-9)


def test_rows_with_hidden_labels_neither_receive_a_gradient_nor_change_the_loss():
    z = draw(3, 6, 8).requires_grad_()
    loss = supervised_contrastive(z, LABELS)
    loss.backward()
    assert (z.grad[:, 2] == 0).all() and (z.grad[:, LABELS != UNLABELLED].abs().sum(2) > 0).all()
    changed = z.detach().clone()
    changed[:, 2] = 100 * draw(3, 8, seed=1)
    assert torch.equal(supervised_contrastive(changed, LABELS), loss)


def test_information_maximisation_equals_a_literal_loop():
    logits, prior = draw(7, 4), torch.tensor([.1, .2, .3, .4], dtype=torch.float64)
    p = logits.softmax(1).tolist()
    mean = [sum(row[k] for row in p) / 7 for k in range(4)]
    certainty = sum(-x * math.log(x) for row in p for x in row) / 7
    spread = -sum(x * math.log(x) for x in mean)
    kl = sum(x * math.log(x / q) for x, q in zip(mean, prior.tolist()))
    assert math.isclose(information_maximisation(logits), certainty - spread, abs_tol=1e-9)
    assert math.isclose(information_maximisation(logits, prior), certainty + kl - math.log(4), abs_tol=1e-9)


def test_the_estimated_prior_equals_a_literal_loop():
    p, source = (2 * draw(30, 4)).softmax(1), torch.tensor([.1, .2, .3, .4], dtype=torch.float64)
    q = source.tolist()
    for _ in range(7):
        rows = [[x * a / b for x, a, b in zip(row, q, source.tolist())] for row in p.tolist()]
        q = [sum(row[k] / sum(row) for row in rows) / 30 for k in range(4)]
    expected = .98 * torch.tensor(q, dtype=torch.float64) + .005
    assert torch.allclose(estimate_prior(p, source, iterations=7), expected, atol=1e-12)
