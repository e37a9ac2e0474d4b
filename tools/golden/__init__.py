"""What tools/make_golden.py is made of: the families' cases, how checkpoints and tokenizers are written, and
the answers of the libraries that the C++ is measured by."""
