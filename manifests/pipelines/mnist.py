"""The MNIST line as a pipeline: download, train and export, evaluate.

make manifests        build/pipelines/mnist.yaml, for the Pipelines UI or kfp.Client().create_run_from_pipeline_package
"""

from kfp import dsl

from manifests.pipelines.components import CLAIM, MOUNT, component, on_volume

mnist_download = component("mnist-download")
mnist_train = component("mnist-train")
mnist_evaluate = component("mnist-evaluate")


@dsl.pipeline(name="mnist", description="Download MNIST, train and export a network, evaluate what was exported.")
def mnist(  # noqa: PLR0917  (Pipelines calls it by position)
    claim: str = CLAIM,
    folder: str = f"{MOUNT}/mnist",
    dataset: str = "mnist",
    mirror: list = [],  # noqa: B006  (Pipelines reads defaults from the signature and changes none)
    epochs: int = 10,
    batch_size: int = 128,
    learning_rate: float = 0.001,
    hidden: list = [256, 64],  # noqa: B006
    seed: int = 1,
    acceptable_accuracy: float = 0.95,
):
    """The pipeline.

    Args:
        claim: The claim that every step mounts at /data.
        folder: Folder on it for all that is made.
        dataset: mnist or fashion-mnist.
        mirror: Base addresses that are tried before the data set's own.
        epochs: Passes over the training examples.
        batch_size: Examples a step.
        learning_rate: At the first step.
        hidden: Units of each hidden layer.
        seed: The same seed gives the same model.
        acceptable_accuracy: The pipeline fails below it.
    """
    download = mnist_download(output_dir=f"{folder}/data", dataset=dataset, mirror=mirror)
    on_volume(download, claim, cpu="250m", memory="256Mi", memory_limit="1Gi", timeout_s=3600)

    train = mnist_train(
        data_dir=download.outputs["data_dir"], model_dir=f"{folder}/model", export_dir=f"{folder}/exported",
        epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, hidden=hidden, seed=seed,
    )  # fmt: skip
    on_volume(train, claim, cpu="1", memory="1Gi", memory_limit="2Gi", timeout_s=6 * 3600)

    evaluate = mnist_evaluate(
        model=train.outputs["model"], data_dir=download.outputs["data_dir"], output_dir=f"{folder}/evaluation",
        acceptable_accuracy=acceptable_accuracy, overwrite=True,
    )  # fmt: skip
    on_volume(evaluate, claim, cpu="500m", memory="1Gi", memory_limit="2Gi", retries=1, timeout_s=3600)
