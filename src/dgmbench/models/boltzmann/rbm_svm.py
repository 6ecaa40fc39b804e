"""Support vector machine on the features of an RBM: the one learns from all examples, the other from labelled ones.

    features(x) = p(h_j = 1 | x) = sigmoid(b + W'v),      scores = SVC(features),      ink = SVR(features),
    each machine min |w|^2 / 2 + C sum_i slack_i over the functions w of the kernel's space

The RBM is trained as ever and sees no label. Before each validation the support vector machines are fitted to the
features of the labelled *training* examples, a classifier of their labels and a regression of their mean value (of
digits, how much ink they have), which is the same kind of task for real targets. Nothing of another split moves the
fit. It is a function of the weights and of the examples, which are buffers, so a checkpoint holds all of it.

Features are better the longer contrastive divergence goes on, at a rate that an RBM would not be trained at for its
likelihood: see docs/boltzmann.md.

Shapes: raw x (b, *shape), flattened to v (b, visible); h (b, hidden). Kernel: exp(-gamma |f - f'|^2), gamma = 1 /
(hidden variance of the features).
Source: the survey's table 1; support vector machines: Cortes, Vapnik 1995, "Support-vector networks",
https://doi.org/10.1007/BF00994018, and Pedregosa et al. 2011, "Scikit-learn".
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.boltzmann.estimators import Estimator
from dgmbench.models.boltzmann.rbm import Rbm
from dgmbench.models.tasks import HeldOut


class RbmSvm(Rbm):
    """Binary RBM with support vector machines on its hidden units' probabilities.

    Args:
        spec: binary data of any shape, with classes.
        hidden: number of hidden units.
        estimator: how the gradient is estimated; a copy is kept as a submodule. Default: ``CD(k=1)``.
        cost: C of both machines: what an error costs beside the margin.
        most: labelled training examples that they are fitted to, the first ones.
        weight_decay: half the squared weights, never the biases, are added to the loss with this factor.
        weight_std: standard deviation of the initial weights (Hinton 2012).
        sample_steps: Gibbs steps of ``sample``, started from the data's base rates.
    """

    examples: Tensor
    labels: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden: int = 500,
        estimator: Estimator | None = None,
        cost: float = 3.0,
        most: int = 2000,
        weight_decay: float = 0.0,
        weight_std: float = 0.01,
        sample_steps: int = 1000,
    ) -> None:
        super().__init__(
            spec,
            hidden=hidden,
            estimator=estimator,
            weight_decay=weight_decay,
            weight_std=weight_std,
            sample_steps=sample_steps,
        )
        if not spec.num_classes:
            raise UserError(f"rbm_svm classifies, but these data ({spec}) have no classes; choose data with labels.")
        require(least=1, most=most)
        require(least=1e-6, cost=cost)
        self.cost, self.most = cost, most
        self.register_buffer("examples", torch.zeros(most, spec.dim, dtype=torch.uint8))
        self.register_buffer("labels", torch.full((most,), -1))
        self._fitted: tuple[str, Any, Any] | None = None

    @torch.no_grad()
    def settle(self, batches: Iterator[Batch], generator: Generator) -> None:
        """Keep the first labelled training examples; the machines are fitted when they are asked."""
        self.labels.fill_(-1)
        count = 0
        for batch in batches:
            if batch.y is None or count >= self.most:
                break
            x, y = (each[batch.y >= 0][: self.most - count] for each in (batch.x.flatten(1), batch.y))
            self.examples[count : count + len(x)], self.labels[count : count + len(x)] = x, y
            count += len(x)

    def machines(self) -> tuple[Any, Any]:
        """The classifier and the regression, fitted to the examples that are kept and the weights as they are."""
        known = self.labels >= 0
        x, y = self.examples[known], self.labels[known].cpu().numpy()
        features = self._features(x)
        key = hashlib.sha256(features.tobytes() + y.tobytes()).hexdigest()
        if self._fitted is None or self._fitted[0] != key:
            from sklearn.svm import SVC, SVR

            classifier = SVC(C=self.cost, decision_function_shape="ovr").fit(features, y) if len(set(y)) > 1 else None
            regression = SVR(C=self.cost, epsilon=0.01).fit(features, self.ink(x).cpu().numpy()) if len(y) else None
            self._fitted = (key, classifier, regression)
        return self._fitted[1:]

    @torch.no_grad()
    def _features(self, x: Tensor) -> Any:
        return self.encode(x).double().cpu().numpy()

    def ink(self, x: Tensor) -> Float[Tensor, " b"]:
        """The mean value of each example."""
        return x.flatten(1).double().mean(1)

    # ---- capabilities ----

    def classify(self, x: Tensor) -> Float[Tensor, "b k"]:
        """One score for each class, larger by one for each other class that it wins against; 0 before any label."""
        classifier, classes = self.machines()[0], self.spec.num_classes or 0
        scores = torch.zeros(len(x), classes, dtype=torch.float64)
        if classifier is None:  # one class at most was seen
            scores[:, self.labels[self.labels >= 0].unique().cpu()] = 1.0
        elif len(x):
            found = torch.from_numpy(classifier.decision_function(self._features(x)))
            found = torch.stack([-found, found], 1) if found.dim() == 1 else found
            scores -= classes  # below all that were seen
            scores[:, torch.from_numpy(classifier.classes_)] = found
        return scores.to(self.hidden_bias)

    def objectives(self) -> Mapping[str, HeldOut]:
        """Checkpoints are chosen by the error of the classifier, not by how well the RBM fits."""
        return {"svm_error": HeldOut("share", "lower")}

    def held_out(self, batch: Batch, *, generator: Generator | None = None) -> Mapping[str, Tensor]:
        """1 where the label is another one, NaN where it is not known."""
        y = torch.full((len(batch.x),), -1, device=batch.x.device) if batch.y is None else batch.y
        wrong = (self.classify(batch.x).argmax(1) != y).double()
        return {"svm_error": wrong.masked_fill(y < 0, torch.nan)}

    def target(self, batch: Batch) -> Float[Tensor, " b"]:
        """The mean value."""
        return self.ink(batch.x)

    def predict(self, batch: Batch) -> Float[Tensor, " b"]:
        """The mean value as the features tell it."""
        regression = self.machines()[1]
        if regression is None or not len(batch.x):
            return torch.zeros(len(batch.x), dtype=torch.float64)
        return torch.from_numpy(regression.predict(self._features(batch.x))).to(batch.x.device)
