# Four preference losses from one small parent, on polite against rude answers and on hh-rlhf: which pairs are told apart.
# sh benchmarks/studies/preferences.sh TEXTS: the folder of sft/ and dpo/ of docs/finetuning.md; some 40 minutes of a core
set -eu
TEXTS=${1:?the folder of the texts: sft/ and dpo/}
RUN="python -m lifecycle"
PLAIN="data.root=$TEXTS logger=csv hardware.compile=false hardware.precision=fp32 hardware.workers=0"
LOSSES="stage.loss=sigmoid,ipo,apo_zero,simpo stage.optimizer.lr=3e-4 stage.max_epochs=null"

$RUN run=base stage=pretrain stage.view=chat data=offline/sft/general '~data.sources.tools' $PLAIN \
  data.tokenizer.vocab_size=2048 model.layers=4 model.width=128 model.heads=4 model.kv_heads=2 model.head_dim=32 \
  model.ffn_width=384 stage.sequence_length=512 stage.global_batch_tokens=4096 stage.max_tokens=null \
  stage.max_steps=150 stage.optimizer.lr=3e-3 validation.every_steps=150 validation.tokens=20000
$RUN -m run=polite stage=dpo init_from=base data=offline/dpo/helpfulness $PLAIN $LOSSES \
  data.sources.manners.validation.ratio=0.3 stage.global_batch_tokens=8192 stage.max_steps=40 \
  validation.every_steps=10 validation.tokens=100000 validation.answers=40 validation.answer_tokens=48
$RUN -m run=harmless stage=dpo init_from=base data=offline/dpo/safety $PLAIN $LOSSES \
  data.sources.harmless.validation.ratio=0.3 stage.sequence_length=768 stage.global_batch_tokens=12288 \
  stage.max_steps=24 validation.every_steps=12 validation.tokens=200000
python -m lifecycle.report --compare outputs/polite/compared outputs/polite
python -m lifecycle.report --compare outputs/harmless/compared outputs/harmless
