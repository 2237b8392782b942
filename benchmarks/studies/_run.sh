# What the studies share: sh benchmarks/studies/NAME.sh TEXTS. Results go to outputs/, a run that is finished is left alone.
set -eu
TEXTS=${1:?the folder of the texts: pretrain/, midtrain/ and math/ of docs/studies.md}
RUN="python -m lifecycle --config-dir $(dirname "$0") data.root=$TEXTS optimizer=muon logger=csv"
SMALL="stage.global_batch_tokens=4096 stage.sequence_length=256"

parent() { # 2.4M parameters, 1.6M tokens of humanities and novels: six minutes of two cores
  $RUN run=parent data=study_general model=tiny stage.optimizer.lr=4e-3 stage.max_tokens=1.6e6 $SMALL \
    validation.every_steps=50 validation.tokens=16384
}
