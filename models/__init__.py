"""Reference models on the public names of vqkernels; ``python -m models.train_tokenizer`` from a checkout."""
