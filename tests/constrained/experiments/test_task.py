"""Data: those that are built in, and what functions of users return."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.data import TensorDataset

from constrained.experiments.copying import copying
from constrained.experiments.digits import digits
from constrained.experiments.iris import iris
from constrained.experiments.task import Task, accuracy, mean_squared_error


class TestDigits:
    def test_pixels_come_one_by_one(self):
        pixels, rows = digits(order="pixels"), digits(order="rows")
        assert pixels.train[0].shape == (1437, 64, 1)
        assert torch.equal(pixels.train[0].flatten(1), rows.train[0].flatten(1))
        assert rows.train[0].std().item() == pytest.approx(1, abs=1e-3)
        assert (pixels.offers["inputs"], rows.offers["inputs"]) == (1, 8)

    def test_no_image_is_in_both_parts(self):
        task = digits()
        train, test = (set(map(bytes, part[0].numpy())) for part in (task.train, task.test))
        assert not train & test
        assert len(task.train[0]) + len(task.test[0]) == 1797

    def test_noise_is_drawn_anew_for_each_batch_and_alike_for_each_network(self):
        task = digits(noise_steps=100)
        epochs = [
            [inputs for inputs, _ in task.batches(500, torch.Generator().manual_seed(0))]
            for _ in "ab"
        ]
        assert all(map(torch.equal, *epochs))
        assert epochs[0][0].shape == (500, 108, 8)
        assert not torch.equal(epochs[0][0][0, 8:], epochs[0][1][0, 8:])
        assert epochs[0][0][:, 8:].std().item() == pytest.approx(0.1, rel=0.05)
        assert len(epochs[0]) == task.steps(500) == 3


class TestCopying:
    def test_what_is_read_is_to_be_written(self):
        task = copying(wait=5, symbols=4, length=3, train=7, test=2, seed=1)
        inputs, targets = task.train
        assert inputs.shape == (7, 11, 6)
        assert targets.shape == (7, 11)
        read = inputs.argmax(-1)
        assert torch.equal(read[:, :3], targets[:, -3:])
        assert bool((read[:, :3] < 4).all())
        # Blanks, and the signal just before the answer.
        assert read[:, 3:].tolist() == [[4] * 4 + [5] + [4] * 3] * 7
        assert bool((targets[:, :-3] == 4).all())

    def test_the_baseline_is_what_guessing_reaches(self):
        task = copying(wait=20, train=1, test=2000)
        targets = task.test[1]
        logits = torch.full((*targets.shape, 9), -100.0)
        logits[:, :-10, 8] = 100.0
        logits[:, -10:, :8] = 0.0
        assert task.loss(logits, targets).item() == pytest.approx(task.baselines["loss"], rel=1e-4)
        assert task.baselines["loss"] == pytest.approx(10 * math.log(8) / 40)
        reached = task.metrics["accuracy"](logits, targets).item()
        assert reached == pytest.approx(task.baselines["accuracy"], abs=0.01)

    def test_the_accuracy_is_that_of_the_symbols(self):
        task = copying(wait=4, length=2, train=1, test=3)
        targets = task.test[1]
        right = torch.nn.functional.one_hot(targets, 9).float()
        assert task.metrics["accuracy"](right, targets).item() == 1
        blank = torch.nn.functional.one_hot(torch.full_like(targets, 8), 9).float()
        assert task.metrics["accuracy"](blank, targets).item() == 0


def test_iris():
    task = iris(seed=3)
    assert task.train[0].shape == (105, 4)
    assert len(task.test[0]) == 45
    assert torch.bincount(task.test[1]).tolist() == [15, 15, 15]
    torch.testing.assert_close(task.train[0].mean(0), torch.zeros(4), atol=1e-6, rtol=0)
    assert not torch.equal(task.train[1], iris(seed=4).train[1])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: digits(order="lines"), "order must be one of rows, pixels, got 'lines'."),
        (lambda: digits(noise_steps=-1), "noise_steps must be at least 0, got -1."),
        (lambda: digits(noise_scale="x"), "noise_scale must be a number, got 'x'."),
        (lambda: digits(test_fraction=1), "test_fraction must be at most 0.95, got 1."),
        (lambda: copying(wait=0), "wait must be at least 1, got 0."),
        (lambda: copying(symbols=True), "symbols must be a whole number, got True."),
        (lambda: iris(test_fraction=None), "test_fraction must be a number, got None."),
    ],
)
def test_arguments_are_checked(make, sentence):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == sentence


class TestOfUsers:
    inputs = torch.arange(12.0).reshape(6, 2)
    classes = torch.tensor([0, 1, 2, 0, 1, 2])

    def test_a_pair_with_classes(self):
        task = Task.of(((self.inputs, self.classes), (self.inputs, self.classes)))
        assert list(task.measures()) == ["loss", "accuracy"]

    def test_a_pair_with_numbers(self):
        task = Task.of(((self.inputs, self.inputs), (self.inputs, self.inputs)))
        assert list(task.measures()) == ["loss"]
        assert task.loss is mean_squared_error

    def test_datasets(self):
        data = TensorDataset(self.inputs, self.classes)
        task = Task.of((data, data))
        (batch,) = task.batches(6, torch.Generator().manual_seed(0))
        pairs = {(*row.tolist(), int(label)) for row, label in zip(*batch, strict=True)}
        assert pairs == {(*self.inputs[i].tolist(), int(self.classes[i])) for i in range(6)}
        assert list(task.measures()) == ["loss", "accuracy"]

    def test_many_test_examples_come_in_batches(self):
        many = torch.zeros(2500, 2), torch.zeros(2500, dtype=torch.long)
        sizes = [len(inputs) for inputs, _ in Task.classification(many, many).test_batches()]
        assert sizes == [1000, 1000, 500]

    @pytest.mark.parametrize(
        ("returned", "part"),
        [
            (None, "returned a NoneType."),
            ((1, 2, 3), "returned a tuple."),
            ((1, 2), "its training examples must be a pair of tensors or a Dataset with a length, "
             "and are a int."),
            (((torch.zeros(3, 2), torch.zeros(4)),) * 2, "its training examples must be inputs and "
             "targets of one length, and are tensors of the shapes (3, 2), (4,)."),
            (((torch.zeros(3), torch.zeros(3), torch.zeros(3)),) * 2, "of one length"),
            (((torch.zeros(0, 2), torch.zeros(0)),) * 2, "it has no training examples."),
            (((torch.zeros(2, 2), torch.zeros(2)), ([1.0, 2.0])), "its test examples must be"),
        ],
    )  # fmt: skip
    def test_what_is_no_data(self, returned, part):
        with pytest.raises(ValueError) as error:
            Task.of(returned)
        assert part in str(error.value)

    def test_outputs_of_another_shape(self):
        with pytest.raises(ValueError, match=r"outputs have the shape \(3, 1\)"):
            mean_squared_error(torch.zeros(3, 1), torch.zeros(3))

    def test_accuracy_of_sequences(self):
        logits = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
        assert accuracy(logits, torch.tensor([[0, 1], [0, 1]])).item() == 0.75
