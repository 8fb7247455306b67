#!/bin/sh
# The MNIST chain in containers: download, train with export, evaluate.
#
#   mnist.sh            downloads MNIST from its known addresses
#   mnist.sh FOLDER     takes the four files from a folder on this machine
#
# EPOCHS says how long to train; steps.sh explains the other variables.
. "$(dirname "$0")/steps.sh"

if [ $# -eq 1 ]; then
  serve --volume="$(cd "$1" && pwd):/source:ro"
  NETWORK=$network step mnist-download --mirror="http://$server:8000" --output-dir=/data/mnist
else
  NETWORK=bridge step mnist-download --output-dir=/data/mnist
fi
step mnist-train --data-dir=/data/mnist --model-dir=/data/mnist-model --export-dir=/data/mnist-export --epochs="${EPOCHS:-5}"
step mnist-evaluate --model=/data/mnist-export --data-dir=/data/mnist --output-dir=/data/mnist-evaluation
