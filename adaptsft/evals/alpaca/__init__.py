"""AlpacaEval 2: judging answers against those of a reference model, and win rates."""
