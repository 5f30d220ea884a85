"""Encoder, decoder, tokenizer and image processor become one stock checkpoint."""
