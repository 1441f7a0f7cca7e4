"""The lab on a real pretrained model, made from packages alone (configs/lab/smollm2.yaml)."""
