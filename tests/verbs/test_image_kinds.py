"""Images and targets of every kind, for every verb that takes them."""

import io
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, Subset, TensorDataset

import secateur
from secateur.data.batches import as_batches
from secateur.data.images import open_images
from secateur.data.items import as_items, count_of, has_labels
from secateur.data.preprocessing import Preprocessing
from secateur.data.sources.named import copy_stream
from secateur.errors import Advice, UserError
from secateur.masks.settings import LearnSettings
from secateur.training.heal_and_train import HealSettings
from secateur.verbs.load import open_data
from tests.data.made_up import SMALL, make_folder, png

N, CLASSES = 12, 10


def model_of(**changes: Any) -> nn.Module:
    """Two blocks on images of 32 pixels."""
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", **{"num_classes": CLASSES, **sizes, **changes}
    ).eval()


def images_of(channels: int = 3, height: int = 32, width: int = 32, n: int = N) -> Tensor:
    return torch.randn(n, channels, height, width, generator=torch.Generator().manual_seed(0))


X = images_of()
Y = torch.arange(N) % CLASSES


class Pairs(Dataset[Any]):
    """Images with a target that is made for each."""

    def __init__(self, target: Callable[[int], Any]) -> None:
        self.target = target

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return X[index], self.target(index)


def boxes(index: int) -> dict[str, Tensor]:
    return {"boxes": torch.rand(index % 3, 4), "labels": torch.zeros(index % 3)}


def as_they_are(items: list[Any]) -> Any:
    """How detection loaders collate."""
    return tuple(zip(*items, strict=True))


TARGETS: dict[str, object] = {
    "floats": (X, torch.rand(N)),
    "many floats": (X, torch.rand(N, 4)),
    "multi-hot": (X, torch.ones(N, CLASSES, dtype=torch.int64)),
    "masks": (X, torch.ones(N, 32, 32, dtype=torch.int64)),
    "data set of floats": TensorDataset(X, torch.rand(N)),
    "data set of masks": TensorDataset(X, torch.ones(N, 1, 32, 32)),
    "data set of boxes": Pairs(boxes),
    "data set of words": Pairs(lambda index: f"cat {index}"),
    "loader of floats": DataLoader(TensorDataset(X, torch.rand(N, 3)), 4),
    "loader of boxes": DataLoader(Pairs(boxes), 4, collate_fn=as_they_are),
    "loader of dicts": DataLoader(Pairs(lambda index: {"score": index / 2}), 4),
    "list of batches": [(X[i : i + 4], torch.rand(4, 2)) for i in (0, 4, 8)],
    "list of images": [(x, boxes(index)) for index, x in enumerate(X)],
    "three parts": DataLoader(TensorDataset(X, torch.rand(N), Y), 4),
}


@pytest.mark.parametrize("images", TARGETS.values(), ids=TARGETS)
def test_other_targets_pass_where_no_labels_are_needed_alone(images: object) -> None:
    batches = as_batches(images, 4, any_targets=True)
    assert (batches.images, batches.labelled, batches.shape) == (N, False, (3, 32, 32))
    assert torch.equal(torch.cat([batch.images_BCHW for batch in batches]), X)
    assert torch.equal(torch.cat([b.images_BCHW for b in batches.every(1, 2)]), X[4:8])
    with pytest.raises(UserError, match=r"one class number per image|found a|cannot be batched"):
        list(as_batches(images, 4))
    items = as_items(images, labels_needed=False)
    assert (count_of(items), has_labels(items)) == (N, False)
    with pytest.raises(UserError, match=r"one class number per image|found a|cannot be batched"):
        as_items(images, labels_needed=True)


@pytest.mark.parametrize("images", [TARGETS["multi-hot"], TARGETS["loader of boxes"]])
def test_other_targets_by_verb(images: object) -> None:
    model = model_of()
    assert secateur.prune(model, images, "90% params", preset="energy").cost.params
    with pytest.raises(UserError, match="one class number per image"):
        secateur.evaluate(model, images)
    with pytest.raises(UserError, match="one class number per image"):
        secateur.heal(model, images, reference=model, labels=True)


class Mixed(Dataset[Any]):
    def __init__(self, odd: int) -> None:
        self.odd = odd

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return torch.zeros(3, 32, 40) if index == self.odd else X[index]


MIXED = {
    "list of images": [X[0], torch.zeros(3, 32, 40)],
    "list of batches": [X, torch.zeros(2, 3, 40, 32)],
    "other channels": [X, torch.zeros(2, 1, 32, 32)],
    "data set, last": Mixed(N - 1),
    "data set, middle": Mixed(5),
    "loader, middle": DataLoader(Mixed(5), 4),
    "loader, a whole batch": DataLoader(Mixed(5), 1),
    "loader with workers": DataLoader(Mixed(5), 4, num_workers=1),
    "loader of lists": DataLoader(Pairs(boxes), 4, collate_fn=lambda items: [X[0], X[:, :, :9][0]]),
}


@pytest.mark.parametrize("images", MIXED.values(), ids=MIXED)
def test_mixed_sizes_are_refused(images: object) -> None:
    with pytest.raises(UserError, match="one size"):
        secateur.prune(model_of(), images, "90% params", preset="energy")


WRONG = {
    "size": (images_of(height=48, width=48), r"\[3, 48, 48\].*takes \[3, 32, 32\]"),
    "shape": (images_of(width=40), r"\[3, 32, 40\].*takes \[3, 32, 32\]"),
    "one channel": (images_of(1), r"\[1, 32, 32\].*takes \[3, 32, 32\]"),
    "four channels": (images_of(4), r"\[4, 32, 32\].*takes \[3, 32, 32\]"),
    "channels last": (X.permute(0, 2, 3, 1), r"\[32, 32, 3\].*takes \[3, 32, 32\]"),
    "bytes": ((X * 99).to(torch.uint8), "torch.uint8"),
    "whole numbers": (X.long(), "torch.int64"),
}


@pytest.mark.parametrize("kind", ["tensor", "loader", "list", "pair"])
@pytest.mark.parametrize(("images", "words"), WRONG.values(), ids=WRONG)
def test_images_that_the_model_does_not_take_are_refused_before_the_work(
    images: Tensor, words: str, kind: str
) -> None:
    given: dict[str, object] = {
        "tensor": images,
        "loader": DataLoader(TensorDataset(images, Y), 4),
        "list": list(images),
        "pair": (images, Y),
    }
    model = model_of()
    calls: list[int] = []
    model.norm.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))  # type: ignore[union-attr, operator]
    for verb in (
        lambda: secateur.prune(model, given[kind], "90% params", preset="energy"),
        lambda: secateur.evaluate(model, given[kind]),
        lambda: secateur.heal(model, given[kind], reference=model),
        lambda: secateur.train(model, given[kind]),
    ):
        with pytest.raises(UserError, match=words):
            verb()
    # WHY not none at all: to find out how a model was built, it is shown a few images of noise.
    assert all(images < 4 for images in calls)


def test_one_image_alone_is_refused() -> None:
    for verb in (
        lambda: secateur.prune(model_of(), X[0], "90% params"),
        lambda: secateur.train(model_of(), X[0]),
    ):
        with pytest.raises(UserError, match=r"\[n, C, H, W\]"):
            verb()


def test_a_model_of_any_size_takes_any() -> None:
    model = model_of(dynamic_img_size=True)
    batches, _ = open_data(model, images_of(height=48, width=48))
    assert batches.shape == (3, 48, 48)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_other_types_are_pruned_from_files(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = make_folder(tmp_path / "d", {str(label): 2 for label in range(CLASSES)})
    model = model_of().to(dtype)
    result = secateur.prune(model, folder, "90% params", eval_images=folder)
    assert next(result.model.parameters()).dtype == dtype
    assert result.accuracy is not None and result.accuracy.n == 2 * CLASSES
    batches, _ = open_data(model, DataLoader(TensorDataset(X, Y), 4))
    assert {batch.images_BCHW.dtype for batch in batches} == {dtype}


@pytest.mark.parametrize("channels", [2, 4, 13])
def test_models_of_any_channels_are_pruned_saved_and_loaded(tmp_path: Path, channels: int) -> None:
    model = model_of(in_chans=channels)
    images = images_of(channels)
    result = secateur.prune(model, (images, Y), "90% params", preset="energy")
    result.save(tmp_path / "small")
    loaded = secateur.load(tmp_path / "small")
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), result.model(images))
    assert len(Preprocessing.of(loaded).mean) == channels
    folder = make_folder(tmp_path / "d", {"a": 1})
    with pytest.raises(UserError, match=f"{channels} channels, but image files have 1 or 3"):
        secateur.prune(model, folder, "90% params", preset="energy")


def test_folders_of_other_classes_serve_where_no_labels_are_needed(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", {"cat": 4, "dog": 4, "owl": 4})
    model = model_of()
    for verb in (
        lambda: secateur.prune(model, folder, "90% params", preset="energy"),
        lambda: secateur.analyze(model, folder, latency=False),
    ):
        with pytest.warns(Advice, match="labels of .* are not used"):
            verb()
    with warnings.catch_warnings():
        warnings.simplefilter("error", Advice)
        for needing in (
            lambda: secateur.evaluate(model, folder),
            lambda: secateur.train(model, folder),
            lambda: secateur.heal(model, folder, reference=model, labels=True),
            lambda: secateur.prune(model, X, "90% params", eval_images=folder),
        ):
            with pytest.raises(UserError, match=r"3 classes .*10 outputs"):
                needing()


def parquet_of(file: Path, labels: list[int]) -> Path:
    rows = [{"bytes": png(label % 256), "path": None} for label in labels]
    pq.write_table(pa.table({"image": rows, "label": labels}), file)
    return file


@pytest.mark.parametrize(
    ("labels", "outputs"), [(range(10), 1000), ([0, 1, 0, 1] * 5, 37), ([3] * 20, 100)]
)
def test_numbers_without_names_are_not_scored_by_position(
    tmp_path: Path, labels: list[int], outputs: int
) -> None:
    file = parquet_of(tmp_path / "a.parquet", list(labels))
    with pytest.raises(UserError, match=f"without naming them.*{outputs} outputs"):
        open_images(file, SMALL, num_classes=outputs)
    with pytest.warns(Advice, match="are not used"):
        images = open_images(file, SMALL, num_classes=outputs, labels_needed=False)
    assert not images.labelled


def table_of(file: Path, labels: pa.Array) -> Path:
    rows = [{"bytes": png(shade), "path": None} for shade in range(len(labels))]
    pq.write_table(pa.table({"image": rows, "label": labels}), file)
    return file


NO_LABELS = {
    "floats": (pa.array([0.5, 1.5]), "is double; labels must be integers"),
    "words": (pa.array(["cat", "dog"]), "is string; labels must be integers"),
    "several": (pa.array([[0, 1], [2]]), "is list.*; labels must be integers"),
    "boxes": (pa.array([{"x": 1.0}, {"x": 2.0}]), "is struct.*; labels must be integers"),
    "some": (pa.array([1, None]), "only 1 of 2 images have a label"),
    "beyond": (pa.array([1, 12]), "13 classes"),
}


@pytest.mark.parametrize(("labels", "words"), NO_LABELS.values(), ids=NO_LABELS)
def test_labels_in_files_that_are_no_classes_are_left_out_where_none_are_needed(
    tmp_path: Path, labels: pa.Array, words: str
) -> None:
    file = table_of(tmp_path / "a.parquet", labels)
    with pytest.raises(UserError, match=words):
        secateur.evaluate(model_of(), file)
    with pytest.warns(Advice, match=f"are not used: .*{words.partition('; ')[0]}"):
        batches, used = open_data(model_of(), file, labels_needed=False)
    assert (batches.images, batches.labelled, used.classes) == (2, False, 0)


def test_labels_of_streams_and_shards_that_are_no_classes(tmp_path: Path) -> None:
    found = copy_stream([(Image.new("L", (2, 2)), [0, 1])], "tfds/x", "x")
    assert found.labels is None and "not one class number" in str(found.problem)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (("0.png", png(1)), ("0.cls", b"cat")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with pytest.warns(Advice, match="is not an integer"):
        images = open_images(tmp_path, SMALL, num_classes=10, labels_needed=False)
    assert (len(images), images.labelled) == (1, False)


def test_numbers_over_all_outputs_are_trusted(tmp_path: Path) -> None:
    some = np.random.default_rng(0).integers(0, 1000, 30).tolist()
    assert open_images(parquet_of(tmp_path / "a.parquet", some), SMALL, num_classes=1000).labelled
    assert open_images(parquet_of(tmp_path / "b.parquet", [0]), SMALL, num_classes=10).labelled


class Shuffled(BatchSampler):
    """A batch sampler of its own kind, of some of the images, some twice."""

    def __init__(self) -> None: ...

    def __iter__(self) -> Any:
        return iter([[5, 1], [1, 3, 7]])

    def __len__(self) -> int:
        return 2


DATA = TensorDataset(X, Y)
LOADERS = {
    "in order": (DataLoader(DATA, 5), list(range(N))),
    "shuffled": (DataLoader(DATA, 5, shuffle=True, drop_last=True), list(range(N))),
    "part": (DataLoader(Subset(DATA, [2, 4]), 2), [2, 4]),
    "drawn": (DataLoader(DATA, 2, sampler=torch.utils.data.SubsetRandomSampler([7, 2])), [2, 7]),
    "own batches": (DataLoader(DATA, batch_sampler=Shuffled()), [1, 3, 5, 7]),
    "own collation": (
        DataLoader(DATA, 5, collate_fn=lambda items: tuple(map(torch.stack, zip(*items)))),  # noqa: B905
        list(range(N)),
    ),
    "batches": ([(X[:5], Y[:5]), (X[5:], Y[5:])], list(range(N))),
    "images": (list(zip(X, Y, strict=True)), list(range(N))),
    "data set": (DATA, list(range(N))),
    "pair": ((X, Y), list(range(N))),
}


@pytest.mark.parametrize(("given", "numbers"), LOADERS.values(), ids=LOADERS)
def test_training_takes_every_image_once(given: object, numbers: list[int]) -> None:
    before = torch.get_rng_state()
    items: Any = as_items(given, labels_needed=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert (count_of(items), has_labels(items)) == (len(numbers), True)
    pairs = list(zip(*items, strict=True)) if isinstance(items, tuple) else items
    for number, (image, label) in zip(numbers, pairs, strict=True):
        assert torch.equal(image, X[number])
        assert int(label) == int(Y[number])


def test_healing_and_training_from_a_loader() -> None:
    from secateur.training.heal_and_train import FineTuneSettings, HealSettings

    model = model_of()
    result = secateur.prune(model, X, "80% params", preset="energy")
    loader = DataLoader(DATA, 4, shuffle=True)
    quick: dict[str, Any] = {"epochs": None, "steps": 2, "batch_size": 4, "held_out": 0.25}
    healed = secateur.heal(result, loader, reference=model, settings=HealSettings(**quick))
    assert healed.data.images == N
    same = secateur.heal(result, (X, Y), reference=model, settings=HealSettings(**quick))
    for mine, theirs in zip(healed.model.parameters(), same.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    trained = secateur.train(model, [(X, Y)], settings=FineTuneSettings(**quick))
    assert trained.data.images == N


@pytest.mark.parametrize("given", [torch.float16, torch.float64])
def test_training_casts_images_to_the_type_of_the_model(given: torch.dtype) -> None:
    from secateur.training.heal_and_train import FineTuneSettings, HealSettings

    model, pairs = model_of(), TensorDataset(X.to(given), Y)
    quick: dict[str, Any] = {"steps": 2, "batch_size": 4, "held_out": 0.25}
    assert secateur.train(model, pairs, settings=FineTuneSettings(**quick)).data.images == N
    healing = HealSettings(**quick, refit_head=True)
    assert secateur.heal(model, pairs, reference=model, settings=healing).data.images == N


def test_learning_counts_images_and_leaves_out_other_targets() -> None:
    from secateur.masks.settings import LearnSettings
    from secateur.training.distillation.objectives import DistilSettings

    distil = DistilSettings(logit_weight=1.0, label_weight=0.0)
    settings = LearnSettings(steps=8, batch_size=4, held_out=0.25, distil=distil)
    loader = DataLoader(TensorDataset(X, torch.rand(N, 3)), 4)
    with pytest.raises(UserError, match="one class number per image"):
        secateur.learn(model_of(), loader, "90% params")
    learned = secateur.learn(
        model_of(), loader, "90% params", settings=settings, criterion="magnitude"
    )
    assert learned.result.data.images == N
    assert any("no labels" in note for note in learned.result.notes)


@pytest.mark.parametrize("verb", ["prune", "evaluate", "heal", "learn"])
@pytest.mark.parametrize("kind", [np.float64, np.uint8, object])
def test_arrays_are_taken_as_tensors_are(verb: str, kind: type) -> None:
    model, images = model_of(), images_of(n=24).numpy().astype(kind)
    call: dict[str, Callable[[Any], Any]] = {
        "prune": lambda x: secateur.prune(model, x, "80% macs", preset="energy"),
        "evaluate": lambda x: secateur.evaluate(model, x, reference=model),
        "heal": lambda x: secateur.heal(model, x, reference=model, settings=HealSettings(steps=1)),
        "learn": lambda x: secateur.learn(model, x, "80% macs", settings=LearnSettings(steps=1)),
    }
    for given in (images, (images, np.arange(24) % CLASSES)):
        if kind is np.float64:
            call[verb](given)
        else:
            with pytest.raises(UserError, match=r"(array of object|images are torch.uint8)"):
                call[verb](given)


def test_a_model_of_any_size_is_healed_by_a_teacher_of_any_size_or_told() -> None:
    student, x = model_of(dynamic_img_size=True), images_of(height=48, width=40, n=24)
    settings = HealSettings(steps=1, batch_size=8)
    loader = DataLoader(TensorDataset(x), 8)
    secateur.heal(student, loader, reference=model_of(dynamic_img_size=True), settings=settings)
    with pytest.raises(UserError, match=r"the reference cannot see these images: .*\[3, 48, 40\]"):
        secateur.heal(student, loader, reference=model_of(), settings=settings)
    outputs = {"token_weight": 0.0, "feature_weight": 0.0, "layerwise": 0.0}
    alone = settings.model_copy(update={"distil": settings.distil.model_copy(update=outputs)})
    secateur.heal(student, loader, reference=model_of(img_size=64), settings=alone)
