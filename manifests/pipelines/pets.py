"""The Pets tutorial as a pipeline: download, extract, convert, train, evaluate, export, predict, deploy.

    make manifests        build/pipelines/pets.yaml and pets_distributed.yaml, for the Pipelines UI or kfp.Client()

`pets` trains in one pod; `pets_distributed` trains by the TFJob of manifests/base/pets, which the step launch creates
and follows.
"""

from typing import Any

from kfp import dsl

from manifests.pipelines.components import CLAIM, MOUNT, component, image_of, manifest_of, on_volume

download_files = component("download")
extract_archives = component("extract")
convert_records = component("convert")
train_detector = component("train", "steps", "batch_size")
launch_job = component("launch")
evaluate_detector = component("evaluate")
export_model = component("export")
predict_pictures = component("predict")
deploy_model = component("deploy")

DESCRIPTION = "Oxford-IIIT Pet from its archives to a detector that is evaluated, exported and served"


def records(claim: Any, folder: Any, mirror: Any, target: Any) -> tuple[Any, Any]:
    """The tasks from the archives to the records: extract and convert."""
    download = download_files(output_dir=f"{MOUNT}/{folder}/download", dataset="oxford-pets", mirror=mirror)
    on_volume(download, claim, cpu="250m", memory="128Mi", memory_limit="512Mi", timeout_s=6 * 3600)
    raw = download.outputs["output_dir"]
    extract = extract_archives(
        archive=[f"{raw}/images.tar.gz", f"{raw}/annotations.tar.gz"], output_dir=f"{MOUNT}/{folder}/raw"
    )
    on_volume(extract, claim, cpu="500m", memory="128Mi", memory_limit="512Mi", timeout_s=3600)
    convert = convert_records(
        data_dir=extract.outputs["output_dir"], output_dir=f"{MOUNT}/{folder}/records", target=target, workers=2
    )
    on_volume(convert, claim, cpu="2", memory="1Gi", memory_limit="3Gi", timeout_s=6 * 3600)
    return extract, convert


def after_training(
    train: Any, extract: Any, convert: Any, *, claim: Any, folder: Any, pictures: Any, serve: Any
) -> None:
    """The tasks from the trained model to the served one."""
    evaluate = evaluate_detector(
        data_dir=convert.outputs["output_dir"], model_dir=f"{MOUNT}/{folder}/model",
        output_dir=f"{MOUNT}/{folder}/evaluation", overwrite=True,
    ).after(train)  # fmt: skip
    on_volume(evaluate, claim, cpu="1", memory="2Gi", memory_limit="6Gi", timeout_s=6 * 3600)
    export = export_model(model_dir=f"{MOUNT}/{folder}/model", output_dir=f"{MOUNT}/{folder}/exported").after(train)
    on_volume(export, claim, cpu="1", memory="2Gi", memory_limit="6Gi", timeout_s=3600)
    predict = predict_pictures(
        model=export.outputs["path"], input=[pictures], output_dir=f"{MOUNT}/{folder}/predictions", overwrite=True
    ).after(extract)
    on_volume(predict, claim, cpu="1", memory="1Gi", memory_limit="4Gi", retries=1, timeout_s=3600)
    with dsl.If(serve == True, name="serve"):  # noqa: E712  (makes a condition of the pipeline)
        deploy = deploy_model(
            model_name="pets", storage_uri=f"pvc://{claim}/{folder}/exported", image=image_of("serve")
        ).after(export)
        on_volume(deploy, claim, cpu="50m", memory="128Mi", memory_limit="256Mi", retries=1, timeout_s=3600)


@dsl.pipeline(name="pets", description=f"{DESCRIPTION}.")
def pets(  # noqa: PLR0917  (Pipelines calls it by position)
    claim: str = CLAIM,
    folder: str = "pets",
    mirror: list = [],  # noqa: B006  (Pipelines reads defaults from the signature and changes none)
    target: str = "heads",
    preset: str = "retinanet-mobile",
    steps: int = 4000,
    batch_size: int = 8,
    seed: int = 0,
    pictures: str = f"{MOUNT}/pets/raw/images/Abyssinian_10*.jpg",
    serve: bool = True,
):
    """Train in one pod.

    Args:
        claim: The claim that every step mounts at /data.
        folder: Folder in it for all that is made.
        mirror: Base addresses that are tried before the data set's own.
        target: heads, or bodies for masks.
        preset: Configuration of the detector.
        steps: Training steps in all.
        batch_size: Images a step.
        seed: Decides first weights, order and augmentation.
        pictures: What the step predict draws boxes on.
        serve: Deploy the model on KServe; the account of the run may do so by manifests/overlays/access.
    """
    extract, convert = records(claim, folder, mirror, target)
    train = train_detector(
        data_dir=convert.outputs["output_dir"], model_dir=f"{MOUNT}/{folder}/model", preset=preset, steps=steps,
        batch_size=batch_size, seed=seed,
    )  # fmt: skip
    # A try that is evicted saved a checkpoint, and the next one goes on from it.
    on_volume(train, claim, cpu="2", memory="4Gi", memory_limit="8Gi", retries=10, timeout_s=7 * 24 * 3600)
    after_training(train, extract, convert, claim=claim, folder=folder, pictures=pictures, serve=serve)


@dsl.pipeline(name="pets-distributed", description=f"{DESCRIPTION}; training by a TFJob.")
def pets_distributed(
    mirror: list = [],  # noqa: B006
    preset: str = "retinanet-mobile",
    steps: int = 4000,
    pictures: str = f"{MOUNT}/pets/raw/images/Abyssinian_10*.jpg",
    serve: bool = True,
):
    """Train by a TFJob on the claim data, which has its place in the manifest.

    Args:
        mirror: Base addresses that are tried before the data set's own.
        preset: Configuration of the detector.
        steps: Training steps in all.
        pictures: What the step predict draws boxes on.
        serve: Deploy the model on KServe; the account of the run may do so by manifests/overlays/access.
    """
    claim, folder = CLAIM, "pets"
    extract, convert = records(claim, folder, mirror, "heads")
    train = launch_job(
        manifest=manifest_of("pets", {"--steps=4000": "--steps=${steps}"}, ["--preset=${preset}"]),
        set=[f"steps={steps}", f"preset={preset}"], timeout_s=7.0 * 24 * 3600, overwrite=True, delete_on_stop=True,
    ).after(convert)  # fmt: skip
    on_volume(train, claim, cpu="50m", memory="128Mi", memory_limit="256Mi", retries=10, timeout_s=7 * 24 * 3600)
    after_training(train, extract, convert, claim=claim, folder=folder, pictures=pictures, serve=serve)
