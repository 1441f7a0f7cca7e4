"""Tasks that lm-eval (EleutherAI's evaluation harness) defines, answered by any of our backends.

Prompts, few-shot examples, extraction and metrics are lm-eval's; models, resumable answers and the
split over ranks are ours. Data comes from the hub by name, or from `data_dir`/ORGANISATION/NAME, a
copy of the hub's folder (`hf download NAME --repo-type dataset --local-dir data_dir/NAME`); then
nothing is fetched. A task of your own is the path of an lm-eval YAML file, its data where that
file names it.
"""
