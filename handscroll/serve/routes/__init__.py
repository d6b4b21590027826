"""The endpoints, one file a group. Each names its policy (`policy.py`)."""
