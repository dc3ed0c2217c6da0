"""The paper's network and weight update in NumPy, float64, with hand-written gradients and without torch.

Written from the paper's text and layer table as loops and sums, to be read beside them. Shapes: N images, C
channels, feature maps of H, W.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
# name → (stride, padding, groups)
CONVOLUTIONS = {
    "conv1": (4, 2, 1),
    "conv2": (1, 2, 2),
    "conv3": (1, 1, 1),
    "conv4": (1, 1, 2),
    "conv5": (1, 1, 2),
}
K, N, ALPHA, BETA = 2.0, 5, 1e-4, 0.75  # section 3.3
POOL, POOL_STRIDE = 3, 2  # section 3.4: overlapping


def windows(x, size, stride):
    """(N, C, H, W) → (N, C, H', W', size, size)."""
    return sliding_window_view(x, (size, size), axis=(2, 3))[:, :, ::stride, ::stride]


def scatter(parts, shape, stride):
    """The transpose of `windows`: sum (N, C, H', W', size, size) into (N, C, H, W)."""
    total = np.zeros(shape)
    _, _, height, width, size, _ = parts.shape
    for i in range(size):
        for j in range(size):
            rows = slice(i, i + stride * height, stride)
            columns = slice(j, j + stride * width, stride)
            total[:, :, rows, columns] += parts[..., i, j]
    return total


def convolve(x, weight, bias, stride, padding, groups):
    """Return the feature maps, and a function: their gradient → gradients of x, weight and bias."""
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    pieces, cut = np.split(padded, groups, axis=1), np.split(weight, groups)
    views = [windows(piece, weight.shape[2], stride) for piece in pieces]
    maps = [np.einsum("nchwij,ocij->nohw", v, w) for v, w in zip(views, cut, strict=True)]
    out = np.concatenate(maps, axis=1) + bias[:, None, None]

    def backward(g):
        parts = np.split(g, groups, axis=1)
        dw = [np.einsum("nohw,nchwij->ocij", p, v) for p, v in zip(parts, views, strict=True)]
        dx = [
            scatter(np.einsum("nohw,ocij->nchwij", p, w), piece.shape, stride)
            for p, w, piece in zip(parts, cut, pieces, strict=True)
        ]
        whole = np.concatenate(dx, axis=1)
        inside = slice(padding, -padding)
        return whole[:, :, inside, inside], np.concatenate(dw), g.sum(axis=(0, 2, 3))

    return out, backward


def response_norm(a):
    """Local response normalization: b = a / (k + α Σ a²)^β over n neighboring channels."""
    channels = a.shape[1]
    near = np.array([[abs(i - j) <= N // 2 for j in range(channels)] for i in range(channels)], float)
    d = K + ALPHA * np.einsum("ij,njhw->nihw", near, a**2)

    def backward(g):
        # ∂bᵢ/∂aⱼ = δᵢⱼ dᵢ^−β − 2αβ aᵢ aⱼ dᵢ^(−β−1) for neighbors
        return g * d**-BETA - 2 * ALPHA * BETA * a * np.einsum(
            "ij,nihw->njhw", near, g * a * d ** (-BETA - 1)
        )

    return a * d**-BETA, backward


def max_pool(x):
    views = windows(x, POOL, POOL_STRIDE)
    flat = views.reshape(*views.shape[:4], -1)
    best = flat.argmax(axis=-1)

    def backward(g):
        chosen = np.eye(POOL**2)[best] * g[..., None]
        return scatter(chosen.reshape(views.shape), x.shape, POOL_STRIDE)

    return flat.max(axis=-1), backward


def relu(x):
    return np.maximum(x, 0), lambda g: g * (x > 0)


def loss_and_gradients(weights, images, labels):
    """Return the mean cross-entropy on a batch and the gradient of every weight, without dropout.

    Without dropout every unit is kept, so training is as in the paper's text.
    """
    backs, x = [], images
    for name in LAYERS[:5]:
        x, back = convolve(x, weights[f"{name}.weight"], weights[f"{name}.bias"], *CONVOLUTIONS[name])
        backs.append((name, back))
        steps = [relu]
        if name in ("conv1", "conv2"):
            steps.append(response_norm)
        if name in ("conv1", "conv2", "conv5"):
            steps.append(max_pool)
        for step in steps:
            x, back = step(x)
            backs.append(("", back))
    shape = x.shape
    x = x.reshape(len(x), -1)
    backs.append(("", lambda g: g.reshape(shape)))
    for name in LAYERS[5:]:
        weight, before = weights[f"{name}.weight"], x
        x = before @ weight.T + weights[f"{name}.bias"]
        backs.append((name, lambda g, w=weight, b=before: (g @ w, g.T @ b, g.sum(axis=0))))
        if name != "fc8":
            x, back = relu(x)
            backs.append(("", back))
    shifted = x - x.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    rows = np.arange(len(labels))
    loss = -log_p[rows, labels].mean()
    g = np.exp(log_p)
    g[rows, labels] -= 1
    g /= len(labels)
    gradients = {}
    for name, back in reversed(backs):
        if name:
            g, gradients[f"{name}.weight"], gradients[f"{name}.bias"] = back(g)
        else:
            g = back(g)
    return loss, gradients


def update(weights, velocities, gradients, lr, *, bias_factor=1.0, decay_biases=True, frozen=()):
    """Update in place as in section 5: v ← 0.9 v − 0.0005 ε w − ε ∂L/∂w; w ← w + v."""
    for name, gradient in gradients.items():
        layer, kind = name.split(".")
        if layer in frozen:
            continue
        epsilon = lr * (bias_factor if kind == "bias" else 1.0)
        decay = 0.0005 if decay_biases or kind == "weight" else 0.0
        velocities[name] = 0.9 * velocities[name] - decay * epsilon * weights[name] - epsilon * gradient
        weights[name] = weights[name] + velocities[name]
