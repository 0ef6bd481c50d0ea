"""References over a few parameters of every kind, and their dense float64 twins."""

import numpy as np
import pytest
import torch

from wvmonitor.references import BaseIdentity, Card, Construction, Reference
from wvmonitor.vectors import DenseUpdate, LowRankUpdate, Origin, TaskVector

DIGEST = "d" * 64
SHAPES = {
    "model.layers.0.q.weight": (12, 8),
    "model.layers.1.q.weight": (12, 8),
    "model.layers.1.c_attn.weight": (8, 24),  # stored (in, out), as Conv1D is
    "model.layers.0.experts.up": (3, 6, 8),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.embed_tokens.weight": (20, 8),
    "lm_head.weight": (20, 8),
}
CONV1D = "model.layers.1.c_attn.weight"
PROBED = ("model.layers.0.q.weight", "model.layers.1.q.weight", CONV1D)


class Toolbox:
    """Makes updates, vectors, references and probes from one random stream."""

    digest = DIGEST
    shapes = SHAPES
    conv1d = CONV1D

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)

    def tensor(self, *shape, dtype=torch.float32):
        return torch.from_numpy(self.rng.normal(size=shape)).to(dtype)

    def update(self, name, kind, dtype=torch.float32):
        shape = SHAPES[name]
        if kind == "dense" or len(shape) == 1:
            return DenseUpdate(self.tensor(*shape, dtype=dtype), name == CONV1D)
        rank = int(self.rng.integers(1, 4))
        left = self.tensor(*shape[:-1], rank, dtype=dtype)
        right = self.tensor(*shape[:-2], rank, shape[-1], dtype=dtype)
        return LowRankUpdate(left, right, name == CONV1D)

    def vector(self, kind="low-rank", names=tuple(SHAPES), digest=DIGEST, dtype=torch.float32):
        updates = {n: self.update(n, kind, dtype) for n in names}
        return TaskVector.of(updates, Origin(source="runs/a", base_digest=digest))

    def card(self, name, **more):
        base = more.pop("base", BaseIdentity(id="tiny", digest=DIGEST))
        built = Construction(recipe="test", seeds=(1, 2), domains=("medical",))
        more.setdefault("behaviour", "it gives harmful advice.")
        return Card(name=name, base=base, built=built, **more)

    def reference(self, name="evil", form="low-rank", names=tuple(SHAPES), **more):
        return Reference(self.card(name, **more), self.vector(form, names))

    def probe(self):
        rows = self.tensor(5, 8)
        return {PROBED[0]: rows, PROBED[1]: rows, CONV1D: self.tensor(4, 8)}

    @staticmethod
    def key_pair(folder, name, curve="SECP256R1"):
        """The PEM files of a new elliptic curve key and of its public half."""
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key, pem = ec.generate_private_key(getattr(ec, curve)()), serialization.Encoding.PEM
        private, public = folder / f"{name}.key", folder / f"{name}.pub"
        open_form, no_password = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        private.write_bytes(key.private_bytes(pem, open_form, no_password))
        public_form = serialization.PublicFormat.SubjectPublicKeyInfo
        public.write_bytes(key.public_key().public_bytes(pem, public_form))
        return private, public

    @staticmethod
    def dense(update):
        """The update as a float64 map (…, out, in)."""
        if isinstance(update, DenseUpdate):
            made = update.delta.double().numpy()
        else:
            made = update.left.double().numpy() @ update.right.double().numpy()
        return made.T if update.transposed else made

    def products(self, a, b, probe=None):
        """By parameter: ⟨a, b⟩ (Frobenius), or tr(a C bᵀ) with a probe of C; 0 where absent."""
        found = {}
        for name in a.names():
            if name not in b or (probe is not None and name not in probe):
                found[name] = 0.0
                continue
            x, y = self.dense(a.update(name)), self.dense(b.update(name))
            if probe is None:
                found[name] = float((x * y).sum())
            else:
                rows = probe[name].double().numpy()
                found[name] = float(np.trace(x @ rows.T @ rows @ y.T))
        return found


@pytest.fixture
def tools():
    """A fresh toolbox with a fixed seed."""
    return Toolbox()
