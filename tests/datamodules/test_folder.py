import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from jsonargparse import ArgumentParser

from datamodules.folder import ImageFolderDataModule, ImageSet
from datamodules.images import ImageTransform, open_image
from datamodules.sources.tables import read_table
from mergers import SheetbendError
from tests.datamodules.pictures_on_disk import class_folders, encoded, parquet, write

TRANSFORM = ImageTransform(6)


def ready(images, **arguments):
    datamodule = ImageFolderDataModule(images, **arguments)
    datamodule.image_transform = TRANSFORM
    datamodule.setup()
    return datamodule


def names_of(datamodule, task, split):
    (one,) = (one for one in datamodule.tasks if one.name == task)
    return [one.class_names[label] for label in datamodule.split(task, split).labels]


def test_one_folder_is_divided_class_by_class(tmp_path):
    pairs = class_folders(tmp_path / "pets", ("dog", "cat"), 20)
    datamodule = ready({"pets": ImageSet(str(tmp_path / "pets"), templates=["a photo of a {}."])})
    (task,) = datamodule.tasks
    assert (task.class_names, task.templates) == (("cat", "dog"), ("a photo of a {}.",))
    seen = {}
    for split, count in (("train", 14), ("val", 2), ("test", 4)):
        assert sorted(names_of(datamodule, "pets", split)) == ["cat"] * count + ["dog"] * count
        data = datamodule.split("pets", split)
        for picture, name in zip(
            data.batch(list(range(len(data))))[0], names_of(datamodule, "pets", split), strict=True
        ):
            seen[picture.numpy().tobytes()] = name
    expected = {TRANSFORM(open_image(path.read_bytes())).tobytes(): name for path, name in pairs}
    assert seen == expected
    again = ready({"pets": ImageSet(str(tmp_path / "pets"))}, seed=7)
    assert again.fingerprints() == datamodule.fingerprints()


def test_repeated_pictures_are_left_out_of_what_is_divided(tmp_path):
    class_folders(tmp_path / "pets", ("dog", "cat"), 10)
    write(tmp_path / "pets" / "cat" / "again.png", 3)
    datamodule = ready({"pets": ImageSet(str(tmp_path / "pets"))})
    assert sum(len(datamodule.split("pets", split)) for split in ("train", "val", "test")) == 20
    assert datamodule.caveats == ["pets: 1 of 21 pictures repeat another and are left out."]


@pytest.mark.parametrize("validation", ["val", "valid", "validation"])
def test_folders_of_splits_are_taken_as_they_are(tmp_path, validation):
    for number, split in enumerate(("train", validation, "test")):
        class_folders(tmp_path / "pets" / split, ("dog", "cat"), number + 1, 100 * number)
    datamodule = ready({"pets": ImageSet(str(tmp_path / "pets"))})
    assert [len(datamodule.split("pets", split)) for split in ("train", "val", "test")] == [2, 4, 6]


def test_what_is_not_there_is_cut_from_train(tmp_path):
    class_folders(tmp_path / "pets" / "train", ("dog", "cat"), 10)
    class_folders(tmp_path / "pets" / "test", ("dog", "cat"), 3, 100)
    datamodule = ready({"pets": ImageSet(str(tmp_path / "pets"), val=0.3)})
    assert [len(datamodule.split("pets", split)) for split in ("train", "val", "test")] == [14, 6, 6]


def test_folders_may_have_any_names(tmp_path):
    for number, split in enumerate(("summer", "winter")):
        class_folders(tmp_path / "pets" / split, ("dog", "cat"), 10, 100 * number)
    splits = {"train": "summer", "test": "winter"}
    datamodule = ready({"pets": ImageSet(str(tmp_path / "pets"), splits=splits)})
    assert [len(datamodule.split("pets", split)) for split in ("train", "val", "test")] == [18, 2, 20]


def test_a_picture_in_two_splits_is_refused_unless_it_is_to_be_reported(tmp_path):
    for split in ("train", "val", "test"):
        class_folders(tmp_path / "pets" / split, ("dog", "cat"), 2, 100 * (split == "test"))
    images = {"pets": ImageSet(str(tmp_path / "pets"))}
    with pytest.raises(SheetbendError, match="task pets: its train and val splits share 4 examples"):
        ready(images)
    assert "pets: its train and val splits share 4 examples" in ready(images, overlap="report").caveats[0]


@pytest.mark.parametrize("labels", ["numbers", "words", "classes"])
def test_tables_with_their_columns_named(tmp_path, labels):
    values = {"train": [0, 1] * 10, "validation": [1, 1], "test": [0, 1]}
    if labels == "words":
        for number, (split, codes) in enumerate(values.items()):
            rows = {
                "picture": [{"bytes": encoded(100 * number + i), "path": None} for i in range(len(codes))],
                "species": [["finch", "gull"][code] for code in codes],
            }
            folder = tmp_path / "birds"
            folder.mkdir(exist_ok=True)
            features = Features({"picture": Image(), "species": Value("string")})
            Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    else:
        names = ["finch", "gull"] if labels == "classes" else None
        parquet(tmp_path / "birds", values, names, image="picture", label="species")
    one = ImageSet(
        str(tmp_path / "birds"),
        image="picture",
        label="species",
        splits={"train": "train", "val": "validation", "test": "test"},
        class_names=["finch", "gull"] if labels == "numbers" else None,
    )
    datamodule = ready({"birds": one})
    assert names_of(datamodule, "birds", "val") == ["gull", "gull"]
    assert names_of(datamodule, "birds", "test") == ["finch", "gull"]
    inputs, _ = datamodule.split("birds", "train").batch([4])
    assert (inputs[0].numpy() == TRANSFORM(open_image(encoded(4)))).all()


def test_one_parquet_file_is_divided(tmp_path):
    parquet(tmp_path, {"train": [0, 1] * 20}, ["finch", "gull"])
    (path,) = (tmp_path / "data").iterdir()
    datamodule = ready({"birds": ImageSet(str(path))})
    assert [len(datamodule.split("birds", split)) for split in ("train", "val", "test")] == [28, 4, 8]


@pytest.mark.parametrize("kind", ["words", "classes", "numbers", "folders"])
def test_digits_are_positions_in_a_list_of_classes(tmp_path, kind):
    if kind == "folders":
        class_folders(tmp_path / "birds", ("0", "1"), 10)
        one = ImageSet(str(tmp_path / "birds"), class_names=["finch", "gull"])
    elif kind == "words":
        rows = {"image": [{"bytes": encoded(i), "path": None} for i in range(20)], "label": ["0", "1"] * 10}
        features = Features({"image": Image(), "label": Value("string")})
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "birds.parquet")
        one = ImageSet(str(tmp_path / "birds.parquet"), class_names=["finch", "gull"])
    else:
        parquet(tmp_path, {"train": [0, 1] * 10}, ["0", "1"] if kind == "classes" else None)
        one = ImageSet(str(tmp_path), splits={"train": "train"}, class_names=["finch", "gull"])
    datamodule = ready({"birds": one})
    inputs, labels = datamodule.split("birds", "train").batch(list(range(14)))
    assert sorted(labels.tolist()) == [0] * 7 + [1] * 7
    # The pictures of a table alternate, those of folders come class by class.
    number = {TRANSFORM(open_image(encoded(i))).tobytes(): i for i in range(20)}
    of = (lambda i: i // 10) if kind == "folders" else (lambda i: i % 2)
    assert [of(number[picture.numpy().tobytes()]) for picture in inputs] == labels.tolist()


def test_bare_numbers_are_classes_of_that_name(tmp_path):
    parquet(tmp_path, {"train": [0, 2] * 10}, None)
    datamodule = ready({"birds": ImageSet(str(tmp_path), splits={"train": "train"})})
    assert datamodule.tasks[0].class_names == ("0", "1", "2")


def test_a_map_of_class_names_renames_joins_orders_and_leaves_out(tmp_path):
    class_folders(tmp_path / "pets", ("n1", "n2", "n3", "n4"), 10)
    names = {"n3": "dog", "n1": "cat", "n2": "dog", "n4": None}
    datamodule = ready({"pets": ImageSet(str(tmp_path / "pets"), class_names=names)})
    assert datamodule.tasks[0].class_names == ("dog", "cat")
    assert sorted(names_of(datamodule, "pets", "train")) == ["cat"] * 7 + ["dog"] * 14


def test_a_folder_of_tasks(tmp_path):
    class_folders(tmp_path / "pets", ("dog", "cat"), 10)
    class_folders(tmp_path / "birds", ("finch", "gull"), 10, 100)
    datamodule = ready(str(tmp_path), templates=["a {}"])
    assert [task.name for task in datamodule.tasks] == ["birds", "pets"]
    assert all(task.templates == ("a {}",) for task in datamodule.tasks)
    assert [task.name for task in ready(str(tmp_path), tasks=["pets"]).tasks] == ["pets"]


def test_yaml_alone_is_enough(tmp_path):
    class_folders(tmp_path / "pets", ("dog", "cat"), 10)
    (tmp_path / "own.yaml").write_text(
        f"""
data:
  class_path: datamodules.folder.ImageFolderDataModule
  init_args:
    images:
      pets: {{path: {tmp_path}/pets, templates: ["a photo of a {{}}."], class_names: {{dog: hound, cat: cat}}}}
    image_cache_gb: 0
"""
    )
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(ImageFolderDataModule, "data")
    datamodule = parser.instantiate_classes(parser.parse_args([f"--config={tmp_path}/own.yaml"])).data
    assert datamodule.tasks[0].class_names == ("hound", "cat")
    parser.instantiate_classes(parser.parse_args(["--data=ImageFolderDataModule", f"--data.images={tmp_path}"]))


def folder_of(root, **fields):
    class_folders(root / "pets", ("dog", "cat"), 10)
    return {"pets": ImageSet(str(root / "pets"), **fields)}


def table_of(root, labels=(0, 1), names=("finch", "gull"), **fields):
    parquet(root / "birds", {"train": list(labels) * 10, "test": [0]}, names)
    return {"birds": ImageSet(str(root / "birds"), splits={"train": "train", "test": "test"}, **fields)}


def with_odd_test(root):
    class_folders(root / "pets" / "train", ("dog", "cat"), 10)
    class_folders(root / "pets" / "test", ("dog", "catt"), 1, 100)
    return {"pets": ImageSet(str(root / "pets"))}


def without_train(root):
    class_folders(root / "pets" / "test", ("dog", "cat"), 4)
    return {"pets": ImageSet(str(root / "pets"))}


def one_class(root):
    class_folders(root / "pets", ("dog",), 10)
    return {"pets": ImageSet(str(root / "pets"))}


def empty_class(root):
    (root / "pets" / "bird").mkdir(parents=True)
    return folder_of(root)


def mixed(root):
    features = Features({"image": Value("int64"), "label": Value("string")})
    Dataset.from_dict({"image": list(range(10)), "label": ["a", "b"] * 5}, features=features).to_parquet(
        root / "x.parquet"
    )
    return {"odd": ImageSet(str(root / "x.parquet"), val=0.4, test=0.4)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: {"a": ImageSet()}, "task a: path is None and hub is None; give one of them"),
        (lambda root: {"a": ImageSet("x", "org/x")}, "path is x and hub is org/x; give one"),
        (lambda root: {"a": ImageSet(str(root / "no"))}, "task a: .*/no is not there; check the path"),
        (lambda root: {"a": ImageSet(str(root))}, "holds no folders of pictures"),
        (lambda root: folder_of(root, val=0.5, test=0.5), "val 0.5 and test 0.5 are shares of train"),
        (lambda root: folder_of(root, val=float("nan")), "val nan and test 0.2 are shares of train"),
        (lambda root: folder_of(root, test=float("nan")), "val 0.1 and test nan are shares of train"),
        (lambda root: folder_of(root, config="x"), "task pets: config and revision are of a hub data set"),
        (lambda root: folder_of(root, class_names={"dog": "pet", "cat": "pet"}), "task pets: it has one class, pet"),
        (lambda root: folder_of(root, class_names=["dog", "cat", "cat"]), r"class names must be there and differ"),
        (without_train, "task pets: .*pets has folders of test, but none of train; add train/<class>"),
        (one_class, "task pets: it has one class, dog; give 2 or more"),
        (empty_class, r"pets/bird: this folder of a class holds no pictures .*; put some there, or take"),
        (lambda root: {}, r"data\.images is empty; declare a task there"),
        (lambda root: folder_of(root, val=0.01), "task pets: 1% of 20 examples, class by class, are none for its val"),
        (lambda root: folder_of(root, splits={"test": "x"}), "say what train is called"),
        (lambda root: folder_of(root, templates=["a photo"]), r"template 'a photo' has no \{\}"),
        (
            lambda root: folder_of(root, class_names=["dog", "gull"]),
            r"pets/cat/\S*: label 'cat' is none of the classes dog, gull; correct it",
        ),
        (lambda root: folder_of(root, class_names={"dgo": "dog", "cat": "cat"}), r"did you mean 'dgo'\?"),
        (with_odd_test, r"catt/\S*: label 'catt' is none of the classes cat, dog \(did you mean 'cat'\?\); "),
        (lambda root: table_of(root, image="img"), r"has no column 'img'.*; it has image, label"),
        (
            lambda root: table_of(root, (0, 2), None, class_names=["finch", "gull"]),
            "row 1 of task birds, .*: label '2' is outside the range 0 to 1 of the classes finch, gull; correct it",
        ),
        (lambda root: table_of(root, labels=(0, -1)), r"row 1 of .*: its label -1 is outside the range \(0 to 1\)"),
        (lambda root: table_of(root, labels=(0, None)), r"row 1 of .*: its label -1 is outside the range"),
        (mixed, "row 0 of .*: column 'image' holds int, not pictures; name the column that does"),
        (lambda root: str(root / "nowhere"), "data.images .*nowhere: no folders of tasks are there"),
        (lambda root: {"a": ImageSet(hub="org/x", splits={"train": "train"})}, "hub data set org/x .*HF_HUB_OFFLINE"),
        (lambda root: {"a b": folder_of(root)["pets"]}, "task name 'a b'"),
    ],
)
def test_what_cannot_be_meant_is_one_line(tmp_path, make, message):
    with pytest.raises(SheetbendError, match=message) as caught:
        ready(make(tmp_path))
    assert "\n" not in str(caught.value)


def test_labels_of_batches_are_those_of_the_split(tmp_path):
    class_folders(tmp_path / "pets", ("dog", "cat"), 10)
    split = ready({"pets": ImageSet(str(tmp_path / "pets"))}).split("pets", "train")
    inputs, labels = split.batch([3, 0])
    assert inputs.dtype == torch.uint8 and inputs.shape == (2, 3, 6, 6)
    assert labels.tolist() == split.labels[[3, 0]].tolist()
    assert np.array_equal(split.eval_order(), range(len(split)))


def test_only_the_sets_in_use_are_read_and_only_when_needed(tmp_path, monkeypatch):
    images = table_of(tmp_path) | {"far": ImageSet(hub="a/b", splits={"train": "train", "test": "held"})}
    read = []

    def reading(place, split):
        read.append((str(place), split))
        return read_table(place, split)

    monkeypatch.setattr("datamodules.own_data.read_table", reading)
    datamodule = ImageFolderDataModule(images, tasks=["birds"])
    assert datamodule.task_names == ("birds",) and not datamodule.missing() and datamodule.sources("birds")
    assert read == []
    assert datamodule.tasks[0].class_names == ("finch", "gull") and {place for place, _ in read} == {
        str(tmp_path / "birds")
    }
    both = ImageFolderDataModule(images)
    assert not both.missing()
    assert [(place.name, split) for place, split in both.sources("far").values()] == [("a/b", "train"), ("a/b", "held")]
    with pytest.raises(SheetbendError, match=r"hub data set a/b is not .*name it: path of task far") as caught:
        both.setup()
    assert "root" not in str(caught.value) and "\n" not in str(caught.value)
