"""T5 and Switch Transformers in Hugging Face's folders, read and written without PyTorch."""
