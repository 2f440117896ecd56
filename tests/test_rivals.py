"Every rival's term against a literal reading of its equations and, where there is one, against an independent implementation."
import math

import pytest
import torch
from pytorch_metric_learning.losses import SupConLoss
from sklearn.metrics.pairwise import rbf_kernel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from cdser.config import HIDDEN, BadInput
from cdser.losses import estimate_prior, nt_xent, supervised_contrastive
from cdser.rivals import (conditional_features, coral, domain_loss, minimum_class_confusion, mmd, reversal_strength, reverse_gradient,
                          self_training)

DOMAINS = torch.tensor([0, 1, 1, 0, 0, 1, 0, 1, 0]) # mixed, five rows of the source and four of the target
LABELS = torch.tensor([2, 0, HIDDEN, 2, 1, 0])
SCALES = (.25, .5, 1, 2, 4)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradient(term, x: torch.Tensor) -> torch.Tensor:
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(term(x), x)[0]


def terms(domains: torch.Tensor) -> dict: # name -> function of (9, 4) values, three views of three utterances where views matter
    target = domains == 1
    labels = torch.where(target[:3], HIDDEN, torch.arange(3, device=domains.device) % 2)
    return {'domain_loss': lambda x: domain_loss(x[:, 0], domains),
            'dann': lambda x: domain_loss(reverse_gradient(x, .7)[:, 0], domains),
            'cdan': lambda x: domain_loss(reverse_gradient(conditional_features(x, x), .7).sum(1), domains),
            'coral': lambda x: coral(x, domains),
            'mmd': lambda x: mmd(x, domains),
            'mcc': lambda x: minimum_class_confusion(x, target),
            'self_training': lambda x: self_training(x, 3, target[:3], threshold=.3),
            'supervised_contrastive': lambda x: supervised_contrastive(x.view(3, 3, 4), labels)}


NAMES = list(terms(DOMAINS))
NOTHING = [(name, present) for name in NAMES for present in (0, 1) # a term and the only domain that is there
           if (name, present) not in [('mcc', 1), ('self_training', 1), ('supervised_contrastive', 0)]]


# --- the discriminators

@pytest.mark.parametrize('strength', [0., .3, 1.])
def test_a_reversed_gradient_is_the_gradient_times_minus_the_strength(strength):
    x, weights = draw(5, 3), draw(3, 2)
    after = lambda y: (y @ weights).tanh().square().sum()
    assert torch.equal(reverse_gradient(x, strength), x)
    assert torch.equal(gradient(lambda x: after(reverse_gradient(x, strength)), x), -strength * gradient(after, x))


def test_behind_the_reversal_the_discriminator_learns_as_ever():
    x, weights = draw(5, 3), draw(3, 2)
    plain = gradient(lambda w: (x @ w).square().sum(), weights)
    assert torch.equal(gradient(lambda w: (reverse_gradient(x, .3) @ w).square().sum(), weights), plain)


def test_the_strength_of_the_reversal_is_a_hyperbolic_tangent():
    for p in (0, .01, .1, .5, 1): assert math.isclose(reversal_strength(p), math.tanh(5 * p), abs_tol=1e-12)
    for p in (-.1, 1.1, float('nan')):
        with pytest.raises(BadInput, match='progress'): reversal_strength(p)


def test_domain_loss_equals_its_closed_form():
    logits = 3 * draw(9)
    by_hand = [math.log(1 + math.exp(-z if d else z)) for z, d in zip(logits.tolist(), DOMAINS.tolist())]
    assert math.isclose(domain_loss(logits, DOMAINS), sum(by_hand) / 9, rel_tol=1e-12)
    right = 1e4 * (2. * DOMAINS - 1)
    assert domain_loss(right, DOMAINS) == 0 and domain_loss(-right, DOMAINS) == 1e4


def test_conditional_features_equal_a_literal_loop_and_hold_the_probabilities_constant():
    x, logits = draw(6, 5), draw(6, 4, seed=1).requires_grad_()
    p, features = logits.softmax(1), conditional_features(x, logits)
    assert features.shape == (6, 20) and not features.requires_grad
    for i in range(6):
        for j in range(5):
            for k in range(4): assert torch.isclose(features[i, j * 4 + k], x[i, j] * p[i, k], atol=1e-12)
    weights = draw(20, seed=2)
    slope = gradient(lambda x: (conditional_features(x, logits) @ weights).sum(), x)
    assert torch.allclose(slope, torch.einsum('rc,wc->rw', p, weights.view(5, 4)))


# --- statistics of the two domains

@pytest.mark.parametrize('width', [1, 3, 8])
def test_coral_equals_a_literal_loop(width):
    x = draw(9, width)
    covariances = []
    for domain in (0, 1):
        rows = [row for row, d in zip(x.tolist(), DOMAINS.tolist()) if d == domain]
        mean = [sum(column) / len(rows) for column in zip(*rows)]
        covariances.append([[sum((r[j] - mean[j]) * (r[k] - mean[k]) for r in rows) / (len(rows) - 1) for k in range(width)]
                            for j in range(width)])
    source, target = covariances
    squares = sum((source[j][k] - target[j][k])**2 for j in range(width) for k in range(width))
    assert math.isclose(coral(x, DOMAINS), squares / (4 * width**2), rel_tol=1e-9)


def test_coral_equals_that_of_skada():
    deep = pytest.importorskip('skada.deep', exc_type=ImportError)
    x = draw(9, 5)
    theirs = deep.DeepCoralLoss()(x[DOMAINS == 0], x[DOMAINS == 1]) # the same scale: unbiased covariances, 1 / (4 width^2)
    assert torch.isclose(coral(x, DOMAINS), theirs, rtol=1e-12)


def kernel_mean(x, y, bandwidth):
    pairs = [sum(torch.exp(-(a - b).square().sum() / (s * bandwidth)) for s in SCALES) / len(SCALES) for a in x for b in y]
    return torch.stack(pairs).mean()


def mmd_by_hand(x, domains):
    fixed = x.detach()
    bandwidth = sum((a - b).square().sum() for a in fixed for b in fixed) / (len(x) * (len(x) - 1))
    source, target = x[domains == 0], x[domains == 1]
    return sum(sign * kernel_mean(a, b, bandwidth) for sign, a, b in [(1, source, source), (1, target, target), (-2, source, target)])


@pytest.mark.parametrize('shift', [0, 100])
def test_mmd_and_its_gradient_equal_a_literal_double_loop(shift):
    x = draw(9, 3) + shift
    assert torch.isclose(mmd(x, DOMAINS), mmd_by_hand(x, DOMAINS), rtol=1e-9)
    slope = gradient(lambda x: mmd(x, DOMAINS), x)
    assert torch.allclose(slope, gradient(lambda x: mmd_by_hand(x, DOMAINS), x), atol=1e-10) and slope.abs().max() > .01


def test_mmd_equals_the_kernels_of_scikit_learn():
    x = draw(9, 4)
    bandwidth = torch.cdist(x, x).square().sum().item() / 72
    k = torch.tensor(sum(rbf_kernel(x, gamma=1 / (s * bandwidth)) for s in SCALES) / 5)
    s, t = DOMAINS == 0, DOMAINS == 1
    assert torch.isclose(mmd(x, DOMAINS), k[s][:, s].mean() + k[t][:, t].mean() - 2 * k[s][:, t].mean(), rtol=1e-9)


@pytest.mark.parametrize('seed', range(5))
def test_mmd_is_never_negative_and_blind_to_place_and_scale(seed):
    x = draw(9, 3, seed=seed)
    found = mmd(x, DOMAINS)
    assert 0 < found < 2
    assert torch.isclose(mmd(50 * x + 1, DOMAINS), found, rtol=1e-9)
    assert torch.isclose(mmd(x, 1 - DOMAINS), found, rtol=1e-12)
    assert mmd(torch.cat([x, x]), torch.arange(2).repeat_interleave(9)).abs() < 1e-12


def test_mmd_in_float32_withstands_an_offset():
    x = draw(9, 3)
    assert torch.isclose(mmd(x.float() + 1000, DOMAINS).double(), mmd(x, DOMAINS), rtol=1e-3)


# --- predictions on the target

def confusion_by_hand(logits, temperature):
    n, classes = logits.shape
    y = (logits / temperature).softmax(1)
    entropies = [-sum(p * p.log() for p in row) for row in y.detach()]
    w = [1 + torch.exp(-h) for h in entropies]
    w = [n * x / sum(w) for x in w]
    c = [[sum(w[i] * y[i, j] * y[i, k] for i in range(n)) for k in range(classes)] for j in range(classes)]
    return sum(c[j][k] / sum(c[j]) for j in range(classes) for k in range(classes) if k != j) / classes


@pytest.mark.parametrize('temperature', [1., 2.5])
@pytest.mark.parametrize('classes', [2, 4])
def test_class_confusion_and_its_gradient_equal_a_literal_loop(classes, temperature):
    logits, target = 4 * draw(9, classes), DOMAINS == 1
    mine = lambda x: minimum_class_confusion(x, target, temperature)
    theirs = lambda x: confusion_by_hand(x[target], temperature)
    assert torch.isclose(mine(logits), theirs(logits), rtol=1e-9)
    assert torch.allclose(gradient(mine, logits), gradient(theirs, logits), atol=1e-12)


def test_class_confusion_equals_that_of_skada():
    deep = pytest.importorskip('skada.deep', exc_type=ImportError)
    logits = 4 * draw(9, 4)
    theirs = deep.MCCLoss(T=2.5, eps=0)(logits[DOMAINS == 1]) # the same value; its weights carry a gradient, the authors' do not
    assert torch.isclose(minimum_class_confusion(logits, DOMAINS == 1), theirs, rtol=1e-9)


def test_a_class_that_no_row_comes_near_has_a_finite_confusion():
    logits = torch.tensor([[500., -500., 0., 0.], [0., -500., 500., 0.]])
    everything = torch.ones(2, dtype=torch.bool)
    assert ((logits / 2.5).softmax(1)[:, 1] == 0).all()
    assert torch.isclose(minimum_class_confusion(logits, everything), torch.tensor(.5)) # two classes are empty, two are pure
    assert gradient(lambda x: minimum_class_confusion(x, everything), logits).isfinite().all()


@pytest.mark.parametrize('views', [1, 2, 4])
def test_self_training_equals_a_literal_loop(views):
    logits, wanted = 3 * draw(views * 12, 4), torch.arange(12) % 3 > 0
    pairs = []
    for b in range(12):
        p = logits[b].softmax(0)
        if wanted[b] and p.max() > .8:
            pairs += [-logits[v * 12 + b].log_softmax(0)[p.argmax()] for v in (range(1, views) if views > 1 else [0])]
    assert 0 < len(pairs) < 8 * max(views - 1, 1)
    assert torch.isclose(self_training(logits, views, wanted, threshold=.8), torch.stack(pairs).mean(), rtol=1e-12)


def test_in_self_training_the_original_teaches_and_does_not_learn():
    logits = 5 * torch.eye(4).repeat(3, 1).double() + .3 * draw(12, 4)
    slope = gradient(lambda x: self_training(x, 3, torch.tensor([True, True, False, True])), logits).view(3, 4, 4)
    assert (slope[0] == 0).all() and (slope[:, 2] == 0).all()
    assert (slope[1:, [0, 1, 3]].abs().sum(2) > 0).all()


# --- labels

@pytest.mark.parametrize('views', [1, 2, 3])
@pytest.mark.parametrize('temperature', [.07, .5])
def test_supervised_contrast_equals_that_of_pytorch_metric_learning_without_the_hidden_rows(views, temperature):
    z, visible = draw(views, 6, 16), LABELS != HIDDEN
    theirs = SupConLoss(temperature)(z[:, visible].flatten(0, 1), LABELS[visible].repeat(views))
    assert torch.isclose(supervised_contrastive(z, LABELS, temperature), theirs, rtol=1e-9)


def test_supervised_contrast_of_labels_that_all_differ_is_nt_xent():
    z = draw(3, 6, 8)
    assert torch.isclose(supervised_contrastive(z, torch.arange(6), .2), nt_xent(z, .2), rtol=1e-12)


def test_hidden_rows_neither_receive_a_gradient_nor_change_the_loss():
    z = draw(3, 6, 8)
    other = z.clone(); other[:, 2] = 100 * draw(3, 8, seed=1)
    assert torch.equal(supervised_contrastive(z, LABELS), supervised_contrastive(other, LABELS))
    slope = gradient(lambda z: supervised_contrastive(z, LABELS), z)
    assert (slope[:, 2] == 0).all() and (slope[:, LABELS != HIDDEN].abs().sum(2) > 0).all()


def test_the_estimated_prior_has_its_closed_form():
    "Two sounds, heard with 80 % and 30 % under the two classes; where 42.5 % hear the first, a quarter is of class 0."
    heard, source = torch.tensor([[.8, .3], [.2, .7]], dtype=torch.float64), torch.tensor([.6, .4], dtype=torch.float64)
    posterior = heard * source / (heard * source).sum(1, keepdim=True)
    p = posterior[[0] * 425 + [1] * 575]
    found = estimate_prior(p, source)
    assert torch.allclose(found, .98 * torch.tensor([.25, .75], dtype=torch.float64) + .01, atol=1e-6)
    assert torch.allclose(estimate_prior(posterior[[0] * 600 + [1] * 400], source), .98 * source + .01) # nothing has shifted


def test_the_estimated_prior_equals_a_literal_loop():
    p, source = (2 * draw(30, 4)).softmax(1), torch.tensor([.1, .2, .3, .4], dtype=torch.float64)
    q = source.tolist()
    for _ in range(7):
        rows = [[x * a / b for x, a, b in zip(row, q, source.tolist())] for row in p.tolist()]
        q = [sum(row[k] / sum(row) for row in rows) / 30 for k in range(4)]
    assert torch.allclose(estimate_prior(p, source, iterations=7), .98 * torch.tensor(q, dtype=torch.float64) + .005, atol=1e-12)


def test_the_estimated_prior_of_calibrated_predictions_is_the_truth_and_no_class_is_ruled_out():
    centres, truth = torch.tensor([-3., -1, 1, 3]), torch.tensor([.05, .25, .7, 0])
    generator = torch.Generator().manual_seed(1)
    emotion = torch.multinomial(truth, 20000, replacement=True, generator=generator)
    x = centres[emotion] + torch.randn(20000, generator=generator)
    found = estimate_prior((-(x[:, None] - centres)**2 / 2).softmax(1), torch.full((4,), .25))
    assert (found - (.98 * truth + .005)).abs().max() < .015
    assert found.min() >= .005 and torch.isclose(found.sum(), torch.tensor(1.))
    with pytest.raises(BadInput, match='probabilities'): estimate_prior(torch.empty(0, 4), torch.full((4,), .25))


# --- what all of them hold to

@pytest.mark.parametrize('name', ['domain_loss', 'coral', 'self_training', 'supervised_contrastive'])
def test_finite_differences_agree(name):
    "Where nothing is held constant; the others are compared with the gradient of a literal loop above."
    assert torch.autograd.gradcheck(terms(DOMAINS)[name], draw(9, 4).requires_grad_())


@pytest.mark.parametrize('name', NAMES)
def test_each_moves_something_where_it_applies(name):
    assert gradient(terms(DOMAINS)[name], draw(9, 4)).abs().max() > 1e-4


@pytest.mark.parametrize('name, present', NOTHING)
def test_without_rows_each_is_exactly_zero_and_moves_nothing(name, present):
    domains = torch.full((9,), present)
    for x in (draw(9, 4), 1e4 * draw(9, 4), torch.zeros(9, 4, dtype=torch.float64)):
        x = x.requires_grad_()
        loss = terms(domains)[name](x)
        assert loss.shape == () and loss == 0
        assert (torch.autograd.grad(loss, x)[0] == 0).all()


def test_coral_needs_two_rows_and_mmd_one():
    x, single = draw(5, 3), torch.tensor([0, 0, 0, 0, 1])
    assert coral(x, single) == 0 and (gradient(lambda x: coral(x, single), x) == 0).all()
    assert mmd(x, single) > 0
    assert mmd(x[:1], single[:1]) == 0 and coral(x[:1], single[:1]) == 0


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('scale', [0, 1e-6, 1e4])
def test_gradients_stay_finite_in_float32_at_the_extremes(name, scale):
    x = scale * draw(9, 4).float()
    assert terms(DOMAINS)[name](x).isfinite() and gradient(terms(DOMAINS)[name], x).isfinite().all()


@pytest.mark.parametrize('name', NAMES)
def test_half_precision_goes_in_and_float32_comes_out(name):
    x, term = draw(9, 4).bfloat16(), terms(DOMAINS)[name]
    assert term(x).dtype == torch.float32 and torch.equal(term(x), term(x.float()))
    assert gradient(term, x).dtype == torch.bfloat16


@pytest.mark.parametrize('name', NAMES)
def test_none_waits_for_the_device(name):
    "On `meta`, where tensors have no values, whatever asks for one fails."
    x = torch.empty(9, 4, device='meta', requires_grad=True)
    loss = terms(DOMAINS.to('meta'))[name](x)
    loss.backward()
    assert loss.is_meta and loss.shape == () and x.grad.shape == (9, 4)


def test_the_prior_does_not_wait_for_the_device_either():
    assert estimate_prior(torch.empty(9, 4, device='meta'), torch.empty(4, device='meta')).is_meta


class Products(TorchDispatchMode):
    "Notes the type of every matrix product."
    def __init__(self): super().__init__(); self.types = []
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function._schema.name in ('aten::mm', 'aten::bmm', 'aten::mv', 'aten::dot'): self.types.append(out.dtype)
        return out


@pytest.fixture
def mixed_precision():
    "What `torch.autocast('cuda', torch.bfloat16)` sets, also where there is no GPU."
    before = torch.is_autocast_enabled('cuda'), torch.get_autocast_dtype('cuda')
    torch.set_autocast_enabled('cuda', True); torch.set_autocast_dtype('cuda', torch.bfloat16)
    yield
    torch.set_autocast_enabled('cuda', before[0]); torch.set_autocast_dtype('cuda', before[1])


@pytest.mark.parametrize('name', ['coral', 'mmd', 'supervised_contrastive'])
def test_mixed_precision_leaves_the_matrix_products_in_float32(name, mixed_precision):
    with FakeTensorMode():
        x, domains = torch.empty(9, 4, device='cuda'), torch.empty(9, dtype=torch.int64, device='cuda')
        term = terms(domains)[name]
        with Products() as seen: x @ x.T
        assert seen.types == [torch.bfloat16] # what would happen without the guard
        with Products() as seen: term(x)
        assert seen.types and set(seen.types) == {torch.float32}
