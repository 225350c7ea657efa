#!/usr/bin/env bash
# From a teacher to weights. (The default weights had no teacher, see docs/weights.md.)
#
#   python examples/fetch_her2st.py her2st
#   examples/train_her2st.sh her2st runs/her2st --folds B4 C6
#
# 1. Frozen networks of timm, TEACHER, are distilled into the backbone from the pictures of the sections TISSUE, which are
#    no fold's test. Under two hours on one CPU core. Without TEACHER, EfficientNet-Lite1 and Lite2 (Apache-2.0) out of
#    packages of the Python index. A better one, and more tissue:
#      TEACHER=hf-hub:MahmoodLab/UNI2-h TISSUE="A1 A2 D1 E1 F1" examples/train_her2st.sh her2st runs/uni --folds ...
#    What the weights then state of licence and origin is yours to give, by --metadata.
# 2. For each fold a head is fitted to the other sections in closed form, and at last to all sections. Minutes, for the
#    features of the sections are computed once.
#
# Whatever follows the two folders goes to `tcgn crossval` (`--tune probe+all` goes on from the head by gradient); --folds
# names sections that are not in TISSUE, for others are refused: the backbone has seen their pictures. Run it again to
# continue where it was interrupted. The weights are in OUT/final, and
# state the metrics of the cross-validation; OUT/backbone is the start.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
data=$1 out=$2
shift 2
read -r -a tissue <<< "${TISSUE:-C2 C3 C4 C5}"
mkdir -p "$out"
of_backbone=() of_weights=()
if [ -z "${TEACHER:-}" ]; then
  for name in tf_efficientnet_lite1 tf_efficientnet_lite2; do
    [ -e "$out/teachers/$name/model.safetensors" ] || python "$here/../benchmarks/teachers.py" "$out/teachers" --only $name
    TEACHER="${TEACHER:-} local-dir:$out/teachers/$name"
  done
  # of another teacher, licence and origin are another's to state
  of_backbone=(--metadata "$here/he_distilled_metadata.json") of_weights=(--metadata "$here/her2st_metadata.json")
fi
read -r -a teachers <<< "$TEACHER"
[ -e "$out/backbone/metrics.json" ] || tcgn pretrain "$data" -o "$out/backbone" --sections "${tissue[@]}" \
  --teacher "${teachers[@]}" --crops 7168 --epochs 4 "${of_backbone[@]}" --resume
tcgn crossval "$data" -o "$out" --by section --genes her2st_785 --weights "$out/backbone" --tune probe \
  --components 10 --residuals 0.5 --final --resume "${of_weights[@]}" "$@"
