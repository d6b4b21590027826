"""The server: models behind an interface that OpenAI's clients speak, and documents that are read once (docs/serve.md).

Nothing is imported here, so that the process that opens uploaded files (`documents/extract.py`) starts without torch.
"""
