"""Models of Hugging Face: loaded, sharded, with their loss, and exported."""
