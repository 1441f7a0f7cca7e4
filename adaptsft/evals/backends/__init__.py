"""What answers prompts: a model of Hugging Face, vLLM, a server, or a file of recorded outputs."""
