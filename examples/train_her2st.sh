#!/usr/bin/env bash
# Train on her2st from scratch, each section held out once, then on all of them: how the default weights are made.
#
#   git clone https://github.com/almaan/her2st
#   examples/train_her2st.sh her2st runs/her2st                    # all 36 sections; hours on a GPU
#   examples/train_her2st.sh her2st runs/b4 --folds B4 C6          # only these folds
#
# Whatever follows the two folders goes to `tcgn crossval`. Run it again to continue where it was interrupted. The images
# of the data set are in an archive of their own, see its README. The weights are in OUT/final, and state the metrics
# of the cross-validation.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
data=$1 out=$2
shift 2
tcgn crossval "$data" -o "$out" --by section --genes her2st_785 --weights scratch --final --resume \
  --metadata "$here/her2st_metadata.json" "$@"
