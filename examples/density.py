"""Density estimation: exact NLL of held-out rows beside GaussianMixture and FactorAnalysis.

python examples/density.py [--quick] [--latent-dims 1 2] [--out DIR]
"""

from __future__ import annotations

import common
from sklearn.decomposition import FactorAnalysis
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import train_test_split

TABLES = ("iris", "wine", "breast_cancer", "diabetes", "digits")


def measure(name, seed, options):
    """Held-out NLL of each method, nats per row, columns in units of their standard deviation."""
    X, _ = common.load(name, seed)
    train, test = common.standardise(*train_test_split(X, test_size=0.2, random_state=seed))
    models = common.fit_girih(train, seed, options)
    models["GaussianMixture, defaults"] = GaussianMixture(random_state=seed).fit(train)
    models["GaussianMixture, by BIC"] = common.mixture_by_bic(train, seed, options.quick)
    models["FactorAnalysis, defaults"] = FactorAnalysis(random_state=seed).fit(train)
    return {method: -float(model.score_samples(test).mean()) for method, model in models.items()}


if __name__ == "__main__":
    common.run("density", "Held-out NLL (nats per row; lower is better)", measure, TABLES, 2)
