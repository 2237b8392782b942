# Mid-training on medicine with 0 %, 10 % and 30 % replay, and with the guard; three seeds each, the same tokens.
. "$(dirname "$0")/_run.sh"

medicine() { # name, seed, and overrides
  name=$1 seed=$2
  shift 2
  $RUN run=midtrain/${name}_s$seed stage=midtrain init_from=parent data=study_medicine seed=$seed \
    stage.peak_ratio=0.1 stage.max_tokens=2.5e5 $SMALL \
    validation.every_steps=3 validation.tokens=4096 checkpoint.every_steps=20 "$@"
}

parent
for seed in 1 2 3; do
  medicine none $seed stage.replay.share=0
  medicine tenth $seed stage.replay.share=0.1
  medicine third $seed stage.replay.share=0.3
  medicine early $seed stage.replay.share=0 'guard.actions=[replay]' guard.watch=0.02 guard.act=0.03
  medicine guarded $seed stage.replay.share=0 'guard.actions=[replay]' guard.watch=0.03 guard.act=0.05 \
    guard.replay_step=0.25 guard.replay_max=0.5
done
medicine late 1 stage.replay.share=0 'guard.actions=[replay]' # at the thresholds of conf/config.yaml
python -m lifecycle.report --compare outputs/midtrain/compared outputs/midtrain/none_s? outputs/midtrain/tenth_s? \
  outputs/midtrain/third_s? outputs/midtrain/early_s? outputs/midtrain/guarded_s? outputs/midtrain/late_s1
