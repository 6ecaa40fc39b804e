"""A small classifier of the data's own labels, trained once: features that know what the data set is about.

The last hidden layer gives 64 features, the output the class probabilities of ``classifier_score`` and of label
consistency. It is trained on the training split with labels, by its seed, and kept in the data folder with its
accuracy; for the embedded digits it comes with the package.

On one processor and release of PyTorch the weights are the same bits each time, because training runs in one thread
whatever the number of threads is. Other processors and GPUs add in another order, and training blows such differences
up to other weights. The hash is of the weights themselves, so numbers of two such classifiers never pass for the same
protocol; who wants the same ids on two machines copies the data folder's ``features/``.
"""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgmbench.data import BatchStream, DataSet, DataSpec, evaluation_batches, keyed_seed
from dgmbench.data.policy import BatchPolicy
from dgmbench.errors import UserError, require
from dgmbench.evaluation.features.net import Note, Standardised
from dgmbench.evaluation.features.reference import cannot_keep
from dgmbench.system import locked

FORMAT = 1  # of what training does and of the file
FEATURES = 64
BATCH, RATE = 100, 2e-3
NO_LABELS = "features=classifier needs data with labels, and these have none; use random_conv."
SHIPPED = Path(__file__).parent / "weights"
_memory: dict[str, tuple[dict[str, Tensor], dict[str, float]]] = {}  # weights and accuracy of what was trained here


class Classifier(Standardised):
    """Two or three convolutions (vectors: two layers of 8 ``width``) and a layer of 64, then one logit a class.

    Arguments:
        spec: the data.
        width: channels of the first convolution; the later ones have twice as many.
        images: examples seen in training.
        seed: of weights and order.
    """

    def __init__(self, spec: DataSpec, *, width: int = 32, images: int = 200_000, seed: int = 0) -> None:
        super().__init__(spec)
        require("features.classifier", least=1, width=width, images=images)
        require("features.classifier", least=0, seed=seed)
        if not spec.num_classes:
            raise UserError(NO_LABELS)
        self.images, self.seed = images, seed
        self.accuracy: dict[str, float] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed_seed("feature classifier", seed))
            if spec.is_image:
                inputs, size = spec.shape[0], min(spec.shape[1:])
                layers: list[nn.Module] = []
                for layer, outputs in enumerate((width, 2 * width, 2 * width) if size >= 16 else (width, 2 * width)):
                    layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
                    layers += [nn.MaxPool2d(2)] if size >> layer >= 4 else []
                    inputs = outputs
                grid = 4 if size >= 16 else 2
                layers += [nn.AdaptiveAvgPool2d(grid), nn.Flatten(), nn.Linear(inputs * grid**2, FEATURES), nn.ReLU()]
            else:
                hidden = 8 * width
                layers = [nn.Flatten(), nn.Linear(spec.dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
                layers += [nn.Linear(hidden, FEATURES), nn.ReLU()]
            self.body = nn.Sequential(*layers)
            self.head = nn.Linear(FEATURES, spec.num_classes)

    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer."""
        found: Tensor = self.body(self.standardised(x))
        return found

    def logits(self, features: Tensor) -> Tensor:
        """Class logits from the last hidden layer."""
        found: Tensor = self.head(features.to(self.head.weight.dtype))
        return found

    def key(self, data: DataSet) -> str:
        """What the trained weights depend on."""
        parts = [FORMAT, dict(self.settings), self.images, self.seed, data.content_hash]
        parts.append({name: list(p.shape) for name, p in self.named_parameters()})
        if type(self) is not Classifier:  # FORMAT speaks for this class alone
            parts += [self.target, self.source]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def require(self, data: DataSet, folder: Path | None) -> None:
        """Refuse data without labels."""
        if data.splits["train"].y is None or data.spec.step_labels:
            raise UserError(NO_LABELS)

    def prepare(self, data: DataSet, folder: Path | None, note: Note) -> None:
        """Load the trained weights, from the package or from ``folder``, else train, and keep them if that works."""
        self.require(data, folder)
        super().prepare(data, folder, note)
        key = self.key(data)
        for record in sorted(SHIPPED.glob("*.json")):
            if json.loads(record.read_text())["key"] == key:
                self._load(record)
                return
        target = None if folder is None else folder / f"classifier-{data.name}-{key}"
        if self._found(key, target):
            return
        with _lock(target):
            if not self._found(key, target):
                self._train(data, note)
                _memory[key] = {name: value.cpu().clone() for name, value in self.state_dict().items()}, self.accuracy
                if target is not None:
                    self._keep(data, target)

    def _found(self, key: str, target: Path | None) -> bool:
        """Take weights that this process or another has trained, if there are any and they are not damaged."""
        if target is not None:
            with contextlib.suppress(UserError):
                self._load(target / "classifier.json")
                return True
        if key in _memory:
            weights, self.accuracy = _memory[key]
            self.load_state_dict(weights)
        return key in _memory

    def _keep(self, data: DataSet, target: Path) -> None:
        """Put the weights in place of what is there, in one step."""
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
        data.verify()
        try:
            partial.mkdir(parents=True)
            self.save(data, partial / "classifier")
            shutil.rmtree(target, ignore_errors=True)  # damaged
            partial.rename(target)
        except OSError as error:
            cannot_keep(target.parent, error)
            shutil.rmtree(partial, ignore_errors=True)

    def save(self, data: DataSet, stem: Path) -> None:
        """Write ``stem``.npz and its record ``stem``.json."""
        with stem.with_suffix(".npz").open("wb") as file:
            np.savez(file, **{name: value.cpu().numpy() for name, value in self.state_dict().items()})
            file.flush()
            os.fsync(file.fileno())
        record = {
            "key": self.key(data),
            "data": data.name,
            "data_hash": data.content_hash,
            "accuracy": self.accuracy,
            "sha256": hashlib.sha256(stem.with_suffix(".npz").read_bytes()).hexdigest(),
        }
        stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")

    def _load(self, record: Path) -> None:
        weights = record.with_suffix(".npz")
        try:
            known = json.loads(record.read_text())
            if hashlib.sha256(weights.read_bytes()).hexdigest() != known["sha256"]:
                raise ValueError("its checksum is not that of its record")
            with np.load(weights, allow_pickle=False) as arrays:
                self.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays.files})
            self.accuracy = known["accuracy"]
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile) as error:
            raise UserError(f"The trained classifier {weights} cannot be read ({error}).") from error

    @torch.enable_grad()
    def _train(self, data: DataSet, note: Note) -> None:
        """Minimise the cross-entropy with Adam, its rate falling to 0 linearly."""
        with _one_thread():
            self._descend(data, note)

    def _descend(self, data: DataSet, note: Note) -> None:
        device = self.shift.device
        self.train()
        seed = keyed_seed("feature classifier", self.seed)
        stream = BatchStream(data, batch_size=BATCH, seed=seed, device=device, policy=BatchPolicy(labelled=1.0))
        optimiser = torch.optim.Adam(self.parameters(), lr=RATE)
        steps = max(1, self.images // BATCH)
        for step in range(steps):
            if step % 100 == 0:
                note(f"training the feature classifier of {data.name} (once): step {step} of {steps}")
            optimiser.param_groups[0]["lr"] = RATE * (1 - step / steps)
            batch = stream.batch(step)
            assert batch.y is not None
            loss = F.cross_entropy(self.logits(self(batch.x)), batch.y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        self.eval()
        with torch.no_grad():
            self._normalise(data)
            shares = {split: self._accuracy(data, split) for split in ("valid", "test")}
            self.accuracy = {split: share for split, share in shares.items() if share is not None}

    def _normalise(self, data: DataSet) -> None:
        """Bring features to a mean square of 1, as kernels need, and let the head undo it."""
        batches = evaluation_batches(data, "train", batch_size=500, device=self.shift.device)
        total = sum(float(self(batch.x).double().square().mean()) * len(batch.x) for batch in batches)
        scale = max((total / data.size("train")) ** 0.5, 1e-6)
        last = self.body[-2]
        assert isinstance(last, nn.Linear)
        for parameter in last.parameters():
            parameter.div_(scale)
        self.head.weight.mul_(scale)

    def _accuracy(self, data: DataSet, split: Any) -> float | None:
        """The share of labelled examples that get their label; None if the split has none."""
        right = total = 0
        for batch in evaluation_batches(data, split, batch_size=500, device=self.shift.device):
            assert batch.y is not None
            known = batch.y >= 0
            right += int((self.logits(self(batch.x)).argmax(1) == batch.y)[known].sum())
            total += int(known.sum())
        return right / total if total else None

    def record(self) -> dict[str, Any]:
        """With the accuracy that the features come with."""
        return super().record() | {"net_accuracy": self.accuracy}


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order: several threads would share them out by their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _lock(target: Path | None) -> Iterator[None]:
    """Let the second of two processes wait for the first one's weights, where a lock can be had: an economy."""
    with contextlib.ExitStack() as stack:
        if target is not None:
            with contextlib.suppress(OSError):
                target.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(target.with_name(f".{target.name}.lock")))
        yield
