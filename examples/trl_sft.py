"""TRL's SFTTrainer with the adaptive objective, on GSM8K.

python examples/trl_sft.py MODEL [DATA.jsonl]
"""

import sys
from pathlib import Path

import torch
from datasets import load_dataset
from trl import SFTConfig

from adaptsft.integrations.trl import AdaptiveSFTTrainer

name, *files = sys.argv[1:]
source = (
    {"path": "json", "data_files": files} if files else {"path": "openai/gsm8k", "name": "main"}
)
rows = load_dataset(**source, split="train")
rows = rows.rename_columns({"question": "prompt", "answer": "completion"})
cpu = not torch.cuda.is_available()
config = SFTConfig("runs/trl", save_steps=100, logging_steps=10, learning_rate=1e-5, use_cpu=cpu)
trainer = AdaptiveSFTTrainer(name, config, train_dataset=rows, objective="auto")
trainer.train(resume_from_checkpoint=any(Path("runs/trl").glob("checkpoint-*")))
