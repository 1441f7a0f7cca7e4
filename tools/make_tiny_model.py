"""Make a tiny random model with a tokenizer trained on your data: for a dry run of a config,
without a download.

python tools/make_tiny_model.py --arch qwen2 --data train.jsonl --out runs/tiny
"""

import argparse
import sys

from transformers import AutoModelForCausalLM

from adaptsft.errors import UserError
from adaptsft.model.tiny import ARCHITECTURES, CHATML, bpe_tokenizer, make_tiny_model, texts_of


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--arch", choices=ARCHITECTURES, default="llama", help="architecture (default: llama)"
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help="jsonl file; the tokenizer is trained on all its strings",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--vocab-size", type=int, default=2048, help="entries of the tokenizer (default: 2048)"
    )
    parser.add_argument("--hidden", type=int, default=64, help="hidden size (default: 64)")
    parser.add_argument("--layers", type=int, default=2, help="decoder blocks (default: 2)")
    parser.add_argument(
        "--heads",
        type=int,
        default=4,
        help="attention heads; half as many key-value heads (default: 4)",
    )
    parser.add_argument(
        "--tied",
        action=argparse.BooleanOptionalAction,
        help="share embedding and head (default: as the architecture does)",
    )
    parser.add_argument(
        "--chat-template",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ChatML template (default: yes)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (default: 0)")
    args = parser.parse_args()
    try:
        tokenizer = bpe_tokenizer(
            texts_of(args.data), args.vocab_size, CHATML if args.chat_template else None
        )
        folder = make_tiny_model(
            args.out,
            args.arch,
            tokenizer=tokenizer,
            hidden=args.hidden,
            layers=args.layers,
            heads=args.heads,
            tied=args.tied,
            seed=args.seed,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    parameters = AutoModelForCausalLM.from_pretrained(folder).num_parameters()
    print(f"{folder}: {args.arch}, {parameters:,} parameters, vocabulary of {len(tokenizer):,}")


if __name__ == "__main__":
    main()
