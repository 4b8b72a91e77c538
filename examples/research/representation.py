"""The means of q(z | x) as features: accuracy of k nearest neighbours on MNIST's digits, beside PCA of the same size.

python examples/research/representation.py --data DIR

The models are those of conv.py: trained here where its --out has none.
"""

import torch
from common import mnist, options
from conv import fit
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier


def main(arguments=None):
    args = options(__doc__, epochs=20, neighbors=5).parse_args(arguments)
    (x, labels), (test, test_labels) = mnist(args.data), mnist(args.data, "test")
    pca = PCA(20, random_state=0).fit(x)
    features = {"PCA": lambda x: torch.from_numpy(pca.transform(x))}
    for name in ("mlp", "conv"):
        model = fit(name, args)
        features[name] = lambda x, model=model: model.encode(x.view(-1, 28, 28))[0]
    found = {}
    for name, compute in features.items():
        with torch.no_grad():
            known, new = compute(x), compute(test)
        found[name] = KNeighborsClassifier(args.neighbors).fit(known, labels).score(new, test_labels)
        print(f"{name}, 20 features: {found[name]:.2%} of {len(test)} test images")
    return found


if __name__ == "__main__":
    main()
