"""What a chat model is: renderer, tokenizer, files and weights."""
