"""Concrete autoencoder (Balin et al., 2019): the code is a choice of input features, from which the others follow."""

import math

import torch
from scipy import optimize
from torch import Tensor, nn

from sevenfold import cells, networks
from sevenfold.layouts import Layout
from sevenfold.models.base import Autoencoder, Selector

SCALE = 20.0
"""Of the logits per unit of their weights: a choice needs logits of about 10 to be certain, far more than a network's
weights travel at its learning rate."""


class ConcreteAutoencoder(Autoencoder, Selector):
    """Selects `code` different features of the sample; `encode` returns their values, a network restores all others.

    In training each code value is a mixture of features, drawn from a concrete distribution (Maddison et al., 2017;
    Jang et al., 2017) whose falling temperature turns mixtures into choices. `encode`, `decode` and the losses in
    `eval` mode know whole and different features only, at any time: epochs are compared by what their selection is worth,
    and weights from before the end of the annealing select as well, only less sure.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        code: int,
        hidden: list[int],
        activation: networks.Activation,
        first_temperature: float,
        last_temperature: float,
        overlap: float,
        indecision: float,
        numbers: cells.Numbers,
    ) -> None:
        """Build the layers.

        Args:
            layout: of a sample.
            code: number of features to select.
            hidden: widths between the sample and the code, of the decoder from right to left.
            activation: between the decoder's layers.
            first_temperature: of the mixtures when training begins. Well above 1 mixtures are so even that the decoder
                learns little that it can use for whole features.
            last_temperature: when it ends; the temperature falls exponentially. From about 0.5 downwards a mixture is
                nearly a choice.
            overlap: weight of the penalty on probability that several code values give to one feature.
            indecision: weight of the entropy of the choice as a share of the largest there is. In training it turns
                from a reward, minus the weight, to a penalty, plus the weight: deterministic annealing (Rose, 1998).
            numbers: how numbers enter the network, and how their error is measured.

        Raises:
            ValueError: an option is out of range.
        """
        super().__init__(layout, code)
        if not 0 < last_temperature <= first_temperature < math.inf:
            raise ValueError(
                f"first_temperature is {first_temperature} and last_temperature {last_temperature}; expected numbers "
                "above 0, the last no higher than the first; give for example 1 and 0.1"
            )
        for name, weight in [("overlap", overlap), ("indecision", indecision)]:
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name} is {weight}; expected a weight of 0 or more; give 0 for no penalty")
        self.settled = 0.9  # by then mixtures are choices, and what is selected changes no more
        self.first_temperature = first_temperature
        self.last_temperature = last_temperature
        self.overlap = overlap
        self.indecision = indecision
        # Each category is a feature by itself.
        self.cells = cells.Cells(layout, numbers=numbers, categories="one-hot")
        # Nearly even, but not quite: equal rows would move together for ever.
        self.weights = nn.Parameter(0.01 * torch.randn(code, self.size))
        self.decoder = networks.dense([code, *reversed(hidden), self.cells.outputs], activation)

    def prepare(self, x: Tensor, observed: Tensor | None) -> None:
        self.cells.learn(x, observed)

    @property
    def selected(self) -> Tensor:
        """Return the position of each code value's feature in the flat sample, (code,) int64, from 0.

        The likeliest choice without repetition.
        """
        # Weights that are no numbers select something, so that training reports the loss that comes of it.
        scores = torch.nan_to_num(self.weights.detach()).double().cpu().numpy()
        positions = optimize.linear_sum_assignment(scores, maximize=True)[1]
        return torch.as_tensor(positions, dtype=torch.long, device=self.weights.device)

    def certainty(self) -> float:
        """Return the mean over code values of the likeliest feature's probability, 1 / size to 1."""
        return float(self._probabilities().detach().amax(dim=1).mean())

    def remarks(self, x: Tensor, observed: Tensor | None) -> list[str]:
        likeliest = len(set(self.weights.argmax(dim=1).tolist()))
        return [
            f"values of a sample that are selected, by position from 0: {', '.join(map(str, self.selected.tolist()))}",
            f"the likeliest choice of a code value has a probability of {self.certainty():.3f} on average; "
            f"{likeliest} of {self.code} likeliest choices are different",
        ]

    def encode(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        return x.flatten(1)[:, self.selected]  # (n, code)

    def decode(self, z: Tensor) -> Tensor:
        # A sample of nothing but the selected features, so that they enter as they did in training.
        sample = z.new_zeros(len(z), self.size)
        selected = self.selected
        sample[:, selected] = z
        entering = self.cells.enter(sample.reshape(-1, *self.shape), None)
        return self.cells.leave(self.decoder(entering[:, self.cells.order[selected]]))  # (n, *shape)

    def losses(self, x: Tensor, observed: Tensor | None) -> dict[str, Tensor]:
        # The code says nothing of gaps, so they enter here as they do in `decode`.
        entering = self.cells.enter(x, None)[:, self.cells.order]  # (n, size), the features in their own order
        chosen = entering @ self._mixture().T if self.training else entering[:, self.selected]  # (n, code)
        output = self.decoder(chosen)
        probabilities = self._probabilities()
        # As in Strypsteen and Bertrand (2021): no feature is worth more than one code value.
        shared = (probabilities.sum(dim=0) - 1).relu().sum() / self.code
        entropy = torch.special.entr(probabilities).sum(dim=1).mean() / math.log(max(self.size, 2))  # 0 to 1
        # Who decides before having looked around decides badly, and does not look again: without the reward some code
        # values end on a feature that tells nothing new.
        pressure = 2 * self.progress - 1 if self.training else 1.0
        return self.cells.losses(output, x, observed) | {
            "overlap": self.overlap * shared,
            "indecision": self.indecision * pressure * entropy,
        }

    def _probabilities(self) -> Tensor:
        """Return how likely each code value selects each feature, (code, size)."""
        return torch.softmax(SCALE * self.weights, dim=1)

    def _mixture(self) -> Tensor:
        """Draw the share of each feature in each code value, (code, size); one draw per batch."""
        # Minus the logarithm of an exponential variable has Gumbel's distribution.
        noise = -torch.empty_like(self.weights).exponential_().log()
        temperature = self.first_temperature * (self.last_temperature / self.first_temperature) ** self.progress
        return torch.softmax((SCALE * self.weights + noise) / temperature, dim=1)
