"""Finding a digit that training has not seen: MNIST without one digit, AUROC of anomaly scores for each.

python examples/research/anomaly.py --data DIR

Trained on the training images of nine digits, scored on all test images; the tenth digit's are the anomalies. Beside
the VAE's scores stands the reconstruction error of an autoencoder with the same layers.
"""

import torch
import torch.nn.functional as F
from common import mnist, options, train
from sklearn.metrics import roc_auc_score
from torch.nn import Linear, ReLU, Sequential

from vae_fast import nn


def cross_entropy(model, x):
    return F.binary_cross_entropy_with_logits(model(x), x, reduction="none").sum(1)


def scores(x, test, folder, args):
    torch.manual_seed(0)
    vae = nn.VAE(nn.MLPEncoder(784, 400, 20), nn.MLPDecoder(20, 400, 784))
    layers = Linear(784, 400), ReLU(), Linear(400, 20), Linear(20, 400), ReLU(), Linear(400, 784)
    autoencoder = Sequential(*layers)
    for name, model in (("vae", vae), ("autoencoder", autoencoder)):
        loss = None if model is vae else lambda model, x: cross_entropy(model, x).mean()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        train(model, x, optimizer, folder / name, args.epochs, 128, loss=loss)
    torch.manual_seed(0)
    with torch.no_grad():
        return {
            "-ELBO": -vae.elbo(test, num_samples=args.draws),
            "-log p(x)": nn.importance_nll(vae, test, args.draws),
            "-log p(x | z)": nn.reconstruction_nll(vae, test, args.draws),
            "autoencoder": cross_entropy(autoencoder, test),
        }


def main(arguments=None):
    args = options(__doc__, epochs=10, draws=20, digits="0123456789").parse_args(arguments)
    (x, labels), (test, test_labels) = mnist(args.data), mnist(args.data, "test")
    found = {}
    for digit in map(int, args.digits):
        by_name = scores(x[labels != digit], test, args.out / f"anomaly_{digit}", args)
        found[digit] = {name: roc_auc_score(test_labels == digit, s) for name, s in by_name.items()}
        print(digit, *(f"{name}: {value:.3f}" for name, value in found[digit].items()), sep="   ")
    for name in by_name:
        mean = sum(row[name] for row in found.values()) / len(found)
        print(f"mean of {len(found)} digits, {name}: {mean:.3f}")
    return found


if __name__ == "__main__":
    main()
