# One student on text alone, and taught by a larger model off and on its own answers; the same steps, three seeds each.
# sh benchmarks/studies/distillation.sh: it needs no texts, since Python's questions are made when they are read.
set -eu
HERE=$(dirname "$0")
RUN="python -m lifecycle data=offline/questions logger=csv hardware.compile=false validation.answers=null \
  stage.view=chat stage.global_batch_tokens=4096 stage.sequence_length=256 validation.tokens=16384"
SMALL="model=tiny model.layers=2 model.width=64 model.heads=2 model.kv_heads=1 model.head_dim=32 model.ffn_width=192"

taught() { # name, seed, and overrides: 100 steps from a student that has learnt to answer
  name=$1 seed=$2
  shift 2
  $RUN run=distillation/${name}_s$seed stage=distill init_from=distillation/begun_s$seed stage.teacher=distillation/teacher \
    seed=$seed optimizer=adamw stage.optimizer.lr=2e-3 stage.max_steps=100 \
    validation.every_steps=50 checkpoint.every_steps=100 "$@"
}

OWN="share: 1.0, max_new_tokens: 32, temperature: 1.0, slots: 64"
# 2.0M parameters, 160,000 trained tokens: 5 passes
$RUN run=distillation/teacher stage=pretrain model=tiny optimizer=muon stage.optimizer.lr=4e-3 stage.max_steps=200 \
  validation.every_steps=50 checkpoint.every_steps=100
for seed in 1 2 3; do
  # 0.1M parameters, 48,000 trained tokens
  $RUN run=distillation/begun_s$seed stage=pretrain $SMALL data.tokenizer=distillation/teacher seed=$seed optimizer=muon \
    stage.optimizer.lr=4e-3 stage.max_steps=60 validation.every_steps=60 checkpoint.every_steps=60
  taught text $seed stage.cross_entropy=1
  taught forward $seed
  taught own $seed stage.divergence.beta=1 "stage.on_policy={form: supervised, $OWN}"
  taught gradient $seed "stage.on_policy={form: policy_gradient, $OWN}"
done
python "$HERE/judged.py" outputs/distillation/teacher outputs/distillation/begun_s? outputs/distillation/text_s? \
  outputs/distillation/forward_s? outputs/distillation/own_s? outputs/distillation/gradient_s?
