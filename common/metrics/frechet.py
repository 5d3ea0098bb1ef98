"""How far apart two sets of pictures are, by features of them: Fréchet distance and kernel distance. NumPy alone.

With the features of the Inception network of Heusel et al. these are FID and KID; with others they are not, and
must not be called so. N, M pictures, D numbers of a feature. Everything is float64.
"""

import numpy as np

from common.errors import UserError


def statistics(features):
    """(mean [D], covariance [D, D]) of features [N, D]; the covariance is divided by N - 1.

    Raises UserError for fewer than two pictures, or features that are not finite.
    """
    features = checked(features)
    mean = features.mean(axis=0)
    centered = features - mean
    return mean, centered.T @ centered / (len(features) - 1)


def frechet_distance(mean1, covariance1, mean2, covariance2):
    """|mean1 - mean2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), at least 0; C1, C2 may be singular (N at most D).

    Dowson and Landau, 1982, of two normal distributions; Heusel et al., GANs Trained by a Two Time-Scale Update
    Rule, 2017, eq. 6. The eigenvalues of C1 C2 are those of the symmetric H1^T C2 H1 with C1 = H1 H1^T: with C2 =
    H2 H2^T their roots are the singular values of H1^T H2, which needs no square root of a matrix that is not
    symmetric.
    """
    mean1, mean2 = np.asarray(mean1, np.float64), np.asarray(mean2, np.float64)
    covariance1, covariance2 = np.asarray(covariance1, np.float64), np.asarray(covariance2, np.float64)
    roots = np.linalg.svd(_half(covariance1).T @ _half(covariance2), compute_uv=False)
    distance = np.sum((mean1 - mean2)**2) + np.trace(covariance1) + np.trace(covariance2) - 2 * roots.sum()
    return max(float(distance), 0.0)


def kernel_distance(features1, features2, *, subsets=100, subset_size=1000, seed=0):
    """(mean, standard deviation) of the unbiased squared MMD over random subsets of features [N, D] and [M, D].

    The kernel is (x . y / D + 1)^3; each of the `subsets` draws min(subset_size, N, M) of either side, without
    putting back. Binkowski et al., Demystifying MMD GANs, 2018, sec. 4 and eq. 4. It may be below 0. Where a subset is
    all there is, the standard deviation is nan: nothing is known of it. Raises UserError as `statistics`.
    """
    features1, features2 = checked(features1), checked(features2)
    size = min(subset_size, len(features1), len(features2))
    if len(features1) == len(features2) == size:
        subsets = 1  # all would be the same
    rng = np.random.default_rng(seed)
    both = features1, features2
    values = [_mmd(*(features[rng.choice(len(features), size, replace=False)] for features in both))
              for _ in range(subsets)]
    return float(np.mean(values)), float(np.std(values)) if len(values) > 1 else float("nan")


def caveat(*features):
    """What to know of a Fréchet distance of features [N, D] where a set has no more pictures than numbers; else "".

    The covariance of N pictures has at most N - 1 directions, and the distance is the larger the fewer there are:
    Chong and Forsyth, Effectively Unbiased FID and Inception Score, 2020.
    """
    pictures, numbers = min(np.shape(each) for each in features)
    if pictures > numbers:
        return ""
    return (f"{pictures} pictures are too few for the Frechet distance of {numbers} numbers, which is too large then; "
            "compare distances of as many pictures alone")


def checked(features):
    """Features as float64 [N, D]; a UserError where they are of another shape, fewer than two or not finite."""
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 2 or not features.shape[1]:
        raise UserError(f"Features must be numbers of at least two pictures, [N, D], and have the shape "
                        f"{list(features.shape)}. Take more pictures.")
    if not np.isfinite(features).all():
        raise UserError("Features must be finite numbers, and are not. Look at the pictures and at what makes the "
                        "features.")
    return features


def _half(covariance):
    """H [D, R] with H H^T = covariance, of rank R: eigenvalues that are zero but for rounding are left out."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > max(values[-1], 0.0) * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])


def _mmd(x, y):
    """The unbiased estimate of the squared MMD of x and y [n, D]."""
    n, dimensions = x.shape

    def kernel(a, b):
        return (a @ b.T / dimensions + 1)**3

    within = sum(k.sum() - np.trace(k) for k in (kernel(x, x), kernel(y, y)))
    return within / (n * (n - 1)) - 2 * kernel(x, y).mean()
