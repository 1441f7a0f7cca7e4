"""Data: records of any usual layout -> token ids and loss masks, cached; and the batches of every step, as a pure function of the step."""

from adaptsft.data.chat import Template
from adaptsft.data.collate import Batch, collate, eval_batches
from adaptsft.data.plan import BatchPlan
from adaptsft.data.tokenized import TokenizedData, open_data

__all__ = ["Batch", "BatchPlan", "Template", "TokenizedData", "collate", "eval_batches", "open_data"]
