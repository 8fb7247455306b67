import numpy as np
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def examples(mnist):
    return mnist.train[:1000]


def learner_of(**settings):
    from mlcore.mnist.learner import Learner
    from mlcore.mnist.network import Network

    network = Network((28, 28), (32, 16), 10, seed=3, dropout=settings.pop("dropout", 0.0))
    return Learner(network, **{"learning_rate": 0.01, "total_steps": 100, **settings})


def weights(learner):
    return [variable.numpy() for variable in learner.network.parameters]


def test_epoch_has_every_example_once_and_each_epoch_another_order(examples):
    from mlcore.data.mnist import Examples
    from mlcore.mnist.batches import Batches
    from mlcore.mnist.tensorflow import tf

    numbers = np.arange(1000)
    imgs = np.stack([numbers // 256, numbers % 256], axis=1).astype(np.uint8).reshape(1000, 1, 2)
    batches = Batches(Examples(imgs, examples.labels), 96, seed=1)
    assert batches.per_epoch == 11
    epochs = []
    for epoch in range(3):
        parts = [batches.batch(tf.constant(epoch * 11 + k, tf.int64)) for k in range(11)]
        assert [len(labels) for _, labels in parts] == [96] * 10 + [40]
        pixels = np.concatenate([part.numpy() for part, _ in parts]).astype(int)
        epochs.append(pixels[:, 0] * 256 + pixels[:, 1])
        labels = np.concatenate([labels.numpy() for _, labels in parts])
        np.testing.assert_array_equal(labels, examples.labels[epochs[-1]])
        np.testing.assert_array_equal(np.sort(epochs[-1]), numbers)
    assert (epochs[0] != epochs[1]).mean() > 0.9 and (epochs[1] != epochs[2]).mean() > 0.9
    other = Batches(Examples(imgs, examples.labels), 96, seed=2).batch(tf.constant(0, tf.int64))[1]
    assert (other.numpy() != batches.batch(tf.constant(0, tf.int64))[1].numpy()).any()


def test_parts_of_a_batch_add_up_to_the_whole(examples):
    from mlcore.mnist.batches import Batches
    from mlcore.mnist.learner import steps_in_graph

    batches = Batches(examples, 100, seed=1)
    trained = []
    for parts in (1, 2, 3):
        learner = learner_of(optimizer="momentum", parts=parts)
        sums = steps_in_graph(learner, batches)(0, 15)
        assert sums[2] == 1500
        trained.append((sums, weights(learner)))
    for sums, values in trained[1:]:
        np.testing.assert_allclose(sums, trained[0][0], rtol=1e-4)
        for value, expected in zip(values, trained[0][1], strict=True):
            np.testing.assert_allclose(value, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["adam", "sgd", "momentum", "rmsprop", "adagrad"])
def test_optimizer_does_what_that_of_keras_does(name):
    import tf_keras

    from mlcore.mnist.optimizers import Optimizer
    from mlcore.mnist.tensorflow import tf

    peer = {
        "adam": tf_keras.optimizers.Adam,
        "sgd": tf_keras.optimizers.SGD,
        "momentum": lambda rate: tf_keras.optimizers.SGD(rate, momentum=0.9),
        "rmsprop": tf_keras.optimizers.RMSprop,
        "adagrad": tf_keras.optimizers.Adagrad,
    }[name](0.05)
    ours, theirs = tf.Variable([1.0, -2.0, 0.5]), tf.Variable([1.0, -2.0, 0.5])
    optimizer = Optimizer(name, [ours])
    for step in range(1, 6):
        gradient = tf.constant([0.3, -1.0, 0.001]) * float(step)
        optimizer.apply([gradient], step=tf.constant(float(step)), learning_rate=0.05)
        peer.apply_gradients([(gradient, theirs)])
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=2e-5)
    assert abs(ours.numpy() - [1.0, -2.0, 0.5]).min() > 1e-4


def test_cosine_ends_at_zero_and_constant_stays():
    cosine, constant = learner_of(schedule="cosine"), learner_of(schedule="constant")
    rates = [float(cosine.rate(float(step))) for step in (1, 51, 101, 200)]
    np.testing.assert_allclose(rates, [0.01, 0.005, 0, 0], atol=1e-8)
    assert float(constant.rate(200.0)) == pytest.approx(0.01)


def test_dropout_follows_from_seed_and_step_and_is_off_in_evaluation():
    from mlcore.mnist.tensorflow import tf

    network = learner_of(dropout=0.5).network
    pixels = tf.random.stateless_uniform([4, 784], [1, 2])
    step = [tf.constant(number, tf.int64) for number in (1, 2)]
    one, again, two = (network.logits(pixels, dropout_step=number).numpy() for number in (step[0], step[0], step[1]))
    np.testing.assert_array_equal(one, again)
    assert (one != two).any()
    np.testing.assert_array_equal(network.logits(pixels).numpy(), network.logits(pixels).numpy())
    assert (network.logits(pixels).numpy() != one).any()


def test_step_works_under_a_strategy(examples):
    from mlcore.mnist.batches import Batches
    from mlcore.mnist.tensorflow import tf

    plain = learner_of()
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        distributed = learner_of()
    batches = Batches(examples, 50, seed=1)
    for number in range(3):
        batch = batches.batch(tf.constant(number, tf.int64))
        plain.train_step(*batch)
        strategy.run(tf.function(distributed.train_step), args=batch)
    assert int(distributed.step.numpy()) == 3
    for value, expected in zip(weights(distributed), weights(plain), strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-6)


def test_evaluator_counts_every_example(examples):
    from mlcore.mnist.learner import evaluator

    network = learner_of().network
    evaluate = evaluator(network, examples[:937])
    loss, confusion = evaluate()
    assert confusion.sum() == 937
    np.testing.assert_array_equal(confusion.sum(axis=1), np.bincount(examples.labels[:937], minlength=10))
    assert 1.5 < loss < 4
