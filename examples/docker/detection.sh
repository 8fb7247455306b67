#!/bin/sh
# The chain in containers: download, extract, convert, train, evaluate, export, predict.
#
#   detection.sh                       on a data set that it draws itself (make docker-quickstart)
#   detection.sh FOLDER ARCHIVE PICTURES
#                                      on an archive with a data set in Pascal VOC layout: FOLDER/ARCHIVE, of which the
#                                      last step predicts PICTURES (a pattern, such as BCCD/JPEGImages/BloodImage_0000*.jpg)
#
# TRAIN_STEPS, IMAGE_SIZE and TRAIN_FLAGS say how to train; steps.sh explains the other variables.
. "$(dirname "$0")/steps.sh"

if [ $# -eq 3 ]; then
  archive=$2
  pictures=$3
  serve --volume="$(cd "$1" && pwd):/source:ro"
else
  archive=shapes.tar.gz
  pictures='shapes/JPEGImages/test_*.jpg'
  echo "Drawing pictures of circles, squares and triangles"
  # shellcheck disable=SC2086
  docker run $hardened --volume="$VOLUME:/data" --volume="$(cd "$(dirname "$0")/.." && pwd):/src/examples:ro" --network=none \
    --workdir=/src --entrypoint=python "$REGISTRY/convert:$TAG" -c "
from pathlib import Path
from examples.quickstart.shapes import pack
Path('/data/source').mkdir(exist_ok=True)
pack(Path('/data/source/$archive'), {'train': 600, 'val': 40, 'test': 100}, 0)"
  serve --volume="$VOLUME:/data:ro" --volume="$VOLUME:/source:ro"
  archive=source/$archive
fi
file=$(basename "$archive")

NETWORK=$network step download --url="http://$server:8000/$archive" --output-dir=/data/download
step extract --archive="/data/download/$file" --output-dir=/data/raw
step convert --data-dir=/data/raw --output-dir=/data/records --workers=2
# shellcheck disable=SC2086
step train --data-dir=/data/records --model-dir=/data/model --preset=retinanet-mobile --steps="${TRAIN_STEPS:-700}" \
  --image-size="${IMAGE_SIZE:-192x256}" ${TRAIN_FLAGS:-}
step evaluate --model-dir=/data/model --data-dir=/data/records --split=test
step export --model-dir=/data/model --output-dir=/data/export
step predict --model=/data/export --input="/data/raw/$pictures" --output-dir=/data/predictions
printf '\nAll results are on the volume %s: docker run --rm --entrypoint ls --volume=%s:/data %s/predict:%s /data/predictions\n' \
  "$VOLUME" "$VOLUME" "$REGISTRY" "$TAG"
