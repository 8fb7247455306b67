"""The Pets tutorial as a pipeline: download, extract, convert, train, evaluate, export, predict.

make manifests        build/pipelines/pets.yaml, for the Pipelines UI or kfp.Client().create_run_from_pipeline_package
"""

from kfp import dsl

from manifests.pipelines.components import CLAIM, MOUNT, component, on_volume

download_files = component("download")
extract_archives = component("extract")
convert_records = component("convert")
train_detector = component("train")
evaluate_detector = component("evaluate")
export_model = component("export")
predict_pictures = component("predict")


@dsl.pipeline(name="pets", description="Oxford-IIIT Pet from its archives to an exported and evaluated detector.")
def pets(  # noqa: PLR0917  (Pipelines calls it by position)
    claim: str = CLAIM,
    folder: str = f"{MOUNT}/pets",
    mirror: list = [],  # noqa: B006  (Pipelines reads defaults from the signature and changes none)
    target: str = "heads",
    preset: str = "retinanet-mobile",
    steps: int = 4000,
    batch_size: int = 8,
    seed: int = 0,
    pictures: str = f"{MOUNT}/pets/raw/images/Abyssinian_10*.jpg",
):
    """The pipeline.

    Args:
        claim: The claim that every step mounts at /data.
        folder: Folder on it for all that is made.
        mirror: Base addresses that are tried before the data set's own.
        target: heads, or bodies for masks.
        preset: Configuration of the detector.
        steps: Training steps in all.
        batch_size: Images a step.
        seed: Decides first weights, order and augmentation.
        pictures: What the last step draws boxes on.
    """
    download = download_files(output_dir=f"{folder}/download", dataset="oxford-pets", mirror=mirror)
    on_volume(download, claim, cpu="250m", memory="128Mi", memory_limit="512Mi", timeout_s=6 * 3600)

    extract = extract_archives(
        archive=[
            f"{download.outputs['output_dir']}/images.tar.gz",
            f"{download.outputs['output_dir']}/annotations.tar.gz",
        ],
        output_dir=f"{folder}/raw",
    )
    on_volume(extract, claim, cpu="500m", memory="128Mi", memory_limit="512Mi", timeout_s=3600)

    convert = convert_records(
        data_dir=extract.outputs["output_dir"], output_dir=f"{folder}/records", target=target, workers=2, seed=42
    )
    on_volume(convert, claim, cpu="2", memory="1Gi", memory_limit="3Gi", timeout_s=6 * 3600)

    train = train_detector(
        data_dir=convert.outputs["output_dir"], model_dir=f"{folder}/model", preset=preset, steps=steps,
        batch_size=batch_size, seed=seed,
    )  # fmt: skip
    # A try that is evicted saved a checkpoint, and the next one goes on from it.
    on_volume(train, claim, cpu="2", memory="4Gi", memory_limit="8Gi", retries=10, timeout_s=7 * 24 * 3600)

    evaluate = evaluate_detector(
        data_dir=convert.outputs["output_dir"], model_dir=train.outputs["model_dir"], output_dir=f"{folder}/evaluation",
        overwrite=True,
    )  # fmt: skip
    on_volume(evaluate, claim, cpu="1", memory="2Gi", memory_limit="6Gi", timeout_s=6 * 3600)

    export = export_model(model_dir=train.outputs["model_dir"], output_dir=f"{folder}/exported")
    on_volume(export, claim, cpu="1", memory="2Gi", memory_limit="6Gi", timeout_s=3600)

    predict = predict_pictures(
        model=export.outputs["path"], input=[pictures], output_dir=f"{folder}/predictions", overwrite=True
    )
    predict.after(extract)
    on_volume(predict, claim, cpu="1", memory="1Gi", memory_limit="4Gi", retries=1, timeout_s=3600)
