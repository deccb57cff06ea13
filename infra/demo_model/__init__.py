"""The demo model: corpus, tokenizer, weights and GGUF made from nothing by `python -m infra.demo_model`.

Nothing of the product imports this folder; it needs the packages of its own requirements.txt.
"""
