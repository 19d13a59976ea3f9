#!/usr/bin/env bash
# All tables of the paper, one sweep after another, then the report. What is finished is not run again: stop it and start it
# as you like.
#
#   scripts/reproduce.sh                 Tables 1-9 on 4 GPUs: PASCAL-5i and COCO-20i (prepared data, see README.md)
#   scripts/reproduce.sh shapes          Tables 4-9 and the four folds on the embedded data, on a CPU
#
# More words go to every sweep:  scripts/reproduce.sh shapes optim.max_steps=100      PYTHON=… chooses the interpreter.
set -euo pipefail

scale=paper
if [[ ${1-} == shapes || ${1-} == paper ]]; then scale=$1; shift; fi
output=${HDMNET_OUTPUT:-outputs}
python=${PYTHON:-python}
failed=()

# A failed job does not stop the others, nor a sweep the next one.
sweep() {
  echo "== sweep=$*"
  "$python" -m hdmnet.train "sweep=$@" || failed+=("$1")
}

if [[ $scale == shapes ]]; then
  datasets=(shapes)
  for table in table4 table5 table6 table7 table8 table9 folds; do sweep "$table" "$@"; done
else
  datasets=(coco pascal)
  four_gpus=(trainer=ddp trainer.devices=4) # the released batch sizes are per GPU, of four
  # The paper's ablations are on COCO-20i, ResNet-50, 1-shot; Table 3 is in the results of Table 1.
  for table in table1 table2; do sweep "$table" "${four_gpus[@]}" "$@"; done
  for table in table4 table5 table6 table7 table8 table9; do
    sweep "$table" dataset=coco fold=0,1,2,3 "${four_gpus[@]}" "$@"
  done
fi

runs=()
for dataset in "${datasets[@]}"; do runs+=("$output/$dataset/multirun"); done
"$python" -m hdmnet.report "${runs[@]}" --out "$output/report_$scale"

if ((${#failed[@]})); then
  echo "error: jobs of these sweeps failed: ${failed[*]}; start the script again to run them once more" >&2
  exit 1
fi
