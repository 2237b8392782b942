# Held-out bits per byte of short pre-training runs: one switch at a time, then all that pays, at two sizes.
# sh benchmarks/studies/recipe.sh TEXTS: three and a half hours of one core; every run computes in one thread
export OMP_NUM_THREADS=1
. "$(dirname "$0")/_run.sh"

[ -d outputs/recipe/tokenizer ] || $RUN run=recipe/tokenizer stage=tokenizer data=study_general
[ -d outputs/recipe/shards ] || $RUN run=recipe/shards stage=prepare data=study_general data.tokenizer=recipe/tokenizer

text() { # name, seed, tokens, and overrides
  name=$1 seed=$2 tokens=$3
  shift 3
  $RUN run=recipe/${name}_s$seed data=study_general data.tokenizer=recipe/tokenizer data.prepared=recipe/shards \
    seed=$seed "$@" stage.max_tokens=$tokens hardware.compile=false hardware.workers=0 \
    validation.tokens=65536 validation.every_steps=100000 checkpoint.every_steps=null
}
base() { # the same: Muon at the rate of the other studies, steps of 4,096 positions
  name=$1 seed=$2 tokens=$3
  shift 3
  text $name $seed $tokens stage.global_batch_tokens=4096 stage.optimizer.lr=4e-3 "$@"
}
faster() { # the same at twice the rate, which the switches are compared with
  name=$1
  shift
  base $name "$@" stage.optimizer.lr=8e-3
}

MATCHED="model.width=256 model.head_dim=64 model.ffn_width=704" # the width of nanochat's depth 4
GROWTH="stage.phases=[{at_fraction: 0.0, sequence_length: 128}, {at_fraction: 0.35, sequence_length: 256}, \
{at_fraction: 0.7, sequence_length: 512}]"
FEW=5.2e5 # tokens: an eighth of 13 minutes of a core

base rate4 1 $FEW
base rate16 1 $FEW stage.optimizer.lr=1.6e-2
base batch2048_rate4 1 $FEW stage.global_batch_tokens=2048
base zero_rate4 1 $FEW model.residual_init=zero
faster rate8 1 $FEW
faster rate8 2 $FEW
faster batch2048 1 $FEW stage.global_batch_tokens=2048
faster qk_norm 1 $FEW model.family=qwen3 model.qk_norm=true
faster zero 1 $FEW model.residual_init=zero
faster momentum 1 $FEW stage.optimizer.momentum_start=0.85
faster to_zero 1 $FEW stage.schedule.min_ratio=0
faster growing 1 $FEW "$GROWTH"
faster embedding16 1 $FEW stage.optimizer.embedding_lr=1.6e-2
faster embedding16 2 $FEW stage.optimizer.embedding_lr=1.6e-2
faster untied 1 $FEW model.tied_head=false
for rate in 32 64; do
  faster untied_growing_embedding$rate 1 $FEW model.tied_head=false "$GROWTH" stage.optimizer.embedding_lr=${rate}e-3
done
faster wsd 1 $FEW model.tied_head=false "$GROWTH" stage.optimizer.embedding_lr=3.2e-2 \
  stage.schedule.name=wsd stage.schedule.decay_fraction=0.4 stage.schedule.decay_shape=linear
faster zero_and_momentum 1 $FEW model.tied_head=false "$GROWTH" stage.optimizer.embedding_lr=3.2e-2 \
  model.residual_init=zero stage.optimizer.momentum_start=0.85
faster embedding16_long 1 1.02e6 stage.optimizer.embedding_lr=1.6e-2
faster to_zero_long 1 1.02e6 stage.optimizer.embedding_lr=1.6e-2 stage.schedule.min_ratio=0

preset() { # the same by experiment=minutes
  name=$1 seed=$2 tokens=$3
  shift 3
  text $name $seed $tokens experiment=minutes optimizer=muon "$@"
}
BATCHES="stage.phases=[{at_fraction: 0.0, sequence_length: 128, rows: 16}, {at_fraction: 0.35, sequence_length: 256}, \
{at_fraction: 0.7, sequence_length: 512}]" # 2,048 positions a step, then 4,096
preset minutes_few 1 $FEW
preset minutes_few_warm1 1 $FEW stage.schedule.warmup_fraction=0.01
preset minutes_few_warm10 1 $FEW stage.schedule.warmup_fraction=0.1
preset minutes_few_twentieth 1 $FEW stage.schedule.min_ratio=0.05
preset minutes_few_batch2048 1 $FEW stage.global_batch_tokens=2048
preset minutes_few_batches 1 $FEW "$BATCHES"

for seed in 1 2 3; do
  base tiny $seed 1.02e6
  preset minutes $seed 1.02e6
  preset minutes_whole $seed 4e6
  preset minutes_matched_whole $seed 2.75e6 $MATCHED
done
base matched 1 7.2e5 $MATCHED
preset minutes_matched 1 7.2e5 $MATCHED

BITS="python $(cd "$(dirname "$0")" && pwd)/bits_per_byte.py"
cd outputs/recipe
$BITS rate8_s? *_s?
$BITS tiny_s? minutes_s?
$BITS matched_s? minutes_matched_s?
$BITS minutes_whole_s? minutes_matched_whole_s?
