# Word problems from short to long against the same problems shuffled; perplexity on short and long held-out ones.
. "$(dirname "$0")/_run.sh"

problems() { # name, seed, and overrides
  name=$1 seed=$2
  shift 2
  $RUN run=difficulty/${name}_s$seed stage=midtrain init_from=parent data=study_problems seed=$seed \
    stage.peak_ratio=0.3 stage.replay.share=0.1 stage.max_tokens=2.5e5 $SMALL \
    validation.every_steps=20 validation.tokens=16384 checkpoint.every_steps=40 "$@"
}

parent
for seed in 1 2 3; do
  problems shuffled $seed
  problems easy_first $seed curriculum=math data.curriculum.by=length data.curriculum.scale=quantile
done
python -m lifecycle.report --compare outputs/difficulty/compared outputs/difficulty/shuffled_s? outputs/difficulty/easy_first_s?
