import json
import pickle
import zipfile

import numpy as np
import pytest
import torch

from datamodules.splits import divided, grouped, read_index_file, validation_of_test
from mergers import SheetbendError


def order(count=50):
    return np.random.default_rng(3).permutation(count)


def as_published(path, array):
    """A file as KnOTS published its own: torch.save of numpy's array, under the module names of numpy 1."""
    torch.save(array, path)
    with zipfile.ZipFile(path) as file:
        content = {info.filename: file.read(info) for info in file.infolist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, value in content.items():
            file.writestr(name, value.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert b"cnumpy.core.multiarray\n_reconstruct" in path.read_bytes()
    return path


def test_published_index_files_are_read(tmp_path):
    path = as_published(tmp_path / "mnist_shuffled_idxs.pt", order())
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    assert (read_index_file(path, "mnist", 50) == order()).all()
    val, test = validation_of_test("mnist", 50, path)
    assert (val == np.sort(order()[:10])).all() and (test == np.sort(order()[10:])).all()


def test_every_format_says_the_same(tmp_path):
    torch.save(torch.tensor(order()), tmp_path / "tensor.pt")
    for kind in (np.uint8, np.int16, np.int32, np.uint64):
        torch.save(order().astype(kind), tmp_path / f"{kind.__name__}.pt")
    np.save(tmp_path / "a.npy", order())
    (tmp_path / "a.json").write_text(json.dumps(order().tolist()))
    (tmp_path / "a.txt").write_text("\n".join(map(str, order())))
    files = list(tmp_path.iterdir())
    assert len(files) == 8
    for path in files:
        read = read_index_file(path, "x", 50)
        assert read.dtype == np.int64 and (read == order()).all()


@pytest.mark.filterwarnings("error")
def test_a_bare_pickle_is_refused_without_a_warning(tmp_path):
    (tmp_path / "a.pt").write_bytes(pickle.dumps(order().tolist()))
    with pytest.raises(SheetbendError, match=r"a\.pt"):
        read_index_file(tmp_path / "a.pt", "x", 50)


class Evil:
    def __reduce__(self):
        return print, ("code of the file ran",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pt", lambda path: torch.save(Evil(), path), "holds more than an array of whole numbers"),
        ("a.pt", lambda path: torch.save(np.array([Evil()]), path), "holds more than an array of whole numbers"),
        ("a.pt", lambda path: path.write_bytes(b"PK"), "it is damaged"),
        ("a.npy", lambda path: np.save(path, np.array([Evil()])), "cannot be read"),
        ("a.npy", lambda path: np.save(path, order() / 2), "holds float64 of shape"),
        ("a.json", lambda path: path.write_text("[[1], [2]]"), r"holds int64 of shape \(2, 1\)"),
        ("a.txt", lambda path: path.write_text("1 2 x"), "cannot be read .*'x'"),
        ("a.txt", lambda path: path.write_text("0 1 2"), "has 3 indices, but the split has 50 examples"),
        ("a.npy", lambda path: np.save(path, order() + 1), "index 50 is outside the range 0 to 49"),
        ("a.npy", lambda path: np.save(path, order() - 1), "index -1 is outside the range"),
        ("a.npy", lambda path: np.save(path, order() // 2 * 2), r"index \d+ stands twice"),
        ("a.csv", lambda path: path.write_text("0"), r".csv is unknown; give .pt, .npy, .json, .txt"),
        ("a.npy", lambda path: None, "there is no such file"),
    ],
)
def test_bad_files_are_one_line_and_run_nothing(tmp_path, capsys, name, content, message):
    content(tmp_path / name)
    with pytest.raises(SheetbendError, match=f"^task x: index file .*{message}") as caught:
        read_index_file(tmp_path / name, "x", 50)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_a_random_fifth_depends_on_the_name_alone():
    val, test = validation_of_test("mnist", 104)
    assert len(val) == 20 and sorted([*val, *test]) == list(range(104))
    assert (validation_of_test("mnist", 104)[0] == val).all()
    assert not (validation_of_test("svhn", 104)[0] == val).all()
    with pytest.raises(SheetbendError, match="of 4 test examples 20 % for validation are none"):
        validation_of_test("mnist", 4)


def test_every_class_is_divided_by_the_shares():
    labels = np.repeat([0, 1, 2], [10, 20, 70])
    rows = divided("x", labels, {"train": 0.8, "val": 0.1, "test": 0.1})
    assert sorted(np.concatenate(list(rows.values()))) == list(range(100))
    assert {split: np.bincount(labels[taken]).tolist() for split, taken in rows.items()} == {
        "train": [8, 16, 56],
        "val": [1, 2, 7],
        "test": [1, 2, 7],
    }
    again = divided("x", labels, {"train": 0.8, "val": 0.1, "test": 0.1})
    assert all((again[split] == taken).all() for split, taken in rows.items())
    with pytest.raises(SheetbendError, match="task x: 10% of 4 examples, class by class, are none for its test split"):
        divided("x", [0, 1, 2, 3], {"train": 0.9, "test": 0.1})


def test_shuffled_rows_are_the_same_in_another_order():
    labels, shares = np.repeat([0, 1, 2], [10, 20, 70]), {"train": 0.8, "test": 0.2}
    rows, shuffled = divided("x", labels, shares), divided("x", labels, shares, shuffled=True)
    assert all((np.sort(shuffled[split]) == taken).all() for split, taken in rows.items())
    assert all((shuffled[split] != taken).any() for split, taken in rows.items())


def test_groups_come_near_their_shares():
    generator = np.random.default_rng(0)
    groups = generator.integers(0, 80, 1000).tolist()
    cut = grouped("x", groups, {"train": 0.7, "val": 0.1, "test": 0.2})
    assert sorted(np.concatenate(list(cut.values())).tolist()) == list(range(1000))
    for name, share in {"train": 0.7, "val": 0.1, "test": 0.2}.items():
        assert abs(len(cut[name]) / 1000 - share) < 0.03
    with pytest.raises(SheetbendError, match="task x: 2 groups are too few for 3 splits"):
        grouped("x", ["a", "b"], {"train": 0.7, "val": 0.1, "test": 0.2})
