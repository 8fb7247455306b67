"""The MNIST line as a pipeline: download, train and export, evaluate, deploy.

make manifests        build/pipelines/mnist.yaml, for the Pipelines UI or kfp.Client()
"""

from kfp import dsl

from manifests.pipelines.components import CLAIM, MOUNT, component, image_of, on_volume

mnist_download = component("mnist-download")
mnist_train = component("mnist-train")
mnist_evaluate = component("mnist-evaluate")
deploy_model = component("deploy")


@dsl.pipeline(name="mnist", description="Download MNIST, train and export a network, evaluate and serve it.")
def mnist(  # noqa: PLR0917  (Pipelines calls it by position)
    claim: str = CLAIM,
    folder: str = "mnist",
    dataset: str = "mnist",
    mirror: list = [],  # noqa: B006  (Pipelines reads defaults from the signature and changes none)
    epochs: int = 10,
    batch_size: int = 128,
    learning_rate: float = 0.001,
    hidden: list = [256, 64],  # noqa: B006  (as mirror)
    seed: int = 1,
    acceptable_accuracy: float = 0.95,
    serve: bool = True,
):
    """The pipeline.

    Args:
        claim: The claim that every step mounts at /data.
        folder: Folder in it for all that is made.
        dataset: mnist or fashion-mnist.
        mirror: Base addresses that are tried before the data set's own.
        epochs: Passes over the training examples.
        batch_size: Examples a step.
        learning_rate: At the first step.
        hidden: Units of each hidden layer.
        seed: The same seed gives the same model.
        acceptable_accuracy: The pipeline fails below it.
        serve: Deploy the model on KServe, if it is good enough; the account of the run may do so by
            manifests/overlays/access.
    """
    download = mnist_download(output_dir=f"{MOUNT}/{folder}/data", dataset=dataset, mirror=mirror)
    on_volume(download, claim, cpu="250m", memory="256Mi", memory_limit="1Gi", timeout_s=3600)

    train = mnist_train(
        data_dir=download.outputs["data_dir"], model_dir=f"{MOUNT}/{folder}/model",
        export_dir=f"{MOUNT}/{folder}/exported", epochs=epochs, batch_size=batch_size,
        learning_rate=learning_rate, hidden=hidden, seed=seed,
    )  # fmt: skip
    on_volume(train, claim, cpu="1", memory="1Gi", memory_limit="2Gi", timeout_s=6 * 3600)

    evaluate = mnist_evaluate(
        model=train.outputs["model"], data_dir=download.outputs["data_dir"], output_dir=f"{MOUNT}/{folder}/evaluation",
        acceptable_accuracy=acceptable_accuracy, overwrite=True,
    )  # fmt: skip
    on_volume(evaluate, claim, cpu="500m", memory="1Gi", memory_limit="2Gi", retries=1, timeout_s=3600)

    with dsl.If(serve == True, name="serve"):  # noqa: E712  (makes a condition of the pipeline)
        deploy = deploy_model(
            model_name="mnist", storage_uri=f"pvc://{claim}/{folder}/exported", image=image_of("serve")
        ).after(evaluate)
        on_volume(deploy, claim, cpu="50m", memory="128Mi", memory_limit="256Mi", retries=1, timeout_s=3600)
