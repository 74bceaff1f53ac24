"""Slow, obvious merging of dense float64 deltas, written from the papers' formulas.

A task's update is a dict, module -> (out, in). Nothing here is shared with the package but the names
of its settings and the seed of a mask.
"""

import math

import torch

from mergers.seeding import derive_generator

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


# Finishes: the merged coordinates of one module


def iso(values, finish):
    U, s, Vh = torch.linalg.svd(values, full_matrices=False)
    support = s > finish.cutoff * s[0]
    mean = s[support].mean() if support.any() else 0.0
    return U[:, support] @ (mean * Vh[support])


SPACES = {"Full": full, "KnOTS": knots, "Core": core}
FINISHES = {"Iso": iso}
TRANSFORMS = {"Dare": dare, "Star": star}
METHODS = {"Mean": mean, "TaskArithmetic": task_arithmetic, "Ties": ties}


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
