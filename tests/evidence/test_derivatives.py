"""The gradient and the Hessian of log p(x, z(u)) |dz/du| are exact, by whichever way an operation allows."""

import torch
from curved_models import F64, curved, space_of
from torch import nn

from pyrovae import MLP, VAE, BernoulliLikelihood, NormalEncoder, PoissonLikelihood, StandardNormalPrior
from pyrovae.evidence.derivatives import ROWS_ONE_BY_ONE, derivatives


class Decoder(nn.Module):
    """Decode z into a function of z, and z itself."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, z):
        return torch.cat([self.function(z), z], -1)


def test_differences_replace_a_missing_second_derivative():
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z, grad):
            return 2 * z * grad

        @staticmethod
        def backward(ctx, grad):
            raise NotImplementedError("no second derivative, as of cuDNN's recurrent networks")

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z)
            return z**2

        @staticmethod
        def backward(ctx, grad):
            return Twice.apply(ctx.saved_tensors[0], grad)

    u, hessians = torch.randn(1, 5, 2, dtype=F64), []
    for square in (Square.apply, torch.square):
        vae = VAE(StandardNormalPrior(2), PoissonLikelihood(Decoder(square)), NormalEncoder(MLP(4, 4))).double()
        hessians.append(derivatives(space_of(vae, torch.ones(5, 4, dtype=F64)), u)[1])
    torch.testing.assert_close(hessians[0], hessians[1], rtol=1e-4, atol=1e-4)


def test_the_hessian_is_exact_for_any_chunk_size():
    vae, x = curved(BernoulliLikelihood, latent_dim=3)
    space, u = space_of(vae, x), torch.randn(2, 6, 3, dtype=F64)
    gradient, hessian = derivatives(space, u)
    for s, n in ((0, 0), (1, 4)):

        def f(point, s=s, n=n):
            moved = u.clone()
            moved[s, n] = point
            return space.log_joint(moved)[s, n]

        torch.testing.assert_close(gradient[s, n], torch.autograd.functional.jacobian(f, u[s, n]))
        torch.testing.assert_close(hessian[s, n], torch.autograd.functional.hessian(f, u[s, n]))
    torch.testing.assert_close(derivatives(space, u, chunk_size=1)[1], hessian)


def test_an_operation_that_cannot_be_batched_has_the_same_hessian():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z)
            return z**3

        @staticmethod
        def backward(ctx, grad):
            assert grad.sum().item() < torch.inf  # reads a number, which a batch of gradients has not
            return 3 * ctx.saved_tensors[0] ** 2 * grad

    u, hessians = torch.randn(2, 5, 2, dtype=F64), []
    for cube in (Cube.apply, lambda z: z**3):
        vae = VAE(StandardNormalPrior(2), PoissonLikelihood(Decoder(cube)), NormalEncoder(MLP(4, 4))).double()
        space = space_of(vae, torch.ones(5, 4, dtype=F64))
        hessians.append(derivatives(space, u)[1])
        assert bool(space.memo.get(ROWS_ONE_BY_ONE)) == (cube == Cube.apply)
    torch.testing.assert_close(hessians[0], hessians[1])


def test_a_model_that_does_not_use_a_latent_has_its_priors_curvature():
    vae = VAE(StandardNormalPrior(2), PoissonLikelihood(nn.Linear(2, 3)), NormalEncoder(MLP(3, 4))).double()
    nn.init.zeros_(vae.model.likelihood.network.weight)
    _, hessian = derivatives(space_of(vae, torch.ones(4, 3, dtype=F64)), torch.randn(1, 4, 2, dtype=F64))
    torch.testing.assert_close(hessian, -torch.eye(2, dtype=F64).expand(1, 4, 2, 2))


def test_the_space_of_rows_that_repeat_has_their_densities():
    vae, x = curved(BernoulliLikelihood, latent_dim=3)
    space, u = space_of(vae, x), torch.randn(1, 6, 3, dtype=F64)
    rows = torch.tensor([5, 5, 0, 2, 2, 2])  # as many as there are data
    part = space.of_rows(rows)
    torch.testing.assert_close(part.log_joint(u[:, rows]), space.log_joint(u)[:, rows])
    assert space.of_rows(torch.arange(6)) is space
