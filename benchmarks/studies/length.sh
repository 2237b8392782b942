# Rows that grow from 64 to 1,024 positions against rows of 1,024 from the start, the same tokens: perplexity and time.
. "$(dirname "$0")/_run.sh"

long() { # name, seed, and overrides
  name=$1 seed=$2
  shift 2
  $RUN run=length/${name}_s$seed data=study_general model=tiny stage.optimizer.lr=4e-3 seed=$seed stage.max_tokens=3e5 \
    stage.global_batch_tokens=4096 stage.sequence_length=1024 \
    validation.every_steps=73 validation.tokens=16384 checkpoint.every_steps=73 "$@"
}

GROWTH="{at_fraction: 0.0, sequence_length: 64}, {at_fraction: 0.2, sequence_length: 128}"
GROWTH="$GROWTH, {at_fraction: 0.4, sequence_length: 256}, {at_fraction: 0.6, sequence_length: 512}"
GROWTH="$GROWTH, {at_fraction: 0.8, sequence_length: 1024}"

for seed in 1 2 3; do
  long whole $seed
  long growing $seed "stage.phases=[$GROWTH]"
done
python -m lifecycle.report --compare outputs/length/compared outputs/length/whole_s? outputs/length/growing_s?
