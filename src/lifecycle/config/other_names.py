"""Keys as other trainers of language models call them, and what stands for them here: for a key that does not exist."""

from __future__ import annotations

OTHER_NAMES = {
    "learning_rate": "stage.optimizer.lr",
    "warmup_ratio": "stage.schedule.warmup_fraction",
    "lr_scheduler_type": "stage.schedule.name",
    "num_epochs": "stage.max_epochs",
    "num_train_epochs": "stage.max_epochs",
    "max_seq_length": "stage.sequence_length",
    "max_seq_len": "stage.sequence_length",
    "max_length": "stage.sequence_length",
    "cutoff_len": "stage.sequence_length",
    "block_size": "stage.sequence_length",
    "loss_type": "stage.loss",
    "lora_rank": "adapter.rank",
    "lora_r": "adapter.rank",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "save_steps": "checkpoint.every_steps",
    "output_dir": "run",
    "out_dir": "run",
    "model_name_or_path": "init_from",
}
"""By the name in TRL, transformers, LitGPT, nanoGPT or LLaMA-Factory: the key here, which has the same meaning."""

OTHER_WAYS = {
    "batch_size": "stage.global_batch_tokens, in tokens: sequences of a step times stage.sequence_length",
    "global_batch_size": "stage.global_batch_tokens, in tokens: sequences of a step times stage.sequence_length",
    "micro_batch_size": "hardware.micro_batch_tokens, in tokens",
    "per_device_train_batch_size": "hardware.micro_batch_tokens, in tokens (a step has stage.global_batch_tokens)",
    "gradient_accumulation_steps": "what follows from stage.global_batch_tokens and hardware.micro_batch_tokens",
    "lora": "a choice: adapter=lora",
    "use_lora": "a choice: adapter=lora",
    "use_peft": "a choice: adapter=lora",
    "qlora": "a choice: adapter=qlora",
    "report_to": "a choice: logger=csv, logger=tensorboard or logger=wandb",
    "dataset": "data=files data.sources.mine.path=FILES",
    "dataset_name": "data=files data.sources.mine.hub=OWNER/NAME",
}
"""By the same names: what is counted or chosen in another way here."""
