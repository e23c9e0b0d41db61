"""A new variant is one file and one entry in params.yaml: it is found, tested by the contract, trained and judged."""

import pytest

from conftest import SMALL, make_project

TOY = '''"""Toy: keeps some directions drawn at random."""

import torch
from torch import Tensor

from sevenfold.layouts import Layout
from sevenfold.models.base import Autoencoder, squared_error


class Toy(Autoencoder):
    """Projects on a basis that is learned from random directions."""

    def __init__(self, layout: Layout, *, code: int) -> None:
        super().__init__(layout, code)
        self.mean = torch.nn.Parameter(torch.zeros(self.size))
        self.basis = torch.nn.Parameter(torch.randn(code, self.size) / self.size**0.5)

    def prepare(self, x: Tensor, observed: Tensor | None) -> None:
        with torch.no_grad():
            self.mean.copy_(x.flatten(1).mean(dim=0))

    def encode(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        return (x.flatten(1) - self.mean) @ self.basis.T

    def decode(self, z: Tensor) -> Tensor:
        return (z @ self.basis + self.mean).reshape(-1, *self.shape)

    def losses(self, x: Tensor, observed: Tensor | None) -> dict[str, Tensor]:
        return {"reconstruction": squared_error(self(x), x, observed)}
'''

ENTRY = """  digits-toy:
    dataset: digits
    applications: [reduction]
    variant: toy
    options: {code: 8}
rivals:"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with a variant more, in a folder of its own."""
    project = make_project(tmp_path_factory.mktemp("toy") / "project", params=SMALL.replace("rivals:", ENTRY, 1))
    (project.root / "src" / "sevenfold" / "models" / "toy.py").write_text(TOY, encoding="utf-8")
    return project


@pytest.mark.slow
def test_it_is_trained_and_judged_beside_the_others(project):
    project.run("dvc", "repro", "--quiet", "evaluate@digits-toy")
    scores = project.run("sevenfold", "stage", "evaluate", "digits-toy").stdout
    assert "digits-reduction: digits-toy explained_variance" in scores


@pytest.mark.slow
def test_the_contract_runs_over_it(project):
    # The laws on each variant need an entry of each in params.yaml, which the small one has not: only the toy's are asked.
    done = project.run(
        "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_model_contract.py", "-k", "toy"
    )
    assert " passed" in done.stdout
    assert "failed" not in done.stdout
    assert int(done.stdout.split(" passed")[0].split()[-1]) > 40


@pytest.mark.slow
def test_it_passes_style_and_types_as_it_stands(project):
    project.run("ruff", "check", "src/sevenfold/models/toy.py")
    project.run("mypy", "src/sevenfold/models/toy.py")
