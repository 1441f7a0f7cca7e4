"""What every run of the tests would do again, done once in the server that they are forked from."""

import atexit
import gc

import transformers.generation.utils
import transformers.models.llama.modeling_llama
import transformers.models.qwen2.modeling_qwen2  # noqa: F401
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

get_checkpoint_conversion_mapping("llama")  # compiles all its patterns and keeps them
gc.collect()
gc.freeze()  # no collection of a run looks at what has been imported, nor copies its pages
atexit.register(gc.unfreeze)  # what is frozen when Python ends is reported as leaked
