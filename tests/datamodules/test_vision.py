from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from datamodules.image_cache import ImageCache, MappedImages
from datamodules.images import ImageTransform, open_image
from datamodules.quickstart import FASHION_MNIST
from datamodules.vision import VisionDataModule
from datamodules.vision_tasks import VISION_TASKS
from lightning_modules import SequenceClassifier
from mergers import SheetbendError
from mergers.files import cache_folder
from tests.datamodules.pictures_on_disk import class_folders, encoded, parquet, write
from tests.datamodules.test_base import Recorder

DIGITS = [str(digit) for digit in range(10)]


class Model(Recorder):
    """A model that takes 6 x 6 pictures."""

    image_transform = ImageTransform(6)


def datamodule_of(*tasks, **arguments):
    """A datamodule that has met the model, after setup."""
    datamodule = VisionDataModule(list(tasks), **arguments)
    datamodule.attach(Model())
    datamodule.setup()
    return datamodule


def mnist(root, train=12, test=10, **arguments):
    """A copy of the hub's MNIST; pictures are numbered from 0, training first."""
    labels = [i % 10 for i in range(train)], [(3 * i) % 10 for i in range(test)]
    parquet(root / "mnist", dict(zip(("train", "test"), labels, strict=True)), DIGITS, **arguments)
    return labels


def expected(seeds):
    return torch.from_numpy(np.stack([Model.image_transform(open_image(encoded(seed))) for seed in seeds]))


def whole(split):
    return split.batch(list(range(len(split))))


def test_a_copy_of_the_hub_is_read_and_a_fifth_of_its_test_set_is_validation(tmp_path):
    train, test = mnist(tmp_path)
    datamodule = datamodule_of("mnist", root=str(tmp_path))
    inputs, labels = whole(datamodule.split("mnist", "train"))
    assert inputs.dtype == torch.uint8 and (inputs == expected(range(12))).all()
    assert labels.tolist() == train
    rows = {split: datamodule.split("mnist", split).rows.tolist() for split in ("val", "test")}
    assert len(rows["val"]) == 2 and sorted(rows["val"] + rows["test"]) == list(range(10))
    for split, taken in rows.items():
        inputs, labels = whole(datamodule.split("mnist", split))
        assert (inputs == expected([12 + row for row in taken])).all()
        assert labels.tolist() == [test[row] for row in taken]
    caveats = " ".join(datamodule.caveats)
    assert "mnist: validation is 20 % of the test set (2 examples, drawn at random), test the other 8." in caveats
    assert "mnist: its train split has 12 examples; the published one has 60000." in caveats


def test_labels_are_matched_by_name_whatever_their_order_and_spelling(tmp_path):
    names = ["9 - nine", "0 - zero", "3 - three"]
    parquet(tmp_path / "mnist", {"train": [0, 1, 2], "test": [2, 2, 1, 0, 0]}, names)
    datamodule = datamodule_of("mnist", root=str(tmp_path))
    assert datamodule.split("mnist", "train").labels.tolist() == [9, 0, 3]


def test_numbers_without_names_are_taken_where_the_declaration_knows_them(tmp_path):
    labels = {"train": [0, 6, 4], "test": [1, 2, 3, 4, 5]}
    parquet(tmp_path / "fer2013", labels, image="jpg", label="cls")
    datamodule = datamodule_of("fer2013", root=str(tmp_path))
    entry = VISION_TASKS["fer2013"]
    own = entry.labels_of(None)
    assert datamodule.split("fer2013", "train").labels.tolist() == [own[0], own[6], own[4]]
    parquet(tmp_path / "dtd", labels)
    with pytest.raises(SheetbendError, match="task dtd: its labels are numbers without class names"):
        datamodule_of("dtd", root=str(tmp_path))


def test_validation_of_the_source_is_used(tmp_path):
    entry = VISION_TASKS["flowers102"]
    splits = {"train": [0, 1], "validation": [2], "test": [1, 0, 2]}
    parquet(tmp_path / "flowers102", splits, entry.task.class_names)
    datamodule = datamodule_of("flowers102", root=str(tmp_path))
    assert [len(datamodule.split("flowers102", split)) for split in ("train", "val", "test")] == [2, 1, 3]
    assert "validation is the data set's own split of 1" in " ".join(datamodule.caveats)
    (tmp_path / "i.txt").write_text("0 1 2")
    with pytest.raises(SheetbendError, match="flowers102: its source has a validation split of its own"):
        datamodule_of("flowers102", root=str(tmp_path), split_indices={"flowers102": str(tmp_path / "i.txt")})


def test_an_index_file_says_what_is_for_validation(tmp_path):
    mnist(tmp_path)
    file = tmp_path / "order.npy"
    np.save(file, [7, 2, 0, 1, 3, 4, 5, 6, 8, 9])
    datamodule = datamodule_of("mnist", root=str(tmp_path), split_indices={"mnist": str(file)})
    assert datamodule.split("mnist", "val").rows.tolist() == [2, 7]
    assert "(2 examples, the first of order.npy)" in " ".join(datamodule.caveats)


def test_folders_and_first_files_are_found_too(tmp_path):
    dtd = VISION_TASKS["dtd"].task.class_names
    for number, split in enumerate(("train", "val", "test")):
        class_folders(tmp_path / "dtd" / split, (dtd[5], dtd[40]), 2, 100 * number)
    for seed, name in enumerate(f"{name}/{name}_{i}.jpg" for name in ("Forest", "River") for i in range(10)):
        write(tmp_path / "eurosat" / "2750" / name, seed)
    datamodule = datamodule_of("dtd", "eurosat", root=str(tmp_path))
    assert datamodule.split("dtd", "val").labels.tolist() == [5, 5, 40, 40]
    names = VISION_TASKS["eurosat"].task.class_names
    forest, river = names.index("forest"), names.index("river")
    for split, count in (("train", 8), ("val", 1), ("test", 1)):
        assert datamodule.split("eurosat", split).labels.bincount()[[forest, river]].tolist() == [count, count]
    assert "eurosat: its source has no splits, so they are drawn at random" in " ".join(datamodule.caveats)


def test_pictures_in_two_published_splits_are_counted_not_refused(tmp_path):
    names = VISION_TASKS["flowers102"].task.class_names
    parquet(tmp_path / "flowers102", {"train": [0, 1, 2]}, names)
    parquet(tmp_path / "flowers102", {"validation": [0], "test": [1, 0, 2]}, names, start=2)
    datamodule = datamodule_of("flowers102", root=str(tmp_path))
    assert "flowers102: its train and val splits share 1 example, as the data are published." in datamodule.caveats
    assert len(datamodule.split("flowers102", "val")) == 1


def run(root, cache_gb, workers, tmp_path):
    """Everything that a model sees, and the fingerprints."""
    datamodule = VisionDataModule(["mnist", "svhn"], str(root), None, cache_gb, 4, 4, num_workers=workers)

    class Keeper(Model):
        def training_step(self, batch, batch_idx):
            self.seen.append((batch.task, batch.inputs.clone(), batch.labels.clone()))
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self.seen.append((batch.task, batch.inputs.clone(), batch.labels.clone()))

    model = Keeper()
    trainer = Trainer(
        max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        enable_checkpointing=False, num_sanity_val_steps=0, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(model, datamodule)
    return [entry for entry in model.seen if len(entry) == 3 and torch.is_tensor(entry[1])], datamodule.fingerprints()


def test_the_cache_and_workers_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SHEETBEND_CACHE", str(tmp_path / "cache"))
    mnist(tmp_path)
    parquet(tmp_path / "svhn", {"train": [1, 2, 3], "test": [4, 5, 6, 7, 8]}, DIGITS, start=50)
    seen, prints = run(tmp_path, 0, 0, tmp_path)
    assert len(seen) == 3 + 1 + 1 + 1
    assert not cache_folder("images").exists()
    for cache_gb, workers in ((0, 2), (1, 0), (1, 2)):
        other, other_prints = run(tmp_path, cache_gb, workers, tmp_path)
        assert other_prints == prints and len(other) == len(seen)
        for (task, inputs, labels), (other_task, other_inputs, other_labels) in zip(seen, other, strict=True):
            assert task == other_task and (inputs == other_inputs).all() and (labels == other_labels).all()
        assert cache_folder("images").exists() == bool(cache_gb)
    assert len(ImageCache(10**9).entries()) == 4


def test_prepare_learns_what_is_read(tmp_path):
    datamodule = VisionDataModule(["mnist", "food101"])
    assert datamodule.sources("mnist") == {
        "train": (VISION_TASKS["mnist"].hub, "train"),
        "test": (VISION_TASKS["mnist"].hub, "test"),
    }
    assert datamodule.sources("food101")["test"][1] == "validation"
    mnist(tmp_path)
    assert VisionDataModule(["mnist"], str(tmp_path)).sources("mnist")["train"] == (tmp_path / "mnist", "train")


def without(column):
    return lambda root: mnist(root, **{column: "other"})


def spoiled(root):
    class_folders(root / "svhn" / "train", ("1", "2"), 2)
    class_folders(root / "svhn" / "test", ("1", "2"), 5, 10)
    (root / "svhn" / "test" / "1" / "3.png").write_bytes(b"no picture")


@pytest.mark.parametrize(
    ("task", "make", "message"),
    [
        ("mnist", without("image"), r"folder .*mnist \(train\) has no column 'image'; it has other, label"),
        ("mnist", without("label"), "has no column 'label'"),
        ("mnist", lambda root: parquet(root / "mnist", {"train": [0], "test": [0]}, ["ten"]), "class 'ten' of the sou"),
        (
            "mnist",
            lambda root: parquet(root / "mnist", {"train": [0, -1], "test": [0]}, DIGITS),
            r"row 1 of folder .*mnist \(train\): its label -1 is outside the range \(0 to 9\)",
        ),
        (
            "fer2013",
            lambda root: parquet(root / "fer2013", {"train": [0, 7], "test": [0]}, image="jpg", label="cls"),
            r"task fer2013: row 1 of .*: its label 7 is outside the range \(0 to 6\)",
        ),
        ("mnist", lambda root: parquet(root / "mnist", {"train": [0]}, DIGITS), "no files of a split 'test'"),
        ("mnist", lambda root: mnist(root, test=4), "task mnist: of 4 test examples 20 % for validation are none"),
        ("mnist", lambda root: None, "task mnist: .*mnist is not there; put the files of hub data set ylecun/mnist"),
        ("svhn", spoiled, r"task svhn, val and test: .*test/1/3.png cannot be decoded as a picture"),
        (
            "dtd",
            lambda root: class_folders(root / "dtd" / "train", ("banded",), 1),
            "task dtd: .*dtd has no test split; complete the copy",
        ),
    ],
)
def test_bad_sources_are_one_line(tmp_path, task, make, message):
    make(tmp_path)
    with pytest.raises(SheetbendError, match=message) as caught:
        datamodule_of(task, root=str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_picture_found_to_be_damaged_in_a_worker_is_one_line(tmp_path):
    class_folders(tmp_path / "svhn" / "train", ("1", "2"), 2)
    class_folders(tmp_path / "svhn" / "test", ("1", "2"), 5, 10)
    path = tmp_path / "svhn" / "train" / "1" / "0.png"
    path.write_bytes(path.read_bytes()[:-60])
    datamodule = datamodule_of("svhn", root=str(tmp_path), image_cache_gb=0, num_workers=1)
    with pytest.raises(SheetbendError, match=r"^task svhn, train: .*1/0.png cannot be decoded") as caught:
        list(datamodule.train_dataloader())
    assert "\n" not in str(caught.value)


def test_another_model_gets_pictures_of_its_own_size(tmp_path):
    mnist(tmp_path)
    datamodule = datamodule_of("mnist", root=str(tmp_path))
    model = Model()
    model.image_transform = ImageTransform(4)
    datamodule.attach(model)
    datamodule.setup()
    split = datamodule.split("mnist", "train")
    assert whole(split)[0].shape == (12, 3, 4, 4)
    datamodule.attach(model)
    assert datamodule.split("mnist", "train") is split
    assert len(datamodule.caveats) == len(set(datamodule.caveats))


def test_the_hub_that_cannot_be_reached_is_one_line():
    with pytest.raises(SheetbendError, match=r"ylecun/mnist .*HF_HUB_OFFLINE.*data.init_args.root") as caught:
        datamodule_of("mnist")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split_indices": {"svhn": "x.npy"}}, "data.split_indices names 'svhn', which is none of data.tasks"),
        ({"split_indices": {"mnist": "x.npy"}}, "task mnist: index file x.npy is not there"),
        ({"image_cache_gb": -1}, "data.image_cache_gb is -1; give a size in GB, or 0"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(arguments, message):
    with pytest.raises(SheetbendError, match=message):
        VisionDataModule(["mnist"], **arguments).check_all()


def test_a_model_for_texts_is_refused():
    with pytest.raises(SheetbendError, match="VisionDataModule gives images, and SequenceClassifier takes texts"):
        VisionDataModule(["mnist"]).attach(SequenceClassifier("nowhere"))


def test_a_task_without_a_layout_is_divided_by_default_shares(tmp_path, monkeypatch):
    monkeypatch.setitem(VISION_TASKS, "svhn", replace(VISION_TASKS["svhn"], layout=None))
    class_folders(tmp_path / "svhn", ("1", "2"), 20)
    datamodule = datamodule_of("svhn", root=str(tmp_path))
    assert [len(datamodule.split("svhn", split)) for split in ("train", "val", "test")] == [32, 4, 4]


@pytest.mark.parametrize("quiet", [True, False])
def test_nothing_is_shown_where_it_is_quiet(tmp_path, monkeypatch, quiet):
    seen = []
    monkeypatch.setattr("datamodules.image_tasks.ImageCache", lambda size, quiet: seen.append(quiet) or ImageCache(0))
    mnist(tmp_path)
    datamodule = VisionDataModule(["mnist"], root=str(tmp_path))
    datamodule.quiet = quiet
    datamodule.setup()
    assert seen and set(seen) == {quiet}


def test_twenty_tasks_hold_no_pictures_in_memory(tmp_path):
    mnist(tmp_path)
    split = datamodule_of("mnist", root=str(tmp_path)).split("mnist", "train")
    mapped = split.images.prepare()
    assert isinstance(mapped, MappedImages) and mapped.folder.is_dir()
    assert split.images._source is None


def test_a_stage_decodes_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setenv("SHEETBEND_CACHE", str(tmp_path / "cache"))
    mnist(tmp_path)
    datamodule = VisionDataModule(["mnist"], str(tmp_path))
    cache = ImageCache(10**9)
    for stage, entries in ((None, 0), ("test", 1), ("validate", 1), ("fit", 2)):
        datamodule.setup(stage)
        assert len(cache.entries()) == entries
    assert cache.clear() == []  # all in use
    del datamodule
    assert len(cache.clear()) == 2
    assert not any(path.is_file() and path.suffix != ".lock" for path in cache.folder.rglob("*"))


@pytest.mark.slow
@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_a_whole_published_data_set(tmp_path):
    (tmp_path / "fashion_mnist").symlink_to(FASHION_MNIST)
    datamodule = datamodule_of("fashion_mnist", root=str(tmp_path))
    assert [len(datamodule.split("fashion_mnist", split)) for split in ("train", "val", "test")] == [60000, 2000, 8000]
    assert datamodule.split("fashion_mnist", "train").labels.bincount().tolist() == [6000] * 10
    # Neither other counts than the published ones nor pictures in two splits.
    assert len(datamodule.caveats) == 1
