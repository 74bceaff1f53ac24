"""Slow, obvious merging of dense float64 deltas, written from the papers' formulas.

A task's update is a dict, module -> (out, in). Nothing here is shared with the package but the names
of its settings and the seed of a mask.

Some formulas have no single answer, or one that rounding of the inputs changes at will: which directions are kept
where two singular values are equal, which entries where two magnitudes are, what the nearest orthonormal matrix is
where columns almost depend on each other. `IllPosedError` says so, and a test draws other adapters.
"""

import itertools
import math

import torch

from mergers.seeding import derive_generator


class IllPosedError(Exception):
    """The answer is arbitrary to rounding."""


def clear(condition):
    if not condition:
        raise IllPosedError


def clear_cut(values, kept, scale, margin):
    """The entries of descending ``values`` before and after a cut differ, or both are zero."""
    if 0 < kept < len(values):
        clear(values[kept - 1] - values[kept] > margin * scale or values[kept - 1] < 1e-9 * scale)


def count_support(s, smallest=1e-4, scale=None):
    """How many singular values are not zero, where that is beyond doubt."""
    scale = (float(s[0]) if len(s) else 0.0) if scale is None else scale
    if scale == 0:
        return 0
    clear(not ((s > 1e-9 * scale) & (s < smallest * scale)).any())
    return int((s >= smallest * scale).sum())


def nearest_orthonormal(matrix):
    U, s, Vh = torch.linalg.svd(matrix, full_matrices=False)
    rank = count_support(s, smallest=1e-2)
    return U[:, :rank] @ Vh[:rank]


# Spaces: {module: [task's delta]} -> coordinates of the same form and {module: decode}


def full(tasks, space):
    return tasks, {module: lambda merged: merged for module in tasks}


def knots(tasks, space):
    coordinates, decoders = {}, {}
    for module, deltas in tasks.items():
        if space.concatenate == "outputs":
            deltas = [delta.T for delta in deltas]
        U, s, Vh = torch.linalg.svd(torch.cat(deltas, dim=1), full_matrices=False)
        limit = space.cutoff * s[0] if space.relative_cutoff else space.cutoff
        rank = int((s > limit).sum())
        U, s, Vh = U[:, :rank], s[:rank], Vh[:rank]
        # Singular vectors are free up to a sign: the largest entry of each column of U is made positive.
        for k in range(rank):
            if U[U[:, k].abs().argmax(), k] < 0:
                U[:, k], Vh[k] = -U[:, k], -Vh[k]
        columns = deltas[0].shape[1]
        Vh = torch.where(s[:, None] * Vh.abs() < 1e-13 * s[0], 0.0, Vh) if rank else Vh  # rounding of exact zeros
        blocks = [Vh[:, i * columns : (i + 1) * columns] for i in range(len(deltas))]
        if space.scale_by_singular_values:
            blocks = [s[:, None] * block for block in blocks]
            basis = U
        else:
            basis = U * s
        if space.concatenate == "outputs":
            coordinates[module] = [block.T for block in blocks]
            decoders[module] = lambda merged, basis=basis: merged @ basis.T
        else:
            coordinates[module] = blocks
            decoders[module] = lambda merged, basis=basis: basis @ merged
    return coordinates, decoders


def core(tasks, space, factors):
    coordinates, decoders = {}, {}
    for module, deltas in tasks.items():
        left = torch.linalg.svd(torch.cat([B for B, _ in factors[module]], dim=1), full_matrices=False).U
        right = torch.linalg.svd(torch.cat([A for _, A in factors[module]]), full_matrices=False).Vh
        # The sign convention again: the largest entry of each basis vector is positive.
        left = left * torch.stack([column[column.abs().argmax()].sign() for column in left.T])
        right = right * torch.stack([row[row.abs().argmax()].sign() for row in right])[:, None]
        coordinates[module] = [left.T @ delta @ right.T for delta in deltas]
        largest = max(one.abs().max() for one in coordinates[module])
        coordinates[module] = [torch.where(one.abs() < 1e-13 * largest, 0.0, one) for one in coordinates[module]]
        decoders[module] = lambda merged, left=left, right=right: left @ merged @ right
    return coordinates, decoders


# Transforms: one task's coordinates in one module


def dare(values, transform, task, module):
    generator = derive_generator(transform.seed, task, module)
    keep = torch.rand(values.shape, generator=generator) >= transform.drop_rate
    return values * keep / (1 - transform.drop_rate)


def star(values, transform, task, module):
    U, s, Vh = torch.linalg.svd(values, full_matrices=False)
    total, kept, rank = s.sum(), 0.0, 0
    while rank < len(s) and (rank == 0 or kept < transform.eta / 100 * total):
        kept += s[rank]
        rank += 1
    return U[:, :rank] @ torch.diag(s[:rank] * total / kept) @ Vh[:rank]


def breadcrumbs(values, transform, task, module):
    flat = values.flatten().tolist()
    order = sorted(range(len(flat)), key=lambda place: (abs(flat[place]), place))
    smallest, largest = math.floor(transform.beta * len(flat)), math.floor(transform.gamma * len(flat))
    descending = [abs(flat[place]) for place in order[::-1]]
    for kept in (largest, len(flat) - smallest):
        clear_cut(descending, kept, descending[0], 1e-5)
    for place in order[:smallest] + order[len(flat) - largest :]:
        flat[place] = 0.0
    return torch.tensor(flat, dtype=values.dtype).reshape(values.shape)


def della(values, transform, task, module):
    drawn = torch.rand(values.shape, generator=derive_generator(transform.seed, task, module)).tolist()
    kept = torch.zeros_like(values)
    for i, row in enumerate(values.tolist()):
        order = sorted(range(len(row)), key=lambda j: abs(row[j]))
        for before, after in itertools.pairwise(order):
            clear(abs(row[after]) - abs(row[before]) > 1e-5 * float(values.abs().max()))
        for rank, j in enumerate(order):
            small = 1 - rank / (len(row) - 1) if len(row) > 1 else 0.5
            drop_rate = transform.drop_rate + transform.window * (small - 0.5)
            if drawn[i][j] >= drop_rate:
                kept[i, j] = row[j] / (1 - drop_rate)
    return kept


# Methods: {module: [task's coordinates]} -> {module: merged}


def mean(tasks, method, coefficients):
    count = len(coefficients)
    return {m: sum(c * x for c, x in zip(coefficients, xs, strict=True)) / count for m, xs in tasks.items()}


def task_arithmetic(tasks, method, coefficients):
    return {m: sum(c * x for c, x in zip(coefficients, xs, strict=True)) for m, xs in tasks.items()}


def sign_of(number):
    return (number > 0) - (number < 0)


def ties_vectors(vectors, method, coefficients):
    """TIES on one flat list of numbers a task."""
    count = len(vectors[0])
    trimmed = []
    for vector in vectors:
        ordered = sorted(map(abs, vector))
        k = count - math.floor(count * method.density)
        limit = ordered[k - 1] if k > 0 else 0.0
        trimmed.append([value if abs(value) >= limit else 0.0 for value in vector])
    entries = list(zip(*trimmed, strict=True))
    signs = [sign_of(sum(map(sign_of, e)) if method.sign == "counts" else sum(e)) for e in entries]
    majority = sign_of(sum(signs))
    merged = []
    for entry, sign in zip(entries, signs, strict=True):
        agreeing = [
            coefficient * value
            for coefficient, value in zip(coefficients, entry, strict=True)
            if value != 0 and sign_of(value) == (sign or majority)
        ]
        if not agreeing:
            merged.append(0.0)
        elif method.aggregate == "max":
            merged.append(max(agreeing, key=abs))
        else:
            merged.append(sum(agreeing) / (len(agreeing) if method.aggregate == "mean" else 1))
    return merged


def ties(tasks, method, coefficients):
    modules = list(tasks)
    groups = [modules] if method.trim == "global" else [[module] for module in modules]
    merged = {}
    for group in groups:
        count = len(coefficients)
        vectors = [torch.cat([tasks[module][i].flatten() for module in group]).tolist() for i in range(count)]
        flat = torch.tensor(ties_vectors(vectors, method, coefficients), dtype=torch.float64)
        parts = flat.split([tasks[module][0].numel() for module in group])
        for module, part in zip(group, parts, strict=True):
            merged[module] = part.reshape(tasks[module][0].shape)
    return merged


def each_module(function):
    """A method that looks at one module: (deltas, method, coefficients) -> merged."""
    return lambda tasks, method, coefficients: {m: function(xs, method, coefficients) for m, xs in tasks.items()}


@each_module
def tsv(deltas, method, coefficients):
    size = min(deltas[0].shape)
    wanted = size // len(deltas) if method.rank_ratio is None else math.floor(method.rank_ratio * size)
    columns, values, rows = [], [], []
    for delta, coefficient in zip(deltas, coefficients, strict=True):
        U, s, Vh = torch.linalg.svd(delta, full_matrices=False)
        k = min(max(wanted, 1), count_support(s))
        clear_cut(s, k, s[0], 1e-2)
        columns.append(U[:, :k])
        values.append(coefficient * s[:k])
        rows.append(Vh[:k])
    U, V = nearest_orthonormal(torch.cat(columns, dim=1)), nearest_orthonormal(torch.cat(rows).T)
    return U @ torch.diag(torch.cat(values)) @ V.T


@each_module
def iso_cts(deltas, method, coefficients):
    deltas = [coefficient * delta for coefficient, delta in zip(coefficients, deltas, strict=True)]
    count = len(deltas)
    U, s, Vh = torch.linalg.svd(sum(deltas), full_matrices=False)
    rank = count_support(s)
    own = min(round((rank - math.floor(method.common_fraction * rank)) / count), rank // count)
    common = rank - count * own
    clear_cut(s, common, s[0], 1e-2)
    columns, values, rows = [U[:, :common]], [s[:common]], [Vh[:common]]
    for delta in deltas:
        outside = delta - columns[0] @ columns[0].T @ delta
        U, s, Vh = torch.linalg.svd(outside, full_matrices=False)
        k = min(own, count_support(s, scale=float(delta.norm())))
        clear_cut(s, k, float(delta.norm()), 1e-2)
        columns.append(U[:, :k])
        values.append(s[:k])
        rows.append(Vh[:k])
    U, V = nearest_orthonormal(torch.cat(columns, dim=1)), nearest_orthonormal(torch.cat(rows).T)
    return torch.cat(values).mean() * U @ V.T


@each_module
def cart(deltas, method, coefficients):
    mean = sum(deltas) / len(deltas)
    directions = method.rank_ratio * min(mean.shape)
    k = max(1, math.ceil(directions) if method.rounding == "up" else math.floor(directions))
    merged = torch.zeros_like(mean)
    for delta, coefficient in zip(deltas, coefficients, strict=True):
        U, s, Vh = torch.linalg.svd(delta - mean, full_matrices=False)
        clear_cut(s, k, float(delta.norm()), 1e-2)
        merged += coefficient * (delta / len(deltas) + method.scaling * U[:, :k] @ torch.diag(s[:k]) @ Vh[:k])
    return merged


def metagpt(tasks, method, coefficients):
    norms = [sum(float((xs[i] ** 2).sum()) for xs in tasks.values()) for i in range(len(coefficients))]
    shares = [norm / sum(norms) for norm in norms]
    return {
        m: sum(c * share * x for c, share, x in zip(coefficients, shares, xs, strict=True)) for m, xs in tasks.items()
    }


def tall_wanted(delta, total, method):
    margin = delta.abs() - method.threshold * (total - delta).abs()
    scale = max(float(delta.abs().max()), float(total.abs().max()))
    clear(not ((margin.abs() < 1e-5 * scale) & (total.abs() > 1e-5 * scale)).any())
    return margin > 0


@each_module
def tall_masks(deltas, method, coefficients):
    total = sum(c * x for c, x in zip(coefficients, deltas, strict=True))
    votes = sum(tall_wanted(delta, total, method).int() for delta in deltas)
    return torch.where(votes >= min(method.agreement, len(deltas)), total, 0.0)


@each_module
def wudi(deltas, method, coefficients):
    norms = [float((delta**2).sum()) for delta in deltas]
    if method.solver == "exact":
        gram = sum(delta.T @ delta / norm for delta, norm in zip(deltas, norms, strict=True))
        right = sum(
            c * delta @ delta.T @ delta / norm for c, delta, norm in zip(coefficients, deltas, norms, strict=True)
        )
        eigenvalues = torch.linalg.eigvalsh(gram).flip(0)
        clear(not ((eigenvalues > 1e-12 * eigenvalues[0]) & (eigenvalues < 1e-4 * eigenvalues[0])).any())
        return right @ torch.linalg.pinv(gram, rtol=1e-8, hermitian=True)
    targets = [c * delta for c, delta in zip(coefficients, deltas, strict=True)]
    merged = sum(targets).requires_grad_()
    optimizer = torch.optim.Adam([merged], lr=method.lr)
    for _ in range(method.steps):
        optimizer.zero_grad()
        disturbance = [
            (((merged - target) @ delta.T) ** 2).sum() / norm
            for target, delta, norm in zip(targets, deltas, norms, strict=True)
        ]
        sum(disturbance).backward()
        # Adam makes steps of one length of gradients of any size, so the sign of each must be beyond doubt.
        clear(merged.grad.abs().min() > 1e-3 * max(float(target.abs().max()) for target in targets))
        optimizer.step()
    return merged.detach()


# Finishes: the merged coordinates of one module


def iso(values, finish):
    U, s, Vh = torch.linalg.svd(values, full_matrices=False)
    rank = count_support(s, smallest=1e-2)
    return s[:rank].mean() * U[:, :rank] @ Vh[:rank] if rank else torch.zeros_like(values)


def truncate(values, finish):
    U, s, Vh = torch.linalg.svd(values, full_matrices=False)
    clear_cut(s, finish.rank, float(s[0]), 1e-2)
    return U[:, : finish.rank] * s[: finish.rank] @ Vh[: finish.rank]


SPACES = {"Full": full, "KnOTS": knots, "Core": core}
FINISHES = {"Iso": iso, "Truncate": truncate}
TRANSFORMS = {"Breadcrumbs": breadcrumbs, "Dare": dare, "Della": della, "Star": star}
METHODS = {
    "TSV": tsv,
    "Cart": cart,
    "IsoCTS": iso_cts,
    "Mean": mean,
    "MetaGPT": metagpt,
    "TallMasks": tall_masks,
    "TaskArithmetic": task_arithmetic,
    "Ties": ties,
    "Wudi": wudi,
}


def merge(merger, adapters):
    """What merger.merge(adapters).dense() should be, in float64."""
    names = [adapter.name for adapter in adapters]
    tasks = {}
    for module in adapters[0]:
        updates = [adapter[module] for adapter in adapters]
        tasks[module] = [update.scale * update.B.double() @ update.A.double() for update in updates]
    space = SPACES[type(merger.space).__name__]
    if space is core:  # its basis is that of the factors
        factors = {
            module: [
                (adapter[module].scale * adapter[module].B.double(), adapter[module].A.double()) for adapter in adapters
            ]
            for module in tasks
        }
        coordinates, decoders = core(tasks, merger.space, factors)
    else:
        coordinates, decoders = space(tasks, merger.space)
    for transform in merger.transforms:
        change = TRANSFORMS[type(transform).__name__]
        coordinates = {
            module: [change(x, transform, name, module) for name, x in zip(names, values, strict=True)]
            for module, values in coordinates.items()
        }
    coefficients = merger.task_coefficients(names)
    merged = METHODS[type(merger.method).__name__](coordinates, merger.method, coefficients)
    if merger.finish:
        change = FINISHES[type(merger.finish).__name__]
        merged = {module: change(values, merger.finish) for module, values in merged.items()}
    return {module: decoders[module](values) for module, values in merged.items()}
